"""Groups (patients or clips) for data that names none: proposed from file names and from copies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath

import numpy as np
from datasets import Dataset, Value
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.listings import PART_OF, PERSON, YEAR

# What precedes the number of the frame in common names of files; the first that fits is taken.
FRAMES = {
    "IM-NNNN-NNNN": re.compile(r".*IM-\d+(?=-\d+)"),
    "clip_frame": re.compile(r".*?(?=[ _.-]*(frame|frm|img|image|slice|f)?[ _.-]*#?\d+$)", re.IGNORECASE),
}
LARGEST = 0.2  # share of the files that one group of clip_frame may have
FEWEST = 6  # groups that names must make to be believed


def groups_from_names(paths: Sequence[str]) -> tuple[list[str], str]:
    """A group for each path by the patterns of its names, and which they were; the path itself where none fits.

    That what precedes a number is a clip is a guess: where more than a fifth of all files would be one, they are
    numbers and no clip, and each is its own group. Folders are believed to be patients' where there are FEWEST of them.
    Where fewer than FEWEST groups of several files are left, every path is its own group and the pattern is "". The
    frames of a clip have one path.
    """
    levels = zip(*map(_folders, paths), strict=False)
    around = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))  # folders of all, and so nobody's
    inside = {path: _person(_folders(path), around) for path in paths}
    inside = inside if len({*inside.values()} - {""}) >= FEWEST else {}
    proposed = {path: (inside[path], "personNNN") if inside.get(path) else _of_file(path) for path in paths}
    sizes = Counter(proposed.values())
    for path, (group, pattern) in proposed.items():
        if pattern == "clip_frame" and sizes[group, pattern] > LARGEST * len(proposed):
            proposed[path] = path, ""
    several = [size for size in Counter(group for group, _ in proposed.values()).values() if size > 1]
    if len(several) < FEWEST:
        return list(paths), ""
    used = Counter(pattern for _, pattern in proposed.values() if pattern)
    return [proposed[path][0] for path in paths], ", ".join(pattern for pattern, _ in used.most_common())


def _folders(path: str) -> list[str]:
    return [name for name in PurePosixPath(path).parent.parts if name.lower() not in PART_OF]  # images/train/normal


def _person(names: Sequence[str], first: int) -> str:
    """The patient that the first of these names, from number `first` on, tells, below the names before it, of which a
    year is nobody's; or ""."""
    for depth, name in list(enumerate(names))[first:]:
        if found := PERSON.search(name):
            above = [name for name in names[:depth] if not YEAR.fullmatch(name)]
            return PurePosixPath(*above, found.group()).as_posix()
    return ""


def _of_file(path: str) -> tuple[str, str]:
    """The group that a file's name tells, and by which pattern; the path itself and "" where none fits."""
    folders, stem = _folders(path), PurePosixPath(path).stem
    if person := _person([*folders, stem], len(folders)):
        return person, "personNNN"
    for pattern, expression in FRAMES.items():
        if (found := expression.match(stem)) and found.group():
            return PurePosixPath(*folders, found.group()).as_posix(), pattern
    return path, ""


def is_alone(path: str, group: str) -> bool:
    """Whether an image's group is only its path, or that of the clip that it is a frame of, since none is known."""
    return group in (path, re.sub(r"#\d+$", "", path))


def with_groups(rows: Dataset) -> Dataset:
    """The rows of whole DATA; where it names no groups, with those of its file names, as the audit proposes them."""
    own = list(rows["group"])
    if not all(map(is_alone, rows["path"], own)):
        return rows
    return rows.remove_columns("group").add_column("group", groups_from_names(own)[0], feature=Value("string"))


def merge(groups: Sequence[str], pairs: np.ndarray) -> list[str]:
    """Groups joined where a pair of images (n, 2) links two of them; a joined one has the name that sorts first."""
    names, number = np.unique(np.asarray(groups, object), return_inverse=True)
    one, other = number[pairs].T
    links = coo_array((np.ones(len(pairs)), (one, other)), (len(names), len(names)))
    _, joined = connected_components(links, directed=False)
    _, first = np.unique(joined, return_index=True)
    return names[first[joined[number]]].tolist()
