"""The loss of a fit, exact whatever the number of processes and accumulated steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

IGNORED = -100  # the label that cross-entropy and Trainer pass over
Loss = Callable[..., torch.Tensor]


def class_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weights (classes,) float32 with which every class has the same say and the mean over images is 1."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(counts.sum() / (classes * counts), dtype=torch.float32)


def classification_loss(weights: torch.Tensor, smoothing: float = 0.0) -> Loss:
    """Weighted, smoothed cross-entropy for Trainer's compute_loss_func.

    Labels are class indices (images,), or shares of the classes (images, classes) where images were mixed.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        # The sum over all images of a step, on all processes and accumulated, divided by their number.
        counted = labels.sum(dim=1) > 0 if labels.is_floating_point() else labels != IGNORED  # the rest is filling
        total = cross_entropy(
            outputs.logits[counted],
            labels[counted],
            weight=weights.to(outputs.logits),
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
