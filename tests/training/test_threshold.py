import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import roc_curve

from space.errors import InputError
from training.threshold import choose_threshold, threshold_interval

cases = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


def arrays(rows):
    return np.array([score for score, _ in rows]) / 100, np.array([positive for _, positive in rows])


def rates(scores, positive, threshold):
    called = scores >= threshold
    return called[positive].mean(), (~called[~positive]).mean()


@given(cases)
def test_youden_s_threshold_is_as_good_as_any_on_the_roc_curve(rows):
    scores, positive = arrays(rows)
    false_positives, true_positives, _ = roc_curve(positive, scores)
    sensitivity, specificity = rates(scores, positive, choose_threshold(scores, positive, "youden"))
    assert sensitivity + specificity == pytest.approx((true_positives - false_positives).max() + 1)


@given(cases, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_a_wanted_sensitivity_is_reached_with_the_greatest_specificity(rows, wanted):
    scores, positive = arrays(rows)
    sensitivity, specificity = rates(scores, positive, choose_threshold(scores, positive, f"sensitivity:{wanted}"))
    false_positives, true_positives, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert sensitivity >= wanted - 1e-9
    assert specificity == pytest.approx(1 - false_positives[true_positives >= wanted - 1e-9].min())


@given(cases, st.sampled_from([0.2, 1, 5]))
def test_costs_are_as_low_as_any_threshold_makes_them(rows, cost):
    scores, positive = arrays(rows)

    def costs(threshold):
        return cost * (scores[positive] < threshold).sum() + (scores[~positive] >= threshold).sum()

    best = min(costs(threshold) for threshold in [0, *scores, 1])
    assert costs(choose_threshold(scores, positive, f"cost:{cost}")) == pytest.approx(best)


def test_between_two_separate_classes_it_lies_halfway_in_log_odds():
    scores, positive = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
    assert choose_threshold(scores, positive, "youden") == pytest.approx(0.5)
    assert choose_threshold(scores, positive, "0.3") == 0.3


def test_the_interval_is_wider_when_images_come_in_groups():
    rng = np.random.default_rng(0)
    positive = np.repeat(np.arange(40) % 2 == 1, 5)
    noise = np.repeat(rng.normal(0, 1.5, 40), 5) + rng.normal(0, 0.3, 200)
    scores = 1 / (1 + np.exp(-(2.0 * positive - 1 + noise)))
    widths = [
        np.ptp(threshold_interval(scores, positive, groups, "youden"))
        for groups in (np.repeat(np.arange(40), 5), np.arange(200))
    ]
    assert widths[0] > widths[1] > 0
    assert threshold_interval(scores, positive, np.arange(200), "0.5") is None


def test_the_interval_holds_95_of_100_drawn_thresholds():
    """They lie halfway between equal negative images and the lowest positive one that is drawn. Of the 10 positive
    ones of 20 the lowest 3 are missing in 0.85 ** 20 = 3.9 % of the draws, and the lowest 4 in 1.2 %."""
    odds = np.r_[np.zeros(10), np.arange(1, 11)]
    told = threshold_interval(expit(odds), odds > 0, np.arange(20), "youden")
    assert told == pytest.approx([expit(1 / 2), expit(4 / 2)])
    mirrored = threshold_interval(expit(-odds), odds == 0, np.arange(20), "youden")
    assert mirrored == pytest.approx([expit(-4 / 2), expit(-1 / 2)])


def test_one_patient_of_either_kind_does_not_tell_the_threshold_for_others():
    scores, positive = np.array([0.1, 0.3, 0.6, 0.4, 0.7, 0.9]), np.repeat([False, True], 3)
    for groups in (["a", "b", "c", "d", "d", "d"], ["d", "d", "d", "a", "b", "c"]):
        assert threshold_interval(scores, positive, groups, "youden") == [0, 1]
    assert threshold_interval(scores, positive, list("aabccd"), "youden") != [0, 1]


@pytest.mark.parametrize(
    "rule", ["best", "sensitivity", "sensitivity:2", "cost:-1", "cost:much", "cost:inf", "1.5", "youden:1"]
)
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(InputError, match="expected youden, sensitivity:0.95, cost:5 or a number from 0 to 1"):
        choose_threshold(np.array([0.1, 0.9]), np.array([False, True]), rule)
