"""What can be done with finished models at another site: model folders that have an evaluation external.

    python tests/benchmarks/afterwards.py models/elsewhere-[0-4] --data ../shared/data/lus

Without labels: batch-norm statistics taken anew from the site's images, the mean over each clip, and the share of the
sick told from the answers themselves (EM). With a few labelled images of as many local patients: a shift, a scale and
so a threshold of their own; the figures are those of the patients that were not among them. Mean and deviation over
the folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from PIL import Image
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from space.images import load_image
from space.predictor import Predictor
from training.measure import predict_rows
from training.metric.bootstrap import calibration_error
from training.sources import load_data

DRAWS, FEW = 40, (4, 8, 12, 16)


def figures(odds: np.ndarray, sick: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """AUC, balanced accuracy and calibration error of log odds."""
    probabilities = np.stack([expit(-odds), expit(odds)], axis=1)
    balanced = balanced_accuracy_score(sick, odds >= threshold)
    return roc_auc_score(sick, odds), balanced, calibration_error(probabilities, sick.astype(int))


def prior_shift(odds: np.ndarray, prior: float) -> float:
    """The shift of log odds for the share of the sick that the answers themselves make likeliest.

    Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities, Neural Computation 2002, 14:21.
    """
    here = prior
    for _ in range(200):
        here = float(np.clip(expit(odds + logit(here) - logit(prior)).mean(), 1e-3, 1 - 1e-3))
    return float(logit(here) - logit(prior))


def fit_few(odds: np.ndarray, sick: np.ndarray) -> tuple[float, float]:
    """Scale and shift of log odds for a few images, both held back: log scale ~ N(0, 0.5), shift ~ N(0, 2)."""

    def loss(values: np.ndarray) -> float:
        told = np.exp(values[0]) * odds + values[1]
        return np.logaddexp(0, np.where(sick, -told, told)).sum() + 2 * values[0] ** 2 + values[1] ** 2 / 8

    scale, shift = minimize(loss, np.zeros(2)).x
    return float(np.exp(scale)), float(shift)


@torch.inference_mode()
def with_statistics_of(predictor: Predictor, images: list[Image.Image]) -> np.ndarray:
    """Log odds (images,) when batch norm has the statistics of these images (Schneider et al., NeurIPS 2020)."""
    pixels = torch.cat([predictor.pixel_values([image]) for image in images])
    for module in predictor.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
    predictor.model.train()
    for batch in pixels[torch.from_numpy(np.random.default_rng(0).permutation(len(pixels)))].split(64):
        predictor.model(batch)
    predictor.model.eval()
    logits = torch.cat([predictor.model(batch).logits for batch in pixels.split(32)])
    return (logits[:, 1] - logits[:, 0]).numpy()


def new_statistics(model: Path, rows: Dataset, sites: bool) -> np.ndarray:
    """Log odds of rows with the statistics of all of them, or of those of the same site."""
    place = np.asarray(rows["site"] if sites else [""] * len(rows))
    sources = rows.cast_column("image", datasets.Image(decode=False))["image"]
    odds = np.empty(len(rows))
    for site in np.unique(place):
        here = np.flatnonzero(place == site)
        odds[here] = with_statistics_of(Predictor(model), [load_image(sources[index]) for index in here])
    return odds


def measure(model: Path, rows: Dataset | None) -> dict[str, tuple[float, float, float]]:
    """For each way: AUC, balanced accuracy, calibration error."""
    told = pd.read_csv(model / "eval" / "external.csv", keep_default_na=False)
    split = pd.read_csv(model / "split.csv")
    home = (split["label"][split["split"] == "validation"] == "sick").mean()
    odds = logit(told["probability_sick"].clip(1e-6, 1 - 1e-6)).to_numpy()
    sick, threshold = (told["label"] == "sick").to_numpy(), float(logit(told["threshold"].iloc[0]))
    groups = told["group"].to_numpy()
    cases = pd.DataFrame({"odds": odds, "sick": sick, "group": groups}).groupby(["group", "sick"]).mean().reset_index()
    found = {
        "as it is": figures(odds, sick, threshold),
        "as it is, threshold 0.5": figures(odds, sick, 0.0),
        "EM": figures(odds + prior_shift(odds, home), sick, threshold),
        "clips": figures(cases["odds"].to_numpy(), cases["sick"].to_numpy(), threshold),
    }
    if rows is not None:
        rows = _of(rows, told)
        for name, sites in (("statistics of all these images", False), ("statistics of each site", True)):
            found[name] = figures(new_statistics(model, rows, sites), sick, threshold)
    for count in FEW:
        rng, adapted, plain = np.random.default_rng(0), [], []
        for _ in range(DRAWS):
            names = rng.permutation(np.unique(groups))[:count]
            chosen = np.array([rng.choice(np.flatnonzero(groups == name)) for name in names])
            others = ~np.isin(groups, names)
            if len(set(sick[chosen])) == 2 and len(set(sick[others])) == 2:
                scale, shift = fit_few(odds[chosen], sick[chosen])
                adapted.append(figures(scale * odds[others] + shift, sick[others], 0.0))
                plain.append(figures(odds[others], sick[others], threshold))
        if adapted:
            found[f"{count} labelled images"] = tuple(np.mean(adapted, axis=0))
            found[f"the same patients without these {count}"] = tuple(np.mean(plain, axis=0))
    return found


def _of(rows: Dataset, told: pd.DataFrame) -> Dataset:
    """The rows that predictions are of, in their order."""
    return rows.select(pd.Series(range(len(rows)), index=rows["path"])[told["path"]].to_numpy())


def together(models: list[Path], rows: Dataset | None) -> dict[str, tuple[float, float, float]]:
    """What the models say together: by the mean of their log odds, and as one model with the mean of their weights."""
    tables = [pd.read_csv(model / "eval" / "external.csv", keep_default_na=False) for model in models]
    odds = np.stack([logit(table["probability_sick"].clip(1e-6, 1 - 1e-6)) for table in tables]).mean(axis=0)
    thresholds = np.mean([logit(table["threshold"].iloc[0]) for table in tables])
    sick = (tables[0]["label"] == "sick").to_numpy()
    found = {"the mean of all models' answers": figures(odds, sick, thresholds)}
    if rows is None:
        return found
    one, *others = [Predictor(model) for model in models]
    weights = one.model.state_dict()
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight.copy_(torch.stack([weight, *(other.model.state_dict()[name] for other in others)]).mean(dim=0))
    table = predict_rows(one, _of(rows, tables[0]))
    averaged = logit(table["probability_sick"].clip(1e-6, 1 - 1e-6)).to_numpy()
    return found | {"the mean of all models' weights": figures(averaged, sick, thresholds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", help="DATA that the evaluations are of; without it what needs the images is left out")
    args = parser.parse_args()
    rows = load_data(args.data) if args.data else None
    told = [measure(model, rows) for model in args.models]
    print("| | AUC | balanced accuracy | calibration error |\n|---|---|---|---|")
    for name in told[0]:
        values = np.array([each[name] for each in told])
        cells = [f"{mean:.3f}" for mean in values.mean(axis=0)]
        if len(told) > 1:
            cells = [f"{mean} ± {half:.3f}" for mean, half in zip(cells, values.std(axis=0, ddof=1), strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    if len(args.models) > 1:
        for name, values in together(args.models, rows).items():
            print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
