"""Balancing, and a split that keeps every group in one part.

Every choice is ordered by a hash of the seed and a name, never by a random generator or the order of files: the same
names give the same split on any machine, and one more image moves as few others as can be.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import permutations

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from space.errors import InputError
from training.arguments import DataArguments
from training.data import UNLABELLED, load_data

PARTS = ("train", "validation", "test")


def load_parts(args: DataArguments) -> tuple[DatasetDict, Dataset]:
    """Read, balance and split as the recipe says.

    Returns train, validation, test, and where there are any external (other sites, or other DATA) and unlabelled; and
    beside them the labelled images of the internal sites before balancing. Raises InputError when a class has too few
    images or groups for three parts.
    """
    rows = load_data(args.data, args.labels)
    labels, sites = np.asarray(rows["label"]), np.asarray(rows["site"])
    names = rows.features["label"].names
    internal = np.ones(len(rows), bool)
    if args.sites:
        strange = sorted(set(args.sites) - set(sites))
        if strange:
            raise InputError(f"{args.data}: found no site {strange[0]}; the sites are {', '.join(sorted(set(sites)))}")
        internal = np.isin(sites, args.sites)
    known = labels != UNLABELLED
    home = rows.select(np.flatnonzero(known & internal))
    _require_classes(home, args)

    balanced = home
    if args.balance == "undersample":
        balanced = home.select(undersample(home["path"], home["label"], args.per_class, args.split_seed))
    units = balanced["group"] if args.split_by == "group" else balanced["path"]
    shares = {"validation": args.validation_share, "test": args.test_share}
    assigned = np.asarray(assign_parts(units, balanced["label"], shares, args.split_seed))
    parts = {part: balanced.select(np.flatnonzero(assigned == part)) for part in PARTS}
    _require_parts(parts, names)

    elsewhere = [rows.select(np.flatnonzero(known & ~internal))] if (known & ~internal).any() else []
    if args.external:
        other = load_data(args.external, names)
        elsewhere.append(other.select(np.flatnonzero(np.asarray(other["label"]) != UNLABELLED)))
    if elsewhere:
        parts["external"] = concatenate_datasets(elsewhere) if len(elsewhere) > 1 else elsewhere[0]
    if not known.all():
        parts["unlabelled"] = rows.select(np.flatnonzero(~known))
    return DatasetDict(parts), home


def leak_warning(rows: Dataset, split_by: str) -> str | None:
    """What may let frames of one patient or clip into two parts of the split of these rows; None if nothing known."""
    if split_by == "image":
        return (
            "split by image: frames of one patient or clip may stand in train and test, so the figures of the test "
            "part can be far too good; split_by: group keeps them together"
        )
    if list(rows["group"]) == list(rows["path"]):
        return (
            "no groups are known, so each image counts as a patient of its own; if some are of one patient or clip, "
            "name it in the column group of metadata.csv or by a folder inside the class folder"
        )
    return None


def undersample(paths: Sequence[str], labels: Sequence[int], most: int | None = None, seed: int = 0) -> list[int]:
    """Indices, in order, of as many images of each class as the rarest has, and of `most` at the most."""
    wanted = min(Counter(labels).values())
    wanted = min(wanted, most) if most else wanted
    of_class = defaultdict(list)
    for index in sorted(range(len(paths)), key=lambda index: _rank(seed, paths[index])):
        of_class[labels[index]].append(index)
    return sorted(index for indices in of_class.values() for index in indices[:wanted])


def assign_parts(units: Sequence[str], labels: Sequence[int], shares: dict[str, float], seed: int = 0) -> list[str]:
    """The part of each image: validation and test by their shares, all else train; images of one unit stay together.

    The wanted number of images of each class is met exactly where the sizes of the units allow it: units are dealt out
    large ones first, each to the part that lacks the greatest share of its classes, then moved and swapped between
    parts as long as that brings the numbers closer.
    """
    classes = sorted(set(labels))
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(classes), int))
    for unit, label in zip(units, labels, strict=True):
        counts[unit][classes.index(label)] += 1
    total = sum(counts.values())
    wanted = np.array([np.round(total * shares.get(part, 0)) for part in PARTS])
    wanted[0] = total - wanted[1:].sum(axis=0)

    lacking = wanted.copy()
    members: list[dict[tuple[int, ...], list[str]]] = [defaultdict(list) for _ in PARTS]
    for unit in sorted(counts, key=lambda unit: (-counts[unit].sum(), _rank(seed, unit))):
        size = counts[unit]
        over = np.maximum(size - np.maximum(lacking, 0), 0).sum(axis=1)
        need = (lacking / np.maximum(wanted, 1) * size).sum(axis=1)
        part = min(range(len(PARTS)), key=lambda part: (over[part], -need[part]))
        members[part][tuple(size)].append(unit)
        lacking[part] -= size
    _even_out(members, lacking, wanted)
    part_of = {
        unit: PARTS[part] for part, sizes in enumerate(members) for of_size in sizes.values() for unit in of_size
    }
    return [part_of[unit] for unit in units]


def _even_out(members, lacking, wanted) -> None:
    """Move or swap units between two parts while that lowers the distance to the wanted numbers, in place."""
    nothing = (0,) * wanted.shape[1]
    while True:
        best, gain = None, 0.5
        for pair in map(list, permutations(range(len(PARTS)), 2)):
            giver, taker = pair
            out = [size for size in members[giver] if members[giver][size]]
            back = [nothing] + [size for size in members[taker] if members[taker][size]]
            if not out:
                continue
            flow = np.array(out)[:, None, :] - np.array(back)[None, :, :]
            after = np.stack([lacking[giver] + flow, lacking[taker] - flow], axis=-2)
            gains = _distance(lacking[pair], wanted[pair]) - _distance(after, wanted[pair])
            row, column = np.unravel_index(gains.argmax(), gains.shape)
            if gains[row, column] > gain:
                best, gain = (giver, taker, out[row], back[column]), gains[row, column]
        if best is None:
            return
        giver, taker, sent, returned = best
        moved = members[giver][sent].pop()
        if returned != nothing:
            members[giver][returned].append(members[taker][returned].pop())
        members[taker][sent].append(moved)
        lacking[giver] += np.array(sent) - np.array(returned)
        lacking[taker] -= np.array(sent) - np.array(returned)


def _distance(lacking: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Images too many or too few over the last two axes (parts, classes); a class missing in a part is far worse."""
    missing = (lacking >= wanted) & (wanted > 0)
    return (np.abs(lacking) + 1e6 * missing).sum(axis=(-2, -1))


def _rank(seed: int, name: str) -> bytes:
    return blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def _require_classes(rows: Dataset, args: DataArguments) -> None:
    names, counts = rows.features["label"].names, Counter(rows["label"])
    present = [name for index, name in enumerate(names) if counts[index]]
    if len(present) < max(2, len(names)):
        where = f"{args.data}{' at ' + ', '.join(args.sites) if args.sites else ''}"
        wanted = ", ".join(names) if len(names) > 1 else "at least two classes"
        raise InputError(f"{where}: found images of {', '.join(present) or 'no class'} only, expected {wanted}")


def _require_parts(parts: dict[str, Dataset], names: list[str]) -> None:
    for index, name in enumerate(names):
        for part in PARTS:
            if index not in set(parts[part]["label"]):
                images = sum(labels.count(index) for labels in (list(rows["label"]) for rows in parts.values()))
                groups = {
                    group
                    for rows in parts.values()
                    for group, label in zip(rows["group"], rows["label"], strict=True)
                    if label == index
                }
                raise InputError(
                    f"class {name} has {images} images in {len(groups)} groups, which leaves the {part} part without "
                    "any; add images from other patients or clips"
                )
