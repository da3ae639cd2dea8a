"""One metric for the whole report, loadable by path with no network: evaluate.load("training/metric").

Numbers are scikit-learn's; the 95 % intervals are percentiles of a bootstrap over groups (patients or clips), because
images of one group are not independent: Field and Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 2007, 69:369.
"""

import datasets
import evaluate
import numpy as np
from sklearn import metrics

from .bootstrap import bootstrap, calibration_gaps, intervals, squared_errors

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
        "brier": float(squared_errors(probabilities, onehot).mean()),
        "ece": float(np.abs(calibration_gaps(probabilities, truth).sum(axis=0)).sum() / len(truth)),
    }


def _roc_auc(probabilities, truth):
    if probabilities.shape[1] == 2:
        return float(metrics.roc_auc_score(truth, probabilities[:, 1]))
    return float(metrics.roc_auc_score(truth, probabilities, multi_class="ovr"))


def _number(value):
    return float(value) if np.isfinite(value) else None
