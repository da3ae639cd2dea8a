import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from training.compare import compare, delong
from training.measure import load_metric

# DeLong, DeLong and Clarke-Pearson, Biometrics 1988, table 1, as printed in SAS/STAT's manual of PROC LOGISTIC:
# albumin, total protein, K-G score and outcome of patients with ovarian cancer.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def test_delong_gives_the_published_comparison():
    albumin, protein, score, outcome = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    told = np.array([delong(each, 10 - score, outcome == 1) for each in (albumin, protein)])
    assert told == pytest.approx(np.array([[0.0108, 0.0953, 0.9102], [-0.0780, 0.1046, 0.4561]]), abs=5e-5)


def two_models(seed, patients=60, images=4, better=0.0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(patients) % 2, images)
    groups = np.repeat(np.arange(patients), images)
    shared = truth + np.repeat(rng.normal(0, 1, patients), images)
    scores = [1 / (1 + np.exp(-(shared + add * truth + rng.normal(0, 0.5, len(truth))))) for add in (better, 0.0)]
    return [np.c_[1 - score, score] for score in scores], truth, groups


def test_delong_over_groups_knows_that_copies_add_nothing():
    (one, other), truth, _ = two_models(0, images=1)
    once = delong(one[:, 1], other[:, 1], truth == 1)
    again = [np.repeat(each, 5) for each in (one[:, 1], other[:, 1], truth == 1)]
    assert delong(*again, np.repeat(np.arange(60), 5)) == pytest.approx(once)
    assert delong(*again)[1] < 0.5 * once[1]


def test_the_difference_has_an_interval_that_agrees_with_delong():
    probabilities, truth, groups = two_models(1, better=0.6)
    metric, decided = load_metric(), [each.argmax(axis=1) for each in probabilities]
    results = [metric.compute(predictions=each, references=truth, draws=0) for each in probabilities]
    told = compare(results, probabilities, decided, truth, groups)
    areas = [roc_auc_score(truth, each[:, 1]) for each in probabilities]
    assert told["difference"]["roc_auc"] == pytest.approx(areas[0] - areas[1])
    difference, error, p = delong(probabilities[0][:, 1], probabilities[1][:, 1], truth == 1, groups)
    assert told["roc_auc_p"] == p < 0.05
    low, high = told["ci95"]["roc_auc"]
    assert [low, high] == pytest.approx([difference - 1.96 * error, difference + 1.96 * error], abs=0.02)


def test_of_one_patient_of_a_class_nothing_can_be_told():
    one, other = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3]), np.array([0.9, 0.2, 0.7, 0.1, 0.3, 0.3])
    difference, error, p = delong(one, other, np.arange(6) < 3, np.repeat([0, 1], 3))
    assert difference > 0
    assert np.isnan([error, p]).all()


def test_a_model_is_no_better_than_itself():
    probabilities, truth, groups = two_models(2)
    result = load_metric().compute(predictions=probabilities[0], references=truth, draws=0)
    told = compare([result] * 2, [probabilities[0]] * 2, [probabilities[0].argmax(1)] * 2, truth, groups)
    assert set(told["difference"].values()) == {0.0}
    assert told["ci95"]["roc_auc"] == [0.0, 0.0]
    assert told["roc_auc_p"] == 1.0


def test_one_patient_does_not_tell_which_model_is_better_for_others():
    truth, score = np.repeat([1, 0], [2, 4]), np.array([0.9, 0.4, 0.2, 0.6, 0.1, 0.3])
    probabilities = [np.c_[1 - each, each] for each in (score, 1 - score)]
    decided, groups = [each.argmax(1) for each in probabilities], np.array([0, 0, 1, 1, 2, 2])
    for patients, names in ((groups, ["sensitivity", "roc_auc"]), (groups * 0, ["accuracy", "brier", "ece"])):
        results = [
            load_metric().compute(predictions=each, references=truth, groups=patients, draws=0)
            for each in probabilities
        ]
        told = compare(results, probabilities, decided, truth, patients)
        assert [told["ci95"][name] for name in names] == [[-1, 1]] * len(names)


def test_of_few_patients_whom_both_models_call_right_the_difference_says_how_few():
    truth = np.repeat([1, 0], [20, 3])
    probabilities = [np.eye(2)[truth] * 0.8 + 0.1] * 2
    result = load_metric().compute(predictions=probabilities[0], references=truth)
    told = compare([result] * 2, probabilities, [truth] * 2, truth, np.arange(23))
    most = 1 - binomtest(3, 3).proportion_ci().low
    for name in ("specificity", "roc_auc"):
        assert told["difference"][name] == 0
        assert told["ci95"][name] == pytest.approx([-most, most])


def test_the_difference_over_many_classes_of_one_patient_each_can_be_anything():
    truth = np.array([*range(14), 13])
    decided = [truth, np.where(truth == 0, 1, truth)]
    probabilities = [np.eye(14)[each] for each in decided]
    results = [load_metric().compute(predictions=each, references=truth) for each in probabilities]
    told = compare(results, probabilities, decided, truth, np.arange(15))
    assert told["difference"]["balanced_accuracy"] == pytest.approx(1 / 14)
    assert told["ci95"]["balanced_accuracy"] == [-1, 1]


def test_one_patient_of_any_class_does_not_tell_the_difference_over_all_classes():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    groups = np.array([0, 0, 0, *range(1, 9)])
    decided = [np.where(np.arange(11) == wrong, 2, truth) for wrong in (0, 3)]
    probabilities = [np.eye(3)[each] * 0.7 + 0.1 for each in decided]
    results = [load_metric().compute(predictions=each, references=truth, groups=groups) for each in probabilities]
    told = compare(results, probabilities, decided, truth, groups)
    assert told["ci95"]["balanced_accuracy"] == told["ci95"]["roc_auc"] == [-1, 1]
    assert told["ci95"]["sensitivity"] != [-1, 1]


def test_where_every_draw_gives_one_difference_it_is_as_sure_as_the_models_own_figures():
    """Of 5 healthy and 5 sick patients one model calls all right, and the other gives all the same probability."""
    truth = np.repeat([0, 1], 5)
    probabilities = [np.eye(2)[truth], np.full((10, 2), [0.3, 0.7])]
    results = [load_metric().compute(predictions=each, references=truth) for each in probabilities]
    told = compare(results, probabilities, [truth, np.ones_like(truth)], truth, np.arange(10))
    for name in ("balanced_accuracy", "roc_auc"):
        assert told["difference"][name] == 0.5
        assert told["ci95"][name][0] < 0.2
    assert told["roc_auc_p"] is None


def test_of_few_patients_whom_two_models_call_alike_the_difference_says_how_few():
    truth, score = np.repeat([0, 1], 4), np.array([0.1, 0.2, 0.3, 0.9, 0.1, 0.6, 0.7, 0.8])
    probabilities = [np.c_[1 - each, each] for each in (score, np.where(score == 0.9, 0.95, score))]
    decided = [each.argmax(1) for each in probabilities]
    results = [load_metric().compute(predictions=each, references=truth) for each in probabilities]
    told = compare(results, probabilities, decided, truth, np.arange(8))
    for name, patients in (("accuracy", 8), ("balanced_accuracy", 4), ("sensitivity", 4), ("specificity", 4)):
        most = 1 - binomtest(patients, patients).proportion_ci().low
        assert told["difference"][name] == 0
        assert told["ci95"][name] == pytest.approx([-most, most])
