"""The trust report: time of the bootstrap, how often its intervals hold the truth, time of a report of 10,000 images.

The latter is compared with plain batched prediction of the same images by the same network, a ResNet-50 at 224 px; of
10,000 images the network sees 500, since what it takes for the others is known then.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from scipy.special import expit
from scipy.stats import norm

from space.predictor import Predictor
from training.arguments import ModelArguments
from training.evaluate import with_pixels
from training.measure import assess, predict_rows
from training.metric.bootstrap import bootstrap, calibration_error, chance_errors, error_interval, interval
from training.model import load_base
from training.phantom import write_phantom
from training.plots import performance, trust
from training.saliency_check import check_saliency
from training.sources import load_data

IMAGES, SEEN, REPEATS = 10_000, 500, 500


def seconds(work) -> tuple[float, object]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


rng = np.random.default_rng(0)
truth = rng.integers(0, 2, 100_000)
score = expit(rng.normal(0, 1, 100_000) + truth)
both = np.c_[1 - score, score]
for name, groups in (("each its own group", np.arange(100_000)), ("5,000 groups", rng.integers(0, 5000, 100_000))):
    groups = np.unique(groups, return_inverse=True)[1]
    took, _ = seconds(lambda groups=groups: bootstrap(both, truth, (score > 0.5).astype(int), groups, 2000, 0))
    print(f"2,000 draws of 100,000 images, {name}: {took:.1f} s", flush=True)

patients, images, within = 80, 5, 0.4
truth, groups = np.repeat(np.arange(patients) % 2, images), np.repeat(np.arange(patients), images)
true_auc, held = norm.cdf(1.5 / np.sqrt(2 * (1 + within**2))), {"patients": 0, "images": 0}
for repeat in range(REPEATS):
    p = expit(1.5 * truth + np.repeat(rng.normal(0, 1, patients), images) + rng.normal(0, within, len(truth)))
    for name, unit in (("patients", groups), ("images", np.arange(len(truth)))):
        drawn = bootstrap(np.c_[1 - p, p], truth, (p > 0.5).astype(int), unit, 1000, repeat)
        low, high = interval(drawn["roc_auc"])
        held[name] += low <= true_auc <= high
for name, number in held.items():
    print(f"95 % intervals over {name} hold the true AUC in {100 * number / REPEATS:.1f} % of {REPEATS} repeats")


def unsure(patients: int, sure: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, classes and patients of 3 images each, much alike; of sure 1 the probabilities are right."""
    groups = np.arange(patients).repeat(3)
    odds = rng.normal(0, 1.5, patients)[groups] + rng.normal(0, 0.5, len(groups))
    truth = (rng.random(patients)[groups] < expit(odds)).astype(int)
    return np.c_[expit(-sure * odds), expit(sure * odds)], truth, groups


for patients in (30, 80, 200):
    for sure in (1, 1.5, 2.5, 5):
        true = 0.0 if sure == 1 else calibration_error(*unsure(50_000, sure, rng)[:2])
        held = {"percentiles": 0, "the intervals told": 0}
        for repeat in range(REPEATS):
            p, truth, groups = unsure(patients, sure, rng)
            drawn = bootstrap(p, truth, truth, groups, 500, repeat)["ece"]
            told = error_interval(calibration_error(p, truth), drawn, interval(chance_errors(p, groups, repeat, 100)))
            for name, (low, high) in (("percentiles", interval(drawn)), ("the intervals told", told)):
                held[name] += low <= true <= high
        shares = ", ".join(f"{name} {100 * number / REPEATS:.1f} %" for name, number in held.items())
        print(f"{patients} patients, true calibration error {true:.3f}: held by {shares}", flush=True)

with tempfile.TemporaryDirectory() as scratch:
    model, processor = load_base(ModelArguments("scratch:resnet-50"), ["normal", "sick"])
    for part in (model, processor):
        part.save_pretrained(f"{scratch}/model")
    write_phantom(Path(scratch) / "phantom", scale=SEEN / 989)
    rows = load_data(Path(scratch) / "phantom")
    rows = rows.select(np.flatnonzero(np.asarray(rows["label"]) >= 0))
    predictor = Predictor(f"{scratch}/model")
    plain, table = seconds(lambda: predict_rows(predictor, rows))
    plain *= IMAGES / len(rows)
    many: Dataset = concatenate_datasets([rows] * (IMAGES // len(rows) + 1)).select(range(IMAGES))
    pixels, _ = seconds(lambda: with_pixels(many))
    check, _ = seconds(lambda: check_saliency(predictor, rows, table, "cam"))
    large = table.sample(IMAGES, replace=True, random_state=0).reset_index(drop=True)
    numbers, result = seconds(lambda: assess(large, predictor.labels))
    result["name"] = "large"
    pictures, _ = seconds(lambda: (performance(result, large), trust(result, large)))
    more = pixels + check + numbers + pictures
    print(
        f"report of {IMAGES:,} images: prediction {plain:.0f} s, and {more:.1f} s more, {(plain + more) / plain:.2f} "
        f"times in all ({pixels:.1f} s hashes, {check:.1f} s saliency check, {numbers:.1f} s numbers, {pictures:.1f} s "
        "pictures)"
    )
