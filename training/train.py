"""The verb train: from a recipe to a model folder.

    chest-opacity train training/recipes/phantom.yaml
    chest-opacity train training/recipes/default.yaml --data FOLDER --sites HOME --learning_rate 1e-4
    accelerate launch -m training.train training/recipes/phantom.yaml

A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from datasets import Dataset, Value, concatenate_datasets
from filelock import FileLock
from transformers import Trainer, TrainerState, set_seed
from transformers.utils import logging

from space.errors import InputError
from training.arguments import RECIPES, DataArguments, ModelArguments, TrainingArguments, read_recipe
from training.audit_page import brief
from training.callbacks import epochs
from training.card import write_card
from training.checkpoints import HubSaves, fetch_start
from training.cli import run
from training.evaluate import report
from training.examples import Examples, RowGroups
from training.interpolate import interpolate
from training.learned import has_seen_nobody, learned_by, seen_before, split_table
from training.measure import measure
from training.model import load_base, tells_these
from training.outputs import move_into_place, place_of, read_again, refuse_existing, writing
from training.prepare import Prepared, prepare
from training.processes import from_main_process, main_process_first
from training.report import write_report
from training.samples import save_samples
from training.settle import settle
from training.sources import all_synthetic, column, is_hub_id, is_phantom, phantom_version
from training.split import PARTS
from training.stages import digest_of_body
from training.tables import class_counts
from training.threshold import check_rule
from training.trainer import make_trainer
from training.unfinished import last_checkpoint, unfinished

PACKAGES = ("transformers", "datasets", "torch", "accelerate", "evaluate", "pillow", "numpy")
LOGS = os.environ.get("TENSORBOARD_LOGGING_DIR")
COMPUTED = ("bf16", "fp16", "use_cpu")  # keys of which a base is no other
PICKED = ("bf16", "fp16", "dataloader_num_workers")  # keys that are picked where they are not given
EVALUATED = ("test", "external")  # the parts that a finished model is measured on


def train(
    data_args: DataArguments,
    model_args: ModelArguments,
    training_args: TrainingArguments,
    recipe: dict,
    give_up: bool = False,
) -> Path:
    """Make the model folder training_args.output_dir and return its path.

    It is made in a hidden folder beside it, which holds the checkpoints that a second run goes on from. give_up: those
    of another run may go, also where no model folder may be overwritten. Raises InputError on unfit data, an unknown
    base, or when the folder exists, unless it is a model folder that may be overwritten.
    """
    give_up = give_up or model_args.overwrite
    final = place_of(Path(training_args.output_dir))
    replace = "replace it, if it is a model folder, with --overwrite true"
    _require_place(final, model_args.overwrite, f"choose another --output_dir, or {replace}")
    check_rule(model_args.threshold)
    load_base(model_args, data_args.labels or ["normal", "sick"])  # an unfit one is told of before images are read
    if training_args.eval_strategy == "no":
        raise InputError("eval_strategy: found no, expected epoch or steps, by which the curves are drawn")
    from_hub = _from_hub(recipe)
    saves = HubSaves(training_args, final, recipe, from_hub) if training_args.push_to_hub else None
    say = print if training_args.process_index == 0 else lambda *_: None

    data = prepare(data_args)
    _tell(data, data_args, say)
    fitted = dict(data.parts)
    if data_args.also:
        fitted["train"] = _together(data.parts["train"], _of_site(data.parts["also"], data_args.also))
    base = model_args
    if model_args.pretrain != "none":
        base = dataclasses.replace(model_args, model_name_or_path=str(_pretrain(recipe, training_args, give_up, say)))
    learned = learned_by(base.model_name_or_path)
    if seen := seen_before(learned, base.model_name_or_path, data.parts):
        _own_up(seen, data, data_args.strict, say)
    set_seed(training_args.seed)
    model, processor = load_base(base, data.home.features["label"].names)

    work = final.with_name(f".{final.name}.unfinished")
    run = _run(recipe, fitted, training_args)
    if not base.model_name_or_path.startswith("scratch:"):
        run["base"] = digest_of_body(model)[:12]  # which may have become another under its name
    training_args.output_dir = str(work / "checkpoints")
    with ExitStack() as held:
        with main_process_first():
            if training_args.process_index == 0:
                with writing(final):
                    held.enter_context(unfinished(work, run, give_up))
                fetch_start(work, training_args, saves, give_up, from_hub)
        os.environ["TENSORBOARD_LOGGING_DIR"] = LOGS or str(final.parent / "runs" / final.name)  # stays when work goes
        callbacks = [saves] if saves else []
        trainer = make_trainer(model, processor, fitted, data_args.balance, model_args, training_args, callbacks)
        if training_args.process_index == 0:
            shown = Examples(fitted["train"], processor, model_args.augment, training_args.seed)
            save_samples(work / "samples.png", shown)
        say(
            f"training {model_args.model_name_or_path} on {training_args.device.type}, {training_args.world_size} "
            f"process(es), {training_args.mode}"
        )
        say(f"to look at meanwhile: {work / 'samples.png'}, {work / 'learning_curves.png'}")
        if training_args.precision != "float32":
            say("(rounded in another way on other machines; --bf16 false trains in float32)")
        trainer.train(resume_from_checkpoint=last_checkpoint(work / "checkpoints"))
        trainer.model = trainer.whole(model)  # also where only its head was trained
        history = _history(trainer, final.name, _balancing(data, data_args))
        history |= _learned_from(data, has_seen_nobody(base.model_name_or_path), recipe)
        with main_process_first():
            if training_args.process_index == 0:
                with writing(final):
                    _save(work / "model", trainer, data, learned, recipe, history)
                    _keep_seen(work, work / "model", trainer.state)
                    if model_args.keep_start:
                        say(f"\n{_keep_start(work / 'model', base, fitted['train'])}")
                    _judge(work / "model", data.parts, model_args, say)
                    again = f"move that away and run this again, which ends what {work.name} holds"
                    _require_place(final, model_args.overwrite, again)
                    shutil.rmtree(final, ignore_errors=True)
                    move_into_place(work / "model", final)
                    shutil.rmtree(work)
                say(f"\nmodel folder: {final}")
                if saves:
                    saves.push(final)
    return final


def _require_place(final: Path, overwrite: bool, remedy: str) -> None:
    """Raise InputError where something stands that may not be replaced."""
    is_model_folder = (final / "recipe.yaml").is_file() and (final / "config.json").is_file()
    if not (overwrite and is_model_folder):
        refuse_existing(final, remedy)


def _tell(data: Prepared, args: DataArguments, say: Callable) -> None:
    """What was found in the images, and what of them is trained and measured on."""
    say(f"{brief(data.audit, data.leaks)}\n")
    say(f"images of each class\n{class_counts(_balancing(data, args))}\n")
    say(f"split by {args.split_by}\n{class_counts(data.parts)}\n{data.deviation}\n")


def _own_up(seen: list[str], data: Prepared, strict: bool, say: Callable) -> None:
    """End the run because of what its base has seen, or put that among the leaks and say it."""
    if strict:
        raise InputError(f"{'; '.join(seen)}: take another base, or go on all the same with --strict false")
    data.leaks.extend(seen)
    say("\n".join([*seen, ""]))


def _run(recipe: dict, fitted: dict[str, Dataset], args: TrainingArguments) -> dict:
    """What has to be as it was for a run to go on where it was stopped: what changes the weights, picked or given."""
    parts, names = [fitted["train"], fitted["validation"]], fitted["train"].features["label"].names
    run = {key: value for key, value in recipe.items() if key not in PICKED} | {
        "images": _digest(pixels for rows in parts for pixels in rows["pixels"]),
        "labels": _digest(names[label] for rows in parts for label in rows["label"]),
        "classes": names,
        "processes": args.world_size,
        "mode": args.precision,
    }
    if recipe.get("balance") == "sites":  # numbered, for their names may be others on another machine
        sites, groups = (pd.factorize(np.asarray(fitted["train"][name]))[0] for name in ("site", "merged"))
        run["sites_and_groups"] = _digest(f"{site} {group}" for site, group in zip(sites, groups, strict=True))
    if RowGroups.of_rows(fitted["train"], 1, 1):  # whose order depends on who decodes them
        run["dataloader_num_workers"] = max(1, args.dataloader_num_workers)
    return run


def _digest(words: Iterable[str]) -> str:
    return sha256("\n".join(words).encode()).hexdigest()[:12]


def _of_site(rows: Dataset, name: str) -> Dataset:
    """The rows as those of one site, so that `balance: sites` gives simulated frames of many the say of one."""
    return rows.remove_columns("site").add_column("site", [name] * len(rows), feature=Value("string"))


def _together(one: Dataset, other: Dataset) -> Dataset:
    shared = [name for name in one.column_names if name in other.column_names]
    return concatenate_datasets([one.select_columns(shared), other.select_columns(shared)])


def _pretrain(recipe: dict, args: TrainingArguments, give_up: bool, say: Callable) -> Path:
    """The folder of the model that the recipe's `pretrain` makes of its base, made now where it is not there.

    give_up: a stopped run of another model in its place may go; a model folder may not.
    """
    file = Path(recipe["pretrain"]) if Path(recipe["pretrain"]).is_file() else RECIPES / recipe["pretrain"]
    base = recipe["model_name_or_path"]
    given = [f"--{key}={recipe[key]}" for key in COMPUTED if key in recipe]
    *parsed, first = read_recipe([str(file), "--model_name_or_path", base, *given])
    folder = Path(parsed[-1].output_dir)
    with ExitStack() as held:
        if args.process_index == 0 and not folder.exists():
            with writing(folder):  # one run makes it, and those beside it, such as of other folds, wait
                held.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        if not from_main_process(folder.exists):
            say(f"first {folder}, by {file}\n")
            train(*parsed, first, give_up)
            say("\nnow the model itself")
    again = "move it away, and it is made anew"
    if _recipe_of(folder, args) != {key: value for key, value in first.items() if key not in COMPUTED}:
        raise InputError(f"{folder}: found another model than that of {file} and the base {base}; {again}")
    if read_again(folder / "eval" / "training.json").get("phantom") != _phantom_of(first):
        raise InputError(f"{folder}: found a model of the phantom as another version drew it; {again}")
    say(f"starting from {folder}\n")
    return folder


def _recipe_of(folder: Path, args: TrainingArguments) -> dict | None:
    """The recipe in force for a model folder, with the defaults of keys that came later; None where it has none.

    How it was computed is left out, and is read as args has it, since reading sets the device up for all that follows.
    """
    computed = [f"--{key}={getattr(args, key)}" for key in COMPUTED]
    with suppress(InputError):
        recipe = read_recipe([str(folder / "recipe.yaml"), *computed])[-1]
        return {key: value for key, value in recipe.items() if key not in COMPUTED}
    return None


def _phantom_of(recipe: dict) -> str | None:
    """Which phantom a recipe's images are of; None where they all are others."""
    drawn = any(is_phantom(source) for source in (recipe["data"], recipe["also"]) if source)
    return phantom_version() if drawn else None


def _balancing(data: Prepared, args: DataArguments) -> dict[str, Dataset]:
    """What the table of balancing compares: all images, or those of the train part."""
    kept = concatenate_datasets([data.parts[part] for part in PARTS])
    if args.balance_scope == "all":
        return {"before balancing": data.home, "after balancing": kept}
    return {"all": data.home, "train part, balanced": data.parts["train"]}


def _history(trainer: Trainer, name: str, balancing: dict[str, Dataset]) -> dict:
    """What eval/training.json tells of how the model came about."""
    args, rows = trainer.args, epochs(trainer.state.log_history)
    best = trainer.state.best_model_checkpoint
    if not rows or (args.load_best_model_at_end and best is None):
        raise InputError("the validation part was never measured, so nothing is known of the model; see --eval_delay")
    step = int(best.rpartition("-")[2]) if args.load_best_model_at_end else rows[-1]["step"]
    return {
        "name": name,
        "seconds": round(trainer.seconds, 1),
        "images": {title: _counts(chosen) for title, chosen in balancing.items()},
        "best_metric": args.metric_for_best_model if args.load_best_model_at_end else None,  # None: the last is kept
        "best_epoch": next(row["epoch"] for row in rows if row["step"] == step),
        "epochs": [{key: None if np.isnan(value) else value for key, value in row.items()} for row in rows],
        "seed": args.seed,
        "processes": args.world_size,
        "device": args.device.type,
        "mode": args.mode,
        "versions": {package: version(package) for package in PACKAGES},
    }


def _learned_from(data: Prepared, synthetic: bool, recipe: dict) -> dict:
    """What eval/training.json tells of the images, and of the base; synthetic: the base has seen no person."""
    learned = [data.home, data.parts["also"]] if "also" in data.parts else [data.home]
    licences = Counter(text for rows in learned for text in column(rows, "license"))
    return {
        "sites": sorted(set(data.home["site"]) - {""}),
        "licences": dict(licences.most_common()),
        "synthetic": synthetic and all(map(all_synthetic, learned)),
        "phantom": _phantom_of(recipe),
        "from_hub": _from_hub(recipe),
    }


def _from_hub(recipe: dict) -> dict[str, str | None]:
    """The base and the images that the Hub knows by these names; None for what came from this machine."""
    base = recipe["model_name_or_path"]
    images = {key: recipe[key] for key in ("data", "external", "also")}
    return {"base": None if base.startswith("scratch:") or Path(base).exists() else base} | {
        key: source.partition("?")[0] if source and is_hub_id(source) else None for key, source in images.items()
    }


def _counts(rows: Dataset) -> dict[str, int]:
    names = rows.features["label"].names
    return dict(zip(names, np.bincount(rows["label"], minlength=len(names)).tolist(), strict=True))


def _save(folder: Path, trainer: Trainer, data: Prepared, learned: pd.DataFrame, recipe: dict, history: dict) -> None:
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    split_table(data.parts, learned).to_csv(folder / "split.csv", index=False, lineterminator="\n")
    (folder / "eval").mkdir()
    audit = data.audit | {"leaks": data.leaks}
    for name, told in (("training", history), ("audit", audit)):
        (folder / "eval" / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")


def _keep_seen(work: Path, folder: Path, state: TrainerState) -> None:
    """Move what was to be seen during the fit into the model folder."""
    for name in ("samples.png", "learning_curves.png"):
        shutil.move(work / name, folder / "eval" / name)
    best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name  # the checkpoint itself is gone soon
    dataclasses.replace(state, best_model_checkpoint=best).save_to_json(str(folder / "trainer_state.json"))


def _keep_start(folder: Path, base: ModelArguments, train: Dataset) -> str:
    """Give the saved model the share of the base's weights that base.keep_start says; what was done, a line."""
    start, _ = load_base(base, train.features["label"].names)
    return interpolate(folder, start, tells_these(base.model_name_or_path, start), train, base.keep_start)


def _judge(folder: Path, parts: dict[str, Dataset], args: ModelArguments, say: Callable) -> None:
    """Calibrate the saved model, choose its threshold, measure it, and write its card and report."""
    say("\n" + "\n".join(settle(folder, parts["train"], parts["validation"], args.threshold, args.calibrate)))
    for name in EVALUATED:
        if name in parts:
            say(f"\n{report(measure(folder, parts[name], name))}")
    write_card(folder)
    write_report(folder)


def main(argv: list[str] | None = None) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of writing a few megabytes
    train(*read_recipe(argv))


if __name__ == "__main__":
    run(main)
