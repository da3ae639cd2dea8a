"""What can be done with a finished model at another site, measured on the fits that generalisation.py left.

    python tests/benchmarks/afterwards.py --work /tmp/generalisation --method strong

Without labels: the mean over each clip, the share of the sick told from the answers themselves (EM), the mean of the
five fits' answers. With a few labelled images of as many local patients: a shift, a scale and so a threshold of their own;
the figures are those of the patients that were not among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from training.metric.bootstrap import calibration_error

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


def measure(tables: list[pd.DataFrame], part: str) -> dict[str, np.ndarray]:
    """(fits, 3) for each way: AUC, balanced accuracy, calibration error."""
    found: dict[str, list] = {}
    shown = [table[table["part"] == part] for table in tables]
    for table, rows in zip(tables, shown, strict=True):
        odds = logit(rows["probability_sick"].clip(1e-6, 1 - 1e-6)).to_numpy()
        sick, threshold = (rows["label"] == "sick").to_numpy(), float(logit(rows["threshold"].iloc[0]))
        groups = rows["group"].to_numpy()
        found.setdefault("as it is", []).append(figures(odds, sick, threshold))

        validation = table[table["part"] == "validation"]
        shift = prior_shift(odds, (validation["label"] == "sick").mean())
        found.setdefault("EM", []).append(figures(odds + shift, sick, threshold))

        cases = pd.DataFrame({"odds": odds, "sick": sick, "group": groups}).groupby(["group", "sick"]).mean()
        told = cases.reset_index()
        found.setdefault("clips", []).append(figures(told["odds"].to_numpy(), told["sick"].to_numpy(), threshold))

        for count in FEW:
            rng, drawn = np.random.default_rng(0), []
            for _ in range(DRAWS):
                names = rng.permutation(np.unique(groups))[:count]
                chosen = np.array([rng.choice(np.flatnonzero(groups == name)) for name in names])
                others = ~np.isin(groups, names)
                if len(set(sick[chosen])) < 2 or len(set(sick[others])) < 2:
                    continue
                scale, moved = fit_few(odds[chosen], sick[chosen])
                adapted = figures(scale * odds[others] + moved, sick[others], 0.0)
                drawn.append((*adapted, *figures(odds[others], sick[others], threshold)))
            found.setdefault(f"{count} labelled", []).append(np.mean(drawn, axis=0)[:3])
            found.setdefault(f"({count}: as it is, on the same others)", []).append(np.mean(drawn, axis=0)[3:])
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--part", default="away")
    args = parser.parse_args()
    files = sorted((args.work / "fits").glob(f"{args.method}-[0-9].csv"))
    tables = [pd.read_csv(file, keep_default_na=False) for file in files]
    print(f"| {args.method}, {args.part} | AUC | balanced accuracy | calibration error |\n|---|---|---|---|")
    for name, values in measure(tables, args.part).items():
        cells = " | ".join(f"{each.mean():.3f} ± {each.std(ddof=1):.3f}" for each in values.T)
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
