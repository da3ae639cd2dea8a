"""What a model folder is worth on labelled images: all that stands in eval/NAME.json, NAME.csv and NAME_*.png."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset, Image
from scipy.special import softmax
from tqdm.auto import tqdm

from space.errors import InputError
from space.predictor import LEAST, Predictor
from training import plots
from training.calibration import Calibration
from training.compare import compare
from training.learned import LEARNED, learned_by
from training.metric.metric import ChestOpacityMetric
from training.outputs import labels_of, new_file, read_split, writing
from training.saliency_check import check_saliency
from training.sources import all_synthetic

SUBGROUPS = ("site", "finding", "probe")  # columns by whose values figures are told apart


@cache
def load_metric() -> ChestOpacityMetric:
    """The project's own metric. What is measured is written where `datasets` writes, and not below HF_HOME, too."""
    return ChestOpacityMetric(cache_dir=datasets.config.HF_DATASETS_CACHE)


def measure(
    folder: Path,
    rows: Dataset,
    name: str,
    prevalence: float | None = None,
    method: str | None = None,
    against: Path | None = None,
    folds: Sequence[tuple[Path, Dataset]] = (),
) -> dict:
    """Evaluate a model folder on labelled rows with the column pixels.

    prevalence: of the positive class, for ppv and npv. method: of saliency, by default the network's best. against:
    another model folder, or one on the Hub, for the differences. folds: further folders of the same recipe with the
    rows that are theirs to judge; the figures are those of all rows together. Writes eval/NAME.json, eval/NAME.csv and
    eval/NAME_*.png into the folder and returns what the JSON holds.
    """
    with _evaluation(folder / "eval", name) as work:
        predictor = Predictor(folder)
        rival = Predictor(against) if against else None
        learned = learned_by(str(against)) if against else None  # before all is predicted, for the Hub may refuse
        known = [(other, labels_of(other)) for other, _ in folds] + ([(against, rival.labels)] if rival else [])
        for other, found in known:
            if found != predictor.labels:
                expected = ", ".join(predictor.labels)
                raise InputError(f"{other}: found the classes {', '.join(found)}; expected {expected}, in that order")
        parts = [rows, *(part for _, part in folds)]
        judged = [(folder, rows), *folds]
        table = pd.concat(
            [predict_rows(predictor, rows), *(predict_rows(Predictor(other), part) for other, part in folds)],
            ignore_index=True,
        )
        result = {
            "name": name,
            "sites": sorted(set(table["site"]) - {""}),
            "synthetic": all(map(all_synthetic, parts)),
            "seen_in_training": sum(int(_listed(each, part, *LEARNED).sum()) for each, part in judged),
            "chosen_on": sum(int(_listed(each, part, "validation").sum()) for each, part in judged),
            "elsewhere": all(_is_elsewhere(each, part) for each, part in judged),
            "folds": 1 + len(folds),
            "fewest_groups": int(table.groupby("label")["group"].nunique().min()),  # of a class that is there
        } | assess(table, predictor.labels, prevalence)
        calibration = getattr(predictor.model.config, "calibration", {"method": "none"})
        if not folds and calibration["method"] == "temperature":  # from probabilities, no other can be undone
            result["uncalibrated"] = _uncalibrated(table, predictor.labels, Calibration.from_dict(calibration))
        if rival:
            told = _against(table, pd.concat([predict_rows(rival, part) for part in parts], ignore_index=True), result)
            seen = sum(int(np.isin(np.asarray(part["pixels"]), learned["pixels"]).sum()) for part in parts)
            result["against"] = {"model": against.resolve().name, "seen_in_training": seen} | told
        method = method or predictor.methods[0]
        result["saliency"] = check_saliency(predictor, rows, table.iloc[: len(rows)], method)

        whole = table.assign(threshold=table["threshold"].astype(str))  # for what is called depends on it
        with new_file(work / f"{name}.csv") as file:
            whole.to_csv(file, index=False, lineterminator="\n", float_format="%.6f")
        plots.save(work / f"{name}_performance.png", plots.performance(result, table))
        plots.save(work / f"{name}_trust.png", plots.trust(result, table))
        plots.save(work / f"{name}_gallery.png", plots.gallery(predictor, rows, table.iloc[: len(rows)], method))
        with new_file(work / f"{name}.json") as file:
            file.write_text(json.dumps(result, indent=2) + "\n")
    return result


@contextmanager
def _evaluation(target: Path, name: str) -> Iterator[Path]:
    """A hidden folder for the files of an evaluation, which take the places of another one's when all are there. The
    JSON goes first and comes last: without it the others are nobody's, and nothing that is pushed."""
    final = target / f"{name}.json"
    with writing(final) as work:
        shutil.rmtree(work, ignore_errors=True)  # of a killed run that had the same process id
        work.mkdir()
    try:
        yield work
        with writing(final):
            final.unlink(missing_ok=True)
            for file in sorted(work.iterdir(), key=lambda file: file.name == final.name):
                os.replace(file, target / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def predict_rows(predictor: Predictor, rows: Dataset) -> pd.DataFrame:
    """A row for each image: path, label, group, site, pixels and SUBGROUPS where they are known, prediction,
    probability_LABEL of each class, threshold, distance and abstained. Raises InputError when an image cannot be read.
    """
    sources = (row["image"] for row in rows.select_columns(["image"]).cast_column("image", Image(decode=False)))
    answers = list(tqdm(predictor.stream(sources), total=len(rows), desc="predicting", unit="image", leave=False))
    named = zip(rows["path"], answers, strict=True)
    broken = [(path, answer) for path, answer in named if isinstance(answer, InputError)]
    if broken:
        raise InputError(f"found {len(broken)} images broken, {broken[0][0]} for one: {broken[0][1]}")
    labels = np.asarray(predictor.labels)
    probabilities = np.stack([answer.probabilities for answer in answers])
    columns = ["path", "group", "site", *(name for name in ("pixels", *SUBGROUPS[1:]) if name in rows.column_names)]
    table = pd.DataFrame({column: list(rows[column]) for column in columns})
    table.insert(1, "label", labels[np.asarray(rows["label"])])
    table["prediction"] = labels[predictor.decide(probabilities)]
    for index, label in enumerate(labels):
        table[f"probability_{label}"] = probabilities[:, index]
    table["threshold"] = predictor.threshold
    table["distance"] = [answer.distance for answer in answers]
    table["abstained"] = [answer.abstained for answer in answers]
    return table


def assess(table: pd.DataFrame, labels: list[str], prevalence: float | None = None) -> dict:
    """The numbers of predicted rows: of images, of cases, of subgroups, at 0.5, and of those not abstained from."""
    result = _numbers(table, labels, prevalence)
    if len(labels) == 2:
        result["at_half"] = _numbers(table.assign(threshold=0.5), labels, prevalence)
    result["cases"] = _numbers(_cases(table, labels), labels, prevalence)
    result["subgroups"] = {
        column: {
            value or "not recorded": _numbers(rows, labels, prevalence)
            for value, rows in table.groupby(column, sort=True)
        }
        for column in SUBGROUPS
        if column in table and table[column].nunique() > 1
    }
    accepted = table[~table["abstained"]]
    result["abstained"] = {"images": int(table["abstained"].sum()), "share": float(table["abstained"].mean())}
    if 0 < len(accepted) < len(table):
        result["abstained"]["others"] = _numbers(accepted, labels, prevalence)
    return result


def arrays(table: pd.DataFrame, labels: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of predicted rows: probabilities (images, classes), true classes, and groups as numbers from 0."""
    truth = table["label"].map({label: index for index, label in enumerate(labels)}).to_numpy(int)
    probabilities = table[[f"probability_{label}" for label in labels]].to_numpy(float)
    return probabilities, truth, np.unique(table["group"], return_inverse=True)[1]


def _numbers(table: pd.DataFrame, labels: list[str], prevalence: float | None = None) -> dict:
    probabilities, truth, groups = arrays(table, labels)
    return load_metric().compute(
        predictions=probabilities,
        references=truth,
        labels=labels,
        groups=groups,
        threshold=table["threshold"].to_numpy(),
        prevalence=prevalence,
    )


def _cases(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """A row for each clip or patient, and label where one has several: probabilities from the mean of its logits."""
    names = [f"probability_{label}" for label in labels]
    logits = table.assign(**{name: np.log(table[name].clip(LEAST)) for name in names})
    cases = logits.groupby(["group", "label"], sort=True)[[*names, "threshold"]].mean().reset_index()
    cases[names] = softmax(cases[names].to_numpy(), axis=1)
    return cases


def _uncalibrated(table: pd.DataFrame, labels: list[str], calibration: Calibration) -> dict:
    """The calibration error as it would be without calibration, with its interval."""
    probabilities, truth, groups = arrays(table, labels)
    raw = softmax(calibration.undo(np.log(probabilities.clip(LEAST))), axis=1)
    result = load_metric().compute(predictions=raw, references=truth, groups=groups)
    return {"ece": result["ece"], "ci95": {"ece": result["ci95"]["ece"]}}


def _against(table: pd.DataFrame, other: pd.DataFrame, result: dict) -> dict:
    labels = result["labels"]
    sides = [arrays(each, labels) for each in (table, other)]
    decided = [
        each["prediction"].map({label: n for n, label in enumerate(labels)}).to_numpy() for each in (table, other)
    ]
    results = (result, _numbers(other, labels))
    return compare(results, [side[0] for side in sides], decided, sides[0][1], sides[0][2])


def _listed(folder: Path, rows: Dataset, *parts: str) -> np.ndarray:
    """Which of the rows stand in a model's split, in some parts of it or in any."""
    split = read_split(folder)
    return np.isin(np.asarray(rows["pixels"]), split["pixels"][split["split"].isin(parts or set(split["split"]))])


def _is_elsewhere(folder: Path, rows: Dataset) -> bool:
    """Whether a model has learned from no site of the rows or, where sites are not known, from none of the rows."""
    split, sites = read_split(folder), set(rows["site"])
    home = set(split["site"][split["split"] != "test"])
    if sites & home - {""}:
        return False
    return not ("" in sites | home and _listed(folder, rows).any())
