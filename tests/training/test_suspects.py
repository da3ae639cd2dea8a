import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.images import speckle
from training.fingerprint import LEVELS, SIDE, Fingerprints, take_fingerprints
from training.sources import load_data
from training.suspects import contradicting_names, doubtful_labels, odd_images


def test_tiny_blank_and_unlike_files_are_named(tmp_path):
    (tmp_path / "sick").mkdir()
    for number in range(20):
        Image.fromarray(speckle(number)).save(tmp_path / "sick" / f"{number:02}.png")
    Image.fromarray(speckle(20)).resize((50, 40)).save(tmp_path / "sick" / "20.png")
    Image.new("L", (160, 120), 128).save(tmp_path / "sick" / "21.png")
    colours = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "sick" / "22.png")
    odd = odd_images(take_fingerprints(load_data(tmp_path)).facts)
    assert dict(zip(odd["index"], odd["problem"], strict=True)) == {20: "tiny", 21: "blank", 22: "unlike"}


@pytest.mark.parametrize(
    ("path", "label", "contradicts"),
    [
        ("sick_12.png", "normal", True),
        ("covid/img_3.png", "normal", True),
        ("patient_normal_3.png", "sick", True),
        ("normal_3.png", "normal", False),
        ("abnormal_3.png", "sick", False),
        ("abnormal_3.png", "normal", True),
        ("img_3.png", "normal", False),
        ("normal/sick_3.png", "sick", False),  # says both
        ("sickle.png", "normal", False),
        ("sick_3.png", "", False),
        ("normal/covid_17.png", "normal", True),  # its own word is that of the class folder alone
        ("train/sick/healthy/9.png", "sick", True),
        ("normal/normal_9.png", "normal", False),
        ("non-covid/Non-Covid (1).png", "non-covid", False),  # is called as its class is
    ],
)
def test_names_that_contradict_the_label(path, label, contradicts):
    paths, labels = [path, "a.png", "b.png"], [label, "normal", "sick"]
    assert contradicting_names(paths, labels) == ([0] if contradicts else [])


def test_a_folder_of_all_images_contradicts_nobody():
    paths = [f"covid_study/{number}.png" for number in range(6)]
    assert contradicting_names(paths, ["normal", "sick"] * 3) == []


@pytest.fixture
def striped(tmp_path):
    """120 images of 40 patients: vertical stripes when sick, horizontal ones when normal."""
    for patient in range(40):
        label = ("normal", "sick")[patient % 2]
        folder = tmp_path / label / f"p{patient:02}"
        folder.mkdir(parents=True)
        for frame in range(3):
            stripes = np.sin(np.arange(128) / (3 + patient % 5) + frame)[None, :] * np.ones((128, 1))
            stripes = stripes if label == "sick" else stripes.T
            image = speckle(patient * 3 + frame, 128, 128) * 0.5 + 60 + stripes * 50
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{frame}.png")
    rows = load_data(tmp_path)
    return take_fingerprints(rows), np.asarray(rows["label"]), np.asarray(rows["group"])


def test_swapped_labels_are_doubted_and_others_are_not(striped):
    prints, labels, groups = striped
    swapped = [5, 40, 77, 111]
    labels[swapped] = 1 - labels[swapped]
    found, own, auc = doubtful_labels(prints, np.arange(120), labels, groups)
    assert set(found) == set(swapped)
    assert (own < 0.1).all()
    assert (np.diff(own) >= 0).all()
    assert auc > 0.9


def test_right_labels_of_a_rare_class_are_not_doubted_for_being_rare():
    """300 normal and 20 sick images whose stripes are of overlapping strengths."""
    rng, labels = np.random.default_rng(2), np.repeat([0, 1], [300, 20])
    strength = rng.normal(3 * labels, 1)[:, None, None] * 6 + 12
    stripes = 128 + rng.normal(0, 20, (320, SIDE, SIDE)) + strength * np.sin(np.arange(SIDE) / 2)
    facts = pd.DataFrame(rng.random((320, LEVELS)), columns=[f"level_{index}" for index in range(LEVELS)])
    prints = Fingerprints(stripes.clip(0, 255).astype(np.uint8), facts)
    found, _, auc = doubtful_labels(prints, np.arange(320), labels, np.arange(320).astype(str))
    assert auc > 0.9
    assert (labels[found] == 1).sum() <= 1


def test_a_judge_who_knows_nothing_doubts_nobody(striped):
    prints, _, groups = striped
    shuffled = np.random.default_rng(0).permutation(np.repeat([0, 1], 20))
    found, _, auc = doubtful_labels(prints, np.arange(120), shuffled[np.unique(groups, return_inverse=True)[1]], groups)
    assert len(found) == 0
    assert auc < 0.9


def told_by_levels(levels: np.ndarray) -> Fingerprints:
    """Images that differ in their brightness histograms alone, (images, LEVELS)."""
    facts = pd.DataFrame(levels, columns=[f"level_{index}" for index in range(LEVELS)])
    return Fingerprints(np.zeros((len(levels), SIDE, SIDE), np.uint8), facts)


def test_who_judges_a_label_has_seen_no_other_image_of_the_patient():
    """12 patients with 10 like images each, which tell who it is and not what he has."""
    groups = np.repeat(np.arange(12), 10)
    prints = told_by_levels(np.random.default_rng(0).random((12, LEVELS))[groups])
    _, _, auc = doubtful_labels(prints, np.arange(120), groups % 2, groups)
    assert auc < 0.9


def test_of_many_images_those_that_were_chosen_are_judged():
    labels, levels = np.arange(60) % 2, np.zeros((120, LEVELS))
    levels[60:, 0] = labels
    _, _, auc = doubtful_labels(told_by_levels(levels), np.arange(60, 120), labels, np.arange(60))
    assert auc == 1


def test_without_enough_groups_there_is_no_judge(striped):
    prints, labels, _ = striped
    found, _, auc = doubtful_labels(prints, np.arange(120), labels, (labels * 3 + np.arange(120) % 3).astype(str))
    assert len(found) == 0
    assert auc is None


def test_a_group_with_most_of_the_images_is_judged_too(striped):
    prints, labels, groups = striped
    groups[np.arange(120) % 60 < 40] = "all of one clip"
    _, _, auc = doubtful_labels(prints, np.arange(120), labels, groups)
    assert auc > 0.9


def test_judging_many_images_takes_little_more_memory_than_their_features(striped):
    """1,200 images, of which all gradients at once would take 150 MB; their features take 5."""
    prints, labels, groups = striped
    many = Fingerprints(np.tile(prints.thumbnails, (10, 1, 1)), pd.concat([prints.facts] * 10, ignore_index=True))
    tracemalloc.start()
    _, _, auc = doubtful_labels(many, np.arange(1200), np.tile(labels, 10), np.tile(groups, 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert auc > 0.9
    assert peak < 80 << 20
