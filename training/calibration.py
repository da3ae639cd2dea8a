"""Calibration: logits scaled so that probabilities mean what they say, folded into the network's last layer.

One temperature for all classes (Guo et al., On calibration of modern neural networks, ICML 2017), or a scale and a
shift for each class, their vector scaling. Folded in, it needs nothing at prediction time: pipeline() is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from torch import nn

FEWEST = 20  # images of a class that the validation part must have
BOUNDS = (0.05, 20.0)  # of a temperature, and of a scale


@dataclass(frozen=True)
class Calibration:
    """Calibrated logits are scale * logits + shift, both (classes,).

    method: "temperature", "vector" or "none"; reason: why there is none, "" otherwise.
    """

    method: str
    scale: np.ndarray
    shift: np.ndarray
    reason: str = ""

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrate logits (images, classes)."""
        return logits * self.scale + self.shift

    def undo(self, logits: np.ndarray) -> np.ndarray:
        """The logits before calibration; with one scale for all classes, logarithms of probabilities do as well."""
        return (logits - self.shift) / self.scale

    def fold_into(self, model: nn.Module) -> None:
        """Change the model's last linear layer so that its logits are calibrated."""
        layer = [each for each in model.modules() if isinstance(each, nn.Linear)][-1]
        scale, shift = (torch.as_tensor(each).to(layer.weight) for each in (self.scale, self.shift))
        with torch.no_grad():
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale).add_(shift)

    def to_dict(self) -> dict:
        """As it stands in config.json."""
        return {
            "method": self.method,
            "scale": self.scale.tolist(),
            "shift": self.shift.tolist(),
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, stored: dict) -> Calibration:
        """What `to_dict` gave."""
        return cls(stored["method"], np.array(stored["scale"]), np.array(stored["shift"]), stored["reason"])


def fit_calibration(
    logits: np.ndarray, truth: np.ndarray, method: str = "temperature", where: str = "validation part"
) -> Calibration:
    """Fit on logits (images, classes) of images that were not trained on, in evaluation mode.

    method: temperature, vector or none. where: which images they are, in words. What cannot be told from these images
    is left as it is, with the reason: too few of a class, all of them called right (then ever lower temperatures would
    look better), or an optimum at the bounds of the search.
    """
    classes = logits.shape[1]
    ones, zeros = np.ones(classes), np.zeros(classes)
    if method == "none":
        return Calibration("none", ones, zeros, "none was asked for")
    fewest = np.bincount(truth, minlength=classes).min()
    if fewest < FEWEST:
        reason = f"the smallest class has {fewest} images in the {where}, which is fewer than {FEWEST}"
        return Calibration("none", ones, zeros, reason)
    if (logits.argmax(axis=1) == truth).all():
        reason = f"every image of the {where} is called right, so they do not say how sure is too sure"
        return Calibration("none", ones, zeros, reason)

    # Platt's targets (Probabilistic outputs for support vector machines, 1999): n images of a class are no proof that
    # it is always so, and without them a few wrong answers among many right ones ask for boundless confidence.
    counts = np.bincount(truth, minlength=classes)[:, None]
    targets = ((counts * np.eye(classes) + 1) / (counts + classes))[truth]

    def loss(scale: np.ndarray, shift: np.ndarray) -> float:
        return -(targets * log_softmax(logits * scale + shift, axis=1)).sum(axis=1).mean()

    low, high = np.log(BOUNDS)
    if method == "temperature":
        found = minimize_scalar(lambda t: loss(np.exp(-t) * ones, zeros), bounds=(low, high), method="bounded")
        at_bound = min(found.x - low, high - found.x) < 1e-2
        scale, shift = np.exp(-found.x) * ones, zeros
    else:
        bounds = [(low, high)] * classes + [(-10, 10)] * classes
        found = minimize(
            lambda v: loss(np.exp(v[:classes]), v[classes:]), np.zeros(2 * classes), bounds=bounds, method="L-BFGS-B"
        )
        at_bound = np.isclose(np.abs(found.x), [high] * classes + [10] * classes).any()
        scale, shift = np.exp(found.x[:classes]), found.x[classes:]
    if at_bound:
        return Calibration("none", ones, zeros, f"no {method} between {BOUNDS[0]:g} and {BOUNDS[1]:g} fits best")
    return Calibration(method, scale, shift)


def fit_shift(logits: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What to add to logits (images, classes) so that each class is as probable, on average, as it is there: (classes,)
    of mean 0. weights (images,) of sum 1 say how much an image counts."""
    images, classes = np.arange(len(truth)), logits.shape[1]

    def loss(shift: np.ndarray) -> float:
        return -weights @ log_softmax(logits + shift, axis=1)[images, truth]

    shift = minimize(loss, np.zeros(classes), method="BFGS").x
    return shift - shift.mean()
