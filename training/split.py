"""Balancing, and a split that keeps every group, and every image with its copies, in one part.

Every choice is ordered by a hash of the seed and a name, never by a random generator or the order of files: the same
names give the same split on any machine, and one more image moves few others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import permutations

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Value

from space.errors import InputError
from training.arguments import DataArguments
from training.audit import audit_data, find_leaks
from training.fingerprint import require_readable
from training.listings import PART_OF
from training.processes import from_main_process, main_process_first
from training.sources import UNLABELLED, load_data

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on.

    parts: train, validation, test, and where there are any external, also and unlabelled; beside the columns of
    `load_data` they have `pixels`, the hash of an image's content. home: the labelled images of the internal sites
    before balancing. audit: the report of it. leaks: what stands in two parts, a line each. deviation: how far the
    parts are from the wanted shares, a line.
    """

    parts: DatasetDict
    home: Dataset
    audit: dict
    leaks: list[str]
    deviation: str


def prepare(args: DataArguments) -> Prepared:
    """Read, audit, balance and split as the recipe says; several processes audit once, in the main one.

    Raises InputError when an image cannot be read, a class has too few images or groups for three parts, or, with
    args.strict, something leaks from one part into another that the recipe did not ask for (split_by: image).
    """
    with main_process_first():
        named = _read(args)
    images, pairs, report = from_main_process(lambda: _audited(named, args.sites))
    named = {name: _with_audit(rows, images[images["data"] == name]) for name, rows in named.items()}

    rows = named[args.data]
    names = rows.features["label"].names
    labels, sites = np.asarray(rows["label"]), np.asarray(rows["site"])
    chosen = [*(args.sites or []), *([args.test_site] if args.test_site else [])]
    if strange := sorted(set(chosen) - set(sites)):
        raise InputError(f"{args.data}: found no site {strange[0]}; the sites are {', '.join(sorted(set(sites)))}")
    internal = np.isin(sites, args.sites) if args.sites else np.ones(len(rows), bool)
    known = labels != UNLABELLED
    home = rows.select(np.flatnonzero(known & internal))
    _require_classes(home, args)

    balanced = _undersampled(home, args) if args.balance_scope == "all" else home
    parts = split(balanced, args)
    _require_parts(parts, names)
    deviation = _deviation(parts, args)
    if args.balance_scope == "train":
        parts["train"] = _balanced_part(parts["train"], args)
    if (known & ~internal).any():
        parts["external"] = rows.select(np.flatnonzero(known & ~internal))
    elif args.external:
        parts["external"] = _labelled(named[args.external])
    if args.also:
        parts["also"] = _labelled(named[args.also])
    if not known.all():
        parts["unlabelled"] = rows.select(np.flatnonzero(~known))

    leaks = _leaks(images, pairs, parts, args)
    if leaks and args.strict and args.split_by != "image":
        raise InputError(f"{'; '.join(leaks)}: mend the data, or go on all the same with --strict false")
    return Prepared(DatasetDict(parts), home, report, leaks, deviation)


def _read(args: DataArguments) -> dict[str, Dataset]:
    named = {args.data: load_data(args.data, args.labels)}
    for other in (args.external, args.also):
        if other in named:
            raise InputError(f"{other} is given twice; what is trained on cannot be measured on")
        if other:
            named[other] = load_data(other, named[args.data].features["label"].names)
    return named


def _audited(named: Mapping[str, Dataset], sites: Sequence[str] | None) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Images, pairs and report of the audit of data that can all be read."""
    audit = audit_data(named, sites=sites)
    for name, rows in named.items():
        require_readable(rows, audit.prints.facts["broken"][audit.images["data"] == name].tolist())
    return audit.images, audit.pairs, audit.report


def split(rows: Dataset, args: DataArguments) -> dict[str, Dataset]:
    """The rows as train, validation and test: by shares, by a column, by folds or by site."""
    units = np.asarray(rows["path"] if args.split_by == "image" else rows["merged"])
    labels, seed = np.asarray(rows["label"]), args.split_seed
    shares = {"train": 1.0, "validation": args.validation_share, "test": args.test_share}
    assigned = np.full(len(rows), "", dtype=object)
    if args.split_by == "column":
        if "split" not in rows.column_names:
            raise InputError(f"{args.data}: split_by: column needs a column split of {', '.join(PARTS)}")
        assigned[:] = [PART_OF.get(value.lower(), "") for value in rows["split"]]
    elif args.test_site:
        assigned[np.asarray(rows["site"]) == args.test_site] = "test"
    elif args.folds:
        if not 0 <= args.fold < args.folds:
            raise InputError(f"fold {args.fold}: expected 0 to {args.folds - 1}, for there are {args.folds} folds")
        folds = {str(fold): 1 / args.folds for fold in range(args.folds)}
        assigned[np.asarray(assign_parts(units, labels, folds, seed)) == str(args.fold)] = "test"
    if (assigned == "test").any():
        shares.pop("test")
    # Images that nothing has placed yet, and a validation part out of those for training when none was given
    open_ = np.flatnonzero((assigned == "") if args.split_by != "column" else (assigned == "train"))
    if args.split_by != "column" or not (assigned == "validation").any():
        assigned[open_] = assign_parts(units[open_], labels[open_], shares, seed)
    return {part: rows.select(np.flatnonzero(assigned == part)) for part in PARTS}


def assign_parts(units: Sequence[str], labels: Sequence[int], shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """The part of each image, by the parts' shares; the first part takes what is left. A unit's images stay together.

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


def _by_class(paths: Sequence[str], labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    of_class = defaultdict(list)
    for index in sorted(range(len(paths)), key=lambda index: _rank(seed, paths[index])):
        of_class[labels[index]].append(index)
    return of_class


def _undersampled(rows: Dataset, args: DataArguments) -> Dataset:
    if args.balance == "oversample":
        raise InputError("balance: oversample with balance_scope: all would put copies into two parts; use train")
    if args.balance != "undersample":
        return rows
    return rows.select(undersample(list(rows["path"]), list(rows["label"]), args.per_class, args.split_seed))


def _balanced_part(rows: Dataset, args: DataArguments) -> Dataset:
    paths, labels = list(rows["path"]), list(rows["label"])
    if args.balance == "undersample":
        return rows.select(undersample(paths, labels, args.per_class, args.split_seed))
    if args.balance == "oversample":
        return rows.select(oversample(paths, labels, args.split_seed))
    return rows


def _with_audit(rows: Dataset, found: pd.DataFrame) -> Dataset:
    """The rows with the groups of the audit, their copies joined (merged), and the hash of their content."""
    rows = rows.remove_columns("group")
    for name in ("group", "merged", "pixels"):
        rows = rows.add_column(name, found[name].tolist(), feature=Value("string"))
    return rows


def _labelled(rows: Dataset) -> Dataset:
    return rows.select(np.flatnonzero(np.asarray(rows["label"]) != UNLABELLED))


def _leaks(images: pd.DataFrame, pairs: pd.DataFrame, parts: Mapping[str, Dataset], args: DataArguments) -> list[str]:
    part_of, named = {}, {"unlabelled": "", "also": "train"}
    for part, rows in parts.items():
        data = {"external": args.external, "also": args.also}.get(part) or args.data
        part_of |= {(data, path): named.get(part, part) for path in rows["path"]}
    keys = zip(images["data"], images["path"], strict=True)
    return find_leaks(images.assign(part=[part_of.get(key, "") for key in keys]), pairs)


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


def _deviation(parts: Mapping[str, Dataset], args: DataArguments) -> str:
    """The part and class whose number of images is furthest from the wanted one."""
    if args.split_by == "column" or args.test_site:
        return "the parts are as given"
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
                of_class = [
                    (group, label)
                    for rows in parts.values()
                    for group, label in zip(rows["merged"], rows["label"], strict=True)
                    if label == index
                ]
                raise InputError(
                    f"class {name} has {len(of_class)} images in {len(set(of_class))} groups, which leaves the {part} "
                    "part without any; add images from other patients or clips"
                )
