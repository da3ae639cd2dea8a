"""From the data of a recipe to parts that are ready to train on: read, audited, balanced and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Value

from space.errors import InputError
from training.arguments import DataArguments
from training.audit import about_groups, audit_data, find_leaks
from training.fingerprint import require_readable
from training.processes import from_main_process, main_process_first
from training.sources import UNLABELLED, load_data, require_sites
from training.split import PARTS, balance, deviation, require_test_part, split


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
    rows = named[args.data]
    labels, sites = np.asarray(rows["label"]), np.asarray(rows["site"])
    require_sites([*(args.sites or []), *([args.test_site] if args.test_site else [])], rows)
    internal = np.isin(sites, args.sites) if args.sites else np.ones(len(rows), bool)
    elsewhere = ~internal & (sites != "")
    known, spare = labels != UNLABELLED, np.zeros(len(rows), bool)
    if args.split_by == "column" and "split" in rows.column_names:
        given = np.asarray(rows["split"])
        elsewhere |= given == "external"
        internal, spare = internal & ~elsewhere, given == "left_out"
    of_home = np.flatnonzero(known & internal & ~spare)
    home = rows.select(of_home)
    _require_classes(home, args)
    require_test_part(home, args)

    images, pairs, report = from_main_process(lambda: _audited(named, args.sites))
    named = {name: _with_audit(rows, images[images["data"] == name]) for name, rows in named.items()}
    rows = named[args.data]
    if nowhere := (known & ~internal & ~elsewhere).sum():
        report["warnings"].append(f"{args.data}: {nowhere} labelled images have no site and are left out")
    home = rows.select(of_home)
    balanced = balance(home, args, "all")
    parts = split(balanced, args)
    _require_parts(parts, rows.features["label"].names, args)
    off = deviation(balanced, parts, args)
    parts["train"] = balance(parts["train"], args, "train")
    if args.external:
        parts["external"] = _labelled(named[args.external])
    elif (known & elsewhere).any():
        parts["external"] = rows.select(np.flatnonzero(known & elsewhere))
    if args.also:
        parts["also"] = _labelled(named[args.also])
    if not known.all():
        parts["unlabelled"] = rows.select(np.flatnonzero(~known))

    leaks = _leaks(images, pairs, parts, args)
    unasked = _leaks(images, pairs, parts, args, as_one=True) if args.split_by == "image" else leaks
    if unasked and args.strict:
        leaking = [name for name in named if any(leak.startswith(f"{name}: ") for leak in unasked)]  # their groups
        told = [line for name in leaking for line in about_groups(name, report["data"][name])]
        raise InputError(
            f"{'; '.join(unasked + told)}: mend the data{', or tell groups in a table' * bool(told)}, or go on all "
            "the same with --strict false"
        )
    return Prepared(DatasetDict(parts), home, report, leaks, off)


def _read(args: DataArguments) -> dict[str, Dataset]:
    named = {args.data: load_data(args.data, args.labels)}
    for other in (args.external, args.also):
        if other in named:
            raise InputError(f"{other} is given twice; what is trained on cannot be measured on")
        if other:
            named[other] = load_data(other, named[args.data].features["label"].names)
            if set(named[other]["label"]) <= {UNLABELLED}:
                raise InputError(f"{other}: found no labelled images; what is measured or trained on needs labels")
    return named


def _audited(named: Mapping[str, Dataset], sites: Sequence[str] | None) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Images, pairs and report of the audit of data that can all be read."""
    audit = audit_data(named, sites=sites)
    for name, rows in named.items():
        require_readable(rows, audit.prints.facts["broken"][audit.images["data"] == name].tolist())
    return audit.images, audit.pairs, audit.report


def _with_audit(rows: Dataset, found: pd.DataFrame) -> Dataset:
    """The rows with the groups of the audit, joined where they share copies, by two names (merged: also of which data
    set), and the hash of their content."""
    joined = found["merged"].str.partition(":")[2]
    rows = rows.remove_columns("group")
    for name, values in {"group": joined, "merged": found["merged"], "pixels": found["pixels"]}.items():
        rows = rows.add_column(name, values.tolist(), feature=Value("string"))
    return rows


def _labelled(rows: Dataset) -> Dataset:
    return rows.select(np.flatnonzero(np.asarray(rows["label"]) != UNLABELLED))


def _leaks(
    images: pd.DataFrame, pairs: pd.DataFrame, parts: Mapping[str, Dataset], args: DataArguments, as_one: bool = False
) -> list[str]:
    """What stands in more than one part, a line each; as_one: what train, validation and test share is none."""
    part_of, named = {}, {"unlabelled": "", "also": "train"}
    if as_one:
        named = dict.fromkeys(PARTS, "internal") | {"unlabelled": ""}
    for part, rows in parts.items():
        data = {"external": args.external, "also": args.also}.get(part) or args.data
        part_of |= {(data, path): named.get(part, part) for path in rows["path"]}
    keys = zip(images["data"], images["path"], strict=True)
    return find_leaks(images.assign(part=[part_of.get(key, "") for key in keys]), pairs)


def _require_classes(rows: Dataset, args: DataArguments) -> None:
    names, counts = rows.features["label"].names, Counter(rows["label"])
    present = [name for index, name in enumerate(names) if counts[index]]
    if len(present) < max(2, len(names)):
        where = f"{args.data}{' at ' + ', '.join(args.sites) if args.sites else ''}"
        wanted = ", ".join(names) if len(names) > 1 else "at least two classes"
        raise InputError(f"{where}: found images of {', '.join(present) or 'no class'} only, expected {wanted}")


def _require_parts(parts: dict[str, Dataset], names: list[str], args: DataArguments) -> None:
    for index, name in enumerate(names):
        for part in PARTS:
            if index not in set(parts[part]["label"]):
                groups = Counter(
                    group
                    for rows in parts.values()
                    for group, label in zip(rows["merged"], rows["label"], strict=True)
                    if label == index
                )
                if args.split_by == "column":
                    raise InputError(f"class {name}: the column split puts none of it into the {part} part")
                group, most = groups.most_common(1)[0]
                largest = f" (the largest, {group.partition(':')[2]}, has {most})" if most > 1 else ""
                fewer = "make fewer folds, or " if args.folds and part == "test" else ""
                raise InputError(
                    f"class {name} has {groups.total()} images in {len(groups)} groups{largest}, which leaves the "
                    f"{part} part without any; {fewer}add images from other patients or clips, or tell the groups in a "
                    "table"
                )
