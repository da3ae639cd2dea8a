import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from training.plots import GRID, _precision_recall, _roc


def of_sklearn(truth, score):
    alarms, found, _ = roc_curve(truth, score, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, score)
    recall, first = np.unique(recall[::-1], return_index=True)  # of one recall the highest threshold
    return np.interp(GRID, alarms, found), np.interp(GRID, recall, precision[::-1][first])


@pytest.mark.parametrize("digits", [1, 6])  # with and without images that share a score
def test_curves_of_draws_are_those_of_sklearn_on_repeated_images(digits):
    rng = np.random.default_rng(digits)
    truth, score = rng.random(40) < 0.3, rng.random(40).round(digits)
    draws = rng.integers(0, 3, (50, 40))
    expected = [of_sklearn(np.repeat(truth, draw), np.repeat(score, draw)) for draw in draws]
    for curves, wanted in zip((_roc, _precision_recall), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(curves(truth, score, draws), wanted, atol=1e-12)


def test_a_draw_of_one_class_has_no_curve():
    truth, score = np.array([True, False, True]), np.array([0.9, 0.1, 0.4])
    draws = np.array([[1, 0, 2], [1, 1, 1], [0, 3, 0]])
    assert len(_roc(truth, score, draws)) == len(_precision_recall(truth, score, draws)) == 1
