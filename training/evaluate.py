"""The verb evaluate: what a model folder is worth on a data set, with intervals.

chest-opacity evaluate models/phantom --data phantom --sites B --name site_b
chest-opacity evaluate models/phantom --data phantom --split test --name test
chest-opacity evaluate user/name --data FOLDER --name elsewhere
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
from datasets import Dataset, Image
from tqdm.auto import tqdm

from space.errors import InputError
from space.predictor import Predictor
from training import plots
from training.card import write_card
from training.cli import Parser, run
from training.fingerprint import require_readable, take_fingerprints
from training.hub import model_folder
from training.outputs import new_file
from training.sources import UNLABELLED, load_data
from training.tables import classification_tables

METRIC = Path(__file__).parent / "metric"
MADE = frozenset({"training", "audit"})  # eval/NAME.json of these tell how the model was made and of its data


def load_metric() -> evaluate.Metric:
    """The project's own metric, from its file: no network."""
    return evaluate.load(str(METRIC))


def measure(folder: Path, rows: Dataset, name: str) -> dict:
    """Evaluate a model folder on labelled rows with the column pixels.

    Writes eval/NAME.json, eval/NAME.csv and eval/NAME_*.png into the folder and returns what the JSON holds.
    """
    predictor = Predictor(folder)
    truth, probabilities = np.asarray(rows["label"]), predict_rows(predictor, rows)
    decided = predictor.decide(probabilities)
    result = load_metric().compute(
        predictions=probabilities,
        references=truth,
        labels=predictor.labels,
        groups=list(rows["group"]),
        threshold=predictor.threshold,
    )
    seen = _seen_in_training(folder, rows)
    synthetic = "synthetic" in rows.column_names and set(rows["synthetic"]) == {"yes"}
    result = {"name": name, "sites": sorted(set(rows["site"]) - {""}), "synthetic": synthetic} | result
    result["seen_in_training"] = int(seen.sum())

    labels = np.asarray(predictor.labels)
    table = pd.DataFrame({column: list(rows[column]) for column in ("path", "group", "site")})
    table.insert(1, "label", labels[truth])
    table["prediction"] = labels[decided]
    for index, label in enumerate(labels):
        table[f"probability_{label}"] = probabilities[:, index]
    target = folder / "eval"
    target.mkdir(exist_ok=True)
    with new_file(target / f"{name}.csv") as file:
        table.to_csv(file, index=False, lineterminator="\n", float_format="%.6f")
    plots.save(target / f"{name}_confusion.png", plots.confusion(result))
    if result["roc_auc"] is not None:
        plots.save(target / f"{name}_roc.png", plots.roc(result, truth, probabilities))
    plots.save(target / f"{name}_reliability.png", plots.reliability(result, truth, probabilities))
    with new_file(target / f"{name}.json") as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    return result


def predict_rows(predictor: Predictor, rows: Dataset) -> np.ndarray:
    """Probabilities (images, classes) of the rows of a data set, in order."""
    sources = (row["image"] for row in rows.cast_column("image", Image(decode=False)))
    predicted = list(tqdm(predictor.stream(sources), total=len(rows), desc="predicting", unit="image", leave=False))
    broken = [(path, row) for path, row in zip(rows["path"], predicted, strict=True) if isinstance(row, InputError)]
    if broken:
        raise InputError(f"found {len(broken)} images broken, {broken[0][0]} for one: {broken[0][1]}")
    return np.stack(predicted)


def with_pixels(rows: Dataset) -> Dataset:
    """The rows with the column pixels, the hash of each image's content. Raises InputError when some cannot be read."""
    facts = take_fingerprints(rows).facts
    require_readable(rows, facts["broken"].tolist())
    return rows.add_column("pixels", facts["pixels"].tolist())


def select_rows(rows: Dataset, folder: Path, split: str | None, sites: list[str] | None) -> Dataset:
    """The labelled rows of a part of the model's own split.csv, or of some sites, or all."""
    chosen = np.asarray(rows["label"]) != UNLABELLED
    if sites:
        chosen &= np.isin(np.asarray(rows["site"]), sites)
    if split:
        table = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
        chosen &= np.isin(np.asarray(rows["path"]), table["path"][table["split"] == split])
    if not chosen.any():
        raise InputError(
            f"found no labelled images{f' of the {split} part' if split else ''}"
            f"{f' at {chr(44).join(sites)}' if sites else ''}; "
            f"the sites are {', '.join(sorted(set(rows['site']) - {''})) or 'not recorded'}"
        )
    return rows.select(np.flatnonzero(chosen))


def report(result: dict) -> str:
    """The printed report of what `measure` returns."""
    lines = [f"{result['name']}: {result['n']} images in {result['groups']} groups", "", classification_tables(result)]
    if result["seen_in_training"]:
        lines.append(
            f"\nwarning: {result['seen_in_training']} of these {result['n']} images were trained on, so these figures "
            "say nothing of new patients; choose --split test, or other --sites"
        )
    return "\n".join(lines)


def _seen_in_training(folder: Path, rows: Dataset) -> np.ndarray:
    split = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
    return np.isin(np.asarray(rows["pixels"]), split["pixels"][split["split"] == "train"])


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
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", args.name) or args.name in MADE:
        raise InputError(f"--name {args.name}: expected letters, digits, _ . or -, and not {' or '.join(sorted(MADE))}")
    args.model = model_folder(args.model)
    if not (args.model / "split.csv").is_file():
        raise InputError(
            f"{args.model}: found no model folder (split.csv is missing); make one with chest-opacity train"
        )
    rows = load_data(args.data, Predictor(args.model).labels)
    rows = with_pixels(select_rows(rows, args.model, args.split, args.sites))
    result = measure(args.model, rows, args.name)
    write_card(args.model)
    print(report(result))
    print(f"\nwritten: {args.model / 'eval' / args.name}.json, .csv and pictures; {args.model / 'README.md'}")


if __name__ == "__main__":
    run(main)
