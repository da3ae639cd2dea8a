"""Changes of ultrasound.yaml and of the phantom, compared in minutes on a GPU.

    python tests/benchmarks/changes.py prepare --data ../shared/data/lus --home pocus_northumbria --work WORK
    python tests/benchmarks/changes.py fit --base ../shared/backbones/resnet-50-thin --work WORK --name NAME
    python tests/benchmarks/changes.py show --work WORK [--away]

`prepare` makes copies of 256 x 256 pixels and writes down all splits. `fit` needs no Trainer and nothing of `datasets`:
networks are fitted side by side, each step of one a CUDA graph, on views that are drawn ahead. It draws 960 simulated
sites, fits two models of them, and from each of the two, for every change, five folds of home, five of all sites, and
two fits on all sites but home; on an H100 those of a change took a minute. To compare phantoms, run it from two
checkouts under two names. `show` prints what may be looked at while one chooses; --away adds what may not. On a
processor it runs too, and takes hours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from transformers import AutoModelForImageClassification

from tests.benchmarks.restyle import altered
from tests.benchmarks.side_by_side import TOLD, Change, Network, run
from training.augment import augment
from training.calibration import fit_calibration, fit_shift
from training.metric.bootstrap import calibration_error
from training.phantom import draw_frames, draw_patients, draw_sites

COPY, SIDE = 256, 192  # pixels: of the copies that views are drawn from, and of what networks look at
FOLDS, OTHERS, STARTS, SIDE_BY_SIDE = 5, 2, 2, 10
SITES, ALSO, AB = 960, 240, 0.3  # sites of the phantom's model, frames of it beside home, share of sites A and B
VIEWS, VIEWS_OF_PHANTOM, BATCH = 24, 6, 16


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
    "none of the start's weights": Change(keep=0),
    "a quarter of the start's weights": Change(keep=0.25),
    "dropout of a half": Change(dropout=0.5),
    "sides of healthy frames": Change(splice=0.5),
    "blended amplitudes": Change(amplitudes=0.5),
}


def prepare(data: str, home: str, work: Path) -> None:
    """Write copies/ and table.csv: path, label, site, group, home, and the part of each frame in each fold."""
    import datasets  # which `fit` goes without

    from space.images import load_image
    from training.arguments import DataArguments
    from training.prepare import prepare as load
    from training.split import split

    columns, prepared = {}, None
    for setting, sites in (("home", [home]), ("all", None)):  # all last: its rows are the table's
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


def _read(job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    number, file = job
    image = Image.open(file)
    changed = altered(image.convert("RGB"), np.random.default_rng(number)).convert("L")
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

    simulated: views of what the phantom's model learns from; pool: those of real frames, in the order of the table, and
    of the first ALSO simulated ones; (frames x views, SIDE, SIDE) uint8, a frame's beside one another. plain: what pool
    has views of, as it is. measured: real frames as they are, altered ones, and those of sites A and B.
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
        beside, ab = ([np.asarray(_small(Image.fromarray(one), SIDE)) for one in some] for some in (beside, ab))
        self.plain = torch.as_tensor(np.stack([*plain, *beside])).to(device)
        self.measured = [torch.as_tensor(np.stack(frames)).to(device) for frames in (plain, altered, ab)]
        self.ab = np.array([p.label == "sick" for p in others for _ in range(p.frames)])
        self.drawn_label = np.array([int(p.label == "sick") for p in patients for _ in range(p.frames)])
        self.drawn_finding = np.array([TOLD.index(p.finding) for p in patients for _ in range(p.frames)])
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

    def shares(self, rows: np.ndarray, change: Change) -> np.ndarray:
        """How often each row is drawn, of sum 1: every class of every site as often."""
        cells = pd.Series([f"{label} {site}" for label, site in zip(self.label[rows], self.site[rows], strict=True)])
        groups = pd.Series(self.group[rows])
        weight = 1.0 / groups.groupby(groups).transform("size") ** change.power
        weight /= weight.groupby(cells).transform("sum")
        weight /= [cells[self.label[rows] == label].nunique() for label in self.label[rows]]
        return (weight / weight.sum()).to_numpy()

    def plan(self, rows: np.ndarray, change: Change, rng: np.random.Generator) -> np.ndarray:
        """Which view each step takes, (steps, BATCH)."""
        weight = self.shares(rows, change)
        size = len(rows) // BATCH * BATCH
        drawn = np.concatenate([rows[rng.choice(len(rows), size, p=weight)] for _ in range(change.epochs)])
        return (drawn * self.views + rng.integers(0, self.views, len(drawn))).reshape(-1, BATCH)


def _flat(lists):
    return [each for some in lists for each in some]


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
        state["second.weight"], state["second.bias"] = torch.zeros(len(TOLD), network.width), torch.zeros(len(TOLD))
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
        said = []  # by the starts, of all that is learned from
        for start, state in enumerate(starts[options.findings]):
            networks[0].begin(state, np.zeros((1, BATCH), int), 0.0)
            keep(f"{change}|start|0|{start}", networks[0])
            said.append(networks[0].logits(frames.plain).astype(float))
        settings = {"home": FOLDS, "all": FOLDS, "others": OTHERS}
        jobs = [(s, fold, start) for s, folds in settings.items() for start in range(STARTS) for fold in range(folds)]
        for first in range(0, len(jobs), SIDE_BY_SIDE):
            some = list(zip(jobs[first : first + SIDE_BY_SIDE], networks, strict=False))
            for (setting, fold, start), network in some:
                plan = frames.plan(frames.train_rows(setting, fold), options, np.random.default_rng(fold))
                network.begin(starts[options.findings][start], plan, options.rate)
            run([network for _, network in some])
            for (setting, fold, start), network in some:
                rows = frames.train_rows(setting, fold)
                shift = fit_shift(said[start][rows], frames.label[rows], frames.shares(rows, options))
                network.mix(starts[options.findings][start], shift)
                keep(f"{change}|{setting}|{fold}|{start}", network)
        np.savez(work / "results" / f".{name}.npz", ab=frames.ab, **results)
        os.replace(work / "results" / f".{name}.npz", work / "results" / f"{name}.npz")
        print(f"{time.time() - began:.0f} s: {change}", flush=True)
        del networks


def show(work: Path, away: bool) -> None:
    """Print a row for each change under each name: means over folds, or all folds together, and both starts."""
    table = pd.read_csv(work / "table.csv", keep_default_na=False)
    began = False
    for file in sorted((work / "results").glob("*.npz")):
        with np.load(file) as found:
            results = {key: found[key].astype(float) for key in found.files}
        ab = results.pop("ab").astype(int)
        for change in dict.fromkeys(key.split("|")[0] for key in results):
            told = {}
            for start in range(STARTS):
                for column, value in _figures(results, change, start, table, ab, away):
                    told.setdefault(column, []).append(value)
            if not began:
                head = ["name", "change", *told]
                print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
                began = True
            cells = [f"{np.mean(values):.3f}" for values in told.values()]
            print("| " + " | ".join([file.stem, change, *cells]) + " |")


def _figures(results: dict, change: str, start: int, table: pd.DataFrame, ab: np.ndarray, away: bool):
    """What a change gave from one start: column and value, of each fold where folds are told one by one."""
    count, truth, home = len(table), table["label"].to_numpy(), table["home"].to_numpy(bool)

    def calibrated(setting: str, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (n, 2) of all that is measured, and which frames are the fold's test part."""
        logits, part = results[f"{change}|{setting}|{fold}|{start}"], table[f"{setting}{fold}"].to_numpy()
        held = part == "validation"
        calibration = fit_calibration(logits[:count][held], truth[held])
        return softmax(calibration.apply(logits), axis=1), np.flatnonzero(part == "test")

    def told(where: str, rows, probabilities: np.ndarray):
        yield f"AUC, {where}", roc_auc_score(truth[rows], probabilities[rows, 1])
        yield f"accuracy, {where}", balanced_accuracy_score(truth[rows], probabilities[rows, 1] >= 0.5)
        yield f"calibration error, {where}", calibration_error(probabilities[rows], truth[rows])

    def uncalibrated(setting: str, fold: int) -> float:
        """The AUC at home."""
        logits = results[f"{change}|{setting}|{fold}|{start}"][:count][home]
        return roc_auc_score(truth[home], logits[:, 1] - logits[:, 0])

    pooled = np.full((count, 2), np.nan)
    for fold in range(FOLDS):
        given, test = calibrated("home", fold)
        yield from told("home", test, given)
        yield "AUC, altered", roc_auc_score(truth[test], given[count + test, 1])
        yield "AUC, phantom", roc_auc_score(ab, given[2 * count :, 1])
        if away:
            yield from told("away", ~home, given[:count])
        given, test = calibrated("all", fold)
        pooled[test] = given[test]
    yield from told("all sites", np.arange(count), pooled)
    for site, rows in table[~home].groupby("site"):
        if rows["label"].nunique() == 2:
            yield f"AUC, {site} of all sites", roc_auc_score(rows["label"], pooled[rows.index, 1])
    for fold in range(OTHERS):
        yield "AUC, home by others", uncalibrated("others", fold)
    yield "AUC, home by the start", uncalibrated("start", 0)


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
