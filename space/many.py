"""Many files at once: a row for each, pictures of the first, and figures where true labels are known."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd
from PIL import Image

from space.archives import is_archive, read_archive
from space.batches import Batches
from space.clips import AT_ONCE, is_clip, load_frames
from space.columns import csv_rows, known_columns
from space.errors import InputError
from space.images import frames_in
from space.predictor import BATCH, Answer
from space.rows import rounded, row
from space.saliency import overlay
from space.server import KEPT

MOST_FILES = 1_000
MOST_BYTES = 2 << 30  # unpacked, of one archive
AT_HAND = 64 << 20  # bytes of files from archives in memory, at which they are answered before more are read
PICTURES = 60  # that are shown
SIDE = 480  # pixels of the longer side of one
PARTS = 32  # of the end of a name that tell which label is its own
DELETED = f"was deleted, as uploads are after {KEPT // 60} minutes: give it again"


class Found(NamedTuple):
    """What there is to say of one file: its row, a picture with its map, of the first files that could be read, whether
    it is that of the first of several pages or frames alone, and whether it stands for all that follows, unread."""

    row: dict
    picture: Image.Image | None
    first_alone: bool
    rest: bool


class Rest(InputError):
    """Why a file and those that follow it are left out."""


class Agreement(NamedTuple):
    """Predictions against true labels: counts by (true label, prediction), "" where there is none, and the AUC."""

    counts: dict[tuple[str, str], int]
    auc: float | None


def named_files(uploads: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Path | dict | InputError]]:
    """Uploaded files (path, name) by their names, archives as what they hold; after MOST_FILES only the line that there
    are more."""
    given = (pair for path, name in uploads for pair in _contents(Path(path), name))
    yield from islice(given, MOST_FILES)
    if (left := next(given, None)) is not None:
        yield left[0], Rest(f"this and what follows is left out: {MOST_FILES:,} files are answered at once")


def _contents(path: Path, name: str) -> Iterator[tuple[str, Path | dict | InputError]]:
    if not path.exists():
        yield name, InputError(f"the file {DELETED}")
        return
    if not is_archive(path):
        yield name, path
        return
    empty = True
    try:
        for member, content in read_archive(path, MOST_BYTES):
            empty = False
            yield member, content if isinstance(content, InputError) else {"path": member, "bytes": content}
        if empty:
            raise InputError("the archive holds no image, DICOM file or clip")
    except InputError as reason:
        yield name, reason if empty else Rest(f"what follows in it is left out: {reason}")


def examine(
    batches: Batches, files: Iterable[tuple[str, Path | dict | InputError]], pictures: int = PICTURES
) -> Iterator[Found]:
    """What there is to say of each file, in order; clips count as one, with the mean of their frames' logits.

    pictures: so many of the first files that can be read have one; then no more maps are made.
    """
    method = batches.predictor.methods[0]

    def answered(name: str, source: Path | dict) -> tuple[dict, Image.Image | None]:
        images, wanted = load_frames(source), shown < pictures
        answers = [batches.answer(image, method if wanted and len(images) == 1 else None) for image in images]
        told = row(batches.predictor, name, answers[0] if len(answers) == 1 else batches.predictor.pool(answers))
        if not wanted:
            return told, None
        surest = batches.predictor.surest(answers)
        image, answer = images[surest], answers[surest]
        if len(images) > 1:  # of a clip only this frame has a map
            answer = batches.answer(image, method)
        return told, _thumbnail(image, answer)

    def look(name: str, source: Path | dict | InputError) -> Found:
        try:
            if isinstance(source, InputError):
                raise source
            content = source["bytes"] if isinstance(source, dict) else source
            clip = is_clip(content, name)
            with AT_ONCE if clip else nullcontext():
                return Found(*answered(name, source), first_alone=not clip and frames_in(content) > 1, rest=False)
        except InputError as reason:
            return Found(row(batches.predictor, name, reason), None, first_alone=False, rest=isinstance(reason, Rest))

    shown = 0
    with ThreadPoolExecutor(BATCH) as pool:
        for part in _parts(files):
            for found in pool.map(lambda file: look(*file), part):
                keep = found.picture is not None and shown < pictures
                shown += keep
                yield found if keep else found._replace(picture=None)


def _parts(
    files: Iterable[tuple[str, Path | dict | InputError]],
) -> Iterator[list[tuple[str, Path | dict | InputError]]]:
    """Files in parts of BATCH, or of fewer that fill AT_HAND; a part is emptied before the next is read."""
    part, held = [], 0
    for name, source in files:
        part.append((name, source))
        held += len(source["bytes"]) if isinstance(source, dict) else 0
        if len(part) == BATCH or held >= AT_HAND:
            yield part
            part.clear()
            held = 0
    if part:
        yield part


def _thumbnail(image: Image.Image, answer: Answer) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return overlay(small, answer.saliency)


def to_csv(rows: Sequence[dict]) -> str:
    """Rows as the text of a CSV file.

    Probabilities have six digits. Names are somebody's: none can begin a formula of a spreadsheet, and quotes keep it
    whole in one that parts lines at ";".
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for each in rows:
        path = each["path"]
        name = f"'{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path
        writer.writerow(rounded(each) | {"path": name})
    return text.getvalue()


def read_labels(path: str | Path, labels: Sequence[str]) -> dict[str, str]:
    """True labels by name from a CSV file with the columns path and label, or as COLUMNS has them, "" where blank.

    labels: of the model. Raises InputError when there are others, or two for one name, or the file was deleted.
    """
    rows, known = [], {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            reader = csv_rows(lines, skipinitialspace=True)
            rows, known = list(reader), known_columns(reader.fieldnames or [])
    except FileNotFoundError:
        raise InputError(f"the file of labels {DELETED}") from None
    except (OSError, UnicodeDecodeError, csv.Error):
        pass  # and so it has no columns
    if not {"path", "label"} <= known.keys():
        raise InputError("the file of labels is no CSV file in UTF-8 with the columns path and label")
    truth: dict[str, str] = {}
    for each in rows:
        name = each[known["path"]].strip().replace("\\", "/")  # as Windows writes them
        label = each[known["label"]].strip()
        if label and label not in labels:
            raise InputError(
                f"the file of labels has the label {label!r}; the model knows {', '.join(labels)}: "
                "leave it blank where none of them is true"
            )
        if label and truth.get(name, "") not in {"", label}:
            raise InputError(f"the file of labels has two labels for {name}: leave one of them")
        truth[name] = label or truth.get(name, "")
    return truth


def agreement(rows: Sequence[dict], labels: Sequence[str], truth: dict[str, str]) -> Agreement:
    """Compare rows with the true labels of their names, as `_labelled` finds them. Raises InputError.

    labels: of the model; with two of them there is an AUC, the Mann-Whitney statistic over its two sample sizes, when
    both occur.
    """
    known = [(label, each) for label, each in zip(_labelled(rows, truth), rows, strict=True) if label]
    if not known:
        raise InputError("no true label was found for any of these files: the column path has to hold their names")
    counts: dict[tuple[str, str], int] = {}
    for label, each in known:
        counts[label, each["prediction"]] = counts.get((label, each["prediction"]), 0) + 1
    scores = [(label, float(each[f"probability_{labels[-1]}"])) for label, each in known if not each["error"]]
    ranks = pd.Series([score for _, score in scores], dtype=float).rank()
    positive = pd.Series([label == labels[-1] for label, _ in scores], dtype=bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    auc = None
    if len(labels) == 2 and ones and zeros:
        auc = float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
    return Agreement(counts, auc)


def _labelled(rows: Sequence[dict], truth: dict[str, str]) -> list[str]:
    """The true label of each row, "" where there is none.

    A row has the label of the name that has the most last parts, one to PARTS, of the path in common with it, unless
    another row has more of them. Raises InputError when several have as many.
    """
    paths = [each["path"] for each in rows]
    near = _by_ending(paths)
    names = _by_ending(truth, near)
    found = []
    for path in paths:
        own = [name for name in _nearest(path, names) if path in _nearest(name, near)]
        labels = {truth[name] for name in own}
        if any(labels) and (len(labels) > 1 or any(len(_nearest(name, near)) > 1 for name in own)):
            raise InputError(
                f"several files or labels have the name {path}: give the files in a zip, and in the column path their "
                "names with the folders inside it"
            )
        found.append(next(iter(labels), ""))
    return found


def _by_ending(paths: Iterable[str], wanted: Container | None = None) -> dict[tuple[str, ...], list[str]]:
    """Paths by their endings, or by those that are wanted alone."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        for ending in _endings(path):
            if wanted is None or ending in wanted:
                found.setdefault(ending, []).append(path)
    return found


def _nearest(path: str, by_ending: dict[tuple[str, ...], list[str]]) -> list[str]:
    return next((by_ending[ending] for ending in _endings(path) if ending in by_ending), [])


def _endings(path: str) -> list[tuple[str, ...]]:
    """The last parts of a path, from PARTS of them to one."""
    parts = PurePosixPath(path).parts[-PARTS:]
    return [parts[first:] for first in range(len(parts))]
