"""One metric for the whole report, loadable by path with no network: evaluate.load("training/metric").

Areas under curves are scikit-learn's; the 95 % intervals are percentiles of a bootstrap over groups (patients or
clips), because images of one group are not independent: Field and Welsh, Bootstrapping clustered data, J. R. Stat.
Soc. B 2007, 69:369; but for the calibration error, see `error_interval`.
"""

from copy import deepcopy

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score
from sklearn.metrics import confusion_matrix
from sklearn.metrics import roc_auc_score

from .bootstrap import bootstrap
from .bootstrap import calibration_error
from .bootstrap import chance_errors
from .bootstrap import error_interval
from .bootstrap import interval
from .bootstrap import of_confusion
from .bootstrap import predictive_value
from .bootstrap import squared_errors
from .bootstrap import widened

DESCRIPTION = "Classification numbers of a chest-image model with 95 % intervals from a bootstrap over groups."
CITATION = ""
INPUTS = """
Args:
    predictions: probabilities, one list of classes per image; the last class is the positive one
    references: class indices
    labels: class names (default: "0", "1", ...)
    groups: patient or clip of each image (default: each image is its own)
    threshold: with two classes, the least probability of the positive class that is called positive (default 0.5);
        one number, or one for each image where several models were asked (their mean is returned then)
    prevalence: of the positive class, for ppv and npv (default: its share of the images)
    draws: of the bootstrap (default 2000); 0 leaves the intervals out
    seed: of the bootstrap (default 0)
Returns:
    n, groups, labels, threshold, prevalence, confusion_matrix (rows: true class); accuracy, balanced_accuracy, roc_auc,
    average_precision (with more than two classes the mean of one against the rest), sensitivity, specificity and
    precision of the positive class, ppv and npv at the prevalence, mcc, brier, ece; f1 by class and macro; per_class
    with the same of sensitivity, specificity, precision, roc_auc and average_precision; and ci95 with [low, high] for
    each; ece_by_chance: [low, high], between which ece lies 95 times of 100 where the probabilities are right. What
    the images do not define, such as the AUC of one class, is None.
"""
NUMBERS = (
    *("accuracy", "balanced_accuracy", "roc_auc", "average_precision", "sensitivity", "specificity", "precision"),
    *("ppv", "npv", "mcc", "brier", "ece"),
)
PER_CLASS = ("sensitivity", "specificity", "precision", "roc_auc", "average_precision")


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

    def _compute(
        self,
        predictions,
        references,
        labels=None,
        groups=None,
        threshold=0.5,
        prevalence=None,
        draws=2000,
        seed=0,
    ):
        probabilities, truth = np.asarray(predictions, float), np.asarray(references)
        classes = probabilities.shape[1]
        labels = list(labels) if labels is not None else [str(index) for index in range(classes)]
        groups = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(truth))
        decided = decide(probabilities, threshold)
        confusion = confusion_matrix(truth, decided, labels=range(classes))
        told = {
            "n": len(truth),
            "groups": int(groups.max()) + 1,
            "labels": labels,
            "threshold": float(np.mean(threshold)),
            "prevalence": float((truth == classes - 1).mean()) if prevalence is None else prevalence,
            "confusion_matrix": confusion.tolist(),
        }
        once = {name: values[0] for name, values in of_confusion(confusion[None], prevalence).items()}
        told |= _arranged(once | _scores(probabilities, truth), labels, _number)
        if draws:
            drawn = bootstrap(probabilities, truth, decided, groups, draws, seed, prevalence)
            told["ci95"] = _arranged(drawn, labels, interval)
            told["ece_by_chance"] = interval(chance_errors(probabilities, groups, seed))
            told["ci95"]["ece"] = error_interval(told["ece"], drawn["ece"], told["ece_by_chance"])
            _widen(told, groups, truth, decided, prevalence)
        return told


def decide(probabilities, threshold=0.5):
    """Class indices of (images, classes): by the threshold with two classes, else by the greatest probability."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= np.asarray(threshold)).astype(int)
    return probabilities.argmax(axis=1)


def _scores(probabilities, truth):
    """What depends on the probabilities themselves; NaN where one class only is there."""
    classes = probabilities.shape[1]
    aucs, precisions = np.full(classes, np.nan), np.full(classes, np.nan)
    for label in range(classes):
        if 0 < (truth == label).sum() < len(truth):
            aucs[label] = roc_auc_score(truth == label, probabilities[:, label])
            precisions[label] = average_precision_score(truth == label, probabilities[:, label])
    return {
        "roc_auc": aucs[1] if classes == 2 else aucs.mean(),
        "average_precision": precisions[1] if classes == 2 else precisions.mean(),
        "roc_auc_of_class": aucs,
        "average_precision_of_class": precisions,
        "brier": squared_errors(probabilities, np.eye(classes)[truth]).mean(),
        "ece": calibration_error(probabilities, truth),
    }


def _arranged(values, labels, form):
    """The numbers in the order they are told, those of each class by its name; `form` is applied to each."""

    def of_class(name):
        by_class = np.asarray(values[f"{name}_of_class"])
        named = {label: form(by_class[..., index]) for index, label in enumerate(labels)}
        return named | {"macro": form(by_class.mean(axis=-1))}

    told = {name: form(values[name]) for name in NUMBERS}
    return told | {"f1": of_class("f1"), "per_class": {name: of_class(name) for name in PER_CLASS}}


def _widen(told, groups, truth, decided, prevalence):
    """Do not be surer of shares than the groups that they are of allow, in place; see `widened`.

    An AUC is one too: of the pairs of an image of the class and another that are ranked right, of which as many are
    independent as there are groups of the rarer kind. So are average precision and F1, and what is told of all classes
    is no surer than the class of fewest groups, see also `_widen_means`; a correlation of 1 or -1 is as sure as the
    shares behind it. Of one group nothing is told of others, also by a correlation, a Brier score and a calibration
    error. Predictive values are shares of the groups called so at the images' own prevalence only; see
    `_widen_predictive_values`.
    """
    labels, intervals = told["labels"], told["ci95"]
    _fill(told)

    def counts(chosen):
        return [len(np.unique(groups[each])) for each in chosen]

    classes = range(len(labels))
    of_class, others, called, not_called = (
        counts(which(values, label) for label in classes)
        for values in (truth, decided)
        for which in (np.equal, np.not_equal)
    )
    pairs = [min(of, other) for of, other in zip(of_class, others, strict=True)]
    either = counts((truth == label) | (decided == label) for label in classes)
    shares = [
        (intervals, "accuracy", groups.max() + 1),
        (intervals, "balanced_accuracy", min(of_class)),
        (intervals, "sensitivity", of_class[-1]),
        (intervals, "specificity", others[-1]),
        (intervals, "precision", called[-1]),
        *((intervals, name, min(pairs)) for name in ("roc_auc", "average_precision")),
    ]
    if prevalence is None:
        shares += [(intervals, "ppv", called[-1]), (intervals, "npv", not_called[-1])]
    if intervals["mcc"] == [1.0, 1.0]:
        shares.append((intervals, "mcc", min(of_class)))
    elif intervals["mcc"] == [-1.0, -1.0]:  # as sure as 1 is
        intervals["mcc"] = [-bound for bound in reversed(widened([1.0, 1.0], min(of_class)))]
    elif intervals["mcc"] is not None and min(of_class) == 1:
        intervals["mcc"] = [-1.0, 1.0]
    if groups.max() == 0:
        intervals |= {"brier": [0.0, 1.0 if len(labels) == 2 else 2.0], "ece": [0.0, 1.0]}
    by_class = {"sensitivity": of_class, "specificity": others, "precision": called}
    by_class |= {"roc_auc": pairs, "average_precision": pairs, "f1": either}
    drawn = deepcopy(intervals)
    for name, numbers in by_class.items():
        bounds = _of_class(intervals, name)
        shares += [(bounds, label, n) for label, n in zip([*labels, "macro"], [*numbers, min(numbers)], strict=True)]
    for bounds, name, number in shares:
        if bounds[name] is not None:
            bounds[name] = widened(bounds[name], number)
    _widen_means(told, drawn)
    if prevalence is not None:
        _widen_predictive_values(told, prevalence, 1 in (of_class[-1], others[-1]))


def _of_class(told, name):
    return told["f1"] if name == "f1" else told["per_class"][name]


def _fill(told):
    """What is told but no draw defines, such as a mean of many classes of a group each, can be anything; in place."""
    by_class = [(_of_class(told, name), _of_class(told["ci95"], name)) for name in ("f1", *PER_CLASS)]
    for values, bounds in [(told, told["ci95"]), *by_class]:
        for name in bounds:
            if bounds[name] is None and values[name] is not None:
                bounds[name] = [-1.0 if name == "mcc" else 0.0, 1.0]


def _widen_means(told, drawn):
    """Means of classes some of whose intervals are no longer as drawn, in place; with what is told first of them."""
    labels, intervals = told["labels"], told["ci95"]
    first = {"sensitivity": "balanced_accuracy"}
    if len(labels) > 2:
        first |= {"roc_auc": "roc_auc", "average_precision": "average_precision"}
    for name in ("f1", *PER_CLASS):
        values, bounds, before = (_of_class(each, name) for each in (told, intervals, drawn))
        if bounds["macro"] is not None and any(bounds[label] != before[label] for label in labels):
            bounds["macro"] = _widened_mean(bounds["macro"], labels, values, bounds)
            if name in first:
                intervals[first[name]] = _widened_mean(intervals[first[name]], labels, values, bounds)


def _widened_mean(mean, labels, values, bounds):
    """The interval `mean` of a mean of classes, as wide at least as those of the classes make it.

    Their distances from the values add up as deviations do (Zou and Donner, Stat. Med. 2008, 27:1693).
    """
    below, above = (
        sum((values[label] - bounds[label][side]) ** 2 for label in labels) ** 0.5 / len(labels) for side in (0, 1)
    )
    return [min(mean[0], max(0.0, values["macro"] - below)), max(mean[1], min(1.0, values["macro"] + above))]


def _widen_predictive_values(told, prevalence, alone):
    """Of ppv and npv at that prevalence, in place; alone: the images of either kind are of one group.

    Where every draw gave 1, or 0, one of the two shares that it is made of was so in every draw, and is put at the
    bound of its interval; how far the other may be off at once is as in an interval of a ratio (Donner and Zou, Stat.
    Methods Med. Res. 2012, 21:347).
    """

    def least(value, bound):
        return float(np.sqrt(bound * (2 * value - bound)))

    intervals = told["ci95"]
    for name, found, spared, share in (
        ("ppv", "sensitivity", "specificity", prevalence),
        ("npv", "specificity", "sensitivity", 1 - prevalence),
    ):
        if intervals[name] is None:
            continue
        low, high = intervals[name]
        if low == 1:
            low = predictive_value(least(told[found], intervals[found][0]), intervals[spared][0], share)
        elif high == 0:
            false = least(1 - told[spared], 1 - intervals[spared][1])
            high = predictive_value(intervals[found][1], 1 - false, share)
        elif alone:
            low, high = 0.0, 1.0
        intervals[name] = [low, high]


def _number(value):
    return float(value) if np.isfinite(value) else None
