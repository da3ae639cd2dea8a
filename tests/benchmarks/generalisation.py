"""How a model of one site holds up at others, method by method: the table of docs/generalisation.md.

    python tests/benchmarks/generalisation.py --data ../shared/data/lus --home pocus_northumbria \
        --base ../shared/backbones/resnet-50-thin --work /tmp/generalisation [--methods light strong ...] [--away]

Each method is fitted five times, on all but one of five folds of the home site's groups. What it says of the fold left
out makes its figures at home; what it says of all other sites, five times, its figures away, which are shown with
--away only. Two more parts may be looked at while methods are chosen, since they need nothing from away: `altered`, the
folds left out as another machine might have shown them, and `phantom`, simulated frames. Predictions stay in --work,
one CSV for each fit, and a fit that has its CSV is not made again. Not part of `make bench`: a fit takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

from space.images import load_image
from space.predictor import Predictor
from tests.benchmarks.handmade import handmade
from tests.benchmarks.restyle import altered, even, restyle, shadow
from training.arguments import DataArguments, ModelArguments, TrainingArguments
from training.augment import AUGMENTATIONS, curve, cut
from training.calibration import fit_calibration
from training.measure import arrays, predict_rows
from training.metric.bootstrap import calibration_error
from training.model import load_base
from training.phantom import write_phantom
from training.prepare import prepare
from training.settle import settle
from training.sources import load_data
from training.split import split
from training.threshold import choose_threshold
from training.trainer import make_trainer

SHOWN = ("validation", "test", "altered", "phantom", "away")
LABELS = ["normal", "sick"]
SIDE, FOLDS = 224, 5  # SIDE: of the copies that are worked with

COMMON = {
    "image_size": 128,
    "augment": "strong",
    "num_train_epochs": 10,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-4,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "disable_tqdm": True,
}
MANY, SHARP = "phantom of many sites", "phantom of many sites, sharpness-aware"  # stand for models of it
ULTRASOUND = AUGMENTATIONS["ultrasound"]
AUGMENTATIONS["strong"] = tuple(change for change in ULTRASOUND if change not in (cut, curve))
AUGMENTATIONS["restyled"] = (*ULTRASOUND[:2], restyle, *ULTRASOUND[2:])
AUGMENTATIONS["shadowed"] = (*ULTRASOUND[:6], shadow, *ULTRASOUND[6:])
PRETRAIN = {"num_train_epochs": 6, "per_device_train_batch_size": 32, "learning_rate": 3e-4}
STARTS = {MANY: PRETRAIN, SHARP: PRETRAIN | {"sam_rho": 0.05}}
BEST = {"also": 120, "num_train_epochs": 12, "augment": "ultrasound"}
STARTED = BEST | {"model_name_or_path": MANY}
METHODS = {
    "hand-made features, linear": {"features": "hand-made"},
    "frozen features, linear": {"features": "frozen"},
    "light": {"augment": "light"},
    "strong": {},
    "frozen norms": {"norms": "frozen"},
    "two stages frozen": {"freeze": "2"},
    "mixup, smoothing": {"mixup": 0.4, "label_smoothing_factor": 0.1},
    "half the epochs": {"num_train_epochs": 5},
    "local contrast": {"prepare": even},
    "strong, curve, cut": {"augment": "ultrasound"},
    "strong, curve, cut, restyle": {"augment": "restyled"},
    "phantom only": {"model": MANY},
    "phantom, then home": {"model_name_or_path": MANY},
    "home and phantom, 1 to 2": {"also": 240, "num_train_epochs": 8},
    "home and phantom, 1 to 2, curve, cut": {"also": 240, "num_train_epochs": 8, "augment": "ultrasound"},
    "home and phantom, 1 to 1, curve, cut": BEST,
    "the same, averaged weights": BEST | {"ema_decay": 0.99},
    "the same, mixup": BEST | {"mixup": 0.4},
    "the same, shadows": BEST | {"augment": "shadowed"},
    "the same, from a model of the phantom": STARTED,
    # ultrasound.yaml, at 128 pixels
    "the same, sharpness-aware, sites": BEST | {"model_name_or_path": SHARP, "sam_rho": 0.05, "balance": "sites"},
}
CHANGES = {  # of "the same, from a model of the phantom"; fitted when they are asked for
    "sharpness-aware": STARTED | {"sam_rho": 0.05},
    "sharpness-aware, 0.15": STARTED | {"sam_rho": 0.15},
    "every class of every site as often": STARTED | {"balance": "sites"},
    "sharpness-aware, every class of every site as often": STARTED | {"sam_rho": 0.05, "balance": "sites"},
    "stem and two stages frozen": STARTED | {"freeze": "2"},
    "statistics of batch norm frozen": STARTED | {"norms": "frozen"},
    "3 times the rate": STARTED | {"learning_rate": 3e-4},
    "a third of the rate": STARTED | {"learning_rate": 3.3e-5},
    "6 epochs": STARTED | {"num_train_epochs": 6},
    "24 epochs": STARTED | {"num_train_epochs": 24},
    "labels smoothed by 0.1": STARTED | {"label_smoothing_factor": 0.1},
    "sharp start": STARTED | {"model_name_or_path": SHARP},
    "sharp start, sharpness-aware": STARTED | {"model_name_or_path": SHARP, "sam_rho": 0.05},
}


def shrink(data: str | Path, folder: Path, change=lambda image, rng: image) -> Path:
    """A copy of DATA as a folder of SIDE x SIDE images, so that each look at them is cheap."""
    if not folder.exists():
        rows = load_data(data)
        names, work = rows.features["label"].names, folder.with_name(f".{folder.name}")
        shutil.rmtree(work, ignore_errors=True)
        (work / "images").mkdir(parents=True)
        table = rows.remove_columns("image").to_pandas()
        table["file_name"] = [f"images/{number:05d}.png" for number in range(len(table))]
        sources = rows.cast_column("image", datasets.Image(decode=False))["image"]
        for number, (source, name) in enumerate(zip(sources, table["file_name"], strict=True)):
            small = load_image(source).resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
            change(small, np.random.default_rng(number)).save(work / name)
        table["label"] = [names[label] if label >= 0 else "" for label in table["label"]]
        table.drop(columns=["path", "mask"], errors="ignore").to_csv(work / "metadata.csv", index=False)
        work.rename(folder)
    return folder


class Bench:
    """The parts of the data, and fits of methods on them. work: the folder that all is kept in."""

    def __init__(self, data: str, home: str, base: str, work: Path):
        self.base, self.work = base, work
        (work / "fits").mkdir(parents=True, exist_ok=True)
        self.args = DataArguments(
            data=str(shrink(data, work / "data")), sites=[home], folds=FOLDS, balance="class_weight"
        )
        with contextlib.redirect_stdout(None):
            self.prepared = prepare(self.args)
        simulated = work / "simulated"
        if not simulated.exists():
            write_phantom(simulated, scale=0.3)
        self.phantom = self._labelled(load_data(shrink(simulated, work / "phantom")))
        self.altered = load_data(shrink(self.args.data, work / "altered", altered))

    @staticmethod
    def _labelled(rows: Dataset) -> Dataset:
        return rows.select(np.flatnonzero(np.asarray(rows["label"]) >= 0))

    def parts(self, fold: int) -> dict[str, Dataset]:
        parts = split(self.prepared.home, replace(self.args, fold=fold))
        test = set(parts["test"]["path"])
        changed = self.altered.select([n for n, path in enumerate(self.altered["path"]) if path in test])
        return parts | {"altered": changed, "phantom": self.phantom, "away": self.prepared.parts["external"]}

    def run(self, method: str, fold: int) -> None:
        """Fit a method on a fold and write what it says of all parts to fits/METHOD-FOLD.csv."""
        file = self.work / "fits" / f"{method}-{fold}.csv"
        if file.exists():
            return
        parts, started = self.parts(fold), time.perf_counter()
        settings = (METHODS | CHANGES)[method]
        if change := settings.get("prepare"):
            parts = {part: rows.map(lambda row: {"image": change(row["image"])}) for part, rows in parts.items()}
        if "features" in settings:
            answer = self.linear(settings["features"], parts)
        else:
            folder = self.work / "models" / f"{method}-{fold}"
            if settings.get("model") == MANY:
                folder = self.pretrained(MANY, fold)
            elif not folder.exists():
                self.fit(settings, fold, parts, folder)
            predictor = Predictor(folder)

            def answer(rows):
                return predict_rows(predictor, rows)

        seconds = time.perf_counter() - started
        tables = [answer(parts[part]).assign(part=part) for part in SHOWN]
        pd.concat(tables).assign(seconds=seconds).to_csv(file, index=False)
        if "features" not in settings:  # what afterwards.py looks for in a model folder
            (folder / "eval").mkdir(exist_ok=True)
            tables[-1].to_csv(folder / "eval" / "external.csv", index=False)
            tables[0].assign(split="validation").to_csv(folder / "split.csv", index=False)

    def pretrained(self, start: str, seed: int = 0) -> Path:
        """A model of many simulated sites; a fifth of them choose its threshold."""
        folder = self.work / "models" / f"{start}-{seed}"
        if not folder.exists():
            sites = np.asarray(self.many["site"])
            kept = np.isin(sites, sorted(set(sites))[seed::5])
            parts = {"train": np.flatnonzero(~kept), "validation": np.flatnonzero(kept)}
            self.fit(STARTS[start], seed, {name: self.many.select(rows) for name, rows in parts.items()}, folder)
        return folder

    @cached_property
    def many(self) -> Dataset:
        """1920 frames of 960 simulated sites."""
        return load_data(shrink("phantom?sites=960", self.work / "many"))

    def _joined(self, home: Dataset, sites: int) -> Dataset:
        """The home images and simulated ones of so many sites, which count as one."""
        simulated = load_data(shrink(f"phantom?sites={sites}", self.work / f"many-{sites}"))
        simulated = simulated.add_column("merged", list(simulated["group"])).remove_columns("site")
        simulated = simulated.add_column("site", ["phantom"] * len(simulated))
        columns = ["image", "label", "merged", "site", "path"]
        return concatenate_datasets([home.select_columns(columns), simulated.select_columns(columns)])

    def linear(self, kind: str, parts: dict[str, Dataset]):
        """Logistic regression on features of the train part, calibrated and with a threshold as a network is."""
        extract = handmade if kind == "hand-made" else self.frozen
        train, validation = ([extract(image) for image in parts[part]["image"]] for part in ("train", "validation"))
        truth = np.asarray(parts["validation"]["label"])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, class_weight="balanced", max_iter=2000))
        model.fit(train, parts["train"]["label"])

        def logits(features):
            odds = model.decision_function(features)
            return np.stack([np.zeros_like(odds), odds], axis=1)

        calibration = fit_calibration(logits(validation), truth)
        threshold = choose_threshold(softmax(calibration.apply(logits(validation)), axis=1)[:, 1], truth == 1, "youden")

        def answer(rows: Dataset) -> pd.DataFrame:
            told = softmax(calibration.apply(logits([extract(image) for image in rows["image"]])), axis=1)
            table = rows.select_columns(["path", "group", "site"]).to_pandas()
            names = rows.features["label"].names
            table.insert(1, "label", np.asarray(names)[np.asarray(rows["label"])])
            return table.assign(
                threshold=threshold, **{f"probability_{name}": told[:, index] for index, name in enumerate(names)}
            )

        return answer

    @cached_property
    def frozen(self):
        """What the base gives for an image: the mean over the picture of its last stage."""
        model, processor = load_base(
            ModelArguments(model_name_or_path=self.base, image_size=COMMON["image_size"]), ["normal", "sick"]
        )

        def extract(image: Image.Image) -> np.ndarray:
            with torch.inference_mode():
                pixels = processor(image, return_tensors="pt")["pixel_values"]
                return model.eval().base_model(pixels).pooler_output.flatten().numpy()

        return extract

    def fit(self, method: dict, fold: int, parts: dict[str, Dataset], folder: Path) -> Path:
        recipe = {"model_name_or_path": self.base, "output_dir": str(self.work / "scratch"), "seed": fold}
        recipe |= COMMON | method
        names = parts["train"].features["label"].names
        also, base = recipe.pop("also", 0), recipe["model_name_or_path"]
        balance = recipe.pop("balance", self.args.balance)
        if base in STARTS:
            recipe["model_name_or_path"] = str(self.pretrained(base))
        if also:
            parts = parts | {"train": self._joined(parts["train"], also)}
        recipe.pop("prepare", None)
        frozen = recipe.pop("norms", "") == "frozen"
        model_args, args = HfArgumentParser((ModelArguments, TrainingArguments)).parse_dict(recipe)
        set_seed(fold)
        model, processor = load_base(model_args, names)
        if frozen:
            freeze_norms(model)
        trainer = make_trainer(model, processor, parts, balance, model_args, args)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
        if args.ema_decay:
            trainer.optimizer.eval()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        settle(folder, parts["train"], parts["validation"], model_args.threshold, model_args.calibrate)
        return folder


def freeze_norms(model: torch.nn.Module) -> None:
    """Let batch norm keep the statistics that it came with."""

    def put_back(_module, _inputs) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.training = False

    model.register_forward_pre_hook(put_back)


def figures(rows: pd.DataFrame) -> tuple[float, float, float]:
    """AUC, balanced accuracy at the stored threshold and calibration error of predicted rows."""
    probabilities, truth, _ = arrays(rows, LABELS)
    balanced = balanced_accuracy_score(truth, probabilities[:, 1] >= rows["threshold"])
    return roc_auc_score(truth, probabilities[:, 1]), balanced, calibration_error(probabilities, truth)


def auc_interval(tables: list[pd.DataFrame], draws: int = 500) -> tuple[float, float]:
    """95 % interval of the mean AUC of several fits, from a bootstrap over groups, the same draws for all fits."""
    scores = np.stack([table["probability_sick"] for table in tables])
    truth, groups = (tables[0]["label"] == "sick").to_numpy(), tables[0]["group"].to_numpy()
    members, rng, found = [np.flatnonzero(groups == name) for name in np.unique(groups)], np.random.default_rng(0), []
    while len(found) < draws:
        rows = np.concatenate([members[index] for index in rng.integers(0, len(members), len(members))])
        if 0 < truth[rows].sum() < len(rows):
            found.append(np.mean([roc_auc_score(truth[rows], each[rows]) for each in scores]))
    return tuple(np.quantile(found, [0.025, 0.975]))


def show(work: Path, methods: list[str], away: bool) -> None:
    """Print the table: mean and standard deviation over the fits."""
    shown = [("home", "test"), ("altered", "altered"), ("phantom", "phantom")] + [("away", "away")] * away
    head = ["method", "fits", "seconds"]
    for title, _ in shown:
        head += [f"AUC, {title}"] + ["95 % interval"] * (title == "away")
        head += [f"balanced accuracy, {title}", f"calibration error, {title}"] * (title in ("home", "away"))
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for method in methods:
        files = [work / "fits" / f"{method}-{fold}.csv" for fold in range(FOLDS)]
        tables = [pd.read_csv(file, keep_default_na=False) for file in files if file.exists()]
        if not tables:
            continue
        cells = [method, str(len(tables)), f"{np.mean([table['seconds'].iloc[0] for table in tables]):.0f}"]
        for title, part in shown:
            rows = [table[table["part"] == part] for table in tables]
            told = [_spread(values) for values in zip(*map(figures, rows), strict=True)]
            cells.append(told[0])
            if title == "away":
                cells.append("{:.2f} to {:.2f}".format(*auc_interval(rows)))
            if title in ("home", "away"):
                cells += told[1:]
        print("| " + " | ".join(cells) + " |", flush=True)


def _spread(values: tuple[float, ...]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--home", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS | CHANGES, default=list(METHODS))
    parser.add_argument("--folds", type=int, default=FOLDS, help="only the first ones")
    parser.add_argument("--away", action="store_true", help="show the figures away, after the methods were chosen")
    args = parser.parse_args()
    logging.disable_progress_bar()
    bench = Bench(args.data, args.home, args.base, args.work)
    for method, fold in tqdm([(method, fold) for method in args.methods for fold in range(args.folds)]):
        bench.run(method, fold)
    show(args.work, args.methods, args.away)


if __name__ == "__main__":
    main()
