"""What the verb predict is given, one image, clip or reason after the other, however many there are."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from datasets import Image

from space.archives import is_archive, read_archive
from space.errors import InputError, reason_of
from training.listings import image_files, is_told, read_table, walk
from training.sources import TABLES, find_phantom, is_hub_id, load_from_hub


class Input(NamedTuple):
    """Something to predict: the name that the output gives it, the file, the bytes {"path", "bytes"} or the reason why
    it cannot be read, and the patient or clip it is of where known."""

    path: str
    source: Path | dict | InputError
    group: str = ""


def find_inputs(paths: Iterable[str]) -> Iterator[Input]:
    """The inputs in order, found as they are asked for; what can never give any raises InputError at once.

    A path is a file, a folder (what its metadata.csv lists, with groups, or else every image, DICOM file and clip below
    it, by name), a pattern such as "scans/**/*.png" (tables only where it has a suffix), a .csv or .parquet table, a
    .zip, .tar or .tar.gz, user/name on the Hub, phantom, or - for such paths on standard input, a line each, of which
    none is taken for a name on the Hub: a list of files tells of patients.
    """
    return chain.from_iterable([_reader(path) for path in paths])


def _reader(path: str, hub: bool = True) -> Iterator[Input]:
    place = Path(path)
    if path == "-":
        return _standard_input()
    if os.path.isdir(path):  # unlike Path's own, these bear names that are too long, and take an empty one for none
        return _table(place / "metadata.csv") if is_told(place) else _folder(place)
    if os.path.exists(path):
        if is_archive(place):
            return _archive(place)
        return _table(place) if _is_table(place) else iter([_file(place)])
    if folder := find_phantom(path):
        return _table(folder / "metadata.csv")
    if hub and is_hub_id(path):
        return _hub(path)
    if glob.has_magic(path):
        refused: list[OSError] = []
        found = [match for match in sorted(_matches(path, refused)) if _wanted(match, path)]
        if not found and not refused:
            hint = "" if Path(path).suffix else "; a table needs its suffix, as in *.csv"
            raise InputError(f"{path}: no file has such a name{hint}")
        return chain(_each(found), map(_unreadable, refused))
    raise InputError(f"{path or 'an empty PATH'}: no such file or folder")


def _matches(pattern: str, refused: list[OSError]) -> set[str]:
    """What a pattern names. Python's own ** goes round in circles where links to folders lead back."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return set(glob.glob(pattern))
    depth = parts.index("**")
    tops = filter(os.path.isdir, glob.glob(str(Path(*parts[:depth]))) if depth else ["."])
    folders = (glob.escape(here) for top in tops for here, _ in walk(Path(top), refused.append))
    return set().union(*(_matches(str(Path(here, *(parts[depth + 1 :] or "*"))), refused) for here in folders))


def may_read(pattern: str, file: Path) -> bool:
    """Whether a pattern names a file, which need not be there yet, or a folder above it that is read whole."""
    parts = Path(pattern).parts
    depth = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    top, rest = Path(os.path.realpath(Path(*parts[:depth]))), parts[depth:]
    file = Path(os.path.realpath(file))
    folders = [] if "**" in rest else [each for each in file.parents if not os.path.isfile(each / "metadata.csv")]
    places = [each.relative_to(top).parts for each in (file, *folders) if each.is_relative_to(top)]
    return any(_fits(rest, place) for place in places)


def _fits(pattern: Sequence[str], place: Sequence[str]) -> bool:
    """Whether the parts of a pattern, as `_matches` takes them, name a place of these parts."""
    if not pattern:
        return not place
    if pattern[0] == "**":
        return any(_fits(pattern[1:] or "*", place[skipped:]) for skipped in range(len(place)))
    return bool(place) and fnmatchcase(place[0], pattern[0]) and _fits(pattern[1:], place[1:])


def _wanted(match: str, pattern: str) -> bool:
    found = Path(match)
    if not found.is_file():
        return "**" not in pattern  # which names the folders and all that is in them
    return bool(Path(pattern).suffix) or not _is_table(found)  # that mostly lists the images that match as well


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def _file(path: Path) -> Input:
    return Input(_shown(path), path)


def _folder(folder: Path) -> Iterator[Input]:
    refused: list[OSError] = []
    yield from map(_file, image_files(folder, refused.append))
    yield from map(_unreadable, refused)


def _unreadable(error: OSError) -> Input:
    return Input(_shown(error.filename), InputError(f"the folder cannot be read ({reason_of(error)})"))


def _table(table: Path) -> Iterator[Input]:
    rows = read_table(table, labelled=False)
    first = list(islice(rows, 1))  # a table that is none is told of before anything is predicted
    paths = ((table.parent / row["path"], row["group"]) for row in chain(first, rows))
    return (Input(_shown(path), path, group) for path, group in paths)


def _archive(path: Path) -> Iterator[Input]:
    try:
        for name, content in read_archive(path):
            source = content if isinstance(content, InputError) else {"path": name, "bytes": content}
            yield Input(f"{_shown(path)}/{name}", source)
    except InputError as reason:
        yield Input(_shown(path), reason)


def _hub(source: str) -> Iterator[Input]:
    rows, name = load_from_hub(source).cast_column("image", Image(decode=False)), source.partition("?")[0]
    groups = (row["group"] if row["group"] != row["path"] else "" for row in rows.select_columns(["group", "path"]))
    none = InputError("the data set holds no image there")
    return (
        Input(f"{name}/{row['path']}", row["image"] or none, group) for row, group in zip(rows, groups, strict=True)
    )


def _standard_input() -> Iterator[Input]:
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files are bytes, also others than UTF-8
    return _each(filter(None, map(str.strip, sys.stdin)))


def _each(paths: Iterable[str]) -> Iterator[Input]:
    """The inputs of many paths, of which a bad one is not to end all."""
    for path in paths:
        try:
            yield from _reader(path, hub=False)
        except InputError as reason:
            yield Input(_shown(path), InputError(_shown(str(reason))))


def _shown(path: Path | str) -> str:
    """A path as text that can be written anywhere, whatever bytes its name is made of."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
