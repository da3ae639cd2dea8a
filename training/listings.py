"""What a folder or table says of its images: a row of text for each, read one by one, however many there are."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from space import clips
from space.columns import csv_rows, known_columns
from space.dicom import is_dicom
from space.errors import InputError, reason_of
from space.images import SUFFIXES

PART_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ASIDE = ("external", "unlabelled", "left_out")  # what a published split says besides: see training/publishable.py
# Words for the class that is not the positive one.
NORMAL = {"normal", "healthy", "regular", "reg", "negative", "no finding", "no findings"}
# A patient in common names of files and of folders, with the hyphen as BIDS names them.
PERSON = re.compile(r"(person|patient|subject|pat|case)[ _-]?\d+|(?<![a-z\d])sub-[a-z]*\d[a-z\d]*", re.IGNORECASE)
NOBODYS = {"images", "imgs", "frames"}  # folders that are no patients
YEAR = re.compile(r"(19|20)\d\d")  # as a folder above those of patients, who may come again in another one
OURS = {"mask", "merged", "pixels"}  # names of columns that are added to the data's own


def read_listing(place: Path) -> Iterator[dict[str, str]]:
    """The rows of a folder or table as text: path, label, group, site, and the others under their own names."""
    if not is_told(place):
        return _class_folders(place)
    return read_table(place / "metadata.csv" if place.is_dir() else place)


def read_table(file: Path, labelled: bool = True) -> Iterator[dict[str, str]]:
    """The rows of a .csv or .parquet table as text: path, group, site, others, and label, which may be missing where
    they need not be labelled. White space around headers and values means nothing, unless it is part of a file's name.
    Blank rows are none. Raises InputError when it is no such table, or when a row of a labelled one names no file."""
    names = None
    try:
        for where, row in _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file, labelled):
            names = names or _column_names(file, list(row), labelled)
            told = {name: row[old].strip() for name, old in names.items()}
            if os.path.lexists(file.parent / row[names["path"]]):
                told["path"] = row[names["path"]]
            if not any(told.values()):
                continue
            if labelled and not told["path"]:
                raise InputError(f"{file}: {where} names no file; fill in its {names['path'].strip()}, or delete it")
            yield {"group": "", "site": ""} | told
    except FileNotFoundError:
        raise InputError(f"{file}: no such table") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: no table that can be read; save it as CSV in UTF-8") from None
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{file}: no table that can be read: {' '.join(str(error).split())}") from None


def _csv(file: Path, labelled: bool) -> Iterator[tuple[str, dict[str, str]]]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv_rows(lines)
        for row in reader:
            if None in row:
                raise InputError(f"{file}: line {reader.line_num} has more fields than the first")
            yield f"line {reader.line_num}", row
        if reader.line_num < 2:
            _column_names(file, reader.fieldnames or [], labelled)


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    opened = pq.ParquetFile(file)
    path = known_columns(opened.schema_arrow.names).get("path")
    if path and pa.types.is_nested(opened.schema_arrow.field(path).type):  # a file of a data set of the Hub
        raise InputError(f"{file}: the column {path} holds pictures; expected their paths, or user/name on the Hub")
    rows = chain.from_iterable(batch.to_pylist() for batch in opened.iter_batches(1024))
    for number, row in enumerate(rows, 1):
        yield f"row {number}", {name: "" if value is None else str(value) for name, value in row.items()}


def _column_names(file: Path, found: list[str], labelled: bool) -> dict[str, str]:
    """Our names of a table's columns and its own."""
    own = {name.strip(): name for name in found}
    known = {theirs: ours for ours, theirs in known_columns([*own]).items()}
    if not {"path", *["label"] * labelled} <= set(known.values()):
        wanted = "path (or file_name)" + (" and label" if labelled else "")
        raise InputError(f"{file}: found the columns {', '.join(found)}; expected {wanted}")
    return {known.get(name, name): own[name] for name in own if name in known or name not in {"image", *OURS}}


def _class_folders(folder: Path) -> Iterator[dict[str, str]]:
    top = {name for name in next(os.walk(folder, onerror=_refuse))[1] if not is_passed_over(name)}
    parts = {name.lower() for name in top} & PART_OF.keys()
    others = sorted(name for name in top if parts and name.lower() not in parts and any(image_files(folder / name)))
    if others:
        raise InputError(
            f"{folder}: found {others[0]} beside {', '.join(sorted(parts))}; expected folders of classes, or of "
            "parts alone; move away what is neither"
        )
    depth = 1 if parts else 0  # train/normal/1.png
    loose, classes = [], set()
    for file in image_files(folder):
        path = file.relative_to(folder)
        if len(path.parts) < depth + 2:
            loose.append(path)
            continue
        inner = path.parts[depth:]
        classes.add(inner[0])
        patient = _patient([name for name in inner[1:-1] if name.lower() not in {*NOBODYS, inner[0].lower()}])
        group = f"{inner[0]}/{patient}" if patient else ""
        row = {"path": path.as_posix(), "label": inner[0], "group": group, "site": ""}
        yield row | ({"split": PART_OF[path.parts[0].lower()]} if depth else {})
    if loose:
        raise InputError(
            f"{folder}: found {len(loose)} images outside class folders, {loose[0]} for one; "
            "put each into a folder named after its class, or list them in metadata.csv (file_name, label)"
        )
    if len(classes) > 1 and all(map(PERSON.fullmatch, classes)):
        raise InputError(
            f"{folder}: found a folder for each patient, {min(classes)} for one; expected one for each class; list the "
            "images in metadata.csv (file_name, label, group)"
        )


def _patient(folders: Sequence[str]) -> str:
    """The patient that these folders, from the class's downwards, are named after: the first, but below a year, in
    which he may come again, or below what is derived, the first that is named as PERSON says. A case may be a visit."""
    if folders and (YEAR.fullmatch(folders[0]) or folders[0].lower() == "derivatives"):
        named = [name for name in folders[1:] if PERSON.match(name) and not name.lower().startswith("case")]
        return [*named, folders[0]][0]
    return folders[0] if folders else ""


def is_normal(label: str) -> bool:
    """Whether a class's name is one of NORMAL, in whatever capitals and with _ or - for a blank."""
    return re.sub("[_-]", " ", label.lower()) in NORMAL


def is_told(place: Path) -> bool:
    """Whether a table says what the images are, and not the folders they lie in."""
    return not place.is_dir() or os.path.isfile(place / "metadata.csv")  # Path's own fails where that may not be seen


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: the folder cannot be read ({reason_of(error)})")


def image_files(folder: Path, refused: Callable[[OSError], object] = _refuse) -> Iterator[Path]:
    """All image, DICOM and clip files below a folder, folder by folder in the order of names; hidden ones are left.

    refused: called for each folder that cannot be read; by default InputError is raised.
    """
    for here, files in walk(folder, refused):
        for name in sorted(files):
            path = Path(here, name)
            if not is_passed_over(name) and (path.suffix.lower() in SUFFIXES | clips.SUFFIXES or is_dicom(path)):
                yield path


def walk(folder: Path, refused: Callable[[OSError], object] = _refuse) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it that are not hidden, in the order of names, each with the names of its files.

    Links to folders are followed, but for those that lead back to a folder on the way to them.
    """
    for here, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_passed_over(name) and not _leads_up(Path(here, name)))
        yield here, files


def _leads_up(folder: Path) -> bool:
    to = folder.resolve() if folder.is_symlink() else None
    return to is not None and any(parent.resolve().is_relative_to(to) for parent in folder.parents)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a Mac adds to its archives or Linux to a disk."""
    return name.startswith(".") or name in {"__MACOSX", "lost+found"}
