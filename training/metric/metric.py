"""One metric for the whole report, loadable by path with no network: evaluate.load("training/metric").

Numbers are scikit-learn's; the 95 % intervals are percentiles of a bootstrap over groups (patients or clips), because
images of one group are not independent: Field and Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 2007, 69:369.
"""

import datasets
import evaluate
import numpy as np
from sklearn import metrics

DESCRIPTION = "Classification numbers of a chest-image model with 95 % intervals from a bootstrap over groups."
CITATION = ""
INPUTS = """
Args:
    predictions: probabilities, one list of classes per image; the last class is the positive one
    references: class indices
    labels: class names (default: "0", "1", ...)
    groups: patient or clip of each image (default: each image is its own)
    threshold: with two classes, the least probability of the positive class that is called positive (default 0.5)
    draws: of the bootstrap (default 2000); 0 leaves the intervals out
    seed: of the bootstrap (default 0)
Returns:
    n, groups, labels, threshold, confusion_matrix (rows: true class), accuracy, balanced_accuracy, roc_auc (with more
    than two classes the mean of one against the rest), sensitivity, specificity and precision of the positive class,
    f1 per class and macro, brier, ece, and ci95 with [low, high] for each. What the images do not define, such as the
    AUC of one class, is None.
"""
BINS = 10  # of the expected calibration error, with equal numbers of images
CHUNK = 4_000_000  # draws x images that are held at a time


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ChestOpacityMetric(evaluate.Metric):
    """See the module's docstring; use through evaluate.load."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, labels=None, groups=None, threshold=0.5, draws=2000, seed=0):
        probabilities, truth = np.asarray(predictions, float), np.asarray(references)
        classes = probabilities.shape[1]
        labels = list(labels) if labels is not None else [str(index) for index in range(classes)]
        groups = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(truth))
        decided = probabilities[:, 1] >= threshold if classes == 2 else probabilities.argmax(axis=1)
        result = {"n": len(truth), "groups": int(groups.max()) + 1, "labels": labels, "threshold": threshold}
        result |= point_estimates(probabilities, truth, decided.astype(int), labels)
        if draws:
            sampled = bootstrap(probabilities, truth, decided.astype(int), groups, draws, seed)
            result["ci95"] = intervals(sampled, labels)
        return result


def point_estimates(probabilities, truth, decided, labels):
    """scikit-learn's numbers; None where the images at hand do not define one."""
    classes = range(len(labels))
    positive = len(labels) - 1
    confusion = metrics.confusion_matrix(truth, decided, labels=classes)
    present = confusion.sum(axis=1) > 0
    recalls = metrics.recall_score(truth, decided, labels=classes, average=None, zero_division=0)
    precision = metrics.precision_score(truth, decided, labels=[positive], average=None, zero_division=np.nan)[0]
    f1 = metrics.f1_score(truth, decided, labels=classes, average=None, zero_division=np.nan)
    negatives = confusion.sum() - confusion[positive].sum()
    false_positives = confusion[:, positive].sum() - confusion[positive, positive]
    onehot = np.eye(len(labels))[truth]
    return {
        "confusion_matrix": confusion.tolist(),
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": float(recalls[present].mean()) if present.all() else None,
        "roc_auc": _roc_auc(probabilities, truth) if present.all() else None,
        "sensitivity": float(recalls[positive]) if present[positive] else None,
        "specificity": float(1 - false_positives / negatives) if negatives else None,
        "precision": _number(precision),
        "f1": {name: _number(value) for name, value in zip(labels, f1, strict=True)} | {"macro": _number(f1.mean())},
        "brier": float(_squared_errors(probabilities, onehot).mean()),
        "ece": float(np.abs(_calibration_gaps(probabilities, truth).sum(axis=0)).sum() / len(truth)),
    }


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
    additive = np.column_stack([cells, _squared_errors(probabilities, onehot), _calibration_gaps(probabilities, truth)])
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


def _roc_auc(probabilities, truth):
    if probabilities.shape[1] == 2:
        return float(metrics.roc_auc_score(truth, probabilities[:, 1]))
    return float(metrics.roc_auc_score(truth, probabilities, multi_class="ovr"))


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


def _squared_errors(probabilities, onehot):
    """Brier's squared error of each image: of the positive class with two classes, summed over classes with more."""
    squared = (probabilities - onehot) ** 2
    return squared[:, 1] if squared.shape[1] == 2 else squared.sum(axis=1)


def _calibration_gaps(probabilities, truth):
    """Confidence minus correctness of each image, in the column of its bin: (images, BINS).

    The absolute column sums, added up and divided by the number of images, are the expected calibration error of the
    most probable class with bins of equal size (Nguyen and O'Connor, EMNLP 2015).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    bins = np.empty(len(truth), int)
    bins[np.argsort(confidence, kind="stable")] = np.arange(len(truth)) * BINS // len(truth)
    return (confidence - correct)[:, None] * np.eye(BINS)[bins]


def _number(value):
    return float(value) if np.isfinite(value) else None
