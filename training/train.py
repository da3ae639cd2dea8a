"""The verb train: from a recipe to a model folder.

    chest-opacity train training/recipes/phantom.yaml
    chest-opacity train training/recipes/default.yaml --data FOLDER --sites HOME --learning_rate 1e-4
    accelerate launch -m training.train training/recipes/phantom.yaml

A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from datasets import Dataset, Image, concatenate_datasets
from scipy.special import softmax
from torch.nn.functional import cross_entropy
from torch.utils.data import WeightedRandomSampler
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer, set_seed
from transformers.utils import logging

from space.errors import InputError
from space.images import load_image
from training import plots
from training.arguments import DataArguments, ModelArguments, TrainingArguments, read_recipe
from training.audit_page import brief
from training.augment import augment
from training.card import write_card
from training.checkpoints import HubSaves, fetch_start
from training.cli import run
from training.evaluate import report
from training.measure import load_metric, measure
from training.model import load_base
from training.outputs import move_into_place, refuse_existing
from training.report import write_report
from training.settle import settle
from training.split import PARTS, Prepared, prepare
from training.tables import class_counts
from training.threshold import check_rule

PACKAGES = ("transformers", "datasets", "torch", "accelerate", "evaluate", "pillow", "numpy")
EVALUATED = ("test", "external")  # the parts that a finished model is measured on


def train(data_args: DataArguments, model_args: ModelArguments, training_args: TrainingArguments, recipe: dict) -> Path:
    """Make the model folder training_args.output_dir and return its path.

    It is made in a hidden folder beside it, which holds the checkpoints that a second run goes on from. Raises
    InputError on unfit data, an unknown base, or when the folder exists and model_args.overwrite is false.
    """
    final = Path(training_args.output_dir)
    if not model_args.overwrite:
        refuse_existing(final, "choose another --output_dir, or replace it with --overwrite true")
    rule = model_args.threshold
    check_rule(rule)
    saves = HubSaves(training_args, final, recipe) if training_args.push_to_hub else None
    is_main = training_args.process_index == 0
    say = print if is_main else lambda *_: None

    with training_args.main_process_first(local=False):
        data = prepare(data_args)
    parts = data.parts
    say(f"{brief(data.audit.report, data.leaks)}\n")
    say(f"images of each class\n{class_counts(_balancing(data, data_args))}\n")
    say(f"split by {data_args.split_by}\n{class_counts(parts)}\n{data.deviation}\n")

    set_seed(training_args.seed)
    model, processor = load_base(model_args, data.home.features["label"].names)
    work = final.with_name(f".{final.name}.unfinished")
    if is_main:
        _prepare(work, recipe)
    training_args.output_dir = str(work / "checkpoints")
    with training_args.main_process_first(local=False):
        if is_main:
            fetch_start(work / "checkpoints", training_args, saves)
    trainer = BalancedTrainer(
        balance=data_args.balance,
        model=model,
        args=training_args,
        train_dataset=_decoded(parts["train"], processor, model_args.augment),
        eval_dataset=_decoded(parts["validation"], processor, "none"),
        processing_class=processor,
        compute_loss_func=_loss(parts["train"], data_args.balance, training_args),
        compute_metrics=_epoch_metrics(),
    )
    trainer.remove_callback(PrinterCallback if training_args.disable_tqdm else ProgressCallback)
    trainer.add_callback(EpochTable())
    if saves:
        trainer.add_callback(saves)
    where = f"{training_args.device.type}, {training_args.world_size} process(es)"
    say(f"training {model_args.model_name_or_path} on {where}")
    trainer.train(resume_from_checkpoint=_last_checkpoint(work / "checkpoints"))
    history = _history(trainer, final.name, data, _balancing(data, data_args))
    if is_main:
        folder = work / "model"
        _save(folder, trainer, data, recipe, history)
        plots.save(folder / "eval" / "learning_curves.png", plots.learning_curves(history["epochs"]))
        say("\n" + "\n".join(settle(folder, parts["train"], parts["validation"], rule, model_args.calibrate)))
        for name in EVALUATED:
            if name in parts:
                say(f"\n{report(measure(folder, parts[name], name))}")
        write_card(folder)
        write_report(folder)
        shutil.rmtree(final, ignore_errors=True)
        move_into_place(folder, final)
        shutil.rmtree(work)
        say(f"\nmodel folder: {final}")
        if saves:
            saves.push(final)
    trainer.accelerator.wait_for_everyone()
    return final


class BalancedTrainer(Trainer):
    """transformers' Trainer that can draw the classes of the train part equally often (balance: sampler)."""

    def __init__(self, balance: str, **settings):
        super().__init__(**settings)
        self.balance = balance

    def _get_train_sampler(self, train_dataset=None):
        if self.balance != "sampler":
            return super()._get_train_sampler(train_dataset)
        labels = np.asarray((train_dataset or self.train_dataset).with_format(None)["label"])
        generator = torch.Generator()
        generator.manual_seed(self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return WeightedRandomSampler(1 / np.bincount(labels)[labels], len(labels), generator=generator)


class EpochTable(ProgressCallback):
    """transformers' progress bar, with a table of the epochs in place of its logged dictionaries."""

    COLUMNS = ("epoch", "train_loss", "val_loss", "val_accuracy", "val_auc", "learning_rate")

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._write(state, "".join(f"{column:>14}" for column in self.COLUMNS))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "eval_loss" in logs:
            row = epochs(state.log_history)[-1]
            self._write(state, "".join(f"{row[column]:14.4g}" for column in self.COLUMNS))

    def _write(self, state, line: str) -> None:
        if state.is_world_process_zero:
            self.training_bar.write(line)


def epochs(log_history: list[dict]) -> list[dict]:
    """Trainer's log as one row for each time it measured on the validation part."""
    rows, trained = [], {}
    for entry in log_history:
        if "loss" in entry:
            trained = entry
        if "eval_loss" in entry:
            rows.append(
                {
                    "epoch": round(entry["epoch"], 2),
                    "step": entry["step"],
                    "train_loss": trained.get("loss", float("nan")),
                    "val_loss": entry["eval_loss"],
                    "val_accuracy": entry["eval_accuracy"],
                    "val_auc": entry["eval_roc_auc"],
                    "learning_rate": trained.get("learning_rate", float("nan")),
                }
            )
    return rows


def _decoded(rows: Dataset, processor, augmentation: str) -> Dataset:
    """The rows as tensors, decoded and augmented on access; the chances come from torch's seeded generator."""

    def transform(batch: dict) -> dict:
        images = [load_image(image) for image in batch["image"]]
        if augmentation != "none":
            rng = np.random.default_rng(torch.randint(2**62, (1,)).item())
            images = [augment(image, augmentation, rng) for image in images]
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"], "labels": batch["label"]}

    return rows.cast_column("image", Image(decode=False)).with_transform(transform)


def _loss(rows: Dataset, balance: str, args: TrainingArguments):
    """Cross-entropy for Trainer's compute_loss_func; with class_weight the rarer class weighs as much as the other."""
    counts = np.bincount(rows["label"], minlength=rows.features["label"].num_classes)
    weights = torch.ones(len(counts))
    if balance == "class_weight":
        weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)

    def loss(outputs, labels, num_items_in_batch=None):
        # The sum over all images of a step, on all processes and accumulated, divided by their number.
        total = cross_entropy(
            outputs.logits,
            labels,
            weight=weights.to(labels.device),
            reduction="sum",
            label_smoothing=args.label_smoothing_factor,
        )
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _epoch_metrics():
    metric = load_metric()

    def compute(prediction: EvalPrediction) -> dict:
        probabilities = softmax(prediction.predictions.astype(float), axis=-1)
        result = metric.compute(predictions=probabilities, references=prediction.label_ids, draws=0)
        return {"accuracy": result["accuracy"], "roc_auc": result["roc_auc"]}

    return compute


def _prepare(work: Path, recipe: dict) -> None:
    """Keep what an interrupted run of this very recipe left, and nothing else."""
    text = yaml.safe_dump(recipe, sort_keys=False)
    kept = work / "recipe.yaml"
    if not kept.is_file() or kept.read_text() != text:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    shutil.rmtree(work / "model", ignore_errors=True)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; trainer_state.json is what Trainer writes last."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
    return None


def _balancing(data: Prepared, args: DataArguments) -> dict[str, Dataset]:
    """What the table of balancing compares: all images, or those of the train part."""
    kept = concatenate_datasets([data.parts[part] for part in PARTS])
    if args.balance_scope == "all":
        return {"before balancing": data.home, "after balancing": kept}
    return {"all": data.home, "train part, balanced": data.parts["train"]}


def _history(trainer: Trainer, name: str, data: Prepared, balancing: dict[str, Dataset]) -> dict:
    """What eval/training.json tells of how the model came about."""
    args, rows = trainer.args, epochs(trainer.state.log_history)
    best = trainer.state.best_model_checkpoint
    if args.load_best_model_at_end and best is None:
        raise InputError("the validation loss was never a number, so no checkpoint is best; lower --learning_rate")
    step = int(best.rpartition("-")[2]) if args.load_best_model_at_end else rows[-1]["step"]
    home = data.home
    return {
        "name": name,
        "sites": sorted(set(home["site"]) - {""}),
        "licences": dict(Counter(home["license"]).most_common()) if "license" in home.column_names else {},
        "seconds": round(trainer.state.log_history[-1].get("train_runtime", 0.0), 1),
        "synthetic": "synthetic" in home.column_names and set(home["synthetic"]) == {"yes"},
        "images": {title: _counts(chosen) for title, chosen in balancing.items()},
        "best_metric": args.metric_for_best_model,
        "best_epoch": next(row["epoch"] for row in rows if row["step"] == step),
        "epochs": rows,
        "seed": args.seed,
        "processes": args.world_size,
        "device": args.device.type,
        "versions": {package: version(package) for package in PACKAGES},
    }


def _counts(rows: Dataset) -> dict[str, int]:
    names = rows.features["label"].names
    return dict(zip(names, np.bincount(rows["label"], minlength=len(names)).tolist(), strict=True))


def _save(folder: Path, trainer: Trainer, data: Prepared, recipe: dict, history: dict) -> None:
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    split = pd.concat(
        data.parts[part].select_columns(["path", "label", "group", "site", "pixels"]).to_pandas().assign(split=part)
        for part in PARTS
    ).drop_duplicates("path")  # an oversampled image is listed once
    split["label"] = np.asarray(data.home.features["label"].names)[split["label"]]
    split.sort_values("path").to_csv(folder / "split.csv", index=False, lineterminator="\n")
    (folder / "eval").mkdir()
    audit = data.audit.report | {"leaks": data.leaks}
    for name, told in (("training", history), ("audit", audit)):
        (folder / "eval" / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    logging.set_verbosity_error()
    train(*read_recipe(argv))


if __name__ == "__main__":
    run(main)
