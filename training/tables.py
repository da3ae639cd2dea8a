"""The tables that the verbs print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.metrics import classification_report


def class_counts(parts: Mapping[str, Dataset]) -> str:
    """Images of each class and groups, a line a part."""
    lines = {}
    for name, rows in parts.items():
        names, labels = rows.features["label"].names, np.asarray(rows["label"])
        line = {label: int((labels == index).sum()) for index, label in enumerate(names)}
        if (labels < 0).any():
            line["unlabelled"] = int((labels < 0).sum())
        lines[name] = line | {"groups": len(set(rows["group"]))}
    return pd.DataFrame.from_dict(lines, orient="index").fillna(0).astype(int).to_string()


def classification_tables(result: dict) -> str:
    """The classification report, the confusion matrix and the numbers with their intervals, from an evaluation."""
    labels, confusion = result["labels"], np.array(result["confusion_matrix"])
    truth, decided = np.indices(confusion.shape).reshape(2, -1).repeat(confusion.ravel(), axis=1)
    by_class = classification_report(
        truth, decided, labels=range(len(labels)), target_names=labels, digits=3, zero_division=np.nan
    )
    matrix = pd.DataFrame(
        confusion, index=[f"true {label}" for label in labels], columns=[f"called {label}" for label in labels]
    )
    figures = pd.DataFrame(
        {name: _with_interval(result, name) for name in result["ci95"] if name not in {"f1", "per_class"}},
        index=["value", "95 % interval over groups"],
    ).T
    return "\n\n".join([by_class.rstrip(), matrix.to_string(), figures.to_string()])


def in_words(result: dict, names: Sequence[str]) -> str:
    """Some numbers of an evaluation in one line; those that are not defined are left out."""
    told = [
        f"{name} {result[name]:.3f} [{result['ci95'][name][0]:.3f}, {result['ci95'][name][1]:.3f}]"
        for name in names
        if result[name] is not None
    ]
    return ", ".join(told) or "one class only"


def _with_interval(result: dict, name: str) -> list[str]:
    value, interval = result[name], result["ci95"][name]
    if value is None:
        return ["-", "not defined for these images"]
    return [f"{value:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}"]
