"""The threshold: from which probability of the positive class on an image is called positive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

from space.errors import InputError

RULES = "youden, sensitivity:0.95, cost:5 or a number from 0 to 1"


def check_rule(rule: str) -> tuple[str, float]:
    """Split a rule into its name and its number; raises InputError when it is none of RULES."""
    name, _, text = rule.partition(":")
    if name == "youden" and not text:
        return name, 0.0
    name, text = (name, text) if text else ("fixed", name)
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if (name in {"fixed", "sensitivity"} and 0 <= number <= 1) or (name == "cost" and 0 < number < np.inf):
        return name, number
    raise InputError(f"threshold {rule}: expected {RULES}")


def choose_threshold(scores: np.ndarray, positive: np.ndarray, rule: str) -> float:
    """The best threshold by a rule, for probabilities of the positive class and whether an image is positive.

    youden: greatest sensitivity + specificity (Youden, Cancer 1950, 3:32). sensitivity:x: greatest specificity with
    at least that sensitivity. cost:x: a missed positive image costs as much as x false alarms. Thresholds lie halfway,
    in log odds, between two probabilities that occur; among equally good ones the one in the widest gap is taken.
    """
    name, number = check_rule(rule)
    if name == "fixed":
        return number
    odds = logit(np.clip(scores, 1e-15, 1 - 1e-15))
    values, places = np.unique(odds, return_inverse=True)
    positives, negatives = (np.bincount(places[each], minlength=len(values)) for each in (positive, ~positive))
    missed = np.r_[0, np.cumsum(positives)]  # by a threshold below each value, and above all
    alarms = negatives.sum() - np.r_[0, np.cumsum(negatives)]
    sensitivity = 1 - missed / max(positives.sum(), 1)
    specificity = 1 - alarms / max(negatives.sum(), 1)
    if name == "youden":
        worth = sensitivity + specificity
    elif name == "sensitivity":
        worth = np.where(sensitivity >= number - 1e-12, specificity, -1.0)
    else:
        worth = -(number * missed + alarms)
    edges = np.r_[values[0] - 1, values, values[-1] + 1]
    best = np.flatnonzero(worth >= worth.max() - 1e-12)
    place = best[np.diff(edges)[best].argmax()]
    return float(expit((edges[place] + edges[place + 1]) / 2))


def threshold_interval(
    scores: np.ndarray, positive: np.ndarray, groups: Sequence[str], rule: str
) -> list[float] | None:
    """95 % interval of the chosen threshold from a bootstrap over groups; None for a fixed one.

    One group tells nothing of others: where the positive or the negative images are of one it is [0, 1].
    """
    if check_rule(rule)[0] == "fixed":
        return None
    names, number = np.unique(groups, return_inverse=True)
    if 1 in (len(np.unique(number[kind])) for kind in (positive, ~positive)):
        return [0.0, 1.0]
    members = [np.flatnonzero(number == group) for group in range(len(names))]
    rng, chosen = np.random.default_rng(0), []
    for _ in range(500):
        rows = np.concatenate([members[group] for group in rng.integers(0, len(names), len(names))])
        if 0 < positive[rows].sum() < len(rows):
            chosen.append(choose_threshold(scores[rows], positive[rows], rule))
    return [float(bound) for bound in np.quantile(chosen, [0.025, 0.975])] if chosen else None
