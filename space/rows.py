"""One row of a table of predictions, the same on the page and from the verb predict."""

from __future__ import annotations

from collections.abc import Sequence

from space.errors import InputError
from space.predictor import Answer, Predictor


def columns_of(labels: Sequence[str]) -> list[str]:
    """The columns of a row: path, group, prediction, probability_LABEL of each class, threshold, abstained, error."""
    probabilities = [f"probability_{label}" for label in labels]
    return ["path", "group", "prediction", *probabilities, "threshold", "abstained", "error"]


def row(predictor: Predictor, path: str, answer: Answer | InputError, group: str = "") -> dict:
    """What the model says of one image or clip, by `columns_of`.

    The model abstains, and there is no prediction, where an image is unlike those that it was trained on, which its
    probabilities do not tell, and where one cannot be read, which has an error.
    """
    failed = isinstance(answer, InputError)
    abstained = failed or answer.abstained
    values = [
        path,
        group,
        "" if abstained else predictor.labels[predictor.decide(answer.probabilities[None])[0]],
        *([None] * len(predictor.labels) if failed else answer.probabilities.tolist()),
        predictor.threshold,
        abstained,
        str(answer) if failed else "",
    ]
    return dict(zip(columns_of(predictor.labels), values, strict=True))


def rounded(row: dict) -> dict:
    """A row for people to read, with probabilities of six digits."""
    return {
        name: round(value, 6) if name.startswith("probability_") and value is not None else value
        for name, value in row.items()
    }
