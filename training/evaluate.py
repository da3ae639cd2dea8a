"""The verb evaluate: what a model folder is worth on a data set, with intervals.

chest-opacity evaluate models/phantom --data phantom --sites B --name site_b
chest-opacity evaluate models/phantom --data phantom --split test --name test
chest-opacity evaluate user/name --data FOLDER --name elsewhere
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Value

from space.errors import InputError
from space.predictor import Predictor
from space.saliency import METHODS
from training.card import MOST_SUBGROUPS, write_card
from training.cli import Parser, run
from training.duplicates import find_copies
from training.fingerprint import require_readable, take_fingerprints
from training.groups import merge, with_groups
from training.hub import model_folder
from training.measure import measure
from training.outputs import EXPORT, MADE, may_name_evaluation, read_split, require_model_folder
from training.report import write_report
from training.sources import UNLABELLED, load_data, require_sites
from training.tables import classification_tables, in_words

NEEDED = ("recipe.yaml", "eval/training.json", "eval/audit.json")  # of a model folder, for its card and report


def with_pixels(rows: Dataset) -> Dataset:
    """The rows with the column pixels, the hash of each image's content, and groups that share copies joined, as train
    joins them: copies tell no more than one image. Raises InputError when some cannot be read."""
    prints = take_fingerprints(rows)
    require_readable(rows, prints.facts["broken"].tolist())
    groups = merge(list(rows["group"]), find_copies(prints)[["one", "other"]].to_numpy(int))
    rows = rows.remove_columns("group").add_column("group", groups, feature=Value("string"))
    return rows.add_column("pixels", prints.facts["pixels"].tolist())


def select_rows(rows: Dataset, folder: Path, split: str | None, sites: list[str] | None) -> Dataset:
    """The labelled rows of a part of the model's own split.csv, or of some sites, or all.

    Where no row has a name that is in split.csv, which may have numbers for names, they are known by their pixels.
    Raises InputError when there are none, or when of a part, where no sites are given, some lack.
    """
    require_sites(sites, rows)
    chosen = np.asarray(rows["label"]) != UNLABELLED
    if sites:
        chosen &= np.isin(np.asarray(rows["site"]), sites)
    if split:
        table = read_split(folder)
        names, key = np.asarray(rows["path"]), "path"
        if not np.isin(names, table["path"]).any():
            names, key = take_fingerprints(rows).facts["pixels"], "pixels"
        part = table[table["split"] == split]
        chosen &= np.isin(names, part[key])
    if not chosen.any():
        raise InputError(
            f"found no labelled images{f' of the {split} part' if split else ''}"
            f"{f' at {chr(44).join(sites)}' if sites else ''}; "
            f"the sites are {', '.join(sorted(set(rows['site']) - {''})) or 'not recorded'}"
        )
    if split and not sites and not (there := part[key].isin(names[chosen])).all():
        raise InputError(
            f"{(~there).sum()} of the {len(part)} images of the {split} part are not in DATA with a label, "
            f"{part['path'][~there].iloc[0]} for one; give what {folder} was trained with"
        )
    return rows.select(np.flatnonzero(chosen))


def own_rows(rows: Dataset, folder: Path, split: str | None, sites: list[str] | None) -> Dataset:
    """Those of `select_rows`, `with_pixels`. Raises InputError, too, when of a part none has the pixels of one that
    is in split.csv."""
    chosen = with_pixels(select_rows(rows, folder, split, sites))
    if split and not np.isin(np.asarray(chosen["pixels"]), read_split(folder)["pixels"]).any():
        raise InputError(
            f"{folder}: found other images under the names of its split.csv, {chosen['path'][0]} for one; expected "
            "those that it was trained with"
        )
    return chosen


def rows_of_folds(folders: Sequence[Path], rows: Dataset, sites: list[str] | None) -> list[Dataset]:
    """For each model folder the `own_rows` of its test part, or those of some sites; raises InputError when two folders
    would judge one image."""
    parts = [own_rows(rows, folder, "test", sites) for folder in folders]
    paths = Counter(path for part in parts for path in part["path"])
    doubled = [path for path, count in paths.items() if count > 1]
    if doubled:
        raise InputError(f"{len(doubled)} images stand in the test part of two folders, {doubled[0]} for one")
    return parts


def report(result: dict) -> str:
    """The printed report of what `measure` returns."""
    cases, saliency = result["cases"], result["saliency"]
    lines = [f"{result['name']}: {result['n']} images in {result['groups']} groups", "", classification_tables(result)]
    lines.append(f"\n{cases['n']} clips or patients: {in_words(cases)}")
    for column, values in result["subgroups"].items():
        if len(values) > MOST_SUBGROUPS:
            lines.append(f"{column}: {len(values)} of them, in eval/{result['name']}.json")
            continue
        lines += [f"{column} {value}, {told['n']} images: {in_words(told)}" for value, told in values.items()]
    lines.append(f"unlike the training images: {result['abstained']['images']} of {result['n']}")
    low, high = result["ece_by_chance"]
    lines.append(f"calibration error by chance, were the probabilities right: {low:.3f} to {high:.3f}")
    if "uncalibrated" in result:
        lines.append(f"calibration error without calibration: {result['uncalibrated']['ece']:.3f}")
    of = ", of the first model on its own test part" if result["folds"] > 1 else ""
    lines.append(
        f"saliency ({saliency['method']}{of}): {'every test passed' if saliency['passed'] else 'FAILED a test'}"
    )
    if "against" in result:
        lines += ["", _against(result["against"])]
        if seen := result["against"]["seen_in_training"]:
            other = result["against"]["model"]
            lines.append(f"\nwarning: {other} was trained on {seen} of these {result['n']} images, which flatters it")
    if result["seen_in_training"]:
        lines.append(
            f"\nwarning: {result['seen_in_training']} of these {result['n']} images were trained on, so these figures "
            "say nothing of new patients"
        )
    if result["chosen_on"]:
        lines.append(
            f"\nwarning: {result['chosen_on']} of these {result['n']} images are of the validation part, by which "
            "checkpoint, calibration and threshold are chosen, so these figures are too good"
        )
    return "\n".join(lines)


def _against(told: dict) -> str:
    lines = [f"minus {told['model']}:"]
    for name, value in told["difference"].items():
        if value is not None:
            low, high = told["ci95"][name]
            lines.append(f"  {name:20} {value:+.3f} [{low:+.3f}, {high:+.3f}]")
    if told["roc_auc_p"] is not None:
        lines.append(f"  DeLong's test of the AUCs, over groups: p = {told['roc_auc_p']:.3g}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity evaluate", description="Measure a model folder on DATA; the card anew.")
    parser.add_argument(
        "model", metavar="MODEL", help="a model folder, or user/name on the Hub, which becomes the folder models/name"
    )
    parser.add_argument("--data", required=True, help="a folder, a table, user/name on the Hub, or phantom")
    parser.add_argument(
        "--name", required=True, help="of the evaluation: eval/NAME.json, eval/NAME.csv, eval/NAME_*.png"
    )
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="only this part of the model's split.csv"
    )
    parser.add_argument("--sites", nargs="+", help="only images of these sites")
    parser.add_argument("--prevalence", type=float, help="of the positive class, for ppv and npv; by default its share")
    parser.add_argument(
        "--against",
        metavar="OTHER",
        type=Path,
        help="a model folder, or user/name on the Hub, to compare with on these images",
    )
    parser.add_argument(
        "--folds",
        metavar="OTHER",
        type=Path,
        nargs="+",
        help="model folders of the same recipe with other test parts: each image is judged by the one that tests on it",
    )
    parser.add_argument("--saliency", choices=METHODS, help="the method to test and to show; by default the best")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", args.name) or not may_name_evaluation(args.name):
        others = f"{', '.join(sorted(MADE))} or {EXPORT}..."
        letters = "letters, digits, _ . or - (no . or - at first)"
        raise InputError(f"--name {args.name}: expected {letters}, and not {others}")
    if args.name == "test" and args.split != "test" and not args.folds:
        raise InputError("--name test: is that of the test part; add --split test, or choose another --name")
    args.model = model_folder(args.model)
    for folder in (args.model, *(args.folds or ())):
        require_model_folder(folder, "split.csv", *NEEDED * (folder == args.model))
        read_split(folder)
    if args.folds and args.split:
        raise InputError("--split: with --folds it is the test part of each folder that is judged; leave it out")
    if args.prevalence is not None and not 0 < args.prevalence < 1:
        raise InputError(f"--prevalence {args.prevalence}: expected a share between 0 and 1")
    predictor = Predictor(args.model)
    if args.saliency and args.saliency not in predictor.methods:
        raise InputError(f"--saliency {args.saliency}: this network allows {', '.join(predictor.methods)}")
    rows = with_groups(load_data(args.data, predictor.labels))
    if args.folds:
        first, *others = rows_of_folds([args.model, *args.folds], rows, args.sites)
    else:
        first, *others = [own_rows(rows, args.model, args.split, args.sites)]
    result = measure(
        args.model,
        first,
        args.name,
        prevalence=args.prevalence,
        method=args.saliency,
        against=args.against,
        folds=list(zip(args.folds or (), others, strict=True)),
    )
    write_card(args.model, args.model)
    write_report(args.model)
    print(report(result))
    if (result["seen_in_training"] or result["chosen_on"]) and not (args.split == "test" or args.folds):
        print("figures of new patients are those of --split test, or of other --sites")
    print(f"\nwritten: {args.model / 'eval' / args.name}.json, .csv and pictures; report.html and README.md")


if __name__ == "__main__":
    run(main)
