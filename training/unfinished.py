"""The hidden folder beside a model folder to be, where a run that was stopped is gone on with."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import yaml

from space.errors import InputError
from training.outputs import new_file

RUN = "run.yaml"  # in the folder: what the run is


def open_unfinished(work: Path, run: dict, overwrite: bool) -> None:
    """Make the folder, or keep what an interrupted run left in it.

    run is all that must be the same for the rest of a run to be what it would have been: the recipe, the images, their
    labels, the order of the classes and the number of processes. Raises InputError, with the first difference, when the
    folder is of another run, or when nothing tells of which its checkpoints are, unless that may be overwritten.
    """
    run = yaml.safe_load(yaml.safe_dump(run))
    if work.is_dir():
        before = read_run(work)
        differs = difference(before, run)
        if differs and before and not overwrite:
            raise InputError(
                f"{work}: a stopped run is there with {differs}; "
                "go on with that recipe, choose another --output_dir, or give it up with --overwrite true"
            )
        if differs and not overwrite and (checkpoint := last_checkpoint(work / "checkpoints")):
            raise InputError(
                f"{work}: {Path(checkpoint).name} of a stopped run is there, but no {RUN} that can be read; "
                "choose another --output_dir, or give it up with --overwrite true"
            )
        if differs:
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if read_run(work) != run:
        with new_file(work / RUN) as file:
            file.write_text(yaml.safe_dump(run, sort_keys=False))
    shutil.rmtree(work / "model", ignore_errors=True)
    whole = last_checkpoint(work / "checkpoints")
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
