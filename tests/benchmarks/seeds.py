"""What a recipe is worth over several seeds, each with a split of its own: means, 95 % intervals and wall time.

    python tests/benchmarks/seeds.py training/recipes/study.yaml --seeds 5 --data FOLDER --sites HOME [--key value ...]

Everything but --seeds goes to `chest-opacity train`. The interval is Student's for the mean over seeds: it tells how
much split and start decide, not how little the images say. Not part of `make bench`: it takes --seeds whole fits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import t

from training import train

SHOWN = ("accuracy", "balanced_accuracy", "roc_auc")


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of a few numbers."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} [{np.mean(values) - half:.3f}, {np.mean(values) + half:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    args, rest = parser.parse_known_args()
    found, seconds = {}, []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            started = time.perf_counter()
            with contextlib.redirect_stdout(nowhere):
                train.main([*rest, "--seed", str(seed), "--split_seed", str(seed), "--output_dir", f"{folder}/model"])
            seconds.append(time.perf_counter() - started)
            line = f"seed {seed}: {seconds[-1]:.0f} s"
            for part in ("test", "external"):
                file = Path(folder) / "model" / "eval" / f"{part}.json"
                if file.is_file():
                    result = json.loads(file.read_text())
                    for name in SHOWN:
                        found.setdefault((part, name), []).append(result[name])
                    line += f", {part} AUC {result['roc_auc']:.3f}"
            print(line, file=sys.stderr, flush=True)
    print("| part | " + " | ".join(SHOWN) + " |\n|---|" + "---|" * len(SHOWN))
    for part in dict.fromkeys(part for part, _ in found):
        print(f"| {part} | " + " | ".join(interval(found[part, name]) for name in SHOWN) + " |")
    print(f"{args.seeds} seeds, {np.mean(seconds):.0f} s each (lowest {min(seconds):.0f}, highest {max(seconds):.0f})")


if __name__ == "__main__":
    main()
