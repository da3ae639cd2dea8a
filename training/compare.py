"""Two models on the same images: is one better, or is it chance?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, rankdata

from training.metric.bootstrap import bootstrap, interval, widened

COMPARED = (
    "accuracy",
    "balanced_accuracy",
    "roc_auc",
    "average_precision",
    "sensitivity",
    "specificity",
    "brier",
    "ece",
)


def compare(
    results: Sequence[dict],
    probabilities: Sequence[np.ndarray],
    decided: Sequence[np.ndarray],
    truth: np.ndarray,
    groups: np.ndarray,
) -> dict:
    """Differences, the first model minus the second, with intervals from a bootstrap that draws one set for both.

    Of each model: its numbers from the metric, its probabilities (images, classes) and the classes that it calls;
    groups are names or numbers. Returns {"difference": {name: value}, "ci95": {name: [low, high]}, "roc_auc_p": the p
    value of `delong`}; None where the images do not define a number. One group tells nothing of others: the interval of
    a number that rests on it alone, or that no draw defines, is [-1, 1]; what is told of all classes rests on the one
    of fewest groups. Where every draw gives 0 or 1 for both models, the difference goes as far as their own intervals,
    from results[...]["ci95"], let it, and where every draw gives the same difference, too; where two different models
    are alike in every draw, as far as a share of 0 may.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    drawn = [bootstrap(p, truth, d, groups, 2000, 0) for p, d in zip(probabilities, decided, strict=True)]
    last = truth == probabilities[0].shape[1] - 1
    sick, well = (len(np.unique(groups[kind])) for kind in (last, ~last))
    fewest = min(len(np.unique(groups[truth == label])) for label in range(probabilities[0].shape[1]))
    behind = dict.fromkeys(COMPARED, groups.max() + 1) | {"sensitivity": sick, "specificity": well}
    behind |= dict.fromkeys(("balanced_accuracy", "roc_auc", "average_precision"), fewest)
    differ = not np.array_equal(*probabilities)
    one, other = results
    defined = {name for name in COMPARED if one[name] is not None and other[name] is not None}

    def between(name):
        if behind[name] == 1:
            return [-1.0, 1.0]
        bounds, apart = [interval(each[name]) for each in drawn], interval(drawn[0][name] - drawn[1][name])
        if apart is None:
            return [-1.0, 1.0] if name in defined else None
        alike = apart[1] - apart[0] < 1e-9 and apart != [0.0, 0.0]
        if alike or all(each in ([0.0, 0.0], [1.0, 1.0]) for each in bounds):
            mine, its = one["ci95"][name], other["ci95"][name]
            return [mine[0] - its[1], mine[1] - its[0]]
        if differ and apart == [0.0, 0.0]:
            most = widened(apart, behind[name])[1]
            return [-most, most]
        return apart

    told = {
        "difference": {name: one[name] - other[name] if name in defined else None for name in COMPARED},
        "ci95": {name: between(name) for name in COMPARED},
        "roc_auc_p": None,
    }
    if probabilities[0].shape[1] == 2 and "roc_auc" in defined:
        p = delong(*(each[:, 1] for each in probabilities), truth == 1, groups)[2]
        told["roc_auc_p"] = p if np.isfinite(p) else None
    return told


def delong(
    one: np.ndarray, other: np.ndarray, positive: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Difference of two AUCs of the same images, its standard error, and the two-sided p value.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, 44:837; with groups, images of a group depend on each other as
    in Obuchowski, Biometrics 1997, 53:567, which is the same where each image is its own group. Error and p value are
    NaN where the positive or the negative images are of one group, the p value also where all differ alike.
    """
    groups = np.arange(len(positive)) if groups is None else np.unique(groups, return_inverse=True)[1]
    apart, negative = _placements(one, positive) - _placements(other, positive), ~positive
    difference = float(apart[positive].mean())
    if min(len(np.unique(groups[chosen])) for chosen in (positive, negative)) < 2:
        return difference, np.nan, np.nan
    ups, downs = (np.bincount(groups, np.where(chosen, apart - difference, 0)) for chosen in (positive, negative))
    variance = (
        _scale(groups[positive]) * (ups**2).sum() / positive.sum() ** 2
        + _scale(groups[negative]) * (downs**2).sum() / negative.sum() ** 2
        + 2 * _scale(groups) * (ups * downs).sum() / (positive.sum() * negative.sum())
    )
    error = float(np.sqrt(max(variance, 0)))
    if error < 1e-12:
        return difference, error, 1.0 if abs(difference) < 1e-12 else np.nan
    return difference, error, float(2 * norm.sf(abs(difference) / error))


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each positive image the share of negative ones below it, of each negative the share of positive ones above."""
    ranks, places = rankdata(scores), np.empty(len(scores))
    places[positive] = (ranks[positive] - rankdata(scores[positive])) / (~positive).sum()
    places[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / positive.sum()
    return places


def _scale(groups: np.ndarray) -> float:
    number = len(np.unique(groups))
    return number / (number - 1) if number > 1 else 1.0
