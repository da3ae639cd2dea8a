"""Can the label be told without looking at the anatomy? A small classifier tries, on what should not tell it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from training.fingerprint import LEVELS
from training.metric.bootstrap import bootstrap, interval, widened

SUSPICIOUS = 0.70  # AUC from which a feature is named in a warning
FOLDS = 5
FAMILIES = {
    "file": ["width", "height", "aspect", "bytes_per_pixel", "quantization", "exif_tags", "format", "mode"],
    "brightness": ["mean", "deviation", *(f"level_{index}" for index in range(LEVELS))],
    "corners": [f"corner_{name}" for name in ("top_left", "top_right", "bottom_left", "bottom_right")],
    "border": [f"border_{name}" for name in ("top", "bottom", "left", "right")],
    "site": ["site"],
}
MEANINGS = {
    "file": "frame size, format, compression and EXIF",
    "brightness": "the brightness histogram",
    "corners": "the four corners",
    "border": "the outermost strip of pixels",
    "site": "the site",
}


def find_confounds(facts: pd.DataFrame, labels: np.ndarray, groups: np.ndarray) -> list[dict]:
    """How well each family of features tells the label (0, 1, ...) of images whose group was not trained on.

    facts: a row for each image, with the columns of FAMILIES. Returns for each family that varies: feature, meaning,
    label (the class that is told from the others best), auc, ci95 (over groups), strongest (the single column with the
    most to say), auc_strongest, suspicious. Families are told by small gradient-boosted trees in StratifiedGroupKFold,
    with fewer than FOLDS groups of a class in as many folds as there are. Returns nothing when a class has fewer than
    two groups.
    """
    smallest = min((len(set(groups[labels == label])) for label in np.unique(labels)), default=0)
    if len(np.unique(labels)) < 2 or smallest < 2:
        return []
    folds = list(StratifiedGroupKFold(min(FOLDS, smallest), shuffle=True, random_state=0).split(labels, labels, groups))
    results = []
    for family, columns in FAMILIES.items():
        numbers = pd.get_dummies(facts[columns]).astype(float)
        features = numbers.to_numpy()
        features = features[:, features.std(axis=0) > 0]
        if features.shape[1] == 0:
            continue
        probabilities = out_of_fold(features, labels, folds)
        aucs = [float(roc_auc_score(labels == label, told)) for label, told in enumerate(probabilities.T)]
        auc, label = max(zip(aucs, range(len(aucs)), strict=True))  # the mean would hide what tells a rare class
        _, numbered = np.unique(groups, return_inverse=True)
        draws = bootstrap(probabilities, labels, probabilities.argmax(axis=1), numbered, 1000, 0)
        strongest, alone = _strongest(numbers, labels == label)
        results.append(
            {
                "feature": family,
                "meaning": MEANINGS[family],
                "label": label,
                "auc": auc,
                "ci95": widened(interval(draws["roc_auc_of_class"][:, label]), smallest),
                "strongest": strongest,
                "auc_strongest": alone,
                "suspicious": auc > SUSPICIOUS,
            }
        )
    return results


def out_of_fold(features: np.ndarray, labels: np.ndarray, folds: list) -> np.ndarray:
    """Probabilities (images, classes) of gradient-boosted trees that were not trained on the image's fold."""
    classes = np.unique(labels)
    probabilities = np.zeros((len(labels), len(classes)))
    for train, test in folds:
        known = np.unique(labels[train])
        if len(known) == 1:  # all groups of the others are in this fold
            probabilities[test, np.searchsorted(classes, known[0])] = 1.0
            continue
        trees = HistGradientBoostingClassifier(
            learning_rate=0.15,
            max_iter=30,
            max_leaf_nodes=8,
            min_samples_leaf=5,
            early_stopping=False,  # for which, of many images, a class of one could not be divided
            random_state=0,
        )
        told = trees.fit(features[train], labels[train]).predict_proba(features[test])
        probabilities[np.ix_(test, np.searchsorted(classes, known))] = told
    return probabilities


def _strongest(numbers: pd.DataFrame, positive: np.ndarray) -> tuple[str, float]:
    """The column whose values alone order the images of a class against the others best, in either direction."""
    aucs = {name: roc_auc_score(positive, numbers[name]) for name in numbers}
    name = max(aucs, key=lambda name: abs(aucs[name] - 0.5))
    return str(name), float(max(aucs[name], 1 - aucs[name]))
