"""The hidden folder beside a model folder to be, where a run that was stopped is gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN
from fcntl import LOCK_EX, LOCK_NB, lockf
from pathlib import Path

import yaml

from space.errors import InputError
from training.arguments import OF_A_RUN
from training.outputs import new_file

RUN = "run.yaml"  # in the folder: what the run is
LOCK = "lock"  # in the folder: held by the process whose run is under way


@contextmanager
def unfinished(work: Path, run: dict, overwrite: bool) -> Iterator[None]:
    """Make the folder, or keep what an interrupted run left in it; no other process can open it meanwhile.

    run is all that must be the same for the rest of a run to be what it would have been: the recipe, the images, their
    labels, the order of the classes, the base and the number of processes. Raises InputError, with the first
    difference, when a checkpoint of another run is there, or when nothing tells of which it is, unless that may be
    overwritten; and always when a run is under way there.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / LOCK, "w") as held:
        try:
            lockf(held, LOCK_EX | LOCK_NB)  # of this process alone, so what it starts does not outlive it with the lock
        except OSError as error:
            if error.errno in (EACCES, EAGAIN):  # others: a file system that knows no locks
                raise InputError(
                    f"{work}: a run is under way there; wait for its end, or choose another output_dir"
                ) from None
        _clear(work, run, overwrite)
        yield


def _clear(work: Path, run: dict, overwrite: bool) -> None:
    """Keep what is of the same run, and whole."""
    run = yaml.safe_load(yaml.safe_dump(run))
    before = {key: value for key, value in read_run(work).items() if key not in OF_A_RUN}  # which earlier versions kept
    differs, whole = difference(before, run), last_checkpoint(work / "checkpoints")
    if differs and whole and not overwrite:
        if before:
            found, remedy = f"a stopped run is there with {differs}", "go on with that recipe, "
        else:
            found, remedy = f"{Path(whole).name} of a stopped run is there, but no {RUN} that can be read", ""
        raise InputError(f"{work}: {found}; {remedy}choose another output_dir, or give it up with --overwrite true")
    if differs:
        for path in work.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if read_run(work) != run:
        with new_file(work / RUN) as file:
            file.write_text(yaml.safe_dump(run, sort_keys=False))
    shutil.rmtree(work / "model", ignore_errors=True)
    for checkpoint in (work / "checkpoints").glob("checkpoint-*"):
        if whole is None or int(checkpoint.name.split("-")[1]) > int(Path(whole).name.split("-")[1]):
            shutil.rmtree(checkpoint)  # cut short


def read_run(folder: Path) -> dict:
    """What run.yaml in a folder holds; empty when it is not there or not whole."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        run = yaml.safe_load((folder / RUN).read_text())
        return run if isinstance(run, dict) else {}
    return {}


def difference(before: dict, run: dict) -> str | None:
    """The first thing in which a run is not the one before, in words; None when they are one."""
    for key in before | run:
        if before.get(key) != run.get(key):
            return f"{key}: {before.get(key)} where this one has {run.get(key)}"
    return None


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; trainer_state.json is what Trainer writes last."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
    return None
