import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from space.errors import InputError
from tests.images import speckle, write_images, write_table
from training import average, evaluate

NUMBERS = ("accuracy", "balanced_accuracy", "roc_auc", "sensitivity", "specificity", "precision", "f1", "brier", "ece")
MORE = ("average_precision", "ppv", "npv", "mcc", "per_class")


@pytest.fixture
def model(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "model")


def test_the_file_holds_every_number_with_an_interval_and_the_table_a_row_for_each_image(model, small_phantom, capsys):
    evaluate.main([str(model), "--data", str(small_phantom), "--sites", "B", "--name", "site_b"])
    result = json.loads((model / "eval" / "site_b.json").read_text())
    threshold = json.loads((model / "config.json").read_text())["threshold"]
    assert (result["n"], result["labels"], result["threshold"]) == (28, ["normal", "sick"], pytest.approx(threshold))
    assert np.sum(result["confusion_matrix"]) == 28
    assert {*NUMBERS, *MORE} <= set(result)
    assert set(result["ci95"]) == {*NUMBERS, *MORE}
    for name in set(NUMBERS) - {"f1"}:
        low, high = result["ci95"][name]
        assert 0 <= low <= high <= 1
    assert result["at_half"]["threshold"] == 0.5
    assert result["cases"]["n"] == result["groups"]
    assert set(result["subgroups"]) == {"finding"}
    assert sum(part["n"] for part in result["subgroups"]["finding"].values()) == 28
    assert result["abstained"]["images"] == round(28 * result["abstained"]["share"])
    assert result["saliency"]["place"]["images"] == 14
    assert set(result["f1"]) == set(result["ci95"]["f1"]) == {"normal", "sick", "macro"}
    assert "site_b" in (model / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "macro avg" in printed
    assert "called sick" in printed
    table = pd.read_csv(model / "eval" / "site_b.csv")
    assert len(table) == result["n"]
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(result["accuracy"])
    assert ((table["probability_sick"] >= table["threshold"]) == (table["prediction"] == "sick")).all()
    assert np.allclose(table["probability_normal"] + table["probability_sick"], 1, atol=2e-6)
    assert table["group"].nunique() == result["groups"]


def test_the_test_part_again_gives_the_figures_of_training(model, small_phantom):
    before = {name: (model / "eval" / name).read_bytes() for name in ("test.json", "test.csv", "test_performance.png")}
    evaluate.main([str(model), "--data", str(small_phantom), "--split", "test", "--name", "test"])
    assert before == {name: (model / "eval" / name).read_bytes() for name in before}


def test_images_that_were_trained_on_are_counted_and_said(model, small_phantom, capsys):
    evaluate.main([str(model), "--data", str(small_phantom), "--name", "all"])
    result = json.loads((model / "eval" / "all.json").read_text())
    trained = (pd.read_csv(model / "split.csv")["split"] == "train").sum()
    assert result["seen_in_training"] == trained > 0
    assert f"warning: {trained} of these {result['n']} images were trained on" in capsys.readouterr().out
    assert f"**all: {trained} of {result['n']} images were trained on" in (model / "README.md").read_text()
    assert json.loads((model / "eval" / "external.json").read_text())["seen_in_training"] == 0


def test_images_of_one_class_are_measured_as_far_as_they_go(model, tmp_path, capsys):
    write_images(tmp_path, *(f"normal/{number}.png" for number in range(9)))
    rows = [[f"normal/{number}.png", "normal", "A"] for number in range(9)]
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "site"], *rows)
    evaluate.main([str(model), "--data", str(tmp_path), "--name", "normal"])
    result = json.loads((model / "eval" / "normal.json").read_text())
    assert result["elsewhere"] is False  # other patients, and none of another site
    assert result["roc_auc"] is None
    assert 0 <= result["specificity"] <= 1
    assert re.search(r"roc_auc +- +not defined for these images", capsys.readouterr().out)
    assert "not defined" in (model / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "x", "--sites", "Z"], "found no site Z; the sites are A, B"),
        (["--name", "../x"], "expected letters, digits"),
        (["--name", ".."], "no . or - at first"),
        (["--name", "training"], "and not audit, training or export_"),
        ([], "the following arguments are required: --name"),
        (["--name", "x", "--prevalence", "5"], "--prevalence 5.0: expected a share between 0 and 1"),
        (["--name", "x", "--folds", "MODEL"], "images stand in the test part of two folders"),
    ],
)
def test_bad_arguments_are_refused(model, small_phantom, arguments, message):
    with pytest.raises(InputError, match=message):
        arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
        evaluate.main([str(model), "--data", str(small_phantom), *arguments])


@pytest.mark.parametrize("verb", ["evaluate", "average"])
def test_other_images_of_the_same_names_are_no_part_of_the_split(model, small_phantom, tmp_path, verb):
    data, other = tmp_path / "data", shutil.copytree(model, tmp_path / "other")
    shutil.copytree(small_phantom, data, ignore=shutil.ignore_patterns("masks"))
    for number, file in enumerate((data / "images").iterdir()):
        Image.fromarray(speckle(number)).save(file)
    split = pd.read_csv(other / "split.csv", dtype=str)
    swapped = split["split"].map({"test": "train", "validation": "test", "train": "validation"})
    split.assign(split=swapped).to_csv(other / "split.csv", index=False)
    with pytest.raises(InputError, match="found other images under the names of its split.csv, images/"):
        if verb == "evaluate":
            evaluate.main([str(model), "--data", str(data), "--split", "test", "--name", "x"])
        else:
            average.main([str(model), str(other), "--data", str(data), "--output", str(tmp_path / "mean")])
    assert not (tmp_path / "mean").exists()
    assert not (model / "eval" / "x.json").exists()


def test_figures_at_a_prevalence_against_another_model_and_of_another_method(model, small_phantom, capsys):
    evaluate.main(
        [str(model), "--data", str(small_phantom), "--sites", "B", "--name", "b", "--prevalence", "0.1"]
        + ["--against", str(model), "--saliency", "grad_cam"]
    )
    result = json.loads((model / "eval" / "b.json").read_text())
    sensitivity, specificity = result["sensitivity"], result["specificity"]
    positives, alarms = 0.1 * sensitivity, 0.9 * (1 - specificity)
    if positives + alarms:
        assert result["ppv"] == pytest.approx(positives / (positives + alarms))
    assert set(result["against"]["difference"].values()) == {0.0}
    assert result["against"]["roc_auc_p"] == 1.0
    assert result["saliency"]["method"] == "grad_cam"
    printed = capsys.readouterr().out
    assert "minus model:" in printed
    assert "DeLong's test of the AUCs, over groups: p = 1" in printed


def test_of_very_many_sites_only_their_number_is_printed(model):
    result = json.loads((model / "eval" / "test.json").read_text())
    some, many = ({f"S{number:02d}": result["cases"] for number in range(count)} for count in (20, 21))
    assert evaluate.report(result | {"subgroups": {"site": some}}).count("site S") == 20
    told = evaluate.report(result | {"subgroups": {"site": many}})
    assert "site: 21 of them, in eval/test.json" in told
    assert "site S" not in told


def test_groups_are_those_of_the_file_names_where_none_are_given(model, tmp_path):
    for clip in range(12):
        for frame in range(2):
            file = tmp_path / "data" / ("normal", "sick")[clip % 2] / f"clip{clip}_frame{frame}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(speckle(2 * clip + frame)).save(file)
    evaluate.main([str(model), "--data", str(tmp_path / "data"), "--name", "clips"])
    result = json.loads((model / "eval" / "clips.json").read_text())
    assert (result["n"], result["groups"], result["cases"]["n"]) == (24, 12, 12)


def test_folds_together_judge_every_image_once(model, small_phantom, tmp_path, capsys):
    """Two folders with other test parts: the rows of each are judged by itself."""
    other = shutil.copytree(model, tmp_path / "other")
    split = pd.read_csv(other / "split.csv", dtype=str)
    swapped = split["split"].map({"test": "train", "validation": "test", "train": "validation"})
    split.assign(split=swapped).to_csv(other / "split.csv", index=False)
    evaluate.main(
        [str(model), "--data", str(small_phantom), "--name", "folds", "--folds", str(other), "--against", str(other)]
    )
    table = pd.read_csv(model / "eval" / "folds.csv")
    assert sorted(table["path"]) == sorted(split["path"][split["split"].isin({"test", "validation"})])
    result = json.loads((model / "eval" / "folds.json").read_text())
    assert (result["folds"], result["n"], result["elsewhere"]) == (2, len(table), False)
    assert set(result["against"]["difference"].values()) == {0.0}
    seen = (split["split"] == "test").sum()  # the other one was trained on these
    assert result["against"]["seen_in_training"] == seen
    assert f"other was trained on {seen} of these {len(table)} images" in capsys.readouterr().out


def test_folds_of_other_classes_or_without_a_split_are_refused_and_one_of_real_images_is_not_synthetic(
    model, small_phantom, tmp_path
):
    other = shutil.copytree(model, tmp_path / "other")
    arguments = [str(model), "--data", str(small_phantom), "--name", "folds", "--folds", str(other)]
    split = pd.read_csv(other / "split.csv", dtype=str)
    (other / "split.csv").unlink()
    with pytest.raises(InputError, match="other: found no model folder"):
        evaluate.main(arguments)
    swapped = split["split"].map({"test": "train", "validation": "test", "train": "validation"})
    split.assign(split=swapped).to_csv(other / "split.csv", index=False)
    config = json.loads((other / "config.json").read_text())
    turned = config | {"id2label": {"0": "sick", "1": "normal"}, "label2id": {"sick": 0, "normal": 1}}
    (other / "config.json").write_text(json.dumps(turned))
    for option in ("--folds", "--against"):
        arguments[-2] = option
        with pytest.raises(InputError, match="found the classes sick, normal; expected normal, sick, in that order"):
            evaluate.main(arguments)
    arguments[-2] = "--folds"
    (other / "config.json").write_text(json.dumps(config))
    data = shutil.copytree(small_phantom, tmp_path / "data")
    table = pd.read_csv(data / "metadata.csv", dtype=str, keep_default_na=False)
    real = table["file_name"].isin(split["path"][swapped == "test"])
    table.assign(synthetic=table["synthetic"].mask(real, "")).to_csv(data / "metadata.csv", index=False)
    arguments[2] = str(data)
    evaluate.main(arguments)
    assert not json.loads((model / "eval" / "folds.json").read_text())["synthetic"]


def test_a_site_that_was_left_out_is_not_home(model, small_phantom):
    split = pd.read_csv(model / "split.csv", dtype=str)
    split["site"] = np.where(split["split"] == "test", "A", "C")
    split.to_csv(model / "split.csv", index=False)
    evaluate.main([str(model), "--data", str(small_phantom), "--split", "test", "--name", "test"])
    assert json.loads((model / "eval" / "test.json").read_text())["elsewhere"]


def test_what_is_no_model_folder_is_refused(small_phantom, tmp_path):
    with pytest.raises(InputError, match="found no model folder"):
        evaluate.main([str(tmp_path), "--data", str(small_phantom), "--name", "x"])


def test_data_with_other_classes_is_refused(model, small_phantom, tmp_path):
    shutil.copytree(small_phantom / "images", tmp_path / "other" / "covid")
    with pytest.raises(InputError, match="found the classes covid; expected only normal, sick"):
        evaluate.main([str(model), "--data", str(tmp_path / "other"), "--name", "x"])
