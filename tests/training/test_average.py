import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch.optim import swa_utils

from space.abstention import LIMIT
from space.card import Card
from space.errors import InputError
from space.predictor import Predictor
from tests.fits import distance, weights
from training import average, evaluate
from training.evaluate import select_rows
from training.measure import predict_rows
from training.sources import UNLABELLED, load_data
from training.stages import head_of


def change_split(folder, parts: dict[str, str]) -> pd.DataFrame:
    split = pd.read_csv(folder / "split.csv", dtype=str)
    split.assign(split=split["split"].map(parts)).to_csv(folder / "split.csv", index=False)
    return split


def change_recipe(folder, **settings) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | settings
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def know(folder, rows) -> None:
    """Give a network a head that tells the labelled rows apart."""
    predictor = Predictor(folder)
    rows = rows.select(np.flatnonzero(np.asarray(rows["label"]) != UNLABELLED))
    images = [image.convert("RGB") for image in rows["image"]]
    pixels = predictor.processor(images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = predictor.model.eval().base_model(pixels).pooler_output.flatten(1).numpy()
    found = LogisticRegression(C=1e4, max_iter=2000).fit(features, rows["label"])
    head, odds = head_of(predictor.model)[-1], torch.tensor([[-0.5], [0.5]])
    with torch.no_grad():
        head.weight.copy_(odds * torch.from_numpy(found.coef_))
        head.bias.copy_(odds[:, 0] * float(found.intercept_[0]))
    predictor.model.save_pretrained(folder)


@pytest.fixture
def folds(small_model, tmp_path):
    """Two folders of one recipe with the same weights and other test parts, named apart and computed in other ways."""
    one, two = (shutil.copytree(small_model, tmp_path / name) for name in ("fold-0", "fold-1"))
    change_split(two, {"test": "train", "validation": "test", "train": "validation"})
    change_recipe(two, fold=1, output_dir=str(two), seed=7)
    change_recipe(two, run_name="two", hub_model_id="user/two", bf16=True, dataloader_num_workers=3)
    return one, two


@pytest.fixture
def knowing_folds(folds, small_home):
    """The same with weights that lie near each other and tell the classes apart."""
    one, two = folds
    know(one, load_data(small_home))
    shutil.copy(one / "config.json", two)
    generator = torch.Generator().manual_seed(0)
    near = {
        name: value * (1 + 0.01 * torch.randn(value.shape, generator=generator)) if value.is_floating_point() else value
        for name, value in weights(one).items()
    }
    save_file(near, two / "model.safetensors", {"format": "pt"})
    return folds


@pytest.fixture
def without_groups(small_home, tmp_path_factory):
    """The same images, of whose patients only their names tell."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "images").symlink_to(small_home / "images")
    table = pd.read_csv(small_home / "metadata.csv", dtype=str)
    table.drop(columns="group").to_csv(folder / "metadata.csv", index=False)
    return folder


def test_the_folder_has_the_mean_weights_and_what_the_folds_were_worth(
    knowing_folds, small_home, without_groups, capsys, monkeypatch
):
    monkeypatch.setattr(swa_utils, "_get_foreach_kernels_supported_devices", lambda: ["cpu"])  # as a GPU is
    folds = knowing_folds
    mean = folds[0].parent / "mean"
    shutil.copy(folds[0] / "eval" / "test.json", folds[0] / "eval" / "folds_away.json")  # of the first fold alone
    for folder in folds:
        with open(folder / "split.csv", "a") as file:
            file.write("of_the_base.png,normal,P1,C,0a,also\n")
    before = {path: path.read_bytes() for path in folds[0].rglob("*") if path.is_file()}
    command = [*map(str, folds), "--data", str(without_groups), "--output", str(mean)]
    average.main(command)
    assert before == {path: path.read_bytes() for path in folds[0].rglob("*") if path.is_file()}
    assert sorted(path.name for path in mean.parent.iterdir()) == ["fold-0", "fold-1", "mean"]
    one, two, made = map(weights, (*folds, mean))
    assert distance(made, {name: (one[name].double() + two[name].double()) / 2 for name in one}) < 1e-6

    split, *of_folds = (pd.read_csv(folder / "split.csv").set_index("path")["split"] for folder in (mean, *folds))
    assert [table.pop("of_the_base.png") for table in (split, *of_folds)] == ["also"] * 3
    learned = (of_folds[0] == "train") | (of_folds[1] == "train")
    assert split.to_dict() == learned.map({True: "train", False: "validation"}).to_dict()
    judged = pd.read_csv(mean / "eval" / "folds.csv").set_index("path")["probability_sick"]
    usual = []
    for folder in folds:
        own = select_rows(load_data(small_home), folder, "test", None)
        told = predict_rows(Predictor(folder), own).set_index("path")["probability_sick"]
        assert np.allclose(judged[told.index], told, atol=2e-6)
        usual.append(LIMIT * predict_rows(Predictor(mean), own)["distance"].median())
    assert usual[0] == pytest.approx(1, abs=0.2)  # of images that the cloud was not fitted to
    assert usual[1] < 0.5
    config = json.loads((mean / "config.json").read_text())
    groups = pd.read_csv(mean / "split.csv").set_index("path").loc[judged.index, "group"].nunique()
    assert config["threshold_origin"]["data"] == f"test parts of the 2 folds, {len(judged)} images in {groups} groups"

    for file, told in ((mean / "README.md", "The mean of the weights of 2 models"), (mean / "report.html", "2 models")):
        assert told in file.read_text()
        assert "that was not trained on its patient" in file.read_text()
    assert [(each.name, each.at_home) for each in Card(mean).figures()] == [("folds", True)]
    evaluate.main([str(mean), "--data", str(small_home), "--name", "again"])
    told = pd.read_csv(mean / "eval" / "again.csv")
    assert f"{learned.sum()} of these {len(told)} images were trained on" in capsys.readouterr().out
    with pytest.raises(InputError, match="mean exists; choose another --output"):
        average.main(command)


def of_another_recipe(folder):
    change_recipe(folder, image_size=32)


def of_the_same_fold(folder):
    change_split(folder, {"train": "train", "validation": "validation", "test": "train"})
    change_split(folder, {"train": "test", "validation": "validation"})


def from_another_start(folder):
    """The same answers from other weights: the channels of the last stage in another order."""
    state = weights(folder)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    for name, value in state.items():
        if re.search(r"stages\.2\.layers\.0\.(shortcut|layer\.1)\.", name) and value.ndim:
            state[name] = value[order].contiguous()
    state["classifier.1.weight"] = state["classifier.1.weight"][:, order].contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def no_model(folder):
    (folder / "split.csv").unlink()


def expect_refusal(folds, data, message):
    there = sorted(folds[0].parent.iterdir())
    with pytest.raises(InputError, match=message):
        average.main([*map(str, folds), "--data", str(data), "--output", str(folds[0].parent / "mean")])
    assert sorted(folds[0].parent.iterdir()) == there


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_another_recipe, "fold-1: found image_size: 32 where .*fold-0 has 64; expected folds of one recipe"),
        (of_the_same_fold, "images stand in the test part of two folders"),
        (no_model, r"fold-1: found no model folder \(split.csv is missing"),
        (shutil.rmtree, r"fold-1: found no model folder \(recipe.yaml is missing"),
    ],
)
def test_what_has_no_mean_is_refused_and_nothing_is_left(folds, small_home, spoil, message):
    spoil(folds[1])
    expect_refusal(folds, small_home, message)


def test_weights_that_were_not_trained_from_one_start_are_refused_and_nothing_is_left(knowing_folds, small_home):
    from_another_start(knowing_folds[1])
    message = "the mean of these weights has a loss of .*give folds that were trained from one model"
    expect_refusal(knowing_folds, small_home, message)


def test_one_folder_has_no_mean(folds, small_home):
    with pytest.raises(InputError, match="found one model folder; expected those of several folds"):
        average.main([str(folds[0]), "--data", str(small_home), "--output", str(folds[0].parent / "mean")])


def test_the_mean_is_held_against_the_networks_as_they_are_calibrated():
    truth, right = np.repeat([0, 1], 20), np.arange(40) % 5 > 0
    fair = np.where(right, 1.4, -1.4)[:, None] * (np.eye(2)[truth] - 0.5)
    told = {"method": "temperature", "scale": [0.1, 0.1], "shift": [0.0, 0.0], "reason": ""}
    predictor = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(calibration=told)))
    average._require_as_good(predictor, truth, fair, 10 * fair)
    with pytest.raises(InputError, match=r"a loss of 0\.693 on .* where the networks have 0\.500 on others"):
        average._require_as_good(predictor, truth, np.zeros((40, 2)), 10 * fair)
