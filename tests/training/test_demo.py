import csv
import json
import re
import shutil

from PIL import Image
from transformers import pipeline

from training.demo import make_phantom_model
from training.sources import phantom_folder, phantom_version


def evaluation(folder, name):
    return json.loads((folder / "eval" / f"{name}.json").read_text())


def test_the_demo_prints_the_tables_of_the_study(demo):
    for pattern in (
        r"before balancing +364 +351",
        r"after balancing +350 +350",
        r"train +224 +224",
        r"validation +70 +70",
        r"test +56 +56",
        r"audit: 0 pairs of exact",
        r"no leak between parts",
        r"the wanted shares are met to less than one image",
        r"external +112 +112",
        r"epoch +train_loss +val_loss +val_accuracy +val_auc",
        r"test: 112 images",
        r"external: 224 images",
        r"true sick +\d+ +\d+",
        r"precision +recall +f1-score +support",
        r"50 images: ",
    ):
        printed = demo.output + (demo.folder / "errors.txt").read_text()
        assert re.search(pattern, printed), pattern
    unknown = demo.output.partition("unknown images")[2]
    assert len(re.findall(r"images/A\d{4}-\d\.png +A\d{4} +(?:normal|sick)", unknown)) == 10


def test_the_model_is_good_at_home_and_falls_away(demo_model):
    home, away = evaluation(demo_model, "test"), evaluation(demo_model, "external")
    assert (home["n"], away["n"]) == (112, 224)
    assert home["roc_auc"] >= 0.97
    assert home["accuracy"] - away["accuracy"] > 0.1
    assert away["sites"] == ["B"]


def test_it_is_known_which_phantom_the_model_was_made_of(demo_model):
    assert evaluation(demo_model, "training")["phantom"] == phantom_version()


def test_the_unknown_images_are_all_diagnosed(demo_model):
    with open(demo_model / "eval" / "unknown.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert {row["prediction"] for row in rows} == {"normal", "sick"}


def test_what_was_stopped_after_training_goes_on_with_the_unknown_images(demo_model, tmp_path):
    model = shutil.copytree(demo_model, tmp_path / "model")
    (model / "eval" / "unknown.csv").unlink()
    make_phantom_model(model)
    for name in ("model.safetensors", "eval/unknown.csv"):
        assert (model / name).read_bytes() == (demo_model / name).read_bytes()


def test_a_clean_pipeline_gives_the_probabilities_of_the_evaluation(demo_model):
    classify = pipeline("image-classification", model=str(demo_model))
    with open(demo_model / "eval" / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    answers = classify([Image.open(phantom_folder() / row["path"]).convert("RGB") for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        scores = {each["label"]: each["score"] for each in answer}
        assert abs(scores["sick"] - float(row["probability_sick"])) < 1e-4
