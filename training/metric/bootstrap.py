"""The bootstrap over groups behind every interval; numpy alone, for it is also used where nothing else is loaded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

BINS = 10  # of the expected calibration error, with equal numbers of images
CHUNK = 2_000_000  # draws x images that are drawn at a time by one thread
CHANCE_DRAWS = 200  # of what chance alone gives
PIECE = 500_000  # of these whose areas are found at a time, for they stay in the processor's caches


def bootstrap(probabilities, truth, decided, groups, draws, seed, prevalence=None):
    """Draw whole groups with replacement; returns {name: (draws,) array}, and (draws, classes) for PER_CLASS names.

    Nothing is measured anew for a draw: most numbers are functions of sums over groups, so they come from one product
    of the (draws, groups) counts with per-group sums; areas under curves come from weighted ranks. The same seed draws
    the same groups, so that the difference of two models' arrays is the paired bootstrap.
    """
    classes, number = probabilities.shape[1], groups.max() + 1
    cells = np.eye(classes * classes)[truth * classes + decided]
    onehot = np.eye(classes)[truth]
    additive = np.column_stack([cells, squared_errors(probabilities, onehot), calibration_gaps(probabilities, truth)])
    per_group = np.zeros((number, additive.shape[1]))
    np.add.at(per_group, groups, additive)
    ranked = [_rank(probabilities[:, label], truth == label, groups) for label in range(classes)]

    def take(chunk):
        counts = draw_groups(*chunk, number)
        pieces = np.array_split(counts, -(-len(counts) * len(truth) // PIECE))
        areas = [np.hstack([_weighted_areas(piece, *ranks) for piece in pieces]) for ranks in ranked]
        return counts @ per_group, np.stack([area[0] for area in areas], 1), np.stack([area[1] for area in areas], 1)

    with ThreadPoolExecutor() as pool:
        sums, aucs, precisions = map(
            np.concatenate, zip(*pool.map(take, _chunks(draws, len(truth), seed)), strict=True)
        )
    confusion = sums[:, : classes * classes].reshape(-1, classes, classes)
    numbers = of_confusion(confusion, prevalence)
    numbers |= {"roc_auc_of_class": aucs, "average_precision_of_class": precisions}
    return numbers | {
        "roc_auc": aucs[:, 1] if classes == 2 else aucs.mean(axis=1),
        "average_precision": precisions[:, 1] if classes == 2 else precisions.mean(axis=1),
        "brier": sums[:, classes * classes] / confusion.sum(axis=(1, 2)),
        "ece": np.abs(sums[:, classes * classes + 1 :]).sum(axis=1) / confusion.sum(axis=(1, 2)),
    }


def of_confusion(confusion, prevalence=None):
    """All numbers that confusion matrices (draws, classes, classes; rows: true class) hold; NaN where undefined.

    sensitivity, specificity, precision and npv are of the last class, the positive one; NAME_of_class of each class.
    ppv and npv hold at `prevalence` of the positive class (by Bayes' rule), or at the images' own where it is None.
    mcc is the correlation of true and called classes (Gorodkin, Comput. Biol. Chem. 2004, for more than two).
    """
    confusion = np.asarray(confusion, float)
    n = confusion.sum(axis=(1, 2))
    rows, columns, hits = confusion.sum(axis=2), confusion.sum(axis=1), np.diagonal(confusion, axis1=1, axis2=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = hits / rows
        specificity = 1 - (columns - hits) / (n[:, None] - rows)
        precision, f1 = hits / columns, np.where(rows > 0, 2 * hits / (rows + columns), np.nan)
        share = rows[:, -1] / n if prevalence is None else prevalence
        covariance = hits.sum(axis=1) * n - (rows * columns).sum(axis=1)
        spread = (n**2 - (rows**2).sum(axis=1)) * (n**2 - (columns**2).sum(axis=1))
        return {
            "accuracy": hits.sum(axis=1) / n,
            "balanced_accuracy": sensitivity.mean(axis=1),
            "sensitivity": sensitivity[:, -1],
            "specificity": specificity[:, -1],
            "precision": precision[:, -1],
            "ppv": predictive_value(sensitivity[:, -1], specificity[:, -1], share),
            "npv": predictive_value(specificity[:, -1], sensitivity[:, -1], 1 - share),
            "mcc": covariance / np.sqrt(spread),
            "f1_of_class": f1,
            "sensitivity_of_class": sensitivity,
            "specificity_of_class": specificity,
            "precision_of_class": precision,
        }


def predictive_value(found, spared, share):
    """How many of those called so are so, by Bayes' rule, where `share` of all are.

    found and spared: the shares called right, of those that are so and of the others.
    """
    right = found * share
    return right / (right + (1 - spared) * (1 - share))


def interval(values):
    """95 % percentile interval, [low, high], of the draws that define a number; None where none does."""
    values = values[np.isfinite(values)]
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])] if len(values) else None


def widened(bounds, groups):
    """The interval of a share, wider where every draw gave 0 or 1: as far as so many groups can tell.

    Of groups that are all right (or all wrong) each draw is, however few they are; the exact interval of a share
    (Clopper and Pearson, Biometrika 1934, 26:404) is not so sure. One group that is partly right tells nothing of
    others.
    """
    least = 0.025 ** (1 / groups) if groups else 0.0
    low, high = bounds
    if groups == 1 and low < 1 and high > 0:
        return [0.0, 1.0]
    return [least if low == 1 else low, 1 - least if high == 0 else high]


def squared_errors(probabilities, onehot):
    """Brier's squared error of each image: of the positive class with two classes, summed over classes with more."""
    squared = (probabilities - onehot) ** 2
    return squared[:, 1] if squared.shape[1] == 2 else squared.sum(axis=1)


def calibration_gaps(probabilities, truth, bins=BINS):
    """Confidence minus correctness of each image, in the columns of its bins: (images, bins).

    The absolute column sums, added up and divided by the number of images, are the expected calibration error of the
    most probable class with bins of equal size (Nguyen and O'Connor, EMNLP 2015).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    return (confidence - correct)[:, None] * _in_bins(confidence, bins)


def calibration_error(probabilities, truth):
    """The expected calibration error: see `calibration_gaps`."""
    return float(np.abs(calibration_gaps(probabilities, truth).sum(axis=0)).sum() / len(truth))


def chance_errors(probabilities, groups, seed, draws=CHANCE_DRAWS):
    """The calibration errors that chance gives where the probabilities are right: (draws,).

    An image is of the class that a number of its group, drawn evenly from 0 to 1, falls into, so that like images of
    one patient are right or wrong together (consistency resampling: Bröcker and Smith, Weather Forecast. 2007, 22:651).
    """
    called, rows = probabilities.argmax(axis=1), np.arange(len(probabilities))
    above = np.cumsum(probabilities, axis=1)[rows, called]
    confidence = probabilities[rows, called]
    bins, errors = _in_bins(confidence, BINS), np.empty(draws)
    for draw, numbers in enumerate(np.random.default_rng(seed).random((draws, groups.max() + 1))):
        number = numbers[groups]
        correct = (above - confidence <= number) & (number < above)
        errors[draw] = np.abs((confidence - correct) @ bins).sum() / len(rows)
    return errors


def error_interval(error, drawn, by_chance):
    """95 % interval of a calibration error from those of the draws, and from [low, high] of what chance gives.

    Chance makes such an error larger, and drawing anew once more, so percentiles lie too high; they are reflected at
    the error (the basic bootstrap: Davison and Hinkley, Bootstrap methods and their application, 1997, 5.2). Where
    chance alone would give as much, it may be 0.
    """
    low, high = (2 * error - bound for bound in reversed(interval(drawn)))
    return [0.0 if error <= by_chance[1] else min(error, max(0.0, low)), max(error, min(1.0, high))]


def draw_groups(generator, draws, number):
    """How often each group is drawn: (draws, groups), each row adds up to the number of groups."""
    counts = np.empty((draws, number), np.float32)
    for row, chosen in zip(counts, generator.integers(0, number, (draws, number), dtype=np.int32), strict=True):
        row[:] = np.bincount(chosen, minlength=number)
    return counts


def _in_bins(confidence, bins):
    """How much of each image is in each of so many bins of equal size, by its confidence: (images, bins).

    Images of one confidence are spread alike over the bins that they reach, so that their order does not matter.
    """
    filled = np.zeros((len(confidence) + 1, bins))
    np.cumsum(np.eye(bins)[np.arange(len(confidence)) * bins // len(confidence)], axis=0, out=filled[1:])
    _, place, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    return ((filled[ends] - filled[ends - sizes]) / sizes[:, None])[place]


def _chunks(draws, images, seed):
    """(generator of its own, number of draws) of pieces that fit into the caches."""
    step = max(1, CHUNK // images)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return list(zip(np.random.default_rng(seed).spawn(len(sizes)), sizes, strict=True))


def _rank(scores, positive, groups):
    """What `_weighted_areas` needs to know of one class, found once for all draws."""
    order = np.argsort(scores, kind="stable")
    ups, downs = order[positive[order]], order[~positive[order]]
    high, low = scores[ups], scores[downs]
    below, at = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return groups[ups], groups[downs], below, at, np.searchsorted(high, high, "left")


def _weighted_areas(counts, ups, downs, below, at, first):
    """AUC, ties counted half, and average precision of each draw, counts (draws, groups); NaN with one class only."""
    positives = counts.take(ups, axis=1)
    negatives = np.zeros((len(counts), len(downs) + 1), np.float32)
    np.cumsum(counts.take(downs, axis=1), axis=1, out=negatives[:, 1:])
    before = np.zeros((len(counts), len(ups) + 1), np.float32)
    np.cumsum(positives, axis=1, out=before[:, 1:])
    under, total, all_negatives = negatives.take(below, axis=1), before[:, -1], negatives[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (positives * (under + negatives.take(at, axis=1))).sum(axis=1, dtype=float) / (
            2.0 * total * all_negatives
        )
        found = total[:, None] - before.take(first, axis=1)
        shares = found / np.maximum(found + all_negatives[:, None] - under, 1)
        precision = (positives * shares).sum(axis=1, dtype=float) / total
    return auc, np.where(all_negatives > 0, precision, np.nan)
