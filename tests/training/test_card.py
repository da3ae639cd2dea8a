import json
import re
import shutil

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from space.card import Card
from space.errors import InputError
from tests.fits import copy_as_mean
from training.card import write_card
from training.measure import load_metric
from training.report import write_report
from training.tables import classification_tables


def test_the_card_s_metadata_is_what_the_hub_reads(small_model):
    data = metadata_load(small_model / "README.md")
    assert data["pipeline_tag"] == "image-classification"
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert "synthetic" in data["tags"]
    assert "base_model" not in data  # a random start has none
    card = ModelCard.load(small_model / "README.md")
    for name in ("test", "external"):
        evaluation = json.loads((small_model / "eval" / f"{name}.json").read_text())
        told = {r.metric_type: r.metric_value for r in card.data.eval_results if r.dataset_split == name}
        assert told["roc_auc"] == round(evaluation["roc_auc"], 4)
        assert told["accuracy"] == round(evaluation["accuracy"], 4)
        assert told["f1"] == round(evaluation["f1"]["macro"], 4)
        intervals = {r.metric_type: r.metric_args for r in card.data.eval_results if r.dataset_split == name}
        assert intervals["roc_auc"]["ci95"] == [round(bound, 4) for bound in evaluation["ci95"]["roc_auc"]]
        assert intervals["roc_auc"]["elsewhere"] == (name == "external")
    assert data["co2_eq_emissions"]["emissions"] > 0


@pytest.mark.parametrize(
    ("base", "synthetic", "named"),
    [
        ("scratch:resnet-18", True, ("apache-2.0", None)),
        ("scratch:resnet-18", False, ("other", "that-of-the-training-data")),
        ("clinic/synthetic", True, ("apache-2.0", None)),
        ("nvidia/mit-b0", False, ("other", "that-of-the-base-and-the-training-data")),
    ],
)
def test_the_licence_is_free_where_nobody_s_work_was_learned_from_and_otherwise_names_whose_terms_hold(
    small_model, tmp_path, base, synthetic, named
):
    model = shutil.copytree(small_model, tmp_path / "m")
    told = json.loads((model / "eval" / "training.json").read_text())
    (model / "eval" / "training.json").write_text(json.dumps(told | {"synthetic": synthetic}))
    recipe = yaml.safe_load((model / "recipe.yaml").read_text())
    (model / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model_name_or_path": base}))
    write_card(model)
    card = metadata_load(model / "README.md")
    assert (card["license"], card.get("license_name")) == named


@pytest.mark.parametrize(("threshold", "told"), [(0.0003, "0.0003"), (0.99962, "0.9996"), (1.0, "1.000")])
def test_a_threshold_near_0_or_1_is_told_alike_in_card_and_report(small_model, tmp_path, threshold, told):
    model = shutil.copytree(small_model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"threshold": threshold}))
    write_card(model)
    write_report(model)
    card, report = (model / "README.md").read_text(), (model / "report.html").read_text()
    assert f"At the stored threshold {told}, with" in card
    assert f"- Threshold {told} by" in card
    assert f"when its probability is {told} or more" in card
    assert f"from a probability of {told} on" in report


@pytest.mark.parametrize(("name", "text"), [("recipe.yaml", "a: ["), ("recipe.yaml", ""), ("eval/training.json", "{")])
def test_a_file_that_cannot_be_read_is_named_and_the_card_stays(small_model, tmp_path, name, text):
    folder = shutil.copytree(small_model, tmp_path / "model")
    before = (folder / "README.md").read_bytes()
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: (no|found no) .*; mend it"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before


def test_the_card_tells_data_split_both_figures_limits_and_recipe(small_model):
    text = ModelCard.load(small_model / "README.md").text
    number = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]"
    pattern = (
        r"# small\n.*not a medical device.*synthetic.*"
        r"## Intended use\n.*Not for diagnosis.*## Figures\n.*"
        r"\| \| test \(A\) \| external \(B\) \|\n\|---\|---\|---\|\n"
        r"\| images \(groups\) \| \d+ \(\d+\) \| 28 \(\d+\) \|\n"
        rf"\| accuracy \| {number} \| {number} \|\n.*\| AUC \| {number} \| {number} \|\n.*\| F1 macro \| {number} .*"
        r"\| by patient or clip \| test \| external \|\n\|---\|---\|---\|\n"
        rf"\| accuracy \| {number} \| {number} \|.*"
        r"!\[confusion matrix, ROC and precision-recall curve of test\]\(eval/test_performance.png\).*"
        r"## Calibration, threshold, abstention\n\n- Not calibrated: .*fewer than 20\.\n"
        r"- Threshold 0\.\d+ by youden on the validation part, \d+ images in \d+ groups, "
        r"\d{4}-\d\d-\d\d, 95 % interval .*\n- It abstains .*"
        r"## Is the saliency true\?\n.*\| rank correlation .* (passed|FAILED) \| .* (passed|FAILED) \|\n.*"
        r"\| pointing game \(by chance\) \| \d\.\d\d \(\d\.\d\d\) .*"
        r"## Limits\n.*## Data\n.*\| train \| \d+ \| \d+ \| \d+ \|\n\| validation .*\n\| test .*Sites: A\. Licences: .*"
        r"### Audit\n\n0 pairs of exact.*- No leak between parts\..*"
        r"## Use\n.*## Training\n\n2 epochs, best checkpoint: epoch [12] by loss.*seed 42.*torch 2\..*split_by: group"
    )
    assert re.search(pattern, text, re.DOTALL)


def test_every_picture_in_the_card_is_in_the_folder(small_model):
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (small_model / "README.md").read_text())
    assert len(pictures) == 8
    assert all((small_model / picture).is_file() for picture in pictures)


def test_names_with_pipes_and_new_lines_break_no_table(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    audit = json.loads((model / "eval" / "audit.json").read_text())
    audit |= {"leaks": ["a <i>\ngroup"], "warnings": ["frames/<i>: groups"]}
    (model / "eval" / "audit.json").write_text(json.dumps(audit))
    for file, name in (("config.json", "id2label"), ("eval/test.json", "sites"), ("eval/test.json", "f1")):
        told = json.loads((model / file).read_text())
        if name == "id2label":
            told[name]["1"] = "a|b <i>"
        elif name == "sites":
            told[name] = ["one|two\nthree"]
        (model / file).write_text(json.dumps(told))
    for file in ("test", "external"):
        text = (model / "eval" / f"{file}.json").read_text()
        (model / "eval" / f"{file}.json").write_text(text.replace('"sick"', '"a|b <i>"'))
    write_card(model)
    text = ModelCard.load(model / "README.md").text
    assert "one\\|two three" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "<i>" not in text
    assert "- **Leak:** a &lt;i> group\n- frames/&lt;i>: groups\n" in text


def test_warnings_stand_apart_from_tables_and_promise_no_more_than_the_split(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    for name in ("test", "external"):
        told = json.loads((model / "eval" / f"{name}.json").read_text())
        told |= {"seen_in_training": 3} if name == "test" else {"folds": 2}
        (model / "eval" / f"{name}.json").write_text(json.dumps(told))
    recipe = (model / "recipe.yaml").read_text()
    (model / "recipe.yaml").write_text(recipe.replace("split_by: group", "split_by: image"))
    write_card(model)
    text = ModelCard.load(model / "README.md").text
    for warning in ("test: 3 of ", "external: each image was judged", "The split is by image"):
        assert f"\n\n**{warning}" in text
    assert "that was not trained on it, at" in text


def test_figures_on_images_that_were_trained_on_stand_in_the_text_alone_with_their_warning(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    file = model / "eval" / "external.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seen_in_training": 1}))
    write_card(model)
    card = ModelCard.load(model / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert [figures.name for figures in Card(model).figures()] == ["test"]
    assert "| | test (A) | external (B) |" in card.text
    assert "**external: 1 of 28 images were trained on" in card.text


def test_of_few_patients_card_and_report_say_that_intervals_are_too_narrow(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    for name, groups in (("test", 11), ("external", 12)):
        file = model / "eval" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fewest_groups": groups}))
    write_card(model)
    write_report(model)
    for page, groups in (("README.md", "groups"), ("report.html", "of them")):
        text = (model / page).read_text()
        assert f"Where a class has fewer than 12 {groups} (test) they are too narrow: about 8 of 10 hold" in text


def test_of_a_mean_the_card_says_whose_maps_and_abstentions_it_tells_of(small_model, tmp_path):
    model = copy_as_mean(small_model, tmp_path / "m")
    write_card(model)
    text = ModelCard.load(model / "README.md").text
    whose = "test: maps and tests are those of the first of the averaged models, on its own test part."
    assert f"## Is the saliency true?\n\n{whose}\n\n| test | test | external |" in text
    assert "external: maps and tests" not in text
    assert re.search(r"\d+ of \d+ \(test, each by the model that judged it\), \d+ of \d+ \(external\)\.", text)
    assert "![images of test and where the first of the averaged models looked](eval/test_gallery.png)" in text
    assert "![images of external and where the model looked](eval/external_gallery.png)" in text


def test_the_example_of_its_use_loads_the_folder_where_it_lies_and_the_code_that_is_in_it(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    recipe = yaml.safe_load((model / "recipe.yaml").read_text())
    use = 'pipeline("image-classification", model="{}"{})'
    assert use.format(recipe["output_dir"], "") in (model / "README.md").read_text()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "mlp_head.MlpHeadConfig"}}))
    write_card(model, model)
    assert use.format(model, ", trust_remote_code=True") in (model / "README.md").read_text()


def test_figures_of_sites_are_in_the_card_and_where_there_are_too_many_it_and_the_report_say_where(
    small_model, tmp_path
):
    model = shutil.copytree(small_model, tmp_path / "m")
    told = json.loads((model / "eval" / "test.json").read_text())
    sites = {"St. A": told | {"accuracy": 0.123}, "B|C": told | {"accuracy": 0.456}}
    probes = {f"probe {number:02d}": told for number in range(21)}
    (model / "eval" / "test.json").write_text(json.dumps(told | {"subgroups": {"site": sites, "probe": probes}}))
    write_card(model)
    write_report(model)
    text = (model / "README.md").read_text()
    assert "\n| site (test) | images | accuracy | AUC | sensitivity | specificity |\n" in text
    assert f"\n| St. A | {told['n']} | 0.123 [" in text
    assert f"\n| B\\|C | {told['n']} | 0.456 [" in text
    for page in (text, (model / "report.html").read_text()):
        assert "probe: 21 of them, in eval/test.json" in page
        assert "probe 20" not in page


def test_of_three_classes_card_and_report_say_of_which_a_figure_is(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "normal", "1": "bacterial", "2": "viral"}
    (model / "config.json").write_text(json.dumps(config))
    told = json.loads((model / "eval" / "test.json").read_text())
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 30)
    numbers = load_metric().compute(
        predictions=probabilities, references=np.arange(30) % 3, labels=["normal", "bacterial", "viral"]
    )
    (model / "eval" / "external.json").unlink()
    (model / "eval" / "test.json").write_text(json.dumps(told | {"subgroups": {}, "cases": numbers} | numbers))
    write_card(model)
    write_report(model)
    card = ModelCard.load(model / "README.md")
    for text in (card.text, (model / "report.html").read_text()):
        for title in ("sensitivity (viral)", "negative predictive value (viral)", "AUC (class mean)"):
            assert title in text
    assert "specificity (viral)" in {each.metric_name for each in card.data.eval_results}
    assert "npv (viral)" in classification_tables(numbers)
