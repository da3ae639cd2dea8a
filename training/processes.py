"""What several processes, started by accelerate launch, do once and not each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from space.errors import InputError

T = TypeVar("T")
CPU = Path(__file__).parent / "recipes" / "accelerate" / "cpu.yaml"


def require_several() -> None:
    """Raise InputError when accelerate was asked for several processes and, on a processor, started a single one."""
    # It names a port for several processes all the same, and says nothing.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= set(os.environ) and "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"several processes were asked for but accelerate started one; give it --config_file {CPU}, or "
            "--multi_gpu instead of --cpu"
        )


def require_processes(found: int, here: int, use_cpu: bool) -> None:
    """Raise InputError when fewer processes would train than were asked for, or several would share a GPU.

    found: how many would train, here: on this machine.
    """
    asked, gpus = int(os.environ.get("WORLD_SIZE", "1")), torch.accelerator.device_count()
    if found != asked:
        raise InputError(f"{asked} processes were launched but {found} would train; see --use_cpu")
    if not use_cpu and here > max(1, gpus):
        raise InputError(
            f"{here} processes were launched on a machine with {gpus} GPU(s); expected one for each, --num_processes "
            f"{gpus}, or --use_cpu true"
        )
    require_several()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes ahead, and the others find what it has made; also when it has failed.

    They wait for it as long as it takes.
    """
    state = PartialState()
    wait = partial(distributed.barrier, _patient()) if state.num_processes > 1 else lambda: None
    try:
        if not state.is_main_process:
            wait()
        yield
    finally:
        if state.is_main_process:
            wait()


def from_main_process(make: Callable[[], T]) -> T:
    """What `make` gives in the main process, or the InputError that it raises there, in all of them.

    The others wait for it as long as it takes.
    """
    state, told = PartialState(), [None]
    group = _patient() if state.num_processes > 1 else None
    if state.is_main_process:
        try:
            told = [make()]
        except InputError as error:
            told = [error]
    if state.num_processes > 1:
        distributed.broadcast_object_list(told, group=group)
    if isinstance(told[0], InputError):
        raise told[0]
    return told[0]


@cache
def _patient() -> distributed.ProcessGroup:
    """All processes, which make it together, to wait in for the main one: elsewhere torch gives up in half an hour."""
    return distributed.new_group(timeout=timedelta(days=7), backend="gloo")
