"""Sharpness-aware steps: by the gradient found a little way uphill, so that what is learned lies in a flat valley and
holds where images differ a little (Foret et al., Sharpness-aware minimization, ICLR 2021). They take two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from training.stages import statistics_kept


def sharpness_aware(model: nn.Module, rho: float, backward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Add to the gradients what `backward` finds where the weights lie `rho` further along their own gradient.

    backward: adds the gradient of a batch, at the weights as they are, and gives its loss. Returns the loss at the
    weights themselves, which are left as they were to the last bit.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accumulated = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss = backward()
    with _uphill(parameters, rho), statistics_kept(model):
        for parameter, gradient in zip(parameters, accumulated, strict=True):
            parameter.grad = gradient
        backward()
    return loss


@contextmanager
def _uphill(parameters: list[nn.Parameter], rho: float) -> Iterator[None]:
    """The parameters moved by `rho`, all of them together, along the gradient that they have."""
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    kept = [parameter.detach().clone() for parameter in moved]
    gradients = [parameter.grad for parameter in moved]
    with torch.no_grad():
        torch._foreach_add_(moved, torch._foreach_mul(gradients, rho / (get_total_norm(gradients) + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, kept)
