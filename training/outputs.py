"""Outputs that are complete or absent: written beside their final name, renamed when they are whole; and read again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError

from space.errors import InputError

MADE = frozenset({"training", "audit"})  # eval/NAME.json of these tell how the model was made and of its data
EXPORT = "export_"  # and those that begin so, of what was exported of it
EXPORTS = tuple(f"{EXPORT}{name}" for name in ("model", "model_int8", "openvino_model", "openvino_model_int8"))


def place_of(path: Path) -> Path:
    """Where a folder of that name is made: where a link leads, else the path itself.

    Raises InputError on a mount point, which no folder can take the place of.
    """
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if os.path.ismount(place):
        raise InputError(
            f"{place}: a disk is mounted there, and a new folder cannot take its place; name one in it, such as "
            f"{place / 'model'}"
        )
    return place


def refuse_existing(path: Path, remedy: str) -> None:
    """Raise InputError when there is something at `path` already (an empty folder does not count), or cannot be."""
    path = place_of(path)
    if not path.name:
        raise InputError(f"{path}: expected the name of something new; {remedy}")
    if file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise InputError(f"{path}: {file} is no folder; {remedy}")
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise InputError(f"{path} exists; {remedy}")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield the name of a folder to make; it becomes `final` at the end, or is removed when anything is raised."""
    final = place_of(final)
    with writing(final) as work:
        shutil.rmtree(work, ignore_errors=True)  # of a killed run that had the same process id
        try:
            yield work
            move_into_place(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield the name of a file to write; it replaces `final` at the end, or is removed when anything is raised."""
    with writing(final) as work:
        try:
            yield work
            os.replace(work, final)
        finally:
            work.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another; unlike shutil.copytree it stops at the first that cannot be copied."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def read_again(file: Path) -> dict:
    """What a JSON or YAML file of a model folder tells, or the head of its card. Raises InputError when none does."""
    kind = "JSON" if file.suffix == ".json" else "YAML"
    try:
        if file.suffix == ".md":
            told = metadata_load(file) or {}
        else:
            told = json.loads(file.read_text()) if kind == "JSON" else yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: no {kind} that can be read ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(told, dict):
        raise InputError(f"{file}: found no names and values; mend it")
    return told


def require_model_folder(folder: Path, *names: str) -> None:
    """Raise InputError unless these files of a model folder are there."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(
            f"{folder}: found no model folder ({missing[0]} is missing); make one with chest-opacity train"
        )


def labels_of(folder: Path) -> list[str]:
    """The classes of a model folder, in their order. Raises InputError when its config.json does not tell them."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if "label_names" in config:  # an architecture of timm
            return config["label_names"]
        return [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'config.json'}: found no classes in it (id2label); train the model anew") from None


def read_split(folder: Path) -> pd.DataFrame:
    """A model folder's split.csv, as text: path, label, group, site, pixels and split of each image. Raises InputError
    when it is no such table."""
    columns = ("path", "label", "group", "site", "pixels", "split")
    return read_columns(folder / "split.csv", columns, "train the model anew")


def read_columns(file: Path, columns: Sequence[str], remedy: str) -> pd.DataFrame:
    """A table of a model folder, as text. Raises InputError, with the remedy, when it does not have the columns."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if lacking := sorted(set(columns) - set(table.columns)):
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return table
    except ValueError as error:
        reason, named = " ".join(str(error).split()), f"{', '.join(columns[:-1])} and {columns[-1]}"
        raise InputError(f"{file}: found no table of {named} ({reason}); {remedy}") from None


def may_name_evaluation(name: str) -> bool:
    """Whether eval/NAME.json is left to evaluate."""
    return name not in MADE and not name.startswith(EXPORT)


def read_evaluations(folder: Path) -> dict[str, dict]:
    """What evaluate has written into a model folder, by its name, which is in it: predict may write others to eval/.

    Raises InputError when a file cannot be read.
    """
    files = [file for file in sorted((folder / "eval").glob("*.json")) if may_name_evaluation(file.stem)]
    return {file.stem: told for file in files for told in [read_again(file)] if told.get("name") == file.stem}


@contextmanager
def writing(final: Path) -> Iterator[Path]:
    """The hidden name beside `final` under which it is made; what the system says against it becomes one line."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield final.with_name(f".{final.name}.{os.getpid()}.unfinished")
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {final}: {error}") from error


def move_into_place(work: Path, final: Path) -> None:
    """Give a finished folder its final name; an empty folder that has the name already is replaced."""
    if final.is_dir() and not any(final.iterdir()):
        final.rmdir()
    os.replace(work, final)
