"""One row of a table of predictions, the same on the page and from the verb predict."""

from __future__ import annotations

from space.errors import InputError
from space.predictor import Answer, Predictor


def row(predictor: Predictor, path: str, answer: Answer | InputError, group: str = "") -> dict:
    """path, group, prediction, probability_LABEL of each class, threshold, abstained, error.

    The model abstains, and there is no prediction, where an image is unlike those that it was trained on, which its
    probabilities do not tell, and where one cannot be read, which has an error.
    """
    failed = isinstance(answer, InputError)
    probabilities = [""] * len(predictor.labels) if failed else [f"{p:.6f}" for p in answer.probabilities]
    abstained = failed or answer.abstained
    return {
        "path": path,
        "group": group,
        "prediction": "" if abstained else predictor.labels[predictor.decide(answer.probabilities[None])[0]],
        **{f"probability_{label}": p for label, p in zip(predictor.labels, probabilities, strict=True)},
        "threshold": predictor.threshold,
        "abstained": abstained,
        "error": str(answer) if failed else "",
    }
