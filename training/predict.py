"""The verb predict: one row of a CSV file for each image.

chest-opacity predict models/phantom scan.png more_scans/ --output predictions.csv
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from space.errors import InputError
from space.predictor import Predictor
from training.cli import Parser, run
from training.outputs import new_file
from training.sources import image_files

SHOWN = 10  # rows that are printed


class Input(NamedTuple):
    """An image to predict, by the name that the output gives it, and the patient or clip it is of where known."""

    path: str
    file: Path
    group: str = ""


def predict(predictor: Predictor, inputs: Iterable[Input]) -> Iterator[dict]:
    """A row for each input, in order: path, group, prediction, probability_LABEL, threshold, abstained, error.

    The model abstains, and there is no prediction, where an image is unlike those that it was trained on, which its
    probabilities do not tell, and where one cannot be read, which has an error.
    """
    inputs = list(inputs)
    for given, answer in zip(inputs, predictor.stream(given.file for given in inputs), strict=True):
        failed = isinstance(answer, InputError)
        probabilities = [""] * len(predictor.labels) if failed else [f"{p:.6f}" for p in answer.probabilities]
        abstained = failed or answer.abstained
        yield {
            "path": given.path,
            "group": given.group,
            "prediction": "" if abstained else predictor.labels[predictor.decide(answer.probabilities[None])[0]],
            **{f"probability_{label}": p for label, p in zip(predictor.labels, probabilities, strict=True)},
            "threshold": predictor.threshold,
            "abstained": abstained,
            "error": str(answer) if failed else "",
        }


def find_inputs(paths: Iterable[str]) -> list[Input]:
    """Files as they are; of a folder what its metadata.csv lists, with groups, or else every image in it, sorted."""
    found = []
    for path in map(Path, paths):
        table = path / "metadata.csv"
        if table.is_file():
            rows = pd.read_csv(table, dtype=str, keep_default_na=False)
            if "file_name" not in rows:
                raise InputError(f"{table}: found the columns {', '.join(rows.columns)}; expected file_name")
            groups = rows["group"] if "group" in rows else [""] * len(rows)
            names = zip(rows["file_name"], groups, strict=True)
            found += [Input(str(path / name), path / name, group) for name, group in names]
        elif path.is_dir():
            found += [Input(str(file), file) for file in image_files(path)]
        elif path.exists():
            found.append(Input(str(path), path))
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: found no images")
    return found


def write_predictions(predictor: Predictor, inputs: list[Input], output: Path) -> pd.DataFrame:
    """Predict into a CSV file, which is whole or absent, and return the rows."""
    rows = list(tqdm(predict(predictor, inputs), total=len(inputs), desc="predicting", unit="image", leave=False))
    with new_file(output) as file, open(file, "w", newline="") as target:
        writer = csv.DictWriter(target, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> str:
    """The first rows, and how many there are of each prediction."""
    shown = rows.drop(columns=["threshold", "abstained"]).head(SHOWN).replace("", "-")
    if (shown["error"] == "-").all():
        shown = shown.drop(columns="error")
    counts = ", ".join(
        f"{count} {name or 'without a prediction'}" for name, count in rows["prediction"].value_counts().items()
    )
    return f"{shown.to_string(index=False)}\n{'...' if len(rows) > SHOWN else ''}\n{len(rows)} images: {counts}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity predict", description="Classify images into a CSV file, one row each.")
    parser.add_argument("model", metavar="MODEL", help="a model folder or Hub id")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="image files and folders")
    parser.add_argument("--output", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the CSV file if it exists")
    args = parser.parse_args(argv)
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists; choose another --output, or replace it with --overwrite")
    inputs = find_inputs(args.paths)
    rows = write_predictions(Predictor(args.model), inputs, args.output)
    print(f"{summary(rows)}\nwritten: {args.output}")
    if (rows["error"] != "").all():
        raise InputError("none of the images could be read; see the column error")


if __name__ == "__main__":
    run(main)
