"""The tables that the verbs print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from datasets import Dataset


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
    found = result["per_class"]
    by_class = pd.DataFrame(
        {"precision": found["precision"], "recall": found["sensitivity"], "f1-score": result["f1"]}, dtype=float
    ).assign(support=[*confusion.sum(axis=1), confusion.sum()])
    by_class = by_class.rename({"macro": "macro avg"})
    matrix = pd.DataFrame(
        confusion, index=[f"true {label}" for label in labels], columns=[f"called {label}" for label in labels]
    )
    figures = pd.DataFrame(
        {
            f"{name}{whose(name, labels)}": _with_interval(result, name)
            for name in result["ci95"]
            if name not in {"f1", "per_class"}
        },
        index=["value", "95 % interval over groups"],
    ).T
    shown = by_class.to_string(float_format="%.3f", na_rep="-")
    return "\n\n".join([shown, matrix.to_string(), figures.to_string()])


def whose(name: str, labels: Sequence[str]) -> str:
    """What the name of a number needs beside it where there are more than two classes: which of them it is of."""
    if len(labels) == 2:
        return ""
    if name in {"sensitivity", "specificity", "precision", "ppv", "npv"}:
        return f" ({labels[-1]})"
    return " (class mean)" if name in {"roc_auc", "average_precision"} else ""


def in_words(result: dict) -> str:
    """Accuracy and AUC of an evaluation in one line; what is not defined is left out."""
    told = [
        f"{name} {result[name]:.3f} [{result['ci95'][name][0]:.3f}, {result['ci95'][name][1]:.3f}]"
        for name in ("accuracy", "roc_auc")
        if result[name] is not None
    ]
    return ", ".join(told)


def _with_interval(result: dict, name: str) -> list[str]:
    value, interval = result[name], result["ci95"][name]
    if value is None:
        return ["-", "not defined for these images"]
    return [f"{value:.3f}", f"{interval[0]:.3f} - {interval[1]:.3f}"]
