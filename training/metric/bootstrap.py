"""The bootstrap over groups behind every interval; numpy alone, for it is also used where nothing else is loaded."""

import numpy as np

BINS = 10  # of the expected calibration error, with equal numbers of images
CHUNK = 4_000_000  # draws x images that are held at a time


def bootstrap(probabilities, truth, decided, groups, draws, seed):
    """Draw whole groups with replacement; returns {name: (draws,) array}, and (draws, classes) for f1.

    Nothing is measured anew for a draw: all numbers but the AUC are functions of sums over groups, so they come from
    one product of the (draws, groups) counts with per-group sums; the AUC comes from weighted ranks.
    """
    classes = probabilities.shape[1]
    positive = classes - 1
    number = groups.max() + 1
    onehot = np.eye(classes)[truth]
    cells = np.eye(classes * classes)[truth * classes + decided]
    additive = np.column_stack([cells, squared_errors(probabilities, onehot), calibration_gaps(probabilities, truth)])
    per_group = np.zeros((number, additive.shape[1]))
    np.add.at(per_group, groups, additive)

    rng = np.random.default_rng(seed)
    sums, aucs = [], []
    step = max(1, CHUNK // len(truth))
    for first in range(0, draws, step):
        drawn = rng.integers(0, number, (min(step, draws - first), number))
        offset = np.arange(len(drawn))[:, None] * number
        counts = np.bincount((drawn + offset).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)
        sums.append(counts @ per_group)
        aucs.append(_weighted_auc(probabilities, truth, counts, groups))
    sums = np.concatenate(sums)

    confusion = sums[:, : classes * classes].reshape(-1, classes, classes)
    n, rows, columns = confusion.sum(axis=(1, 2)), confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls = hits / rows
        f1 = 2 * hits / (rows + columns)
        false_positives = columns[:, positive] - hits[:, positive]
        return {
            "accuracy": hits.sum(axis=1) / n,
            "balanced_accuracy": recalls.mean(axis=1),
            "roc_auc": np.concatenate(aucs),
            "sensitivity": recalls[:, positive],
            "specificity": 1 - false_positives / (n - rows[:, positive]),
            "precision": hits[:, positive] / columns[:, positive],
            "f1": f1,
            "brier": sums[:, classes * classes] / n,
            "ece": np.abs(sums[:, classes * classes + 1 :]).sum(axis=1) / n,
        }


def intervals(sampled, labels):
    """95 % percentile intervals, [low, high], of what `bootstrap` returns; None where no draw defines the number."""

    def interval(values):
        values = values[np.isfinite(values)]
        return [float(bound) for bound in np.quantile(values, [0.025, 0.975])] if len(values) else None

    result = {name: interval(values) for name, values in sampled.items() if name != "f1"}
    result["f1"] = {name: interval(sampled["f1"][:, index]) for index, name in enumerate(labels)}
    result["f1"]["macro"] = interval(sampled["f1"].mean(axis=1))
    return result


def _weighted_auc(probabilities, truth, counts, groups):
    """AUC of each draw, counts (draws, groups), ties counted half; the mean over classes when more than two."""
    classes = probabilities.shape[1]
    areas = []
    for positive in [1] if classes == 2 else range(classes):
        order = np.argsort(probabilities[:, positive], kind="stable")
        scores = probabilities[order, positive]
        starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
        is_positive = truth[order] == positive
        weights = counts[:, groups[order]]
        positives = np.add.reduceat(weights * is_positive, starts, axis=1)
        negatives = np.add.reduceat(weights, starts, axis=1) - positives
        below = np.cumsum(negatives, axis=1) - negatives / 2
        with np.errstate(invalid="ignore"):
            areas.append((positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1)))
    return np.mean(areas, axis=0)


def squared_errors(probabilities, onehot):
    """Brier's squared error of each image: of the positive class with two classes, summed over classes with more."""
    squared = (probabilities - onehot) ** 2
    return squared[:, 1] if squared.shape[1] == 2 else squared.sum(axis=1)


def calibration_gaps(probabilities, truth):
    """Confidence minus correctness of each image, in the column of its bin: (images, BINS).

    The absolute column sums, added up and divided by the number of images, are the expected calibration error of the
    most probable class with bins of equal size (Nguyen and O'Connor, EMNLP 2015).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    bins = np.empty(len(truth), int)
    bins[np.argsort(confidence, kind="stable")] = np.arange(len(truth)) * BINS // len(truth)
    return (confidence - correct)[:, None] * np.eye(BINS)[bins]
