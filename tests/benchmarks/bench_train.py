"""Fits: the frozen base run once, the machine's best mode, two processes; each against the plain way."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import datasets
import numpy as np
import torch
from timing import compare, print_ratio
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from training.arguments import RECIPES, DataArguments, ModelArguments, TrainingArguments
from training.examples import Examples
from training.model import load_base
from training.phantom import write_phantom
from training.prepare import prepare
from training.trainer import ClassifierTrainer, make_trainer

logging.set_verbosity_error()
logging.disable_progress_bar()


def trainer(
    parts, base: str, size: int, folder: Path, plain: bool = False, freeze: str = "none", callbacks=(), **settings
):
    """In the mode that is picked, or (plain) in Trainer's own: float32, images and weights with channels first."""
    settings = {"save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True} | settings
    args = TrainingArguments(str(folder), **settings | ({"bf16": False} if plain else {}))
    set_seed(args.seed)
    model, processor = load_base(ModelArguments(base, image_size=size, freeze=freeze), ["normal", "sick"])
    if plain:
        model.to(memory_format=torch.contiguous_format)
    return make_trainer(model, processor, parts, "none", ModelArguments(base, freeze=freeze), args, callbacks)


def fit(*given, **settings) -> ClassifierTrainer:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        made = trainer(*given, **settings)
        made.train()
    return made


class Steps(TrainerCallback):
    """When each step of a fit ended."""

    def __init__(self):
        self.ended = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ended.append(time.perf_counter())


def step(parts, base: str, folder: Path, plain: bool) -> float:
    """Seconds of one, the median of five after the first."""
    steps, settings = Steps(), {"max_steps": 6, "per_device_train_batch_size": 16, "eval_strategy": "no"}
    fit(parts, base, 224, folder, plain=plain, callbacks=[steps], **settings)
    return median(np.diff(steps.ended))


def frozen(parts, base: str, epochs: int, folder: Path, **settings) -> ClassifierTrainer:
    """Of the study's size; with checkpoints, and with nothing in the cache."""
    with tempfile.TemporaryDirectory() as empty:
        datasets.config.HF_DATASETS_CACHE = Path(empty)
        settings |= {"freeze": "all", "num_train_epochs": epochs, "save_strategy": "epoch"}
        return fit(parts, base, 150, folder, per_device_train_batch_size=32, per_device_eval_batch_size=32, **settings)


def forward_pass(parts, base: str, bf16: bool) -> None:
    model, processor = load_base(ModelArguments(base, image_size=150), ["normal", "sick"])
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model.to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for rows in parts.values():
            for batch in DataLoader(Examples(rows, processor), 32):
                model(pixel_values=batch["pixel_values"].to(device)).logits.cpu()


def launched(processes: int, data: Path, folder: Path) -> float:
    """Seconds of a fit on so many processes, which share the cores."""
    command = ["-m", "training.train", str(RECIPES / "phantom.yaml"), "--data", str(data), "--overwrite", "true"]
    command += ["--model_name_or_path", "scratch:resnet-18", "--num_train_epochs", "2", "--output_dir", str(folder)]
    command += ["--per_device_train_batch_size", str(32 // processes)]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / "cpu.yaml")]
    launch = [*launch, "--num_processes", str(processes)] if processes > 1 else []
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    subprocess.run(
        [sys.executable, *launch, *command],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": threads},
    )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return next(entry["train_runtime"] for entry in history if "train_runtime" in entry)


with tempfile.TemporaryDirectory() as scratch:
    folder, data = Path(scratch) / "out", Path(scratch) / "phantom"
    large = Path(scratch) / "large"
    write_phantom(data, scale=0.5)
    write_phantom(large)
    parts = dict(prepare(DataArguments(str(data), sites=["A"])).parts)
    study = {
        name: parts["train"].select(np.resize(np.arange(len(parts["train"])), number))
        for name, number in (("train", 448), ("validation", 140))
    }
    mode = TrainingArguments(str(folder))
    print(f"picked: {mode.mode}")

    compare(
        "frozen fit of 5 epochs, ResNet-18, base run every time / once",
        lambda: frozen(study, "scratch:resnet-18", 5, folder, cache_features=False),
        lambda: frozen(study, "scratch:resnet-18", 5, folder),
        runs=1,
    )
    for bf16 in sorted({False, mode.bf16}):
        compare(
            f"frozen fit of 70 epochs, ResNet-50, picked mode / one forward pass, {'bf16' if bf16 else 'float32'}",
            lambda: frozen(study, "scratch:resnet-50", 70, folder),
            lambda bf16=bf16: forward_pass(study, "scratch:resnet-50", bf16),
            runs=5,
        )
    few = {name: rows.select(range(min(48, len(rows)))) for name, rows in parts.items()}
    for base in ("scratch:resnet-18", "scratch:resnet-50"):
        pairs = [[step(few, base, folder, plain=plain) for plain in (True, False)] for _ in range(3)]
        title = f"a step of 16 images at 224 px, {base}, Trainer's own mode / picked mode"
        print_ratio(title, *map(list, zip(*pairs, strict=True)))
    measured = dict(prepare(DataArguments(str(large), sites=["A"], validation_share=0.4, test_share=0.1)).parts)
    settings = {"num_train_epochs": 25, "per_device_train_batch_size": 16, "learning_rate": 2e-3}
    settings |= {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "eval_strategy": "no"}
    aucs = {plain: [] for plain in (True, False)}
    for plain, found in aucs.items():
        for seed in range(3):
            fitted = fit(measured, "scratch:resnet-8-thin", 96, folder, plain=plain, seed=seed, **settings)
            found.append(fitted.evaluate()["eval_roc_auc"])
    print(
        f"AUC on {len(measured['validation'])} validation images, mean of three seeds, Trainer's own mode / picked "
        f"mode: {mean(aucs[True]):.4f} / {mean(aucs[False]):.4f}; of each {aucs}",
        flush=True,
    )
    one, two = (launched(processes, data, Path(scratch) / f"model-{processes}") for processes in (1, 2))
    print(f"one process / two on the same cores: {one / two:.2f} ({one:.1f} s / {two:.1f} s, one run)")
