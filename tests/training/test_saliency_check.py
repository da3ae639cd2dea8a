import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from space.predictor import Predictor
from training import saliency_check
from training.saliency_check import check_saliency

SIDE = 64


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Dim pictures, every other one with a bright spot somewhere, and a mask of the spot."""
    folder, rng, rows = tmp_path_factory.mktemp("spots"), np.random.default_rng(0), []
    for number in range(40):
        picture, mask = rng.integers(0, 40, (SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        if number % 2:
            row, column = rng.integers(4, 44, 2)
            mask[row : row + 16, column : column + 16] = 255
            picture[mask > 0] += 200
            Image.fromarray(mask).save(folder / f"{number}-mask.png")
        Image.fromarray(picture).save(folder / f"{number}.png")
        rows.append(
            {"image": str(folder / f"{number}.png"), "label": number % 2, "group": f"p{number}",
             "mask": str(folder / f"{number}-mask.png") if number % 2 else ""}
        )  # fmt: skip
    names = ClassLabel(names=["normal", "sick"])
    features = Features({"image": ImageFeature(), "label": names, "group": Value("string"), "mask": Value("string")})
    return Dataset.from_list(rows, features=features)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """A network made by hand that calls bright spots sick."""
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8, num_labels=2,
                          id2label={0: "normal", 1: "sick"}, label2id={"normal": 0, "sick": 1})  # fmt: skip
    model = ResNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    with torch.no_grad():
        model.classifier[1].weight.copy_(torch.tensor([[-1.5], [1.5]]).expand(2, 8))
        model.classifier[1].bias.copy_(torch.tensor([5.0, -5.0]))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    ).save_pretrained(folder)
    return Predictor(folder)


def told_of(predictor, rows):
    """What `measure.predict_rows` would say."""
    labels = np.array(["normal", "sick"])[np.asarray(rows["label"])]
    return pd.DataFrame({"label": labels, "prediction": labels, "group": list(rows["group"])})


def test_maps_that_point_to_the_spot_pass_every_test_of_place_and_of_deletion(predictor, spots):
    result = check_saliency(predictor, spots, told_of(predictor, spots), "cam")
    assert result["images"] == 12
    place = result["place"]
    assert place["images"] == 20
    assert place["mask_share"] == 1 / 16
    assert place["pointing_game"] >= 0.95 > 0.6 > place["pointing_game_by_chance"] > 0.3  # of 15 pixels around as well
    assert place["energy_inside"] > 2 * place["mask_share"]
    low, high = place["ci95"]["energy_inside"]
    assert low <= place["energy_inside"] <= high
    assert place["passed"]
    for test, sign in (("deletion", 1), ("insertion", -1)):
        told = result[test]
        assert sign * (told["random"] - told["map"]) == pytest.approx(told["better_than_random"])
        assert told["ci95"][0] > 0
        assert told["passed"]


def test_a_map_that_does_not_depend_on_the_weights_fails(predictor, spots):
    """With a network whose weights stay what they are, maps stay too, as those of guided backpropagation do."""
    stubborn = copy.deepcopy(predictor)
    for module in stubborn.model.modules():
        module.reset_parameters = lambda: None
    result = check_saliency(stubborn, spots, told_of(predictor, spots), "cam")
    assert result["weights"]["rank_correlation"] == pytest.approx(1.0)
    assert not result["weights"]["passed"]
    assert not result["passed"]


def test_a_mask_that_is_black_all_over_shows_no_opacity(predictor, spots, tmp_path):
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "black.png")
    masks = [mask or str(tmp_path / "black.png") for mask in spots["mask"]]
    rows = spots.remove_columns("mask").add_column("mask", masks)
    told = [check_saliency(predictor, each, told_of(predictor, each), "cam")["place"] for each in (spots, rows)]
    assert told[0] == told[1]


def test_a_mask_of_numbers_shows_what_one_in_black_and_white_does(predictor, spots, tmp_path):
    masks = [mask and str(tmp_path / Path(mask).name) for mask in spots["mask"]]
    for number, mask in zip(masks, spots["mask"], strict=True):
        if mask:
            Image.open(mask).point(lambda grey: grey // 255 * 2).save(number)
    rows = spots.remove_columns("mask").add_column("mask", masks)
    told = [check_saliency(predictor, each, told_of(predictor, each), "cam")["place"] for each in (spots, rows)]
    assert told[0] == told[1]


@pytest.mark.parametrize("images", [2, 40], ids=["of one image", "the others without a mask"])
def test_one_patient_whose_peak_is_in_the_mask_proves_nothing(predictor, spots, images):
    rows = spots.select(range(images))
    told = told_of(predictor, rows)
    told["group"] = told["group"].mask(told["label"] == "sick", "p1")
    place = check_saliency(predictor, rows, told, "cam")["place"]
    assert place["pointing_game"] == 1
    assert place["ci95"] == {"pointing_game": [pytest.approx(0.025), 1], "energy_inside": [0, 1]}
    assert not place["passed"]


def test_one_image_and_the_frames_of_one_patient_prove_nothing(predictor, spots):
    one, sick = (spots.remove_columns("mask").select(chosen) for chosen in ([1], range(1, 40, 2)))
    told = told_of(predictor, sick)
    of_all, *of_one = (
        check_saliency(predictor, rows, table, "cam")
        for rows, table in ((sick, told), (one, told[:1]), (sick, told.assign(group="p1")))
    )
    assert of_all["deletion"]["passed"]
    assert of_all["insertion"]["passed"]
    assert not any(each[test]["passed"] for each in of_one for test in ("weights", "deletion", "insertion"))


def test_the_map_that_is_tested_is_that_of_the_class_that_is_called_whatever_the_label(predictor, spots):
    rows = spots.remove_columns("mask").select(range(12))
    table = told_of(predictor, rows)
    wrong = table.assign(label=table["label"].map({"normal": "sick", "sick": "normal"}))
    assert check_saliency(predictor, rows, table, "cam") == check_saliency(predictor, rows, wrong, "cam")


@pytest.fixture
def several(predictor):
    """The same with a third class, against which speaks what speaks for sick."""
    other = copy.deepcopy(predictor)
    head = other.model.classifier[1]
    other.model.classifier[1] = torch.nn.Linear(8, 3)
    other.model.classifier[1].weight = torch.nn.Parameter(torch.cat([head.weight, -head.weight[1:]]))
    other.labels = ["normal", "sick", "other"]
    return other


def test_of_several_classes_the_map_is_that_of_the_image_s_own(several, spots):
    place = check_saliency(several, spots, told_of(several, spots), "grad_cam")["place"]
    assert place["pointing_game"] >= 0.95


def test_the_map_of_a_first_class_that_is_not_normal_is_its_own(several, spots):
    head = several.model.classifier[1]
    head.weight = torch.nn.Parameter(head.weight[[1, 2, 0]])
    several.labels = ["covid", "pneumonia", "regular"]
    table = told_of(several, spots).replace({"sick": "covid", "normal": "regular"})
    place = check_saliency(several, spots, table, "grad_cam")["place"]
    assert place["pointing_game"] >= 0.95


def test_the_map_of_a_normal_image_with_a_mask_is_that_of_the_positive_class(several, spots):
    head = several.model.classifier[1]
    head.weight = torch.nn.Parameter(head.weight[[0, 2, 1]])
    several.labels = ["normal", "other", "sick"]
    table = told_of(several, spots).replace({"sick": "normal"})
    place = check_saliency(several, spots, table, "grad_cam")["place"]
    assert place["pointing_game"] >= 0.95


def test_without_masks_nothing_is_said_of_the_place(predictor, spots):
    rows = spots.remove_columns("mask")
    assert "place" not in check_saliency(predictor, rows, told_of(predictor, rows), "occlusion")


def test_maps_that_show_nothing_pass_no_test_of_weights(predictor, spots, monkeypatch):
    monkeypatch.setattr(saliency_check, "saliency_maps", lambda model, pixels, *_: -torch.ones(len(pixels), 8, 8))
    told = check_saliency(predictor, spots, told_of(predictor, spots), "cam")["weights"]
    assert told == {"rank_correlation": None, "ci95": None, "passed": False}


def test_what_speaks_against_a_class_does_not_tell_maps_apart(predictor, spots, monkeypatch):
    """Maps that are one in what they show, and otherwise drawn anew."""
    shown = torch.linspace(-1, 1, SIDE).expand(1, SIDE, SIDE)

    def drawn(model, pixels, *_):
        return torch.where(shown > 0, shown, -torch.rand(len(pixels), SIDE, SIDE))

    monkeypatch.setattr(saliency_check, "saliency_maps", drawn)
    told = check_saliency(predictor, spots.select(range(12)), told_of(predictor, spots)[:12], "cam")["weights"]
    assert told["rank_correlation"] == pytest.approx(1)
