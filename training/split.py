"""Balancing, and a split that keeps every group, and every image with its copies, in one part.

Every choice is ordered by a hash of the seed and a name, never by a random generator or the order of files: the same
names give the same split on any machine, and one more image moves few others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from datasets import Dataset

from space.errors import InputError
from training.listings import ASIDE, PART_OF

if TYPE_CHECKING:  # slow to import
    from training.arguments import DataArguments

PARTS = ("train", "validation", "test")
MOST_SIZES = 256  # of the units of a part that a swap is sought among, evenly spaced; all pairs of more take minutes


def require_test_part(rows: Dataset, args: DataArguments) -> None:
    """Raise InputError where more than one setting says what the test part is, or one that the rows do not allow."""
    ways = {"split_by: column": args.split_by == "column", "test_site": args.test_site, "folds": args.folds}
    if len(chosen := [name for name, given in ways.items() if given]) > 1:
        raise InputError(f"found {' and '.join(chosen)}; expected one of them, for each says what the test part is")
    if args.split_by == "column":
        if "split" not in rows.column_names:
            raise InputError(f"{args.data}: split_by: column needs a column split of {', '.join(PARTS)}")
        strange = {value for value in rows["split"] if value.lower() not in PART_OF} - {"", *ASIDE}
        if strange:
            raise InputError(f"{args.data}: found split {min(strange)!r}; expected {', '.join(PARTS)}, or nothing")
    labels, sites = np.asarray(rows["label"]), np.asarray(rows["site"])
    of_class = {f"class {name}": sites[labels == label] for label, name in enumerate(rows.features["label"].names)}
    for what, found in ({"home": sites} | of_class).items():
        if args.test_site and not {args.test_site} < set(found):
            raise InputError(
                f"test_site {args.test_site}: found the sites {', '.join(sorted(set(found) - {''})) or 'none'} among "
                f"the images of {what}; expected it and another"
            )


def split(rows: Dataset, args: DataArguments) -> dict[str, Dataset]:
    """The rows as train, validation and test: by shares, by a column, by folds or by site."""
    units = np.asarray(rows["path"] if args.split_by == "image" else rows["merged"])
    labels, seed = np.asarray(rows["label"]), args.split_seed
    shares = {"train": 1.0, "validation": args.validation_share, "test": args.test_share}
    assigned = np.full(len(rows), "", dtype=object)
    if args.split_by == "column":
        assigned[:] = [PART_OF.get(value.lower(), "") for value in rows["split"]]
    elif args.test_site:
        assigned[np.asarray(rows["site"]) == args.test_site] = "test"
    elif args.folds:
        folds = {str(fold): 1 / args.folds for fold in range(args.folds)}
        assigned[np.asarray(assign_parts(units, labels, folds, seed)) == str(args.fold)] = "test"
        if not (assigned == "test").any():
            raise InputError(f"fold {args.fold} of {args.folds} holds no image; make fewer folds")
    if (assigned == "test").any():
        shares.pop("test")
    # Images that nothing has placed yet, and a validation part out of those for training when none was given
    open_ = np.flatnonzero((assigned == "") if args.split_by != "column" else (assigned == "train"))
    if args.split_by != "column" or not (assigned == "validation").any():
        turn = args.fold if args.folds else args.test_site  # so that each fold keeps others from training
        assigned[open_] = assign_parts(units[open_], labels[open_], shares, seed if turn is None else f"{seed}:{turn}")
    return {part: rows.select(np.flatnonzero(assigned == part)) for part in PARTS}


def assign_parts(
    units: Sequence[str], labels: Sequence[int], shares: Mapping[str, float], seed: int | str = 0
) -> list[str]:
    """The part of each image, by the parts' shares; the first part takes what is left. A unit's images stay together.

    Equal parts (folds) differ by one image of a class at most, where the first would else be off by more than a tenth
    of its share and more than one image.

    Each unit falls into a part by its hash. Then units are moved and swapped between parts as long as that brings the
    numbers of images of each class closer to the shares; single images meet them exactly.
    """
    parts, classes = list(shares), sorted(set(labels))
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(classes), int))
    for unit, label in zip(units, labels, strict=True):
        counts[unit][classes.index(label)] += 1
    total = sum(counts.values(), np.zeros(len(classes), int))
    wanted = np.array([np.round(total * share) for share in shares.values()])
    wanted[0] = total - wanted[1:].sum(axis=0)
    if len(set(shares.values())) == 1:  # folds, of which the first has all the rounding, much of few images
        share = total / len(parts)
        far = np.abs(wanted[0] - share) > np.maximum(1, share / 10)  # what is off by less stays as it has been split
        bounds = np.outer(np.arange(len(parts) + 1), total) // len(parts)
        wanted[:, far] = np.diff(bounds, axis=0)[:, far]

    lacking = wanted.copy()
    members: list[dict[tuple[int, ...], list[str]]] = [defaultdict(list) for _ in parts]
    edges = np.cumsum([share for share in list(shares.values())[1:]])
    for unit in sorted(counts, key=lambda unit: _rank(seed, unit)):
        place = int.from_bytes(_rank(seed, unit)[:8], "big") / 2**64
        part = int(np.searchsorted(edges, place, side="right")) + 1 if place < edges[-1] else 0
        members[part][tuple(counts[unit])].append(unit)
        lacking[part] -= counts[unit]
    _even_out(members, lacking, wanted)
    part_of = {
        unit: parts[part] for part, sizes in enumerate(members) for of_size in sizes.values() for unit in of_size
    }
    return [part_of[unit] for unit in units]


def undersample(paths: Sequence[str], labels: Sequence[int], most: int | None = None, seed: int = 0) -> list[int]:
    """Indices, in order, of as many images of each class as the rarest has, and of `most` at the most."""
    wanted = min(Counter(labels).values())
    wanted = min(wanted, most) if most else wanted
    return sorted(index for indices in _by_class(paths, labels, seed).values() for index in indices[:wanted])


def oversample(paths: Sequence[str], labels: Sequence[int], seed: int = 0) -> list[int]:
    """Indices, in order, with images of the rarer classes repeated until each has as many as the most common one."""
    wanted = max(Counter(labels).values())
    return sorted(
        indices[turn % len(indices)] for indices in _by_class(paths, labels, seed).values() for turn in range(wanted)
    )


def draw_shares(rows: Dataset, balance: str) -> np.ndarray | None:
    """How often each image is drawn, (rows,) of sum 1, where `balance` is sampler or sites; None for each once.

    sampler: all images of a class alike, and the classes equally often. sites: within a class the sites equally often,
    and within a site a group of n images sqrt(n) times as often as one of a single image.
    """
    if balance not in ("sampler", "sites"):
        return None
    names = ["label", "site", "merged"] if balance == "sites" else ["label"]
    table = rows.select_columns(names).to_pandas()
    share = pd.Series(1.0, table.index)
    if balance == "sites":
        share /= np.sqrt(table.groupby("merged")["merged"].transform("size"))
        share /= share.groupby([table["label"], table["site"]]).transform("sum")
    share /= share.groupby(table["label"]).transform("sum")
    return (share / share.sum()).to_numpy()


def _by_class(paths: Sequence[str], labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    of_class = defaultdict(list)
    for index in sorted(range(len(paths)), key=lambda index: _rank(seed, paths[index])):
        of_class[labels[index]].append(index)
    return of_class


def balance(rows: Dataset, args: DataArguments, scope: str) -> Dataset:
    """The rows with fewer images of a class, or repeated ones, where balance_scope is this one: all, or train."""
    if args.balance_scope != scope:
        return rows
    paths, labels = list(rows["path"]), list(rows["label"])
    if args.balance == "undersample":
        return rows.select(undersample(paths, labels, args.per_class, args.split_seed))
    if args.balance == "oversample":
        return rows.select(oversample(paths, labels, args.split_seed))
    return rows


def _even_out(members, lacking, wanted) -> None:
    """Move or swap units between two parts while that lowers the distance to the wanted numbers, in place."""
    nothing = (0,) * wanted.shape[1]
    while True:
        best, gain = None, 0.5
        for pair in map(list, permutations(range(len(members)), 2)):
            giver, taker = pair
            out = sorted(size for size in members[giver] if members[giver][size])
            back = [nothing] + sorted(size for size in members[taker] if members[taker][size])
            if not out:
                continue
            out, back = (sizes[:: len(sizes) // MOST_SIZES + 1] for sizes in (out, back))
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


def _rank(seed: int | str, name: str) -> bytes:
    return blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def deviation(rows: Dataset, parts: Mapping[str, Dataset], args: DataArguments) -> str:
    """The part and class whose number of images is furthest from the wanted one; of given parts which were drawn, and
    how many of the rows are in none."""
    if args.split_by == "column" or args.test_site:
        words = ["test"] if args.test_site else [word for rows in parts.values() for word in rows["split"]]
        given = {PART_OF.get(word.lower()) for word in words}
        drawn = [part for part in PARTS[1:] if part not in given]
        rest = len(rows) - sum(map(len, parts.values()))
        told = f", with {' and '.join(drawn)} drawn from train" * bool(drawn)
        return f"the parts are as given{told}" + f"; {rest} labelled images are in none" * bool(rest)
    test = 1 / args.folds if args.folds else args.test_share
    validation = args.validation_share * (1 - test if args.folds else 1)
    wanted = {"train": 1 - test - validation, "validation": validation, "test": test}
    names = parts["train"].features["label"].names
    counts = {part: np.bincount(parts[part]["label"], minlength=len(names)) for part in PARTS}
    total = sum(counts.values())
    off = {
        (part, name): (counts[part][index] - wanted[part] * total[index], wanted[part] * total[index])
        for part in PARTS
        for index, name in enumerate(names)
    }
    (part, name), (most, aim) = max(off.items(), key=lambda item: abs(item[1][0]))
    if abs(most) < 1:
        return "the wanted shares are met to less than one image"
    return f"furthest from the wanted shares: {name} of the {part} part, {most:+.0f} images from {aim:.0f}"
