"""An exponential moving average of the weights, carried by the optimizer, which checkpoints keep already.

Trainer calls eval() on an optimizer that has it before it measures and train() before each step; so what is measured,
and kept as the best checkpoint, are the averaged weights, and training goes on from its own.
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer


def average_weights(optimizer: Optimizer, decay: float) -> None:
    """Make the optimizer keep averages: average = decay * average + (1 - decay) * weight after every step.

    The decay grows from 0.1 as (1 + steps) / (10 + steps), so that the random start is soon forgotten (Abadi et al.,
    tf.train.ExponentialMovingAverage). Running statistics of batch norm are averages by themselves and stay.
    """
    group = optimizer.param_groups[0]  # a place that is saved with the optimizer
    group.update(average_steps=0, averaged=False)

    def parameters():
        return (parameter for group in optimizer.param_groups for parameter in group["params"])

    @torch.no_grad()
    def update(*_) -> None:
        group = optimizer.param_groups[0]
        group["average_steps"] += 1
        rate = 1 - min(decay, (1 + group["average_steps"]) / (10 + group["average_steps"]))
        for parameter in parameters():
            state = optimizer.state[parameter]
            state.setdefault("average", parameter.detach().clone()).lerp_(parameter, rate)

    @torch.no_grad()
    def swap(averaged: bool) -> None:
        group = optimizer.param_groups[0]
        if group["averaged"] != averaged and group["average_steps"]:
            group["averaged"] = averaged
            for parameter in parameters():
                average = optimizer.state[parameter]["average"]
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)

    optimizer.register_step_post_hook(update)
    optimizer.train, optimizer.eval = lambda: swap(False), lambda: swap(True)
