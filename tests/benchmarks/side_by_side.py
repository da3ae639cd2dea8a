"""Small networks fitted side by side on one device, each step of one a CUDA graph where there is a GPU.

What a step does is what training/trainer.py does for ultrasound.yaml, in a form that can be captured: nothing in it
depends on values that the processor would have to wait for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from training.anatomy import FINDINGS
from training.mixing import mix_amplitudes

TOLD = ["regular", *FINDINGS]  # by the second task


@dataclass(frozen=True)
class Change:
    """What a fit does otherwise than ultrasound.yaml."""

    epochs: int = 12
    rate: float = 1e-4
    rho: float = 0.05  # of sharpness-aware steps
    power: float = 0.5  # a patient's frames are drawn n ** -power as often: 0.5 as `balance: sites`, 1 patients alike
    findings: float = 0.0  # weight of telling the phantom's findings apart, as a second task
    dropout: float = 0.0  # of the pooled features
    keep: float = 0.5  # how much of the start's weights stays: see training/interpolate.py
    splice: float = 0.0  # share of the frames of which a side is taken from a healthy frame of the batch
    amplitudes: float = 0.0  # share of the frames whose spectrum is blended with that of another frame of the batch


class Network:
    """One network whose step is captured once, and which can then be fitted again and again.

    pool (views, SIDE, SIDE) uint8, labels and findings (views,): what `plan` points into; a finding of -1 is not known.
    """

    MOST_STEPS = 2000

    def __init__(self, base: str, pool, labels, findings, batch: int, change: Change):
        self.pool, self.labels, self.findings, self.change = pool, labels, findings, change
        self.cuda, device = pool.is_cuda, pool.device
        config = AutoConfig.from_pretrained(base, num_labels=2)
        self.model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        self.model.to(device, memory_format=torch.channels_last).train()
        self.width = self.model.classifier[-1].in_features
        self.second = nn.Linear(self.width, len(TOLD)).to(device)
        self.parameters = [*self.model.parameters(), *(self.second.parameters() if change.findings else [])]
        self.rates, groups = [], []
        for decayed in (True, False):
            rate = torch.zeros((), device=device)
            self.rates.append(rate)
            some = [parameter for parameter in self.parameters if (parameter.ndim > 1) == decayed]
            groups.append({"params": some, "lr": rate, "weight_decay": 0.05 if decayed else 0.0})
        self.optimizer = torch.optim.AdamW(groups, **({"fused": True, "capturable": True} if self.cuda else {}))
        self.plan = torch.zeros(self.MOST_STEPS, batch, dtype=torch.long, device=device)
        self.schedule = torch.zeros(self.MOST_STEPS, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.mean, self.deviation = (
            torch.tensor(values, device=device)[None, :, None, None]
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.num_batches_tracked = None
        self.graph = None
        if self.cuda:
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    self._step()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._step()
            torch.cuda.synchronize()

    def _pixels(self, frames):
        pixels = (frames[:, None].float() / 255 - self.mean) / self.deviation
        return pixels.contiguous(memory_format=torch.channels_last)

    def _gradient(self, pixels, labels, findings):
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False):
            pooled = self.model.base_model(pixels).pooler_output.flatten(1)
        pooled = pooled.float()
        if self.change.dropout:
            pooled = F.dropout(pooled, self.change.dropout)
        loss = F.cross_entropy(self.model.classifier[-1](pooled), labels)
        if self.change.findings:
            known = (findings >= 0).float()
            second = F.cross_entropy(self.second(pooled), findings.clamp(min=0), reduction="none")
            loss = loss + self.change.findings * (second * known).sum() / known.sum().clamp(min=1)
        loss.backward()

    def _step(self):
        gradients = [parameter.grad for parameter in self.parameters]
        with torch.no_grad():
            keys = self.plan.index_select(0, self.at)[0]
            for rate in self.rates:
                rate.copy_(self.schedule.index_select(0, self.at)[0])
            frames, labels = self.pool.index_select(0, keys), self.labels.index_select(0, keys)
            if self.change.splice:
                frames = spliced(frames, labels, self.change.splice)
            pixels = self._pixels(frames)
            if self.change.amplitudes:
                pixels = mix_amplitudes(pixels, self.change.amplitudes)
            batch = (pixels, labels, self.findings.index_select(0, keys))
            torch._foreach_zero_(gradients)
        self._gradient(*batch)
        if self.change.rho:
            with torch.no_grad():
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
                uphill = torch._foreach_mul(gradients, self.change.rho / (norm + 1e-12))
                torch._foreach_add_(self.parameters, uphill)
                torch._foreach_zero_(gradients)
            self._set_momentum(0.0)
            self._gradient(*batch)
            self._set_momentum(0.1)
            with torch.no_grad():
                torch._foreach_sub_(self.parameters, uphill)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        with torch.no_grad():
            self.at.add_(1)

    def _set_momentum(self, momentum: float):
        for norm in self.norms:
            norm.momentum = momentum

    def begin(self, state: dict, plan: np.ndarray, rate: float) -> None:
        """Start anew from a state, with warm-up and cosine over the steps of the plan."""
        self.steps = len(plan)
        warm, step = max(1, math.ceil(0.1 * self.steps)), np.arange(self.steps)
        falling = 0.5 * (1 + np.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(state[name])
            for name, value in self.second.state_dict().items():
                value.copy_(state[f"second.{name}"])
            for kept in self.optimizer.state.values():
                for value in kept.values():
                    value.zero_()
            self.at.zero_()
            self.plan[: self.steps].copy_(torch.as_tensor(plan))
            self.schedule[: self.steps].copy_(torch.as_tensor(np.where(step < warm, step / warm, falling) * rate))

    @torch.no_grad()
    def mix(self, state: dict, shift: np.ndarray) -> None:
        """Give it the change's share of the weights of a state, after a shift of that state's logits (2,)."""
        for name, value in self.model.state_dict().items():
            value.lerp_(state[name], self.change.keep)
        self.model.classifier[-1].bias.add_(self.change.keep * torch.as_tensor(shift).to(self.plan.device))

    def step(self) -> None:
        if self.graph is None:
            return self._step()
        with torch.cuda.stream(self.stream):
            self.graph.replay()

    def state(self) -> dict:
        second = {f"second.{name}": value for name, value in self.second.state_dict().items()}
        return {name: value.clone() for name, value in (self.model.state_dict() | second).items()}

    @torch.no_grad()
    def logits(self, frames: torch.Tensor) -> np.ndarray:
        """(frames, 2)"""
        self.model.eval()
        told = [self.model(self._pixels(some)).logits.float().cpu() for some in frames.split(512)]
        self.model.train()
        return torch.cat(told).numpy()


def spliced(frames: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """Replace a side of a share of the frames, a quarter to a half of the width, by that of a healthy one.

    frames (batch, height, width), labels (batch,), 0 for healthy. Labels stay right where what is left shows the signs;
    seams are then almost as common in healthy frames, which may meet themselves, as in sick ones.
    """
    count, width = len(frames), frames.shape[-1]
    chance = torch.rand(3, count, device=frames.device)
    healthy = (labels == 0).expand(count, count)
    donors = torch.rand(count, count, device=frames.device).masked_fill(~healthy, -1).argmax(dim=1)
    cut = ((0.25 + 0.25 * chance[0]) * width).floor()[:, None]
    column = torch.arange(width, device=frames.device)
    column = torch.where(chance[1, :, None] < 0.5, column, width - 1 - column)
    replaced = (column < cut) & (chance[2, :, None] < share) & healthy.any()
    return torch.where(replaced[:, None], frames[donors], frames)


def run(networks: list[Network]) -> None:
    """Fit them side by side."""
    for number in range(max(network.steps for network in networks)):
        for network in networks:
            if number < network.steps:
                network.step()
        if networks[0].cuda and number % 25 == 24:
            torch.cuda.synchronize()
    if networks[0].cuda:
        torch.cuda.synchronize()
