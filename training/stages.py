"""A network as stem, stages and head, whatever its family: freezing, learning rates by depth, recomputed stages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from hashlib import sha256

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from space.errors import InputError

# encoder.stages.2 (ResNet, BiT, ConvNeXT), encoder.layers.2 (Swin), layers.2 (ViT), layer2 and blocks.2 (timm)
STAGE = re.compile(r"\b(?:(?:stages|layers|layer|blocks)\.|layer)(\d+)\b")


def head_of(model: nn.Module) -> nn.Module:
    """What stands between the pooled features and the logits."""
    timm = getattr(model, "timm_model", None)
    return model.classifier if timm is None else timm.get_classifier()


def body_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers but the head's, by their names."""
    of_head = {id(value) for value in head_of(model).state_dict(keep_vars=True).values()}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in of_head}


def digest_of_body(model: nn.Module) -> str:
    """64 hex digits that change with them; the head may be drawn by chance."""
    digest = sha256()
    for name, value in body_of(model).items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def depths(model: nn.Module) -> dict[str, int]:
    """The depth of every module and parameter by its name: 0 for the stem, 1 for the first stage, most for the head."""
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    numbers = [int(found[1]) for name in names if (found := STAGE.search(name))]
    first = min(numbers, default=0)  # timm's layer1 is the first stage of its ResNets
    last = max(numbers, default=first) - first + 1
    own = {id(part) for kind in (head_of(model).modules(), head_of(model).parameters()) for part in kind}
    found = {}
    for parts in (model.named_modules(), model.named_parameters()):
        behind = False  # whether the stages lie behind, so that what follows (a last norm, a pooler) goes with the last
        for name, part in parts:
            if match := STAGE.search(name):
                found[name], behind = int(match[1]) - first + 1, True
            else:
                found[name] = last + 1 if id(part) in own else last if behind else 0
    return found


def freeze(model: nn.Module, upto: str) -> None:
    """Freeze nothing (none), all but the head (all), or the stem and that many stages.

    What is frozen gets no gradient and stays in eval mode: its batch norm keeps the statistics it came with. Raises
    InputError when there are not so many stages.
    """
    if upto == "none":
        return
    depth = depths(model)
    stages = max(depth.values()) - 1
    if upto != "all" and not (upto.isdecimal() and int(upto) <= stages):
        raise InputError(f"--freeze {upto}: expected none, all, or a number of stages; this base has {stages}")
    deepest = stages if upto == "all" else int(upto)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depth[name] > deepest)
    frozen = [module for name, module in model.named_modules() if name and depth[name] <= deepest]

    def put_back(_module: nn.Module, _inputs) -> None:  # for Trainer calls model.train() before every step
        for module in frozen:
            module.training = False

    model.register_forward_pre_hook(put_back)


def parameter_groups(model: nn.Module, decayed: set[str], rates: tuple[float, float], fall: float, decay: float):
    """Groups for an optimizer, the head's first: its rate is the one that is logged.

    rates: the learning rate of the body and of the head; fall: each stage learns by this factor slower than the one
    above it (Bao et al., BEiT, ICLR 2022); decayed: the names of the parameters that weight decay applies to.
    """
    depth, groups = depths(model), {}
    top = max(depth.values())
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if parameter.requires_grad:
            groups.setdefault((depth[name], name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[1] if level == top else rates[0] * fall ** (top - level),
            "weight_decay": decay if with_decay else 0.0,
        }
        for (level, with_decay), parameters in sorted(groups.items(), reverse=True, key=lambda item: item[0])
    ]


def recompute_stages(model: nn.Module) -> None:
    """Gradient checkpointing for families that transformers offers none for: only what goes between stages is kept."""
    for name, module in model.named_modules():
        if (match := STAGE.search(name)) and match.end() == len(name):
            module.forward = partial(
                checkpoint, module.forward, use_reentrant=False, context_fn=partial(_contexts, module)
            )


def _contexts(stage: nn.Module):
    return nullcontext(), statistics_kept(stage)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A second pass over a batch, of which the running statistics of batch norm are not to learn again."""
    norms = (each for each in module.modules() if isinstance(each, _BatchNorm) and each.training)
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
