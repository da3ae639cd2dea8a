"""What the model says of an image, in words: one wording for the page, its API and screen readers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from space.predictor import LEAST, Answer, Predictor
from space.saliency import region
from space.texts import Texts

NEAR = 0.4  # of the threshold, in log odds: what a small change of the image could carry over it; 0.1 at 0.5


def in_digits(probability: float) -> str:
    """A probability with three digits, or with as many as it takes not to say 0 or 1 of what is neither."""
    digits = 3
    while float(told := f"{probability:.{digits}f}") in {0.0, 1.0} and probability not in {0.0, 1.0}:
        digits += 1
    return told


def side_by_side(probability: float, threshold: float) -> tuple[str, str]:
    """Both, with as many digits as it takes to see which side of the threshold the probability is on."""
    digits = len(in_digits(threshold)) - len("0.")
    while (told := f"{probability:.{digits}f}") == (beside := f"{threshold:.{digits}f}") and probability != threshold:
        digits += 1
    return told, beside


class Words(NamedTuple):
    """called: the answer as a heading. side: which side of the threshold it is on. doubts: why it may be wrong. where:
    the part of the image that speaks for the class that is shown; empty where there is no map."""

    called: str
    side: str
    doubts: list[str]
    where: str

    def __str__(self) -> str:
        return " ".join([*self.doubts, f"{self.called}.", *filter(None, (self.side, self.where))])


def describe(
    predictor: Predictor, answer: Answer, texts: Texts, shown: int | None = None, what: str = "answer"
) -> Words:
    """Put an answer into words. shown: the class that the map speaks for, by default the one that is called.

    what: the section of the texts that says what it is the answer for, `answer` (an image) or `clip`.
    """
    labels, positive = predictor.labels, predictor.labels[-1]
    index = int(predictor.decide(answer.probabilities[None])[0])
    side, doubts = "", []
    if answer.abstained:
        doubts.append(texts("answer.unlike"))
    if len(labels) == 2:
        probability, threshold = float(answer.probabilities[1]), predictor.threshold
        told, beside = side_by_side(probability, threshold)
        key = "answer.above" if index == 1 else "answer.below"
        side = texts(key, positive=positive, probability=told, threshold=beside)
        if abs(_log_odds(probability) - _log_odds(threshold)) < NEAR:
            doubts.append(texts("answer.near"))
    where = ""
    if answer.saliency is not None:
        label, place = labels[index if shown is None else shown], region(answer.saliency)
        where = texts("answer.no_region", label=label)
        if place is not None:
            row, column, held, share = place
            place, key = texts(f"places.{row}-{column}"), "answer.region" if held > 0.5 else "answer.regions"
            where = texts(key, label=label, place=place, share=max(1, round(100 * share)))
    return Words(texts(f"{what}.called", label=labels[index]), side, doubts, where)


def _log_odds(probability: float) -> float:
    probability = np.clip(probability, LEAST, 1 - LEAST)
    return float(np.log(probability / (1 - probability)))
