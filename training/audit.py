"""The verb audit: what in the data would make a model's figures look better than they are.

chest-opacity audit FOLDER
chest-opacity audit FOLDER OTHER_FOLDER --strict --output audit
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
from datasets import Dataset, Image, concatenate_datasets
from threadpoolctl import threadpool_limits

from space.errors import InputError
from space.images import load_image
from training.audit_page import summary, write_page
from training.cli import Parser, run
from training.confounds import find_confounds
from training.duplicates import find_copies
from training.fingerprint import Fingerprints, take_fingerprints
from training.groups import groups_from_names, is_alone, merge
from training.listings import PART_OF
from training.outputs import new_file
from training.sources import all_synthetic, load_data, normal_first, require_sites, unlisted_files, unread_files
from training.suspects import contradicting_names, doubtful_labels, odd_images

RELATIONS = ("group", "label", "site", "data", "part")


@dataclass(frozen=True)
class Audit:
    """What was found in one or several data sets, taken as one list of images.

    images: a row each, in order: data, path, label, group, site, part (its given split, perhaps none; the data set
    where no split is given), merged (the group after copies have been joined), and `pixels`, the hash of its content.
    pairs: copies, with the columns one and other (numbers of images, the lower first), kind (exact, near), likeness.
    report: what audit.json holds.
    """

    rows: Dataset
    images: pd.DataFrame
    prints: Fingerprints
    pairs: pd.DataFrame
    report: dict

    def look_up(self, data: str, path: str) -> PIL.Image.Image:
        """One of the images; raises InputError when it cannot be read."""
        index = self.images.index[(self.images["data"] == data) & (self.images["path"] == path)][0]
        return load_image(self.rows.cast_column("image", Image(decode=False))[int(index)]["image"])


def audit_data(named: Mapping[str, Dataset], turned: bool = False, sites: Sequence[str] | None = None) -> Audit:
    """Audit data sets together, by their names.

    turned: also look for mirrored and rotated copies. sites: judge confounds and labels by images of these only, since
    no others are trained on.
    """
    images = pd.concat([_table(name, rows) for name, rows in named.items()], ignore_index=True)
    rows = concatenate_datasets([part.select_columns(["image", "path"]) for part in named.values()])
    prints = take_fingerprints(rows)
    images["pixels"] = prints.facts["pixels"]
    if len(named) > 1:  # train here and train there are two parts
        apart = (images["part"] != "") & (images["part"] != images["data"])
        images.loc[apart, "part"] = images["data"] + ": " + images["part"]
    pairs = find_copies(prints, turned)
    sources = {name: _propose_groups(images, name) for name in named}
    number = images["data"].map({name: str(index) for index, name in enumerate(named)})
    images["merged"] = merge((number + ":" + images["group"]).tolist(), pairs[["one", "other"]].to_numpy(int))
    report = {
        "data": {
            name: _describe(images[images["data"] == name], sources[name])
            | {"unlisted": unlisted_files(name), "unread": unread_files(name), "groups_named_as_in": shared}
            for name, shared in _shared_names(named, images).items()
        },
        "files": _files(images, prints),
        "duplicates": _duplicates(images, pairs),
        "leaks": find_leaks(images, pairs),
    }
    with threadpool_limits(1):  # for such small models threads wait for each other, on a busy machine for minutes
        judged = {name: _judged(images, prints, name, sites) for name in named}
        report["confounds"] = {name: _confounds(rows, prints) for name, rows in judged.items()}
        report["labels"] = {name: _labels(rows, images, prints) for name, rows in judged.items()}
    report["warnings"] = _warnings(report)
    return Audit(rows, images, prints, pairs, report)


def find_leaks(images: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """What stands in more than one part (or data set), one line each; empty when nothing does.

    images needs the columns data, part, path and group, and may have part "" for images that are in none.
    """
    leaks = []
    used = images[images["part"] != ""]
    for name, rows in used.groupby("data", sort=False):
        parts = rows.groupby("group")["part"].nunique()
        several = parts.index[parts > 1]
        if len(several):
            leaks.append(f"{name}: {len(several)} groups stand in more than one part, {several[0]} for one")
    part = images["part"].to_numpy()
    one, other = pairs["one"].to_numpy(int), pairs["other"].to_numpy(int)
    crossing = pairs[(part[one] != part[other]) & (part[one] != "") & (part[other] != "")]
    for kind, found in crossing.groupby("kind"):
        first, second = images.loc[found.iloc[0]["one"]], images.loc[found.iloc[0]["other"]]
        leaks.append(
            f"{len(found)} pairs of {'exact' if kind == 'exact' else 'near'} copies stand in different parts, "
            f"{first['path']} ({first['part']}) and {second['path']} ({second['part']}) for one"
        )
    # Copies may also be copies of an image that is in no part, and of each other only through that.
    sets = pd.Series(merge(images.index.astype(str).tolist(), pairs[["one", "other"]].to_numpy(int)), images.index)
    parts = used.groupby(sets[used.index])["part"].nunique()
    through = parts.index[parts > 1].difference(sets[crossing["one"]])
    if len(through):
        first, second, *_ = used[sets[used.index] == through[0]].drop_duplicates("part").itertuples()
        leaks.append(
            f"{len(through)} sets of copies stand in different parts by way of an image in none, "
            f"{first.path} ({first.part}) and {second.path} ({second.part}) for one"
        )
    return leaks


def _table(name: str, rows: Dataset) -> pd.DataFrame:
    names = np.asarray([*rows.features["label"].names, ""])
    table = pd.DataFrame({column: list(rows[column]) for column in ("path", "group", "site")})
    table.insert(0, "data", name)
    table["label"] = names[np.asarray(rows["label"], int)] if len(rows) else ""  # UNLABELLED, -1, is the last one
    given = list(rows["split"]) if "split" in rows.column_names else []
    table["part"] = [_part(part) for part in given] if any(given) else name
    return table


def _part(given: str) -> str:
    """What a split's word means; of a published one (training/publishable.py) two words mean no part."""
    return "" if given in ("unlabelled", "left_out") else PART_OF.get(given.lower(), given)


def _propose_groups(images: pd.DataFrame, name: str) -> str:
    """Say where the groups of a data set come from; where it names none, write those of its file names, in place."""
    rows = images["data"] == name
    paths, own = images.loc[rows, "path"].tolist(), images.loc[rows, "group"]
    alone = np.array([*map(is_alone, paths, own)], bool)
    if not alone.any():
        return "given"
    if not alone.all():
        return f"given for {(~alone).sum()} images, each of the other {own[alone].nunique()} files is its own"
    groups, patterns = groups_from_names(own.tolist())
    images.loc[rows, "group"] = groups
    if patterns:
        return f"proposed from file names ({patterns})"
    return "none known" if groups == paths else "clips alone"


def _names_of_groups(images: pd.DataFrame) -> dict[str, str]:
    """The groups that are not a file of its own, each with its name without the folder of its class."""
    rows = images[["path", "group", "label"]].itertuples(index=False)
    return {group: group.removeprefix(f"{label}/") for path, group, label in rows if not is_alone(path, group)}


def _shared_names(named: Mapping[str, Dataset], images: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """The names of groups that a data set shares with each one after it; simulated ones are nobody's."""
    names = {
        name: set() if all_synthetic(rows) else {*_names_of_groups(images[images["data"] == name]).values()}
        for name, rows in named.items()
    }
    shared = {name: {} for name in named}
    for one, other in combinations(named, 2):
        if both := names[one] & names[other]:
            shared[one][other] = sorted(both)
    return shared


def _describe(images: pd.DataFrame, groups: str) -> dict:
    labelled = images.assign(label=images["label"].replace("", "unlabelled"))
    sites = images[images["site"] != ""].groupby("group")["site"].nunique()
    counts = pd.crosstab(labelled["site"].replace("", "not recorded"), labelled["label"])
    return {
        "images": len(images),
        "classes": {name: int(n) for name, n in labelled["label"].value_counts().sort_index().items()},
        "sites": {str(site): {name: int(n) for name, n in row.items()} for site, row in counts.iterrows()},
        "groups": int(images["group"].nunique()),
        "largest_groups": {name: int(n) for name, n in images["group"].value_counts(sort=True)[:3].items()},
        "groups_are": groups,
        "groups_with_copies_joined": int(images["merged"].nunique()),
        "groups_at_several_sites": sites.index[sites > 1].tolist(),
        "groups_of_one_name": [name for name, n in Counter(_names_of_groups(images).values()).items() if n > 1],
    }


def _files(images: pd.DataFrame, prints: Fingerprints) -> list[dict]:
    facts = prints.facts
    problems = [(index, "broken", facts["broken"][index]) for index in np.flatnonzero(facts["broken"] != "")]
    for _, rows in images.iloc[prints.readable].groupby("data"):
        odd = odd_images(facts.loc[rows.index])
        problems += [
            (index, problem, f"{distance:.1f} deviations from the rest" if problem == "unlike" else "")
            for index, problem, distance in odd.itertuples(index=False)
        ]
    return [{**_name(images, index), "problem": problem, "detail": detail} for index, problem, detail in problems]


def _duplicates(images: pd.DataFrame, pairs: pd.DataFrame) -> dict:
    """Counts of copies by kind and by what the two have in common, and every pair that crosses something."""
    one, other = pairs["one"].to_numpy(int), pairs["other"].to_numpy(int)
    different = pd.DataFrame(
        {f"across_{name}s": images[name].to_numpy()[one] != images[name].to_numpy()[other] for name in RELATIONS},
        index=pairs.index,
    )
    different["across_groups"] &= ~different["across_datas"]  # names of groups mean nothing in another data set
    different = different.rename(columns={"across_datas": "across_data"})
    for name in ("label", "part"):
        known = images[name].to_numpy() != ""
        different[f"across_{name}s"] &= known[one] & known[other]
    counts = {
        kind: {"pairs": len(rows), "within_group": int((~different.loc[rows.index].any(axis=1)).sum())}
        | {name: int(different.loc[rows.index, name].sum()) for name in different}
        for kind, rows in ((kind, pairs[pairs["kind"] == kind]) for kind in ("exact", "near"))
    }
    crossing = pairs[different.any(axis=1)]
    return counts | {
        "crossing": [
            {
                "kind": kind,
                "likeness": round(likeness, 3),
                "one": _name(images, first),
                "other": _name(images, second),
                "across": [name.removeprefix("across_") for name in different if different.loc[index, name]],
            }
            for index, first, second, kind, likeness in crossing.itertuples()
        ]
    }


def _judged(images: pd.DataFrame, prints: Fingerprints, name: str, sites: Sequence[str] | None) -> pd.DataFrame:
    """The readable and labelled images of a data set, of these sites where any of them is among its own."""
    readable = images.iloc[prints.readable]
    rows = readable[(readable["data"] == name) & (readable["label"] != "")]
    return rows[rows["site"].isin(sites)] if sites and rows["site"].isin(sites).any() else rows


def _confounds(rows: pd.DataFrame, prints: Fingerprints) -> list[dict]:
    facts, names = prints.facts.loc[rows.index].assign(site=rows["site"]), normal_first(set(rows["label"]))
    confounds = find_confounds(facts, _numbered(rows["label"]), rows["merged"].to_numpy())
    return [found | {"label": names[found["label"]] if len(names) > 2 else ""} for found in confounds]


def _labels(rows: pd.DataFrame, images: pd.DataFrame, prints: Fingerprints) -> dict:
    contradicting = rows.index[contradicting_names(rows["path"].tolist(), rows["label"].tolist())]
    found, own, auc = doubtful_labels(
        prints, rows.index.to_numpy(), _numbered(rows["label"]), rows["merged"].to_numpy()
    )
    return {
        "contradicting_names": [_name(images, index) | {"label": images["label"][index]} for index in contradicting],
        "doubtful": [
            _name(images, index) | {"label": images["label"][index], "probability": round(float(probability), 4)}
            for index, probability in zip(rows.index[found], own, strict=True)
        ],
        "judge_auc": auc,
    }


def _numbered(labels: pd.Series) -> np.ndarray:
    """Class names as 0, 1, ...: in their usual order."""
    return labels.map({name: number for number, name in enumerate(normal_first(set(labels)))}).to_numpy(int)


def _name(images: pd.DataFrame, index: int) -> dict:
    return {"data": images["data"][index], "path": images["path"][index]}


def about_groups(name: str, data: dict) -> list[str]:
    """What a reader should know of the groups of a data set, one line each; data: what the report tells of it."""
    lines = []
    if data["groups_are"].startswith("proposed"):
        shown = ", ".join(f"{group} ({count} images)" for group, count in data["largest_groups"].items())
        lines.append(f"{name}: {data['groups']} groups are {data['groups_are']}, such as {shown}")
    elif data["groups_are"] != "given":
        lines.append(f"{name}: groups are {data['groups_are']}; frames of one patient may stand in several parts")
    if several := data["groups_at_several_sites"]:
        lines.append(
            f"{name}: {len(several)} groups stand at more than one site; write the site into the group where these "
            f"are other patients, {several[0]} for one"
        )
    if twice := data["groups_of_one_name"]:
        lines.append(
            f"{name}: {len(twice)} names of groups stand in more than one class and are taken for a patient of each; "
            f"tell groups in a table where it is one patient, {twice[0]} for one"
        )
    return lines


def _warnings(report: dict) -> list[str]:
    """What a reader should know before believing any figure, one line each."""
    lines = []
    for problem, count in Counter(file["problem"] for file in report["files"]).items():
        what = {"broken": "cannot be read", "tiny": "are tiny", "blank": "are blank", "unlike": "are unlike the rest"}
        lines.append(f"{count} images {what[problem]}")
    for kind in ("exact", "near"):
        counts = report["duplicates"][kind]
        if counts["across_labels"]:
            lines.append(f"{counts['across_labels']} pairs of {kind} copies have different labels")
        if counts["across_groups"]:
            lines.append(f"{counts['across_groups']} pairs of {kind} copies are in different groups, which are joined")
    for name, data in report["data"].items():
        if data["unlisted"]:
            lines.append(
                f"{name}: {len(data['unlisted'])} image files are not in its metadata.csv and are left out, "
                f"{data['unlisted'][0]} for one"
            )
        if data["unread"]:
            lines.append(
                f"{name}: {len(data['unread'])} files are of no kind that is read and are left out, "
                f"{data['unread'][0]} for one"
            )
        lines += about_groups(name, data)
        lines += [
            f"{name}: {len(shared)} groups have a name that another data set has too; put both into one table if they "
            f"are the same patients, {shared[0]} of {other} for one"
            for other, shared in data["groups_named_as_in"].items()
        ]
    for name, confounds in report["confounds"].items():
        for found in confounds:
            if found["suspicious"]:
                low, high = found["ci95"]
                what = f"the class {found['label']}" if found["label"] else "the label"
                lines.append(
                    f"{name}: {what} can be told from {found['meaning']} alone, AUC {found['auc']:.2f} "
                    f"[{low:.2f}, {high:.2f}], most of all from {found['strongest']}"
                )
    for name, labels in report["labels"].items():
        if labels["contradicting_names"]:
            first = labels["contradicting_names"][0]
            lines.append(
                f"{name}: {len(labels['contradicting_names'])} file names contradict their labels, {first['path']} "
                f"({first['label']}) for one"
            )
        if labels["doubtful"]:
            lines.append(f"{name}: {len(labels['doubtful'])} labels look doubtful")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity audit", description="Look for duplicates, leaks, confounds and broken files.")
    parser.add_argument("data", metavar="DATA", nargs="+", help="one or several data sets, the external ones last")
    parser.add_argument("--sites", nargs="+", help="judge confounds and labels by images of these sites only")
    parser.add_argument("--output", type=Path, default=Path("audit"), help="folder for audit.json and audit.html")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when something leaks between parts or data")
    parser.add_argument("--turned", action="store_true", help="look for mirrored and rotated copies, too")
    args = parser.parse_args(argv)
    if len(set(args.data)) < len(args.data):
        raise InputError("found a data set twice; name each once")
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"{args.output} is no folder; choose another --output")
    named = {name: load_data(name) for name in args.data}
    require_sites(args.sites, *named.values())
    audit = audit_data(named, args.turned, args.sites)
    print(summary(audit.report))
    with new_file(args.output / "audit.json") as file:
        file.write_text(json.dumps(audit.report, indent=2) + "\n")
    with new_file(args.output / "audit.html") as file:
        write_page(file, audit.report, audit.look_up)
    print(f"\nwritten: {args.output / 'audit.json'}, {args.output / 'audit.html'}")
    if args.strict and audit.report["leaks"]:
        raise InputError(f"{len(audit.report['leaks'])} leaks found: {'; '.join(audit.report['leaks'])}")


if __name__ == "__main__":
    run(main)
