"""What is decided after the fit, on images that were not trained on: calibration, threshold, when to abstain."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import numpy as np
from datasets import Dataset, Image
from safetensors.numpy import save_file
from scipy.special import softmax
from tqdm.auto import tqdm
from transformers.utils import logging

from space.abstention import FILE, Abstention
from space.images import load_image
from space.predictor import BATCH, Predictor
from space.words import in_digits
from training.calibration import Calibration, fit_calibration
from training.metric.bootstrap import calibration_error
from training.threshold import check_rule, choose_threshold, threshold_interval

MOST = 5000  # training images that the abstention is fitted to


def settle(folder: Path, train: Dataset, validation: Dataset, rule: str, method: str) -> list[str]:
    """Calibrate a saved model by `method`, choose its threshold by `rule`, and fit when it abstains.

    Changes config.json and model.safetensors in the folder and adds abstention.safetensors. Returns what was decided,
    a line each.
    """
    predictor = Predictor(folder)
    logits, of_validation = look_at(predictor, validation)
    lines = decide(predictor, logits, validation, "validation part", rule, method)
    abstention = fit_abstention(predictor, train, of_validation)
    save(predictor, abstention, folder)
    flagged = int((abstention.distances(of_validation) > 1).sum())
    lines.append(f"abstains beyond {abstention.tensors['limit'][0]:.2f} usual distances; {flagged} validation images")
    return lines


def decide(predictor: Predictor, logits: np.ndarray, rows: Dataset, where: str, rule: str, method: str) -> list[str]:
    """Calibrate the predictor's model and choose its threshold by what was said of rows that were not trained on.

    logits: (images, classes) of the rows; where: which rows they are, in words. Returns what was decided, a line each.
    """
    truth, groups, config = np.asarray(rows["label"]), list(rows["group"]), predictor.model.config
    calibration = fit_calibration(logits, truth, method, where)
    calibration.fold_into(predictor.model)
    before, after = (softmax(each, axis=1) for each in (logits, calibration.apply(logits)))
    config.calibration = calibration.to_dict()
    errors = (calibration_error(each, truth) for each in (before, after))
    lines = [_calibration_line(calibration, where, *errors)]
    if len(predictor.labels) == 2:
        scores, fixed = after[:, 1], check_rule(rule)[0] == "fixed"
        config.threshold = choose_threshold(scores, truth == 1, rule)
        ci95 = threshold_interval(scores, truth == 1, groups, rule)
        config.threshold_origin = {
            "rule": "fixed" if fixed else rule,
            "data": "recipe" if fixed else f"{where}, {len(truth)} images in {len(set(groups))} groups",
            "date": date.today().isoformat(),
            "ci95": ci95,
        }
        spread = f", 95 % interval {in_digits(ci95[0])} - {in_digits(ci95[1])}" if ci95 else ""
        chosen = "fixed in the recipe" if fixed else f"by {rule} on the {where}{spread}"
        lines.append(f"threshold {in_digits(config.threshold)} of {predictor.labels[1]} {chosen}")
    else:
        lines.append("no threshold: of three classes or more the most probable one is called")
    return lines


def save(predictor: Predictor, abstention: Abstention, folder: Path) -> None:
    """Write config.json, model.safetensors and abstention.safetensors."""
    save_model(predictor, folder)
    save_file(abstention.tensors, folder / FILE)
    shutil.copymode(folder / "config.json", folder / FILE)


def save_model(predictor: Predictor, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    logging.disable_progress_bar()
    predictor.model.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which only the owner could read otherwise


def fit_abstention(predictor: Predictor, train: Dataset, of_validation: list[np.ndarray]) -> Abstention:
    """When to abstain, from training images and the stage features of the validation part."""
    return Abstention.fit(look_at(predictor, train.select(evenly(len(train))))[1], of_validation)


def evenly(count: int, most: int = MOST) -> np.ndarray:
    """Indices of at most `most` of so many images, evenly over them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def look_at(predictor: Predictor, rows: Dataset) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits (images, classes) and stage features of rows, as they are without augmentation."""
    images = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
    logits, features = [], []
    for first in tqdm(range(0, len(rows), BATCH), desc="looking again", unit="batch", leave=False):
        batch = images.select(range(first, min(first + BATCH, len(rows))))
        seen = predictor.look([load_image(each) for each in batch["image"]])
        logits.append(seen[0])
        features.append(seen[1])
    return np.concatenate(logits), [np.concatenate(stage) for stage in zip(*features, strict=True)]


def _calibration_line(calibration: Calibration, where: str, before: float, after: float) -> str:
    if calibration.method == "none":
        return f"not calibrated: {calibration.reason}"
    by = f"temperature {1 / calibration.scale[0]:.2f}" if calibration.method == "temperature" else "vector scaling"
    return f"calibrated by {by}; calibration error on the {where} {before:.3f} -> {after:.3f}"
