"""What a recipe may say, and how it is read: YAML first, then --key value from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.integrations import get_reporting_integration_callbacks

from space.errors import InputError
from training.machine import best_precision, best_workers
from training.processes import require_processes

RECIPES = Path(__file__).parent / "recipes"
LEAST = {  # that a number may be
    **dict.fromkeys(("data_seed", "learning_rate", "head_learning_rate", "mixup", "cutmix", "sam_rho", "views"), 0),
    "dataloader_num_workers": 0,
    "early_stopping_patience": 1,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "save_total_limit": 2,  # at 1, the end of a fit leaves the best checkpoint alone, and what goes on would fit anew
}

STAYS = {  # what every fit here relies on
    "dataloader_drop_last": False,
    "remove_unused_columns": False,
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
    "label_names": ["labels"],
    "logging_nan_inf_filter": False,
    "restore_callback_states_from_checkpoint": True,
    "save_only_model": False,
    "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
}

OF_A_RUN = {  # keys that say nothing of the model
    *("overwrite", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision"),
    *("hub_always_push", "hub_token", "resume_from_checkpoint"),
}


@dataclass
class DataArguments:
    """Which images, and how they are balanced and split."""

    data: str = field(metadata={"help": "DATA: a folder, a .csv or .parquet table, user/name on the Hub, or phantom"})
    labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "the classes, the positive one last; by default normal, or else healthy, regular or negative, or "
            "no- or non-something, then the others by name"
        },
    )
    sites: list[str] | None = field(
        default=None,
        metadata={"help": "train on these sites only; the others become the external set, unless that is given"},
    )
    external: str | None = field(default=None, metadata={"help": "DATA from elsewhere, measured beside the test part"})
    also: str | None = field(
        default=None, metadata={"help": "DATA that is trained on besides, and nothing else, such as phantom?sites=120"}
    )
    balance: Literal["none", "undersample", "oversample", "class_weight", "sampler", "sites"] = field(
        default="none",
        metadata={
            "help": "undersample: as many images of each class as of the rarest; oversample: repeat the rarer ones; "
            "class_weight: weigh the loss; sampler: draw the classes equally often; sites: and within a class the sites"
        },
    )
    balance_scope: Literal["train", "all"] = field(
        default="train", metadata={"help": "what is undersampled: the train part, or all images before the split"}
    )
    per_class: int | None = field(default=None, metadata={"help": "undersample: at most this many images of a class"})
    split_by: Literal["group", "image", "column"] = field(
        default="group",
        metadata={
            "help": "what stays in one part: group (patient or clip, with copies), or image, which lets frames of one "
            "clip into several parts; column: as the column split says"
        },
    )
    validation_share: float = field(default=0.2, metadata={"help": "share of the images that choose the checkpoint"})
    test_share: float = field(default=0.16, metadata={"help": "share of the images that measure the model"})
    folds: int | None = field(default=None, metadata={"help": "make the test part one of this many folds"})
    fold: int = field(default=0, metadata={"help": "which of the folds, from 0"})
    test_site: str | None = field(default=None, metadata={"help": "make the test part all images of this site"})
    split_seed: int = field(default=0, metadata={"help": "decides which images are left out and which part one is in"})
    strict: bool = field(default=True, metadata={"help": "stop when something leaks from one part into another"})


@dataclass
class ModelArguments:
    """Which network, and what it sees."""

    model_name_or_path: str = field(
        metadata={
            "help": "base: a Hub id, a local folder, or scratch:NAME for a random start, such as scratch:resnet-18"
        }
    )
    pretrain: str = field(
        default="none",
        metadata={"help": "none; or a recipe: the base is first trained by that, once, and training starts from there"},
    )
    keep_start: float = field(
        default=0.0,
        metadata={"help": "how much of the start's weights stays; 0.5 is the mean of start and fitted network"},
    )
    image_size: int = field(default=224, metadata={"help": "images are scaled to this many pixels a side, uncropped"})
    head: Literal["linear", "mlp"] = field(
        default="linear",
        metadata={"help": "linear: the stock class; mlp: maximum pooling, 16 units with ReLU, its code saved along"},
    )
    freeze: str = field(
        default="none", metadata={"help": "none; all: train the head only; or 2: freeze the stem and two stages"}
    )
    augment: Literal["none", "light", "ultrasound", "xray"] = field(
        default="none",
        metadata={
            "help": "light: mirroring, small turns, shifts and zooms, gain and gamma; ultrasound: also what other "
            "machines do to an image; xray: also what other rooms do, and no mirroring"
        },
    )
    calibrate: Literal["temperature", "vector", "none"] = field(
        default="temperature",
        metadata={"help": "on the validation part: one temperature, or a scale and a shift for each class"},
    )
    threshold: str = field(
        default="youden",
        metadata={
            "help": "from which probability on an image is called positive, chosen on the validation part: youden, "
            "sensitivity:0.95, cost:5 (a missed one is as bad as 5 false alarms), or a number"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the model folder if it exists"})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own; output_dir is the model folder to make.

    Here is what every recipe wants otherwise, and what transformers lacks. bf16 and the number of workers that decode
    are picked for the machine where they are not given.
    """

    output_dir: str = field(default="models/new", metadata={"help": "the model folder to make"})
    eval_strategy: str = field(default="epoch", metadata={"help": "when to measure on the validation part"})
    logging_strategy: str = field(default="epoch", metadata={"help": "when to log the loss"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to write a checkpoint"})
    save_total_limit: int | None = field(default=2, metadata={"help": "how many checkpoints stay, with the best"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "keep the best checkpoint, not the last"})
    metric_for_best_model: str | None = field(
        default="loss", metadata={"help": "what is best on validation: loss, roc_auc or accuracy"}
    )
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "train on the processor even if there is a GPU"},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "several processes: search each step; also done where it is needed"}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "train in bf16; by default where the machine is fast at it"}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "processes that decode; by default what the cores allow"}
    )
    cache_features: bool = field(
        default=True, metadata={"help": "with freeze: all, run the base once and train the head on what it gave"}
    )
    views: int = field(
        default=0, metadata={"help": "how many augmented views of an image there are; 0: a new one in every epoch"}
    )
    head_learning_rate: float | None = field(default=None, metadata={"help": "of the head; by default as the body"})
    layer_decay: float = field(default=1.0, metadata={"help": "each stage learns by this factor slower than the next"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop when the best metric has not improved for so many evaluations"}
    )
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0: none"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of cutmix; 0: none; with mixup, one of both a batch"})
    amplitude_mix: float = field(
        default=0.0, metadata={"help": "share of images that get another's spectral amplitudes blended in; 0: none"}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "measure and keep weights averaged by this decay a step, such as 0.99; 0: none"}
    )
    sam_rho: float = field(
        default=0.0, metadata={"help": "step by the gradient found so far uphill, such as 0.05, in two passes; 0: none"}
    )
    hub_strategy: Literal["end", "every_save", "checkpoint"] = field(
        default="every_save",
        metadata={
            "help": "what push_to_hub sends, and when: the model at the end, after every checkpoint too, or with what "
            "to go on from on any machine"
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "user/name: go on from the last checkpoint there, of a run of this recipe"}
    )
    logging_nan_inf_filter: bool = False  # a loss that is no number stops
    restore_callback_states_from_checkpoint: bool = True  # patience goes on where the fit was stopped
    disable_tqdm: bool | None = field(default=False, metadata={"help": "leave out the progress bars"})
    remove_unused_columns: bool = False  # images are decoded on access
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    def __post_init__(self):
        found = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "no accelerator"
        precision, reason = best_precision("cpu" if self.use_cpu else found)
        picked = self.bf16 is None and not self.fp16
        if picked:
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.bf16 = bool(self.bf16)
        workers, self.dataloader_num_workers = self.dataloader_num_workers, self.dataloader_num_workers or 0
        self.as_given = {"report_to": self.report_to, "fsdp": self.fsdp}  # which become what a recipe cannot say
        super().__post_init__()
        if workers is None:
            self.dataloader_num_workers = best_workers(self.device.type)
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        gpus, self._n_gpu = self.n_gpu, min(self.n_gpu, 1)  # or nn.DataParallel would multiply batch and loss
        self.precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "float32"
        self.mixed_precision = self.precision if self.bf16 or self.fp16 else "no"  # whatever accelerate was told
        by = reason if picked else "as asked for"
        self.mode = f"{self.precision} ({by}), channels_last, {self.dataloader_num_workers} workers"
        if gpus > 1:
            self.mode += f", 1 of {gpus} GPUs, the others idle (for all: accelerate launch, accelerate/multi_gpu.yaml)"

    @property
    def local_world_size(self) -> int:
        """How many processes train on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))


class RecipeParser(HfArgumentParser):
    """HfArgumentParser with errors of one line, and a help of nothing but the keys that a recipe may say."""

    def add_argument(self, *names: str, **settings) -> None:
        if settings.get("action") == "store_false":  # --no_KEY, which is no key
            return
        if names[0].removeprefix("--") in {*STAYS, "hub_token"}:
            settings["help"] = SUPPRESS
        super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see chest-opacity train --help")


def read_recipe(argv: list[str] | None = None) -> tuple[DataArguments, ModelArguments, TrainingArguments, dict]:
    """Parse `recipe.yaml [--key value ...]`; a key on the command line wins over the file.

    Also returns the recipe in force: all of the project's own keys, output_dir, and those of transformers' that were
    given, without those OF_A_RUN.
    Raises InputError on a missing or malformed file, an unknown key and an unfit value.
    """
    argv = sys.argv[1:] if argv is None else argv
    types = (DataArguments, ModelArguments, TrainingArguments)
    parser = RecipeParser(
        types,
        prog="chest-opacity train",
        usage="chest-opacity train recipe.yaml [--key value ...]",
        description="Make a model folder. The recipe is a YAML file of the keys below; those given here win.",
        allow_abbrev=False,
    )
    file, overrides = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    if file is None and not {"-h", "--help"} & set(overrides):
        raise InputError("found no recipe, expected chest-opacity train recipe.yaml [--key value ...]")
    recipe = _read_yaml(Path(file)) if file else {}
    known = {f.name for t in types for f in dataclasses.fields(t) if f.init}
    given = list(recipe) + [o[2:].split("=")[0].replace("-", "_") for o in overrides if o.startswith("--")]
    for key in given:
        if key not in known | {"help"}:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "chest-opacity train --help lists them all"
            raise InputError(f"{file if key in recipe else 'command line'}: unknown key {key}; {hint}")
    tokens = [token for key, value in recipe.items() for token in _tokens(key, value)]
    try:
        data_args, model_args, training_args = parser.parse_args_into_dataclasses(tokens + overrides)
        for reporter in get_reporting_integration_callbacks(training_args.report_to):
            reporter()  # says when its package is missing
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: {reason}") from None
    _require_ranges(data_args, model_args, training_args)
    require_processes(training_args.world_size, training_args.local_world_size, training_args.use_cpu)
    used = training_args.to_dict() | training_args.as_given
    in_force = dataclasses.asdict(data_args) | dataclasses.asdict(model_args)
    in_force |= {key: used[key] for key in [*given, "output_dir"] if key in used}
    return data_args, model_args, training_args, {key: in_force[key] for key in in_force if key not in OF_A_RUN}


def _require_ranges(data: DataArguments, model: ModelArguments, training: TrainingArguments) -> None:
    """Raise InputError for a value that would end a run later on, or be taken for another."""
    shares = data.validation_share, data.test_share
    doubled = data.balance == "oversample" and data.balance_scope == "all"
    best = (training.metric_for_best_model or "loss").removeprefix("eval_")
    wanted, mode = "min" if best == "loss" else "max", (training.lr_scheduler_kwargs or {}).get("mode", "min")
    heeded = training.lr_scheduler_type in {"reduce_lr_on_plateau", "greedy"}
    at_steps, smoothing = training.save_strategy == "steps", training.label_smoothing_factor
    saved = not (training.load_best_model_at_end and at_steps) or training.save_steps == training.eval_steps
    blank = model.keep_start and model.pretrain == "none" and model.model_name_or_path.startswith("scratch:")
    length = training.num_train_epochs if training.max_steps < 0 else training.max_steps
    for key, value, fits, expected in (
        ("labels", data.labels, len(set(data.labels or ())) == len(data.labels or ()), "each class once"),
        ("folds", data.folds, data.folds is None or data.folds > 1, "at least 2"),
        ("fold", data.fold, data.folds or data.fold == 0, "folds to say of how many"),
        ("fold", data.fold, not data.folds or 0 <= data.fold < data.folds, f"0 to {(data.folds or 1) - 1}"),
        ("balance_scope", data.balance_scope, not doubled, "train where oversample makes copies"),
        ("per_class", data.per_class, data.per_class is None or data.per_class > 0, "at least 1"),
        ("validation_share, test_share", shares, min(shares) > 0 and sum(shares) < 1, "shares that leave a train part"),
        ("seed", training.seed, 0 <= training.seed < 2**32, "at least 0, below 4294967296"),
        ("num_train_epochs, max_steps", length, length > 0, "more than 0"),
        ("layer_decay", training.layer_decay, training.layer_decay > 0, "more than 0"),
        ("label_smoothing_factor", smoothing, 0 <= smoothing <= 1, "0 to 1"),
        ("save_steps", training.save_steps, saved, f"{training.eval_steps} as eval_steps: any may be the best"),
        *(
            (key, value, value >= least, f"at least {least}")
            for key, least in LEAST.items()
            if (value := getattr(training, key)) is not None
        ),
        *(
            (key, getattr(training, key), getattr(training, key) == stays, json.dumps(stays))
            for key, stays in STAYS.items()
        ),
        ("keep_start", model.keep_start, 0 <= model.keep_start < 1, "from 0 to below 1"),
        ("model_name_or_path", model.model_name_or_path, not blank, "a base that has learned, with keep_start"),
        ("amplitude_mix", training.amplitude_mix, 0 <= training.amplitude_mix <= 1, "0 to 1"),
        ("ema_decay", training.ema_decay, 0 <= training.ema_decay < 1, "from 0 to below 1"),
        ("metric_for_best_model", best, best in {"loss", "roc_auc", "accuracy"}, "loss, roc_auc or accuracy"),
        (
            "mode of lr_scheduler_kwargs",
            mode,
            mode == wanted or not heeded,
            f"{wanted} with metric_for_best_model {best}, or the rate falls while it gets better",
        ),
    ):
        if not fits:
            raise InputError(f"{key}: found {value}, expected {expected}")


def _read_yaml(file: Path) -> dict:
    if not file.is_file():
        raise InputError(
            f"{file}: no such recipe; {RECIPES} holds {', '.join(sorted(p.name for p in RECIPES.glob('*.yaml')))}"
        )
    try:
        recipe = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no YAML that can be read: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{file}: found a {type(recipe).__name__}, expected lines of key: value")
    return {str(key): value for key, value in recipe.items()}


def _tokens(key: str, value) -> list[str]:
    """A key and its YAML value as they would stand on the command line, so that both are checked alike."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    text = json.dumps(value) if isinstance(value, dict | bool) else str(value)
    return [f"--{key}={text}"]
