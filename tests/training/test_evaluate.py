import json
import os
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from scipy.special import expit, logit

from space.errors import InputError
from tests.images import speckle, write_table
from training import average, evaluate, export, measure, plots
from training.calibration import Calibration
from training.evaluate import select_rows, with_pixels
from training.metric.bootstrap import calibration_error
from training.sources import load_data

LABELS = ["normal", "sick"]
NUMBERS = ("accuracy", "balanced_accuracy", "roc_auc", "sensitivity", "specificity", "precision", "f1", "brier", "ece")
MORE = ("average_precision", "ppv", "npv", "mcc", "per_class")


@pytest.fixture
def model(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "model")


@pytest.fixture
def other(small_model, tmp_path):
    """The same model with other images in its parts."""
    other = shutil.copytree(small_model, tmp_path / "other")
    split = pd.read_csv(other / "split.csv", dtype=str)
    swapped = split["split"].map({"test": "train", "validation": "test", "train": "validation"})
    split.assign(split=swapped).to_csv(other / "split.csv", index=False)
    return other


@pytest.fixture(scope="module")
def site_b(small_model, small_phantom, tmp_path_factory):
    """A model evaluated at site B with all options, and what was printed."""
    model = shutil.copytree(small_model, tmp_path_factory.mktemp("site_b") / "model")
    with redirect_stdout(StringIO()) as printed:
        evaluate.main(
            [str(model), "--data", str(small_phantom), "--sites", "B", "--name", "site_b", "--prevalence", "0.1"]
            + ["--against", str(small_model), "--saliency", "grad_cam"]
        )
    return model, json.loads((model / "eval" / "site_b.json").read_text()), printed.getvalue()


def told_of(*images: tuple[str, str, float], threshold: float = 0.5, abstained=False) -> pd.DataFrame:
    """What `measure.predict_rows` would say of images: group, label and probability of sick of each."""
    table = pd.DataFrame(images, columns=["group", "label", "probability_sick"])
    called = np.where(table["probability_sick"] >= threshold, "sick", "normal")
    other = 1 - table["probability_sick"]
    return table.assign(probability_normal=other, prediction=called, threshold=threshold, abstained=abstained)


def say_calibrated(folder):
    config = json.loads((folder / "config.json").read_text())
    told = {"method": "temperature", "scale": [1.2, 1.2], "shift": [0.0, 0.0], "reason": ""}
    (folder / "config.json").write_text(json.dumps(config | {"calibration": told}))


def test_the_file_holds_every_number_with_an_interval_and_the_table_a_row_for_each_image(site_b):
    model, result, printed = site_b
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
    assert "macro avg" in printed
    assert "called sick" in printed
    table = pd.read_csv(model / "eval" / "site_b.csv")
    assert len(table) == result["n"]
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(result["accuracy"])
    assert ((table["probability_sick"] >= table["threshold"]) == (table["prediction"] == "sick")).all()
    assert np.allclose(table["probability_normal"] + table["probability_sick"], 1, atol=2e-6)
    assert table["group"].nunique() == result["groups"]
    assert table["distance"].nunique() == 28
    assert ((table["distance"] > 1) == table["abstained"]).all()


def test_a_case_has_the_mean_of_its_images_logits_and_a_patient_of_two_labels_is_two():
    cases = measure.assess(told_of(*(("p1", "sick", score) for score in (0.9, 0.9, 0.2))), LABELS)["cases"]
    assert (cases["n"], cases["brier"]) == (1, pytest.approx((1 - expit(logit([0.9, 0.9, 0.2]).mean())) ** 2))
    both = told_of(("p1", "sick", 0.9), ("p1", "normal", 0.2), ("p1", "normal", 0.3), ("p2", "normal", 0.1))
    assert measure.assess(both, LABELS)["cases"]["confusion_matrix"] == [[2, 0], [0, 1]]


def test_the_others_are_those_that_the_model_does_not_abstain_from():
    images = [(f"p{number}", LABELS[number % 2], [0.2, 0.8][number % 2]) for number in range(4)]
    wrong = [("p4", "normal", 0.9), ("p5", "sick", 0.1)]
    told = measure.assess(told_of(*images, *wrong, abstained=[False] * 4 + [True] * 2), LABELS)["abstained"]
    assert (told["images"], told["share"]) == (2, pytest.approx(1 / 3))
    assert told["others"]["confusion_matrix"] == [[2, 0], [0, 2]]


def test_the_calibration_error_without_calibration_is_that_of_the_raw_probabilities():
    raw, labels = np.array([0.99, 0.9, 0.8, 0.3, 0.05]), ["sick", "normal", "sick", "sick", "normal"]
    images = [(f"p{number}", label, expit(logit(raw[number]) / 2)) for number, label in enumerate(labels)]
    told = measure._uncalibrated(told_of(*images), LABELS, Calibration("temperature", np.full(2, 0.5), np.zeros(2)))
    truth = np.array([LABELS.index(label) for label in labels])
    assert told["ece"] == pytest.approx(calibration_error(np.c_[1 - raw, raw], truth))


def test_another_model_is_compared_with_at_its_own_threshold():
    images = [("p1", "sick", 0.95), ("p2", "sick", 0.6), ("p3", "normal", 0.1), ("p4", "normal", 0.2)]
    mine, other = told_of(*images), told_of(*images, threshold=0.9)
    difference = measure._against(mine, other, measure.assess(mine, LABELS))["difference"]
    assert (difference["sensitivity"], difference["accuracy"], difference["roc_auc"]) == (0.5, 0.25, 0)


def test_the_test_part_again_gives_the_figures_of_training(model, small_phantom):
    before = {name: (model / "eval" / name).read_bytes() for name in ("test.json", "test.csv", "test_performance.png")}
    evaluate.main([str(model), "--data", str(small_phantom), "--split", "test", "--name", "test"])
    assert before == {name: (model / "eval" / name).read_bytes() for name in before}
    threshold = json.loads((model / "config.json").read_text())["threshold"]
    assert set(pd.read_csv(model / "eval" / "test.csv")["threshold"]) == {threshold}  # to the last digit


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_evaluation_that_is_stopped_leaves_the_one_of_its_name(model, small_phantom, monkeypatch, stopped):
    def save(file, figure):
        if file.name == "test_gallery.png":
            raise stopped
        whole(file, figure)

    before, whole = {path: path.read_bytes() for path in (model / "eval").iterdir()}, plots.save
    (model / "eval" / f".test.json.{os.getpid()}.unfinished").mkdir()  # of one that was killed
    monkeypatch.setattr(plots, "save", save)
    with pytest.raises((InputError, OSError, KeyboardInterrupt)):
        measure.measure(model, load_data(str(small_phantom)).take(8).add_column("pixels", ["0"] * 8), "test")
    assert before == {path: path.read_bytes() for path in (model / "eval").iterdir()}


def test_the_figures_of_the_test_part_are_not_replaced_by_those_of_other_images(model, small_phantom):
    with pytest.raises(InputError, match="^--name test: is that of the test part; add --split test, or choose another"):
        evaluate.main([str(model), "--data", str(small_phantom), "--name", "test"])


@pytest.mark.parametrize(("gone", "column"), [("eval/training.json", None), ("recipe.yaml", None), ("", "site")])
def test_a_model_folder_that_is_not_whole_is_refused_before_anything_is_predicted(model, small_phantom, gone, column):
    if column:
        pd.read_csv(model / "split.csv", dtype=str).drop(columns=column).to_csv(model / "split.csv", index=False)
    else:
        (model / gone).unlink()
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=f"{gone} is missing" if gone else f"it lacks {column}"):
        evaluate.main([str(model), "--data", str(small_phantom), "--name", "away"])


def test_images_that_were_trained_on_are_counted_and_said(model, small_phantom, capsys):
    evaluate.main([str(model), "--data", str(small_phantom), "--name", "all"])
    result = json.loads((model / "eval" / "all.json").read_text())
    trained = (pd.read_csv(model / "split.csv")["split"] == "train").sum()
    assert result["seen_in_training"] == trained > 0
    assert f"warning: {trained} of these {result['n']} images were trained on" in (printed := capsys.readouterr().out)
    assert "--split test" in printed
    assert f"**all: {trained} of {result['n']} images were trained on" in (model / "README.md").read_text()
    assert json.loads((model / "eval" / "external.json").read_text())["seen_in_training"] == 0


def test_images_of_the_validation_part_are_counted_and_said_and_their_figures_are_told_nowhere_else(
    model, small_phantom, capsys
):
    evaluate.main([str(model), "--data", str(small_phantom), "--split", "validation", "--name", "again"])
    result = json.loads((model / "eval" / "again.json").read_text())
    assert (result["chosen_on"], result["seen_in_training"]) == (result["n"], 0)
    card, report = ModelCard.load(model / "README.md"), (model / "report.html").read_text()
    said = "images are of the validation part"
    assert f"warning: {result['n']} of these {result['n']} {said}" in capsys.readouterr().out
    assert f"**again: {result['n']} of {result['n']} {said}" in card.text
    assert f"{result['n']} of these {said}" in report
    assert {told.dataset_split for told in card.data.eval_results} == {"test", "external"}


def test_of_one_patient_the_calibration_error_without_calibration_is_not_known_either(model, tmp_path):
    say_calibrated(model)
    names = [f"{number}.png" for number in range(4)]
    (tmp_path / "data").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(speckle(number)).save(tmp_path / "data" / name)
    write_table(
        tmp_path / "data" / "metadata.csv", ["file_name", "label", "group"], *([name, "normal", "p1"] for name in names)
    )
    evaluate.main([str(model), "--data", str(tmp_path / "data"), "--name", "one"])
    result = json.loads((model / "eval" / "one.json").read_text())
    assert result["groups"] == 1
    assert result["ci95"]["ece"] == result["uncalibrated"]["ci95"]["ece"] == [0, 1]


def test_images_of_one_class_are_measured_as_far_as_they_go_and_their_groups_are_those_of_their_names(
    model, tmp_path, capsys
):
    names = [f"normal/clip{clip}_frame{frame}.png" for clip in range(12) for frame in range(2)]
    (tmp_path / "normal").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(speckle(number)).save(tmp_path / name)
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "site"], *([name, "normal", "A"] for name in names))
    evaluate.main([str(model), "--data", str(tmp_path), "--name", "normal"])
    result = json.loads((model / "eval" / "normal.json").read_text())
    assert (result["n"], result["groups"], result["cases"]["n"]) == (24, 12, 12)
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


@pytest.mark.parametrize("verb", ["evaluate", "average", "export"])
def test_other_images_of_the_same_names_are_no_part_of_the_split(model, other, small_phantom, tmp_path, verb):
    data = tmp_path / "data"
    shutil.copytree(small_phantom, data, ignore=shutil.ignore_patterns("masks"))
    for number, file in enumerate((data / "images").iterdir()):
        Image.fromarray(speckle(number)).save(file)
    with pytest.raises(InputError, match="found other images under the names of its split.csv, images/"):
        if verb == "evaluate":
            evaluate.main([str(model), "--data", str(data), "--split", "test", "--name", "x"])
        elif verb == "average":
            average.main([str(model), str(other), "--data", str(data), "--output", str(tmp_path / "mean")])
        else:
            export.main([str(model), "--data", str(data), "--format", "onnx"])
    assert not (tmp_path / "mean").exists()
    assert not (model / "model.onnx").exists()
    assert not (model / "eval" / "x.json").exists()


@pytest.mark.parametrize("names", ["their own", "numbers"])
def test_a_part_of_which_images_lack_is_not_measured(tmp_path, names):
    for number in range(6):
        Image.fromarray(speckle(number)).save(tmp_path / f"{number}.png")
    table = [[f"{number}.png", "sick" if number % 2 else "normal", "AB"[number // 4]] for number in range(6)]
    write_table(tmp_path / "all.csv", ["path", "label", "site"], *table)
    write_table(tmp_path / "some.csv", ["path", "label", "site"], *table[:2], [table[2][0], "", "A"], *table[4:])
    columns = ["path", "label", "group", "site", "pixels"]
    split = with_pixels(load_data(tmp_path / "all.csv")).select_columns(columns).to_pandas()
    if names == "numbers":
        split["path"] = [f"image-{number}" for number in range(6)]
    split.assign(split=["test"] * 4 + ["train"] * 2).to_csv(tmp_path / "split.csv", index=False)
    every, some = (load_data(tmp_path / name) for name in ("all.csv", "some.csv"))
    assert list(select_rows(every, tmp_path, "test", None)["path"]) == [f"{number}.png" for number in range(4)]
    assert list(select_rows(some, tmp_path, "train", None)["path"]) == ["4.png", "5.png"]
    with pytest.raises(InputError, match=r"2 of the 4 images of the test part are not in DATA .*, \S*2\S* for one"):
        select_rows(some, tmp_path, "test", None)


def test_figures_at_a_prevalence_against_another_model_and_of_another_method(site_b, small_model):
    _, result, printed = site_b
    sensitivity, specificity = result["sensitivity"], result["specificity"]
    positives, alarms = 0.1 * sensitivity, 0.9 * (1 - specificity)
    if positives + alarms:
        assert result["ppv"] == pytest.approx(positives / (positives + alarms))
    assert set(result["against"]["difference"].values()) == {0.0}
    assert result["against"]["roc_auc_p"] == 1.0
    assert result["saliency"]["method"] == "grad_cam"
    assert f"minus {small_model.name}:" in printed
    assert "DeLong's test of the AUCs, over groups: p = 1" in printed


def test_of_very_many_sites_only_their_number_is_printed(model):
    result = json.loads((model / "eval" / "test.json").read_text())
    some, many = ({f"S{number:02d}": result["cases"] for number in range(count)} for count in (20, 21))
    assert evaluate.report(result | {"subgroups": {"site": some}}).count("site S") == 20
    told = evaluate.report(result | {"subgroups": {"site": many}})
    assert "site: 21 of them, in eval/test.json" in told
    assert "site S" not in told


def test_folds_together_judge_every_image_once(model, other, small_phantom, capsys):
    """Two folders with other test parts: the rows of each are judged by itself, and what it has seen is its own. Half
    of what the other one tests on the first has learned from, and only the first is at home."""
    split = pd.read_csv(model / "split.csv", dtype=str)
    learned = (split["split"] == "validation") & (split.index % 2 == 0)
    split.assign(split=split["split"].mask(learned, "train")).to_csv(model / "split.csv", index=False)
    table = pd.read_csv(other / "split.csv", dtype=str)
    table.assign(site="C").to_csv(other / "split.csv", index=False)
    say_calibrated(model)
    evaluate.main(
        [str(model), "--data", str(small_phantom), "--name", "folds", "--folds", str(other), "--against", str(other)]
    )
    table = pd.read_csv(model / "eval" / "folds.csv")
    assert sorted(table["path"]) == sorted(split["path"][split["split"].isin({"test", "validation"})])
    result = json.loads((model / "eval" / "folds.json").read_text())
    assert (result["folds"], result["n"], result["elsewhere"]) == (2, len(table), False)
    assert (result["seen_in_training"], result["chosen_on"]) == (0, 0)
    assert "uncalibrated" not in result  # for that of the first model is not that of the others
    patients = table.groupby("label")["group"].nunique()
    assert result["fewest_groups"] == patients.min() < patients.max()
    assert set(result["against"]["difference"].values()) == {0.0}
    seen = (split["split"] == "test").sum()  # the other one was trained on these
    assert result["against"]["seen_in_training"] == seen
    assert f"other was trained on {seen} of these {len(table)} images" in capsys.readouterr().out


@pytest.mark.xdist_group("hub")
def test_what_a_model_of_the_hub_was_trained_on_flatters_it_as_it_does_a_folder(hub, client, model, small_phantom):
    hub.add("model", "clinic/rival", model)
    words = ["--data", small_phantom, "--name", "rival", "--split", "train", "--against", "clinic/rival"]
    told = client.run("evaluate", model, *words)
    assert told.code == 0, told.err
    result = json.loads((model / "eval" / "rival.json").read_text())
    assert result["against"]["seen_in_training"] == result["n"]
    assert f"rival was trained on {result['n']} of these {result['n']} images" in told.out


def test_folds_of_other_classes_or_without_a_split_are_refused(model, other, small_phantom):
    config = json.loads((other / "config.json").read_text())
    turned = config | {"id2label": {"0": "sick", "1": "normal"}, "label2id": {"sick": 0, "normal": 1}}
    (other / "config.json").write_text(json.dumps(turned))
    for option in ("--folds", "--against"):
        with pytest.raises(InputError, match="found the classes sick, normal; expected normal, sick, in that order"):
            evaluate.main([str(model), "--data", str(small_phantom), "--name", "folds", option, str(other)])
    (other / "split.csv").unlink()
    with pytest.raises(InputError, match="other: found no model folder"):
        evaluate.main([str(model), "--data", str(small_phantom), "--name", "folds", "--folds", str(other)])


def test_folds_of_a_site_that_each_left_out_are_not_home_and_those_with_real_images_not_synthetic(
    model, other, small_phantom, tmp_path
):
    for folder in (model, other):
        split = pd.read_csv(folder / "split.csv", dtype=str)
        split["site"] = np.where(split["split"] == "test", "A", "C")
        split.to_csv(folder / "split.csv", index=False)
    data = shutil.copytree(small_phantom, tmp_path / "data")
    table = pd.read_csv(data / "metadata.csv", dtype=str, keep_default_na=False)
    real = table["file_name"].isin(split["path"][split["split"] == "test"])
    table.assign(synthetic=table["synthetic"].mask(real, "")).to_csv(data / "metadata.csv", index=False)
    evaluate.main([str(model), "--data", str(data), "--name", "folds", "--folds", str(other)])
    result = json.loads((model / "eval" / "folds.json").read_text())
    assert (result["elsewhere"], result["synthetic"]) == (True, False)


def test_what_is_no_model_folder_is_refused(small_phantom, tmp_path):
    with pytest.raises(InputError, match="found no model folder"):
        evaluate.main([str(tmp_path), "--data", str(small_phantom), "--name", "x"])


def test_data_with_other_classes_is_refused(model, small_phantom, tmp_path):
    shutil.copytree(small_phantom / "images", tmp_path / "other" / "covid")
    with pytest.raises(InputError, match="found the classes covid; expected only normal, sick"):
        evaluate.main([str(model), "--data", str(tmp_path / "other"), "--name", "x"])


def test_a_site_that_was_left_out_is_not_home(model, small_phantom):
    split = pd.read_csv(model / "split.csv", dtype=str)
    split["site"] = np.where(split["split"] == "test", "A", "C")
    split.to_csv(model / "split.csv", index=False)
    evaluate.main([str(model), "--data", str(small_phantom), "--split", "test", "--name", "test"])
    assert json.loads((model / "eval" / "test.json").read_text())["elsewhere"]


@pytest.mark.parametrize(
    ("images", "site", "elsewhere"),
    [
        (["aa", "cc"], "", False),
        (["cc", "dd"], "", True),
        (["cc", "dd"], "V", False),
        (["cc", "dd"], "T", True),
    ],
    ids=["one in the split", "none in the split", "site of the validation part", "site of the test part alone"],
)
def test_elsewhere_is_told_by_sites_and_without_them_by_the_images(tmp_path, images, site, elsewhere):
    rows = [["1.png", "aa", "train"], ["2.png", "bb", "validation"], ["3.png", "ee", "test"]]
    sites = ["H", "V", "T"] if site else [""] * 3
    columns = ["path", "pixels", "split", "site", "label", "group"]
    write_table(tmp_path / "split.csv", columns, *([*row, home, "", ""] for row, home in zip(rows, sites, strict=True)))
    assert measure._is_elsewhere(tmp_path, Dataset.from_dict({"pixels": images, "site": [site] * 2})) == elsewhere
