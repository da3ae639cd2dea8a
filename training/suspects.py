"""Images and labels that deserve a second look."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.fingerprint import LEVELS, SIDE, Fingerprints
from training.listings import NORMAL

TINY = 64  # pixels of the shorter side under which an image is too small
FAR = 10  # robust deviations from the median at which an image is unlike the rest
CHUNK = 256  # images whose gradients are taken at a time; they take 128 KB each
CELL, DIRECTIONS = 8, 9  # pixels of a side, and how many of the half circle, that gradients are counted by
FOLDS = 5
TRUSTED = 0.9  # AUC that a model must have to question labels
DOUBTFUL = 0.1  # out-of-fold probability of its own label, were all as frequent, under which a label is doubtful
LOOKS = ("mean", "deviation", "black", "white", "entropy", "colour", "edges")
LEAST_SPREAD = (0.02, 0.02, 0.02, 0.005, 0.2, 0.01, 0.005)  # of LOOKS, where nearly all images are alike
# Words in file names that speak for one of the two usual classes, whatever the folder calls them.
WORDS = {
    "normal": NORMAL,
    "sick": {"sick", "ill", "abnormal", "pneumonia", "pneu", "covid", "cov", "viral", "virus", "bacteria", "positive"},
}


def odd_images(facts: pd.DataFrame) -> pd.DataFrame:
    """Images that are tiny, blank, or unlike the rest: columns index, problem ("tiny", "blank", "unlike"), distance.

    facts are those of `fingerprint`, of readable images only. "unlike": brightness, colour, entropy or edges lie FAR
    median absolute deviations from the median.
    """
    rows = []
    spread = facts[list(LOOKS)].to_numpy(float)
    middle = np.median(spread, axis=0)
    deviation = np.maximum(1.4826 * np.median(np.abs(spread - middle), axis=0), LEAST_SPREAD)
    distances = (np.abs(spread - middle) / deviation).max(axis=1)
    for index, distance in zip(facts.index, distances, strict=True):
        image = facts.loc[index]
        if image["deviation"] < 0.01 or image["most_common"] > 0.995:
            rows.append((index, "blank", distance))
        elif min(image["width"], image["height"]) < TINY:
            rows.append((index, "tiny", distance))
        elif distance > FAR:
            rows.append((index, "unlike", distance))
    return pd.DataFrame(rows, columns=["index", "problem", "distance"])


def contradicting_names(paths: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Indices of images whose file or folder names hold a word for another class and none for their own.

    labels are class names, "" where unknown. A class folder does not count, for it always says what the label says. A
    word that stands in the names of half of the images of both classes, such as the folder pneumonia_study, says
    nothing and is passed over.
    """
    classes = sorted(set(labels) - {""})
    words = {name: {name.lower()} | WORDS.get(name.lower(), set()) for name in classes}
    found = [_words(path, label) for path, label in zip(paths, labels, strict=True)]
    sizes, shares = Counter(labels), Counter()
    for label, in_path in zip(labels, found, strict=True):
        shares.update({(label, word): 1 / sizes[label] for word in in_path})
    others = {  # words of other classes, but for those that are usual among the images of both
        label: {
            word
            for name in classes
            for word in words[name] - words[label]
            if name != label and min(shares[label, word], shares[name, word]) < 0.5
        }
        for label in classes
    }
    return [
        index
        for index, (label, in_path) in enumerate(zip(labels, found, strict=True))
        if label and in_path & others[label] and not in_path & words[label]
    ]


def _words(path: str, label: str) -> set[str]:
    """The words of a path without its class folder, and the label when all of the label's words are among them."""
    *folders, name = PurePosixPath(path).with_suffix("").parts
    kept = "/".join([*(folder for folder in folders if folder.lower() != label.lower()), name])
    found, own = (set(re.findall(r"[a-z]+", text.lower())) for text in (kept, label))
    return found | {label.lower()} if own and own <= found else found


def doubtful_labels(
    prints: Fingerprints, chosen: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Images whose label is contradicted, with high confidence, by a model that did not see their group.

    chosen: indices of readable, labelled images; labels (0, 1, ...) and groups are theirs. Returns positions in
    `chosen`, the probability of the own label of each, lowest first, and the model's AUC. A model with an AUC under
    TRUSTED judges nobody; where a class has too few groups there is none. It is a logistic regression on gradients and
    brightness of the thumbnails, out of fold as in Northcutt et al., Confident learning, JAIR 2021. Probabilities are
    those of classes of equal size, so that a label is not doubted for being rare.
    """
    nobody = np.empty(0, int), np.empty(0)
    smallest = min((len(set(groups[labels == label])) for label in np.unique(labels)), default=0)
    if len(np.unique(labels)) < 2 or smallest < FOLDS:
        return *nobody, None
    levels = prints.facts.loc[chosen, [f"level_{index}" for index in range(LEVELS)]].to_numpy(float)
    chunks = np.array_split(chosen, range(CHUNK, len(chosen), CHUNK))
    features = np.column_stack([np.concatenate([_gradients(prints.thumbnails[some]) for some in chunks]), levels])
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, labels, groups))
    fewest = min(len(train) for train, _ in folds)  # where one group has most of the images
    parts = min(60, len(chosen) // 2, fewest, features.shape[1])
    model = make_pipeline(StandardScaler(), PCA(parts, random_state=0), LogisticRegression(C=0.05, max_iter=1000))
    told = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    score = told[:, 1] if told.shape[1] == 2 else told
    auc = float(roc_auc_score(labels, score, multi_class="ovr"))
    if auc < TRUSTED:
        return *nobody, auc
    places = np.unique(labels, return_inverse=True)[1]
    for train, test in folds:
        told[test] /= np.maximum(np.bincount(places[train], minlength=told.shape[1]), 1)
    own = told[np.arange(len(labels)), places] / told.sum(axis=1)
    found = np.flatnonzero(own < DOUBTFUL)
    found = found[np.argsort(own[found], kind="stable")]
    return found, own[found], auc


def _gradients(thumbnails: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), without blocks: (n, cells * DIRECTIONS)."""
    images = thumbnails.astype(np.float32)
    down, across = np.gradient(images, axis=1), np.gradient(images, axis=2)
    strength = np.hypot(down, across)
    direction = np.minimum((np.arctan2(down, across) % np.pi / np.pi * DIRECTIONS).astype(int), DIRECTIONS - 1)
    cells = SIDE // CELL
    histograms = np.stack(
        [
            (strength * (direction == index)).reshape(-1, cells, CELL, cells, CELL).sum(axis=(2, 4))
            for index in range(DIRECTIONS)
        ],
        axis=-1,
    )
    length = np.linalg.norm(histograms, axis=-1, keepdims=True)
    return np.sqrt(histograms / (length + 10)).reshape(len(images), -1)
