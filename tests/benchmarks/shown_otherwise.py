"""What finished models make of their own test part when it is shown otherwise: for want of a second site.

    python tests/benchmarks/shown_otherwise.py models/xray-[0-4] --data ../shared/data/cxr

closer: the middle of the picture, 74 % of its sides. altered: cut, stretched, coarse, on another curve and with marks,
as another machine might have shown it. exchanged: with the grey values of an image of the other class, so that by
brightness alone all would be told wrongly. Mean and deviation over the models; accuracy is balanced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import logit

from space.predictor import BATCH, Predictor
from tests.benchmarks.afterwards import figures
from tests.benchmarks.restyle import altered, exchanged
from training.sources import load_data

VIEWS = ("as it is", "closer", "altered", "exchanged")


def shown(images: list[Image.Image], sick: np.ndarray, view: str) -> list[Image.Image]:
    """The images as this view of them has it; drawn by their number, so that all models see the same."""
    rngs = [np.random.default_rng(number) for number in range(len(images))]
    if view == "closer":
        boxes = [(0.13 * each.width, 0.13 * each.height, 0.87 * each.width, 0.87 * each.height) for each in images]
        return [each.resize(each.size, Image.Resampling.BILINEAR, box) for each, box in zip(images, boxes, strict=True)]
    if view == "altered":
        return [altered(each, rng) for each, rng in zip(images, rngs, strict=True)]
    if view == "exchanged":
        others = [rng.choice(np.flatnonzero(sick != each)) for each, rng in zip(sick, rngs, strict=True)]
        return [exchanged(each, images[other]) for each, other in zip(images, others, strict=True)]
    return images


def measure(folder: Path, data: str) -> dict[str, tuple[float, float, float]]:
    """For each view of the test part: AUC, balanced accuracy, calibration error."""
    predictor = Predictor(folder)
    split = pd.read_csv(folder / "split.csv", keep_default_na=False)
    rows = load_data(data, predictor.labels)
    test = set(split["path"][split["split"] == "test"])
    rows = rows.select([number for number, path in enumerate(rows["path"]) if path in test])
    images, sick = [image.convert("RGB") for image in rows["image"]], np.asarray(rows["label"]) == 1
    found = {}
    for view in VIEWS:
        pictures = shown(images, sick, view)
        answers = [
            answer
            for first in range(0, len(pictures), BATCH)
            for answer in predictor.answer(pictures[first : first + BATCH])
        ]
        odds = logit([np.clip(answer.probabilities[1], 1e-6, 1 - 1e-6) for answer in answers])
        found[view] = figures(odds, sick, float(logit(predictor.threshold)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="DATA that the models were trained on")
    args = parser.parse_args()
    told = [measure(model, args.data) for model in args.models]
    print("| | AUC | accuracy | calibration error |\n|---|---|---|---|")
    for view in VIEWS:
        values = np.array([each[view] for each in told])
        cells = [
            f"{mean:.3f}" + (f" ± {deviation:.3f}" if len(told) > 1 else "")
            for mean, deviation in zip(values.mean(axis=0), values.std(axis=0, ddof=len(told) > 1), strict=True)
        ]
        print(f"| {view} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
