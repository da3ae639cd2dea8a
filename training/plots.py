"""The pictures of an evaluation, for the model folder and the card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from training.outputs import new_file

BLUE, GREY = "#2166ac", "#777777"


def save(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def confusion(result: dict) -> Figure:
    """The confusion matrix as a picture: shares of each true class in colour, numbers in the cells."""
    labels, matrix = result["labels"], np.array(result["confusion_matrix"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = _axes(f"{result['name']}: confusion matrix, n = {result['n']}")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=14)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="called", ylabel="true")
    return figure


def roc(result: dict, truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """The ROC curve of the positive (last) class, with the point at the stored threshold when there are two classes."""
    labels, positive = result["labels"], probabilities.shape[1] - 1
    false_positive, true_positive, _ = roc_curve(truth == positive, probabilities[:, positive])
    figure, axes = _axes(f"{result['name']}: ROC of {labels[positive]}")
    low, high = result["ci95"]["roc_auc"]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(false_positive, true_positive, color=BLUE, label=f"AUC {result['roc_auc']:.3f} [{low:.3f}, {high:.3f}]")
    if len(labels) == 2:
        label = f"threshold {result['threshold']:.2f}"
        axes.plot(1 - result["specificity"], result["sensitivity"], "o", color=BLUE, label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def reliability(result: dict, truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Probability of the positive class against how often it was right, in ten bins of equal size."""
    positive = probabilities.shape[1] - 1
    order = np.argsort(probabilities[:, positive], kind="stable")
    bins = [chosen for chosen in np.array_split(order, 10) if len(chosen)]
    said = [probabilities[chosen, positive].mean() for chosen in bins]
    found = [(truth[chosen] == positive).mean() for chosen in bins]
    figure, axes = _axes(f"{result['name']}: reliability, ECE {result['ece']:.3f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(said, found, "o-", color=BLUE)
    axes.set(
        xlabel=f"probability given for {result['labels'][positive]}", ylabel="share that was", aspect="equal",
        xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip
    return figure


def _axes(title: str):
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    return figure, axes
