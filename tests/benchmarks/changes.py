"""Changes of ultrasound.yaml and of the phantom, compared in minutes on a GPU.

    python tests/benchmarks/changes.py prepare --data ../shared/data/lus --home pocus_northumbria --work WORK
    python tests/benchmarks/changes.py fit --base ../shared/backbones/resnet-50-thin --work WORK --name NAME
    python tests/benchmarks/changes.py show --work WORK [--away]

`prepare` makes copies of 256 x 256 pixels and writes down all splits. `fit` needs no Trainer and nothing of `datasets`:
networks are fitted side by side, each step of one a CUDA graph, on views that are drawn ahead. It draws 960 simulated
sites, fits two models of them, and from each of the two, for every change, five folds of home, five of all sites, and
two fits on all sites but home; it takes three minutes on an H100 with 16 cores for the recipe alone and one more for
each change. To compare phantoms, run it from two checkouts under two names. `show` prints what may be looked at while
one chooses; --away adds what may not. On a processor it runs too, and takes hours.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification

from training.augment import augment, mark
from training.phantom import draw_frames, draw_patients, draw_sites

COPY, SIDE = 256, 192  # pixels: of the copies that views are drawn from, and of what networks look at
FOLDS, STARTS, SIDE_BY_SIDE = 5, 2, 10
SITES, ALSO, AB = 960, 240, 0.3  # sites of the phantom's model, frames of it beside home, share of sites A and B
VIEWS, VIEWS_OF_PHANTOM, BATCH = 24, 6, 16
FINDINGS = ["regular", "b-lines", "consolidation", "effusion"]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Change:
    """What a fit does otherwise than ultrasound.yaml."""

    epochs: int = 12
    rate: float = 1e-4
    rho: float = 0.05  # of sharpness-aware steps
    power: float = 0.5  # a patient's frames are drawn n ** -power as often: 0.5 as `balance: sites`, 1 patients alike
    findings: float = 0.0  # weight of telling the phantom's findings apart, as a second task
    dropout: float = 0.0  # of the pooled features


CHANGES = {
    "ultrasound.yaml": Change(),
    "steps that are not sharpness-aware": Change(rho=0),
    "sharpness-aware, 0.15": Change(rho=0.15),
    "6 epochs": Change(epochs=6),
    "24 epochs": Change(epochs=24),
    "3 times the rate": Change(rate=3e-4),
    "a third of the rate": Change(rate=3.3e-5),
    "every patient as often": Change(power=1),
    "findings as a second task": Change(findings=0.5),
    "dropout of a half": Change(dropout=0.5),
}


def prepare(data: str, home: str, work: Path) -> None:
    """Write copies/ and table.csv: path, label, site, group, home, and the part of each frame in each fold."""
    import datasets

    from space.images import load_image
    from training.arguments import DataArguments
    from training.prepare import prepare as load
    from training.split import split

    columns, prepared = {}, None
    for setting, sites in (("home", [home]), ("all", None)):
        for fold in range(FOLDS):
            args = DataArguments(data=data, sites=sites, folds=FOLDS, fold=fold, balance="sites", split_by="group")
            prepared = load(args)
            parts = split(prepared.home, args)
            told = {path: part for part, rows in parts.items() for path in rows["path"]}
            columns[f"{setting}{fold}"] = told
    table = prepared.home.select_columns(["path", "label", "site", "group"]).to_pandas()
    table["home"] = table["site"] == home
    for name, told in columns.items():
        table[name] = table["path"].map(told).fillna("")
    shutil.rmtree(work / "copies", ignore_errors=True)
    (work / "copies").mkdir(parents=True)
    sources = prepared.home.cast_column("image", datasets.Image(decode=False))["image"]
    for number, source in enumerate(sources):
        _small(load_image(source), COPY).convert("L").save(work / "copies" / f"{number:05d}.png")
    table.to_csv(work / "table.csv", index=False)


def _small(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _altered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A frame as another machine and operator might have shown it, as in generalisation.py."""
    side = image.width
    left, top, right, bottom = (rng.uniform(0, [0.2, 0.08, 0.2, 0.25]) * side).astype(int)
    image = image.crop((left, top, side - right, side - bottom))
    low = int(rng.integers(24, 90))
    grey = np.asarray(image.resize((low, int(low * rng.uniform(0.8, 1.25))), Image.Resampling.BOX), float) / 255
    black, white = np.quantile(grey, [rng.uniform(0, 0.3), rng.uniform(0.9, 0.995)])
    grey = ((grey - black) / max(white - black, 0.05)).clip(0, 1) ** rng.uniform(0.5, 1.8)
    grey = grey * rng.uniform(0.5, 1) + rng.uniform(0, 0.15)
    image = Image.fromarray((grey * 255).clip(0, 255).astype(np.uint8))
    return mark(image.resize((side, side), Image.Resampling.BICUBIC), rng)


def _read(job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    number, file = job
    image = Image.open(file)
    changed = _altered(image, np.random.default_rng(number))
    return tuple(np.asarray(each) for each in (image, _small(image, SIDE), _small(changed, SIDE)))


def _draw(job) -> list[np.ndarray]:
    return [np.asarray(_small(Image.fromarray(frame), COPY)) for frame, _ in draw_frames(*job)]


def _views(job) -> np.ndarray:
    """(count, SIDE, SIDE): a copy as the recipe's augmentation shows it, `count` times."""
    number, copy, count = job
    image = Image.fromarray(copy).convert("RGB")
    seen = (augment(image, "ultrasound", np.random.default_rng([view, number])) for view in range(count))
    return np.stack([np.asarray(view.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("L")) for view in seen])


class Frames:
    """All that networks learn from and are measured on, on the device.

    real, simulated (of the phantom's model), beside (the first ALSO of those): views, (frames x views, SIDE, SIDE)
    uint8, a frame's beside one another. measured: frames as they are, altered ones, and those of sites A and B.
    """

    def __init__(self, work: Path, sites: int, views: int, device: str):
        self.table = pd.read_csv(work / "table.csv", keep_default_na=False)
        self.views = views
        places, first = draw_sites(sites), draw_sites()
        patients, others = draw_patients(0, 1.0, places), [p for p in draw_patients(0, AB, first) if p.label]
        files = [work / "copies" / f"{number:05d}.png" for number in range(len(self.table))]
        with Pool() as pool:
            copies, plain, altered = zip(*pool.map(_read, list(enumerate(files)), chunksize=8), strict=True)
            drawn = _flat(pool.map(_draw, [(p, places[p.site]) for p in patients], chunksize=2))
            ab = _flat(pool.map(_draw, [(p, first[p.site]) for p in others], chunksize=2))

            def show(frames, count):
                jobs = [(number, frame, count) for number, frame in enumerate(frames)]
                return torch.as_tensor(np.concatenate(pool.map(_views, jobs, chunksize=4))).to(device)

            beside = drawn[:ALSO]
            self.pool = torch.cat([show(copies, views), show(beside, views)])
            self.simulated = show(drawn, VIEWS_OF_PHANTOM)
        ab = [np.asarray(_small(Image.fromarray(frame), SIDE)) for frame in ab]
        self.measured = [torch.as_tensor(np.stack(frames)).to(device) for frames in (plain, altered, ab)]
        self.ab = np.array([p.label == "sick" for p in others for _ in range(p.frames)])
        self.drawn_label = np.array([int(p.label == "sick") for p in patients for _ in range(p.frames)])
        self.drawn_finding = np.array([FINDINGS.index(p.finding) for p in patients for _ in range(p.frames)])
        count = len(beside)
        self.label = np.r_[self.table["label"], self.drawn_label[:count]]
        self.finding = np.r_[np.full(len(self.table), -1), self.drawn_finding[:count]]
        self.site = np.r_[self.table["site"], ["phantom"] * count]
        self.group = np.r_[self.table["group"].astype(str), [f"phantom {number}" for number in range(count)]]

    def train_rows(self, setting: str, fold: int) -> np.ndarray:
        beside = np.arange(len(self.table), len(self.label))
        if setting == "others":
            return np.r_[np.flatnonzero(~self.table["home"]), beside]
        return np.r_[np.flatnonzero(self.table[f"{setting}{fold}"] == "train"), beside]

    def plan(self, rows: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
        """Which view each step takes, (steps, BATCH): every class of every site as often."""
        cells = pd.Series([f"{label} {site}" for label, site in zip(self.label[rows], self.site[rows], strict=True)])
        groups = pd.Series(self.group[rows])
        weight = 1.0 / groups.groupby(groups).transform("size") ** change.power
        weight /= weight.groupby(cells).transform("sum")
        weight /= [cells[self.label[rows] == label].nunique() for label in self.label[rows]]
        weight /= weight.sum()
        size = len(rows) // BATCH * BATCH
        drawn = np.concatenate([rows[rng.choice(len(rows), size, p=weight)] for _ in range(change.epochs)])
        return (drawn * self.views + rng.integers(0, self.views, len(drawn))).reshape(-1, BATCH)


def _flat(lists):
    return [each for some in lists for each in some]


class Network:
    """One network whose step is captured once, and which can then be fitted again and again.

    pool (views, SIDE, SIDE) uint8, labels and findings (views,): what `plan` points into; a finding of -1 is not known.
    """

    MOST_STEPS = 2000

    def __init__(self, base: str, pool, labels, findings, batch: int, change: Change):
        self.pool, self.labels, self.findings, self.change = pool, labels, findings, change
        self.cuda, device = pool.is_cuda, pool.device
        config = AutoConfig.from_pretrained(base, num_labels=2)
        self.model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        self.model.to(device, memory_format=torch.channels_last).train()
        self.width = self.model.classifier[-1].in_features
        self.second = nn.Linear(self.width, len(FINDINGS)).to(device)
        self.parameters = [*self.model.parameters(), *(self.second.parameters() if change.findings else [])]
        self.rates, groups = [], []
        for decayed in (True, False):
            rate = torch.zeros((), device=device)
            self.rates.append(rate)
            some = [parameter for parameter in self.parameters if (parameter.ndim > 1) == decayed]
            groups.append({"params": some, "lr": rate, "weight_decay": 0.05 if decayed else 0.0})
        self.optimizer = torch.optim.AdamW(groups, **({"fused": True, "capturable": True} if self.cuda else {}))
        self.plan = torch.zeros(self.MOST_STEPS, batch, dtype=torch.long, device=device)
        self.schedule = torch.zeros(self.MOST_STEPS, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.mean, self.deviation = (torch.tensor(v, device=device)[None, :, None, None] for v in (MEAN, DEVIATION))
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.num_batches_tracked = None
        self.graph = None
        if self.cuda:
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(3):
                    self._step()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._step()
            torch.cuda.synchronize()

    def _pixels(self, frames):
        pixels = (frames[:, None].float() / 255 - self.mean) / self.deviation
        return pixels.contiguous(memory_format=torch.channels_last)

    def _gradient(self, pixels, labels, findings):
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False):
            pooled = self.model.base_model(pixels).pooler_output.flatten(1)
        pooled = pooled.float()
        if self.change.dropout:
            pooled = F.dropout(pooled, self.change.dropout)
        loss = F.cross_entropy(self.model.classifier[-1](pooled), labels)
        if self.change.findings:
            known = (findings >= 0).float()
            second = F.cross_entropy(self.second(pooled), findings.clamp(min=0), reduction="none")
            loss = loss + self.change.findings * (second * known).sum() / known.sum().clamp(min=1)
        loss.backward()

    def _step(self):
        gradients = [parameter.grad for parameter in self.parameters]
        with torch.no_grad():
            keys = self.plan.index_select(0, self.at)[0]
            for rate in self.rates:
                rate.copy_(self.schedule.index_select(0, self.at)[0])
            batch = self._pixels(self.pool.index_select(0, keys))
            batch = (batch, self.labels.index_select(0, keys), self.findings.index_select(0, keys))
            torch._foreach_zero_(gradients)
        self._gradient(*batch)
        if self.change.rho:
            with torch.no_grad():
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
                uphill = torch._foreach_mul(gradients, self.change.rho / (norm + 1e-12))
                torch._foreach_add_(self.parameters, uphill)
                torch._foreach_zero_(gradients)
            self._set_momentum(0.0)
            self._gradient(*batch)
            self._set_momentum(0.1)
            with torch.no_grad():
                torch._foreach_sub_(self.parameters, uphill)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        with torch.no_grad():
            self.at.add_(1)

    def _set_momentum(self, momentum: float):
        for norm in self.norms:
            norm.momentum = momentum

    def begin(self, state: dict, plan: np.ndarray, rate: float) -> None:
        """Start anew from a state, with warm-up and cosine over the steps of the plan."""
        self.steps = len(plan)
        warm, step = max(1, math.ceil(0.1 * self.steps)), np.arange(self.steps)
        falling = 0.5 * (1 + np.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(state[name])
            for name, value in self.second.state_dict().items():
                value.copy_(state[f"second.{name}"])
            for kept in self.optimizer.state.values():
                for value in kept.values():
                    value.zero_()
            self.at.zero_()
            self.plan[: self.steps].copy_(torch.as_tensor(plan))
            self.schedule[: self.steps].copy_(torch.as_tensor(np.where(step < warm, step / warm, falling) * rate))

    def step(self) -> None:
        if self.graph is None:
            return self._step()
        with torch.cuda.stream(self.stream):
            self.graph.replay()

    def state(self) -> dict:
        second = {f"second.{name}": value for name, value in self.second.state_dict().items()}
        return {name: value.clone() for name, value in (self.model.state_dict() | second).items()}

    @torch.no_grad()
    def logits(self, frames: torch.Tensor) -> np.ndarray:
        """(frames, 2)"""
        self.model.eval()
        told = [self.model(self._pixels(some)).logits.float().cpu() for some in frames.split(512)]
        self.model.train()
        return torch.cat(told).numpy()


def run(networks: list[Network]) -> None:
    """Fit them side by side."""
    for number in range(max(network.steps for network in networks)):
        for network in networks:
            if number < network.steps:
                network.step()
        if networks[0].cuda and number % 25 == 24:
            torch.cuda.synchronize()
    if networks[0].cuda:
        torch.cuda.synchronize()


def fit_phantom(base: str, frames: Frames, change: Change) -> list[dict]:
    """States of STARTS models of the simulated sites, a tenth of them left out, as simulated.yaml makes them."""
    device, count = frames.pool.device, len(frames.drawn_label)
    labels, findings = (
        torch.as_tensor(np.repeat(told, VIEWS_OF_PHANTOM)).to(device)
        for told in (frames.drawn_label, frames.drawn_finding)
    )
    pretrained = AutoModelForImageClassification.from_pretrained(base, dtype=torch.float32).state_dict()
    networks = [Network(base, frames.simulated, labels, findings, 32, change) for _ in range(STARTS)]
    for seed, network in enumerate(networks):
        rng, order = np.random.default_rng(seed), []
        left_out = rng.permutation(count // 2)[: count // 20]
        kept = np.setdiff1d(np.arange(count), np.r_[2 * left_out, 2 * left_out + 1])
        for _ in range(6):
            views = rng.permutation(kept) * VIEWS_OF_PHANTOM + rng.integers(0, VIEWS_OF_PHANTOM, len(kept))
            order.append(views[: len(kept) // 32 * 32])
        state = {name: value for name, value in pretrained.items() if not name.startswith("classifier")}
        head = rng.uniform(-1, 1, (2, network.width)) / network.width**0.5
        state["classifier.1.weight"] = torch.as_tensor(head, dtype=torch.float32)
        state["classifier.1.bias"] = torch.zeros(2)
        state["second.weight"], state["second.bias"] = torch.zeros(len(FINDINGS), network.width), torch.zeros(4)
        network.begin(state, np.concatenate(order).reshape(-1, 32), 3e-4)
    run(networks)
    return [network.state() for network in networks]


def fit(base: str, work: Path, name: str, changes: list[str], sites: int, views: int) -> None:
    """Write results/NAME.npz: logits by CHANGE|SETTING|FOLD|START of plain, altered, and sites A and B's frames."""
    device, began = "cuda" if torch.cuda.is_available() else "cpu", time.time()
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    frames, results = Frames(work, sites, views, device), {}
    (work / "results").mkdir(exist_ok=True)
    print(f"{time.time() - began:.0f} s: views are drawn", flush=True)

    def keep(key: str, network: Network) -> None:
        results[key] = np.concatenate([network.logits(some) for some in frames.measured]).astype(np.float16)

    labels, findings = (torch.as_tensor(np.repeat(told, views)).to(device) for told in (frames.label, frames.finding))
    starts = {}
    for change in changes:
        options = CHANGES[change]
        if options.findings not in starts:
            starts[options.findings] = fit_phantom(base, frames, Change(findings=options.findings))
        networks = [Network(base, frames.pool, labels, findings, BATCH, options) for _ in range(SIDE_BY_SIDE)]
        for start, state in enumerate(starts[options.findings]):
            networks[0].begin(state, np.zeros((1, BATCH), int), 0.0)
            keep(f"{change}|start|0|{start}", networks[0])
        settings = {"home": FOLDS, "all": FOLDS, "others": 2}
        jobs = [(s, fold, start) for s, folds in settings.items() for start in range(STARTS) for fold in range(folds)]
        for first in range(0, len(jobs), SIDE_BY_SIDE):
            some = list(zip(jobs[first : first + SIDE_BY_SIDE], networks, strict=False))
            for (setting, fold, start), network in some:
                plan = frames.plan(frames.train_rows(setting, fold), options, np.random.default_rng(fold))
                network.begin(starts[options.findings][start], plan, options.rate)
            run([network for _, network in some])
            for (setting, fold, start), network in some:
                keep(f"{change}|{setting}|{fold}|{start}", network)
        np.savez(work / "results" / f".{name}.npz", ab=frames.ab, **results)
        os.replace(work / "results" / f".{name}.npz", work / "results" / f"{name}.npz")
        print(f"{time.time() - began:.0f} s: {change}", flush=True)
        del networks


def show(work: Path, away: bool) -> None:
    """Print a row for each change under each name: means over folds, or all folds together, and both starts."""
    from scipy.special import softmax
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    from training.calibration import fit_calibration
    from training.metric.bootstrap import calibration_error

    table = pd.read_csv(work / "table.csv", keep_default_na=False)
    count, truth, home = len(table), table["label"].to_numpy(), table["home"].to_numpy(bool)
    head = ["name", "change", "AUC, home", "accuracy, home", "AUC, altered", "AUC, phantom", "AUC, all sites"]
    head += ["accuracy, all sites", "calibration error, all sites"]
    both = [site for site, rows in table[~home].groupby("site") if rows["label"].nunique() == 2]
    head += [f"AUC, {site} of all sites" for site in both] + ["AUC, home by others", "AUC, home by the start"]
    head += ["AUC, away", "accuracy, away", "calibration error, away"] * away
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for file in sorted((work / "results").glob("*.npz")):
        with np.load(file) as found:
            results = {key: found[key].astype(float) for key in found.files}
        ab = results.pop("ab").astype(int)
        for change in dict.fromkeys(key.split("|")[0] for key in results):
            told = {column: [] for column in head[2:]}
            for start in range(STARTS):
                pooled = np.full((count, 2), np.nan)
                for fold in range(FOLDS):
                    for setting in ("home", "all"):
                        logits, part = results[f"{change}|{setting}|{fold}|{start}"], table[f"{setting}{fold}"]
                        calibration = fit_calibration(logits[:count][part == "validation"], truth[part == "validation"])
                        given, test = softmax(calibration.apply(logits), axis=1), np.flatnonzero(part == "test")
                        if setting == "all":
                            pooled[test] = given[test]
                            continue
                        told["AUC, home"].append(roc_auc_score(truth[test], given[test, 1]))
                        told["accuracy, home"].append(balanced_accuracy_score(truth[test], given[test, 1] >= 0.5))
                        told["AUC, altered"].append(roc_auc_score(truth[test], given[count + test, 1]))
                        told["AUC, phantom"].append(roc_auc_score(ab, given[2 * count :, 1]))
                        if away:
                            there, right = given[:count][~home], truth[~home]
                            told["AUC, away"].append(roc_auc_score(right, there[:, 1]))
                            told["accuracy, away"].append(balanced_accuracy_score(right, there[:, 1] >= 0.5))
                            told["calibration error, away"].append(calibration_error(there, right))
                told["AUC, all sites"].append(roc_auc_score(truth, pooled[:, 1]))
                told["accuracy, all sites"].append(balanced_accuracy_score(truth, pooled[:, 1] >= 0.5))
                told["calibration error, all sites"].append(calibration_error(pooled, truth))
                for site in both:
                    there = table["site"] == site
                    told[f"AUC, {site} of all sites"].append(roc_auc_score(truth[there], pooled[there, 1]))
                for column, keys in (
                    ("AUC, home by others", [f"{change}|others|{fold}|{start}" for fold in range(2)]),
                    ("AUC, home by the start", [f"{change}|start|0|{start}"]),
                ):
                    for key in keys:
                        odds = (results[key][:, 1] - results[key][:, 0])[:count]
                        told[column].append(roc_auc_score(truth[home], odds[home]))
            cells = [f"{np.mean(values):.3f}" for values in told.values()]
            print("| " + " | ".join([file.stem, change, *cells]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("prepare", "fit", "show"):
        verbs.add_parser(verb).add_argument("--work", type=Path, required=True)
    for option in ("--data", "--home"):
        verbs.choices["prepare"].add_argument(option, required=True)
    verbs.choices["fit"].add_argument("--base", required=True)
    verbs.choices["fit"].add_argument("--name", required=True, help="what the results are kept under")
    verbs.choices["fit"].add_argument("--changes", nargs="*", choices=CHANGES, default=["ultrasound.yaml"])
    verbs.choices["fit"].add_argument("--sites", type=int, default=SITES, help="fewer, to see whether it runs")
    verbs.choices["fit"].add_argument("--views", type=int, default=VIEWS, help="of a frame")
    verbs.choices["show"].add_argument("--away", action="store_true", help="after the changes were chosen")
    args = vars(parser.parse_args())
    {"prepare": prepare, "fit": fit, "show": show}[args.pop("verb")](**args)


if __name__ == "__main__":
    main()
