import re

import evaluate
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn import metrics

from tests.conftest import ROOT
from training.measure import load_metric
from training.metric.bootstrap import (
    bootstrap,
    calibration_error,
    calibration_gaps,
    chance_errors,
    error_interval,
    interval,
)
from training.tables import classification_tables


def case(seed: int = 0, n: int = 120, classes: int = 2, groups: int = 25):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, classes)) + 1.2 * np.eye(classes)[truth]
    logits = logits.round(1)  # so that some scores are equal
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, truth, rng.integers(0, groups, n)


def compute(probabilities, truth, **settings):
    return load_metric().compute(predictions=probabilities, references=truth, **settings)


def test_it_loads_by_path_and_takes_batches():
    probabilities, truth, _ = case()
    metric = evaluate.load(str(ROOT / "training" / "metric"))
    for start in range(0, 120, 50):
        metric.add_batch(predictions=probabilities[start : start + 50], references=truth[start : start + 50])
    assert metric.compute() == compute(probabilities, truth)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_the_numbers_are_those_of_scikit_learn(threshold):
    probabilities, truth, _ = case()
    score, decided = probabilities[:, 1], (probabilities[:, 1] >= threshold).astype(int)
    result = compute(probabilities, truth, labels=["normal", "sick"], threshold=threshold, draws=0)
    assert result["confusion_matrix"] == metrics.confusion_matrix(truth, decided).tolist()
    expected = {
        "n": 120,
        "threshold": threshold,
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, decided),
        "roc_auc": metrics.roc_auc_score(truth, score),
        "sensitivity": metrics.recall_score(truth, decided),
        "specificity": metrics.recall_score(truth, decided, pos_label=0),
        "precision": metrics.precision_score(truth, decided),
        "average_precision": metrics.average_precision_score(truth, score),
        "mcc": metrics.matthews_corrcoef(truth, decided),
        "ppv": metrics.precision_score(truth, decided),
        "npv": metrics.precision_score(truth, decided, pos_label=0),
        "prevalence": truth.mean(),
        "brier": metrics.brier_score_loss(truth, score),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["f1"] == pytest.approx(
        {
            "normal": metrics.f1_score(truth, decided, pos_label=0),
            "sick": metrics.f1_score(truth, decided),
            "macro": metrics.f1_score(truth, decided, average="macro"),
        }
    )


def test_predictive_values_hold_at_a_stated_prevalence():
    # Altman and Bland, Diagnostic tests 2: predictive values, BMJ 1994, 309:102: liver scans of 344 patients.
    truth = np.repeat([1, 1, 0, 0], [231, 27, 32, 54])
    score = np.repeat([0.9, 0.1, 0.9, 0.1], [231, 27, 32, 54])
    told = compute(np.c_[1 - score, score], truth, draws=0)
    assert (round(told["ppv"], 2), round(told["npv"], 2)) == (0.88, 0.67)
    told = compute(np.c_[1 - score, score], truth, draws=0, prevalence=0.25)
    assert (round(told["ppv"], 2), round(told["npv"], 2)) == (0.45, 0.95)


def test_a_threshold_for_each_image_decides_each():
    probabilities, truth, _ = case()
    shifted = np.where(np.arange(120) % 2, 0.3, 0.7)
    told = compute(probabilities, truth, threshold=shifted, draws=0)
    assert told["accuracy"] == metrics.accuracy_score(truth, probabilities[:, 1] >= shifted)


def test_three_classes():
    probabilities, truth, _ = case(classes=3)
    result = compute(probabilities, truth, draws=50)
    assert result["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(truth, probabilities.argmax(1)))
    assert result["sensitivity"] == pytest.approx(metrics.recall_score(truth == 2, probabilities.argmax(1) == 2))
    assert set(result["f1"]) == {"0", "1", "2", "macro"}
    assert result["mcc"] == pytest.approx(metrics.matthews_corrcoef(truth, probabilities.argmax(1)))
    recalls = metrics.recall_score(truth, probabilities.argmax(1), average=None)
    assert list(result["per_class"]["sensitivity"].values()) == pytest.approx([*recalls, recalls.mean()])
    areas = [metrics.average_precision_score(truth == label, probabilities[:, label]) for label in range(3)]
    assert list(result["per_class"]["average_precision"].values()) == pytest.approx([*areas, np.mean(areas)])
    assert set(result["ci95"]["per_class"]["roc_auc"]) == {"0", "1", "2", "macro"}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_bootstrap_equals_one_that_resamples_the_images(classes):
    probabilities, truth, groups = case(classes=classes)
    decided = probabilities.argmax(1)
    fast = bootstrap(probabilities, truth, decided, groups, draws=40, seed=7)
    generator = np.random.default_rng(7).spawn(1)[0]
    drawn = generator.integers(0, groups.max() + 1, (40, groups.max() + 1), dtype=np.int32)
    for draw, chosen in enumerate(drawn):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in chosen])
        t, d, p = truth[rows], decided[rows], probabilities[rows]
        last = classes - 1
        auc = metrics.roc_auc_score(t, p[:, 1]) if classes == 2 else metrics.roc_auc_score(t, p, multi_class="ovr")
        squared = ((p - np.eye(classes)[t]) ** 2).sum(1).mean() / (2 if classes == 2 else 1)
        assert fast["roc_auc"][draw] == pytest.approx(auc, abs=1e-6)
        assert fast["accuracy"][draw] == pytest.approx(metrics.accuracy_score(t, d))
        assert fast["balanced_accuracy"][draw] == pytest.approx(metrics.balanced_accuracy_score(t, d))
        assert fast["sensitivity"][draw] == pytest.approx(metrics.recall_score(t == last, d == last))
        assert fast["specificity"][draw] == pytest.approx(metrics.recall_score(t != last, d != last))
        assert fast["precision"][draw] == pytest.approx(metrics.precision_score(t == last, d == last))
        binary = t == last
        areas = [metrics.average_precision_score(t == label, p[:, label]) for label in range(classes)]
        assert fast["average_precision"][draw] == pytest.approx(areas[1] if classes == 2 else np.mean(areas), abs=1e-6)
        assert fast["mcc"][draw] == pytest.approx(metrics.matthews_corrcoef(t, d))
        assert fast["ppv"][draw] == pytest.approx(metrics.precision_score(binary, d == last))
        assert fast["f1_of_class"][draw].mean() == pytest.approx(metrics.f1_score(t, d, average="macro"))
        assert fast["brier"][draw] == pytest.approx(squared)


def test_a_draw_of_one_class_has_no_areas_under_curves():
    truth, score = np.array([0, 1, 1, 1]), np.array([0.6, 0.7, 0.2, 0.4])
    drawn = bootstrap(np.c_[1 - score, score], truth, score.round().astype(int), np.arange(4), 100, 0)
    one_class = np.isnan(drawn["specificity"]) | np.isnan(drawn["sensitivity"])
    assert 0 < one_class.sum() < 100
    for name in ("roc_auc", "average_precision"):
        assert np.array_equal(np.isnan(drawn[name]), one_class)


def test_intervals_hold_the_value_and_are_wider_over_groups_than_over_images():
    probabilities, truth, _ = case(n=400)
    tight = compute(probabilities[:200].repeat(2, 0), truth[:200].repeat(2, 0))
    wide = compute(probabilities[:200].repeat(2, 0), truth[:200].repeat(2, 0), groups=np.arange(200).repeat(2))
    for name, (low, high) in ((name, wide["ci95"][name]) for name in ("accuracy", "roc_auc", "sensitivity", "brier")):
        assert low <= wide[name] <= high
        assert high - low > 1.2 * (tight["ci95"][name][1] - tight["ci95"][name][0])
    assert wide["groups"] == 200


def test_one_seed_gives_one_interval():
    probabilities, truth, groups = case()
    assert compute(probabilities, truth, groups=groups) == compute(probabilities, truth, groups=groups)


def test_images_of_one_class_give_what_can_be_given():
    probabilities, truth, _ = case()
    result = compute(probabilities[truth == 0], truth[truth == 0], labels=["normal", "sick"])
    assert result["specificity"] == result["accuracy"] > 0.5
    for name in ("roc_auc", "balanced_accuracy", "sensitivity"):
        assert result[name] is None
        assert result["ci95"][name] is None
    assert result["f1"]["normal"] > 0.5
    assert result["f1"]["sick"] is result["f1"]["macro"] is None
    printed = classification_tables(result)
    assert re.search(r"^ *sick +0.000 +- +- +0$", printed, re.MULTILINE)  # its recall and F1 are not 0
    assert re.search(r"^ *macro avg +0.500 +- +- +\d+$", printed, re.MULTILINE)


def test_the_interval_of_a_mean_of_classes_leaves_out_draws_that_lack_one():
    """Of 40, 40 and 2 patients, the third of which is hard to tell from the others."""
    rng, truth = np.random.default_rng(0), np.repeat([0, 1, 2], [40, 40, 2])
    probabilities = rng.dirichlet([1, 1, 1], len(truth)) + 0.5 * np.eye(3)[np.where(truth == 2, 0, truth)]
    told = compute(probabilities / probabilities.sum(axis=1, keepdims=True), truth)["ci95"]
    for name in ("roc_auc", "average_precision"):
        assert told[name] == told["per_class"][name]["macro"]


def test_a_correlation_of_minus_1_is_no_surer_than_one_of_1():
    truth = np.repeat([0, 1], 5)
    right, wrong = (compute(np.eye(2)[called], truth)["ci95"]["mcc"] for called in (truth, 1 - truth))
    assert wrong == [-right[1], -right[0]]
    assert right[0] < 0.6


def test_intervals_of_the_calibration_error_hold_the_true_one_and_the_one_that_is_told():
    """80 patients with 3 images, much alike: of 100 repeats with probabilities that are right, or too sure."""

    def draw(patients, sure, rng):
        groups = np.arange(patients).repeat(3)
        odds = rng.normal(0, 1.5, patients)[groups] + rng.normal(0, 0.5, len(groups))
        truth = (rng.random(patients)[groups] < 1 / (1 + np.exp(-odds))).astype(int)
        score = 1 / (1 + np.exp(-sure * odds))
        return np.c_[1 - score, score], truth, groups

    for sure in (1, 1.5, 5):
        true = 0.0 if sure == 1 else calibration_error(*draw(20_000, sure, np.random.default_rng(0))[:2])
        held = 0
        for repeat in range(100):
            probabilities, truth, groups = draw(80, sure, np.random.default_rng(repeat))
            error = calibration_error(probabilities, truth)
            drawn = bootstrap(probabilities, truth, truth, groups, 200, 0)["ece"]
            low, high = error_interval(error, drawn, interval(chance_errors(probabilities, groups, 0, 100)))
            assert 0 <= low <= error <= high <= 1
            held += low <= true <= high
        assert held >= 85, sure


def test_intervals_over_groups_hold_the_truth_95_times_of_100_and_those_over_images_do_not():
    """80 patients with 5 images, much alike: of 500 repeats, how many intervals of the AUC hold the true one?"""
    rng, spread, within = np.random.default_rng(0), 1.0, 0.4
    patients, images = 80, 5
    truth = np.repeat(np.arange(patients) % 2, images)
    groups = np.repeat(np.arange(patients), images)
    true_auc = norm.cdf(1.5 / np.sqrt(2 * (spread**2 + within**2)))
    held = {"groups": 0, "images": 0}
    for repeat in range(500):
        score = 1.5 * truth + np.repeat(rng.normal(0, spread, patients), images) + rng.normal(0, within, len(truth))
        p = expit(score)
        for name, unit in (("groups", groups), ("images", np.arange(len(truth)))):
            drawn = bootstrap(np.c_[1 - p, p], truth, (p > 0.5).astype(int), unit, 250, repeat)
            low, high = interval(drawn["roc_auc"])
            held[name] += low <= true_auc <= high
    assert 0.93 <= held["groups"] / 500 <= 0.97
    assert held["images"] / 500 < 0.75


def test_calibration_error_of_a_published_example():
    # torchmetrics' example of binary_calibration_error: with two bins of equal width, which hold 2 and 3 images, it is
    # 0.29. With each image repeated until the two hold as many, bins of equal size are the same ones.
    score = np.repeat([0.25, 0.25, 0.55, 0.75, 0.75], [3, 3, 2, 2, 2])
    truth = np.repeat([0, 0, 1, 1, 1], [3, 3, 2, 2, 2])
    low, high = np.abs(calibration_gaps(np.c_[1 - score, score], truth, bins=2).sum(axis=0)) / 6
    assert sorted([low, high]) == pytest.approx([0.25, 0.95 / 3])
    assert (2 * min(low, high) + 3 * max(low, high)) / 5 == pytest.approx(0.29)


def test_calibration_error_of_a_worked_example():
    # Half of the images are said to be sick at 0.9, of which 70 % are, and half at 0.6, of which 60 % are.
    score = np.repeat([0.9, 0.6], 5000)
    truth = (
        np.tile([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], 500).tolist() + np.tile([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], 500).tolist()
    )
    assert compute(np.c_[1 - score, score], truth, draws=0)["ece"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.0)


def test_of_few_patients_who_are_all_right_the_interval_says_how_few():
    truth, groups = np.repeat([0, 1], 12), np.repeat(np.arange(8), 3)
    told = compute(np.eye(2)[truth] * 0.8 + 0.1, truth, groups=groups)
    assert told["ci95"]["accuracy"] == pytest.approx([binomtest(8, 8).proportion_ci().low, 1])
    assert told["ci95"]["sensitivity"] == pytest.approx([binomtest(4, 4).proportion_ci().low, 1])
    assert told["ci95"]["per_class"]["precision"]["0"] == pytest.approx([binomtest(4, 4).proportion_ci().low, 1])
    assert told["ci95"]["npv"] == pytest.approx([binomtest(4, 4).proportion_ci().low, 1])
    of_class = [*told["ci95"]["per_class"].values(), told["ci95"]["f1"]]
    for bounds in (
        *(told["ci95"][name] for name in ("roc_auc", "average_precision", "mcc")),
        *(bounds for each in of_class for bounds in each.values()),
    ):
        assert bounds == pytest.approx([binomtest(4, 4).proportion_ci().low, 1])


@pytest.mark.parametrize(
    ("sick", "found", "well", "spared", "expected"),
    [(10, 10, 3, 0, [0.346, 0.854]), (20, 14, 3, 3, [0.482, 0.95])],
)
def test_balanced_accuracy_is_no_surer_than_a_class_of_few_patients(sick, found, well, spared, expected):
    truth = np.repeat([1, 0], [sick, well])
    decided = np.repeat([1, 0, 1, 0], [found, sick - found, well - spared, spared])
    told = compute(np.eye(2)[decided], truth)["ci95"]
    assert told["balanced_accuracy"] == pytest.approx(expected, abs=0.005)
    assert told["per_class"]["sensitivity"]["macro"] == told["per_class"]["specificity"]["macro"]
    assert told["per_class"]["sensitivity"]["macro"] == told["balanced_accuracy"]


def test_means_of_three_classes_are_no_surer_than_one_of_few_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [40, 40, 3])
    likely = np.where(rng.random(83) < 0.8, truth, 1 - truth) * (truth < 2) + 2 * (truth == 2)
    told = compute(np.eye(3)[likely], truth)
    least = binomtest(3, 3).proportion_ci().low
    for name in ("balanced_accuracy", "roc_auc", "average_precision"):
        assert told["ci95"][name][0] < told[name] - 0.9 * (1 - least) / 3, name


@pytest.mark.parametrize("kind", [0, 1])
def test_of_few_patients_who_are_called_so_and_rightly_the_interval_says_how_few(kind):
    """Of 10 patients of each class 3 are called of one, and all others of the other."""
    truth, called = np.repeat([kind, 1 - kind], 10), np.repeat([kind, 1 - kind], [3, 17])
    told = compute(np.eye(2)[called], truth)["ci95"]
    expected = pytest.approx([binomtest(3, 3).proportion_ci().low, 1])
    assert told[("npv", "precision")[kind]] == expected
    assert told["per_class"]["precision"][str(kind)] == expected


def test_an_f1_of_0_is_as_sure_as_patients_of_the_class_or_called_so_are_many():
    truth = np.repeat([0, 1], [9, 3])
    told = compute(np.eye(2)[1 - truth], truth)["ci95"]["f1"]
    assert told["0"] == told["1"] == pytest.approx([0, binomtest(0, 12).proportion_ci().high])


def test_the_intervals_of_predictive_values_are_at_the_prevalence_that_is_asked_for():
    probabilities, truth, _ = case()
    told = compute(probabilities, truth, prevalence=0.05)
    for name in ("ppv", "npv"):
        low, high = told["ci95"][name]
        assert low < told[name] < high


@pytest.mark.parametrize("well", [5, 15])
def test_at_a_stated_prevalence_a_predictive_value_of_1_is_no_surer_than_the_share_behind_it(well):
    truth = np.repeat([1, 0], [40, well])
    told = compute(np.eye(2)[truth], truth, prevalence=0.05)
    false, missed = (1 - binomtest(number, number).proportion_ci().low for number in (well, 40))
    assert (told["ppv"], told["npv"]) == (1, 1)
    assert told["ci95"]["ppv"] == pytest.approx([0.05 / (0.05 + false * 0.95), 1], rel=0.005)
    assert told["ci95"]["npv"] == pytest.approx([0.95 / (0.95 + missed * 0.05), 1], rel=0.005)


def test_at_a_stated_prevalence_a_predictive_value_of_0_is_no_surer_than_the_sensitivity_behind_it():
    truth, decided = np.repeat([1, 0], [5, 40]), np.repeat([0, 1, 0], [5, 20, 20])
    told = compute(np.eye(2)[decided], truth, prevalence=0.05)
    low, high = told["ci95"]["ppv"]
    assert (told["ppv"], low) == (0, 0)
    assert 0.05 * 0.522 / (0.05 * 0.522 + 0.5 * 0.95) < high < 0.1


def test_at_a_stated_prevalence_one_healthy_patient_tells_nothing_of_a_predictive_value():
    truth, decided = np.repeat([1, 0], [40, 4]), np.repeat([1, 0], [42, 2])
    told = compute(np.eye(2)[decided], truth, groups=np.minimum(np.arange(44), 40), prevalence=0.05)
    assert told["ci95"]["ppv"] == [0, 1]


def test_of_one_patient_nothing_is_told_of_others():
    score, truth = np.array([0.9, 0.8, 0.4, 0.2, 0.6, 0.1, 0.2, 0.7]), np.repeat([1, 0], 4)
    told = compute(np.c_[1 - score, score], truth, groups=np.repeat([0, 1, 2], [4, 2, 2]))["ci95"]
    for name in ("sensitivity", "balanced_accuracy", "roc_auc", "average_precision"):
        assert told[name] == [0, 1], name  # all sick images are of one
    assert told["mcc"] == [-1, 1]
    alone = compute(np.c_[1 - score, score], truth, groups=np.zeros(8, int))["ci95"]
    assert alone["mcc"] == [-1, 1]
    for name in ("accuracy", "specificity", "precision", "npv", "roc_auc", "brier", "ece"):
        assert alone[name] == [0, 1], name


def test_each_number_of_many_classes_of_one_patient_each_has_an_interval():
    truth = np.arange(12)
    told = compute(np.eye(12)[[1, 0, *truth[2:]]], truth)
    assert told["balanced_accuracy"] == pytest.approx(10 / 12)
    assert told["ci95"]["balanced_accuracy"] == [0, 1]
    of_class = [told["ci95"]["f1"], *told["ci95"]["per_class"].values()]
    assert all(each["macro"] for each in of_class)
    assert re.search(r"balanced_accuracy +0.833 +0.000 - 1.000", classification_tables(told))


def test_the_order_of_images_that_are_given_the_same_does_not_matter():
    truth = np.repeat([0, 1], [30, 70])
    assert compute(np.tile([0.3, 0.7], (100, 1)), truth, draws=0)["ece"] == pytest.approx(0)


@pytest.mark.parametrize("classes", [2, 3])
def test_right_probabilities_have_the_calibration_error_of_chance_and_wrong_ones_do_not(classes):
    rng = np.random.default_rng(classes)
    groups = np.repeat(np.arange(40), 4)
    held = {"right": 0, "too sure": 0}
    for repeat in range(200):
        given = rng.dirichlet(np.full(classes, 0.7), 40)
        truth = np.array([rng.choice(classes, p=each) for each in given])[groups]
        for name, power in (("right", 1), ("too sure", 6)):
            told = given**power / (given**power).sum(axis=1, keepdims=True)
            low, high = interval(chance_errors(told[groups], groups, repeat))
            held[name] += low <= calibration_error(told[groups], truth) <= high
    assert held["right"] / 200 >= 0.9
    assert held["too sure"] / 200 <= 0.5


def test_the_calibration_error_of_chance_is_larger_with_fewer_patients():
    probabilities, truth, _ = case(n=200)
    of_images, of_patients = (
        compute(probabilities, truth, groups=groups)["ece_by_chance"] for groups in (range(200), np.arange(200) // 10)
    )
    assert np.less(of_images, of_patients).all()
