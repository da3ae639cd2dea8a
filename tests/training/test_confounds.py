import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from training.confounds import FAMILIES, find_confounds, out_of_fold

COLUMNS = [column for family in FAMILIES.values() for column in family]


@pytest.fixture
def images():
    """Facts of 240 images of 60 patients that tell nothing, their labels (every other patient is sick) and groups."""
    rng = np.random.default_rng(0)
    facts = pd.DataFrame({column: rng.random(240) for column in COLUMNS})
    facts = facts.assign(format="PNG", mode=rng.choice(["L", "RGB"], 240), site="A")
    groups = np.repeat(np.arange(60), 4)
    return facts, groups % 2, groups.astype(str)


def by_family(results):
    return {result["feature"]: result for result in results}


def test_features_that_tell_nothing_are_not_suspicious(images):
    found = by_family(find_confounds(*images))
    assert set(found) == {"file", "brightness", "corners", "border"}  # one site tells nothing by itself
    for result in found.values():
        assert not result["suspicious"]
        assert result["ci95"][0] <= result["auc"] <= result["ci95"][1]
        assert 0.3 < result["auc"] < 0.7


@pytest.mark.parametrize(
    ("column", "family"),
    [("corner_top_left", "corners"), ("border_left", "border"), ("bytes_per_pixel", "file"), ("level_3", "brightness")],
)
def test_a_feature_that_tells_the_label_is_named(images, column, family):
    facts, labels, groups = images
    facts[column] += 0.8 * labels
    found = by_family(find_confounds(facts, labels, groups))
    assert [name for name, result in found.items() if result["suspicious"]] == [family]
    assert found[family]["strongest"] == column
    assert found[family]["auc"] > 0.85


def test_texts_tell_as_well(images):
    facts, labels, groups = images
    facts["site"] = np.where(labels == 1, "Bochum", "Aachen")
    facts["format"] = np.where(labels == 1, "JPEG", "PNG")
    found = by_family(find_confounds(facts, labels, groups))
    assert found["site"]["auc"] == found["file"]["auc"] == 1
    assert found["site"]["strongest"] in {"site_Bochum", "site_Aachen"}


def test_what_tells_the_patient_but_not_the_label_is_not_suspicious(images):
    facts, labels, groups = images
    shades = np.random.default_rng(1).random(60)
    facts["corner_top_left"] = shades[groups.astype(int)]  # learnt by heart, were a patient in two folds
    assert not by_family(find_confounds(facts, labels, groups))["corners"]["suspicious"]


def test_three_classes_are_told_apart_too(images):
    facts, _, groups = images
    labels = groups.astype(int) % 3
    facts["border_top"] += labels
    found = by_family(find_confounds(facts, labels, groups))
    assert found["border"]["suspicious"]


@pytest.mark.parametrize("rare", [1, 2])
def test_what_tells_a_rare_class_of_three_is_suspicious_and_named(rare):
    labels = np.repeat([0, rare, 3 - rare], [200, 10, 200])
    random = np.random.default_rng(0).random((2, len(labels)))
    facts = pd.DataFrame(0, range(len(labels)), COLUMNS)
    facts = facts.assign(height=random[0], width=random[1] + 2 * (labels == rare))
    (found,) = find_confounds(facts, labels, np.arange(len(labels)).astype(str))
    assert found["suspicious"]
    assert (found["label"], found["strongest"], found["auc_strongest"]) == (rare, "width", 1)
    assert found["ci95"][0] <= found["auc"] <= found["ci95"][1]


def test_a_single_image_of_a_class_among_many_images_is_learned_from_too():
    labels = np.r_[2, np.arange(10_100) % 2]
    told = out_of_fold(labels[:, None] % 2, labels, [(np.arange(len(labels)), np.arange(3))])
    assert told[1:3].argmax(axis=1).tolist() == [0, 1]


def test_too_few_groups_give_no_answer(images):
    facts, labels, groups = images
    one_sick_patient = np.isin(groups, [str(number) for number in range(0, 60, 2)]) | (groups == "1")
    assert find_confounds(facts[one_sick_patient], labels[one_sick_patient], groups[one_sick_patient]) == []


def test_a_class_that_is_in_one_fold_alone_gets_an_answer_too(images):
    facts, _, _ = images
    groups = np.repeat(["a", "b", "both"], 5)
    labels = np.r_[np.zeros(5, int), np.ones(5, int), np.arange(5) % 2 == 0]
    for result in find_confounds(facts[:15], labels, groups):
        assert 0 <= result["auc"] <= 1


def test_of_three_patients_of_each_class_a_feature_is_no_surer_than_they_are(images):
    facts, labels, groups = images
    facts["corner_top_left"] += 2 * labels
    few = groups.astype(int) < 6
    told = by_family(find_confounds(facts[few], labels[few], groups[few]))["corners"]
    assert told["auc"] == 1
    assert told["ci95"] == [pytest.approx(binomtest(3, 3).proportion_ci().low), 1]


def test_many_images_of_a_patient_do_not_make_a_feature_surer():
    """Of 24 patients, with 20 images of one brightness each."""
    groups, facts = np.repeat(np.arange(24), 20), pd.DataFrame(0, range(480), COLUMNS)
    facts["mean"] = (np.arange(24) % 2 + 0.7 * np.random.default_rng(0).normal(size=24))[groups]
    (found,) = find_confounds(facts, groups % 2, groups.astype(str))
    low, high = found["ci95"]
    assert 0.2 < high - low < 0.5
