"""The loss of a fit, exact whatever the number of processes and accumulated steps, and mixed images (mixup, cutmix)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot

from training.examples import IGNORED

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


def mix(pixels: torch.Tensor, labels: torch.Tensor, classes: int, mixup: float, cutmix: float):
    """Mix each image of a batch with another one: (images, 3, height, width) and the shares (images, classes).

    mixup: alpha of the Beta distribution that the weight of the two images is drawn from (Zhang et al., ICLR 2018);
    cutmix: the same for the area of a rectangle pasted from the other image (Yun et al., ICCV 2019); 0 leaves one out.
    With both, one of them is drawn for each batch. The chances come from torch's generator, which checkpoints keep.
    """
    targets = torch.zeros(len(labels), classes, device=labels.device)
    counted = labels != IGNORED
    targets[counted] = one_hot(labels[counted], classes).float()
    order = torch.randperm(len(labels)).to(labels.device)
    paste = cutmix > 0 and (mixup == 0 or torch.rand(()) < 0.5)
    alpha = torch.tensor(float(cutmix if paste else mixup))
    share = torch.distributions.Beta(alpha, alpha).sample().item()  # of the image's own
    if paste:
        rows, columns = pixels.shape[-2:]
        height, width = round(rows * (1 - share) ** 0.5), round(columns * (1 - share) ** 0.5)
        top = torch.randint(rows - height + 1, ()).item()
        left = torch.randint(columns - width + 1, ()).item()
        region = slice(top, top + height), slice(left, left + width)
        mixed = pixels.clone()
        mixed[..., region[0], region[1]] = pixels[order][..., region[0], region[1]]
        share = 1 - height * width / (rows * columns)
    else:
        mixed = share * pixels + (1 - share) * pixels[order]
    # Filling stays uncounted, and an image mixed with filling keeps its full weight.
    other = torch.where(counted[order, None], targets[order], targets)
    return mixed, torch.where(counted[:, None], share * targets + (1 - share) * other, 0.0)
