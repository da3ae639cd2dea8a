"""The best mode of the machine: precision by what the processor or GPU computes natively, and workers that decode."""

from __future__ import annotations

import torch

from space.runtimes import cores


def best_precision(device: str) -> tuple[str, str]:
    """The fastest sound precision on a kind of device, "bf16", "fp16" or "float32", and what it was chosen by.

    Measured on a processor with AVX512-BF16: a step of a ResNet-50 in bf16 with channels_last convolutions is 1.8 to 3
    times as fast as Trainer's own float32. GPUs before Ampere have fp16 only.
    """
    if device == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return "bf16", "AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "bf16", "AVX512-BF16"
        return "float32", "neither AMX nor AVX512-BF16"
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", torch.cuda.get_device_name()
        return "fp16", torch.cuda.get_device_name()
    return "float32", device


def best_workers(device: str) -> int:
    """How many processes decode for each that trains: on a GPU up to 8 of its cores, else a quarter of them.

    Where the processor trains too, torch computes on all cores already; below four, workers only take turns with it.
    """
    return min(8, cores() - 1) if device != "cpu" else min(4, cores() // 4)
