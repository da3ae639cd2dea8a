"""transformers' Trainer with what a fit here needs besides: order by epoch, mixing, rates by depth, averaging."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from safetensors import SafetensorError
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from space.errors import InputError, reason_of
from training.arguments import ModelArguments, TrainingArguments
from training.callbacks import EpochOrder, EpochTable, LearningCurves, StopOnSignal, Stopwatch
from training.ema import average_weights
from training.examples import EpochSampler, Examples, RowGroups, pass_seed
from training.features import PIECE, Features, HeadOnly, extract
from training.loss import class_weights, classification_loss
from training.mixing import mix, mix_amplitudes
from training.sharpness import sharpness_aware
from training.split import draw_shares
from training.stages import parameter_groups, recompute_stages


class ClassifierTrainer(Trainer):
    """Trains a classifier of images, or the head of a frozen one on features.

    weights: (classes,), of each class in the loss. shares: (rows,), how likely each row of the train part is whenever
    one is drawn; None for each once an epoch. before: seconds that were spent for the fit until here. Training stops
    with InputError when the loss is no number or a checkpoint cannot be written, and with KeyboardInterrupt, after a
    checkpoint, when it is asked to.
    """

    def __init__(
        self,
        *,
        model,
        args: TrainingArguments,
        weights: torch.Tensor,
        shares: np.ndarray | None,
        before: float = 0.0,
        **settings,
    ):
        self.classes, self.shares = len(weights), shares
        self.last_loss: tuple[torch.Tensor, int, float] | None = None  # with its step and learning rate
        if args.activation_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
            recompute_stages(model)
            args.activation_checkpointing = False
        try:
            super().__init__(
                model=model,
                args=args,
                compute_loss_func=classification_loss(weights, args.label_smoothing_factor),
                compute_metrics=epoch_metrics(weights),
                **settings,
            )
        except (ImportError, ValueError) as error:  # of settings that exclude each other
            raise InputError(" ".join(str(error).split())) from error
        if args.sam_rho and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError(f"sam_rho: found {args.sam_rho} with weights spread over processes, expected 0 there")
        if self.is_fsdp_enabled:
            model.get_input_embeddings = lambda: None  # accelerate asks for them, and of many networks that raises
            model.to(memory_format=torch.contiguous_format)  # nothing else can be spread over processes
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.stop = StopOnSignal(self.accelerator)
        for callback in (EpochTable(), LearningCurves(), Stopwatch(before), self.stop):
            self.add_callback(callback)
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def train(self, *args, **settings):
        threads = torch.get_num_threads()
        if isinstance(self.model, HeadOnly):
            torch.set_num_threads(1)  # so small a network is slower on more
        try:
            trained = super().train(*args, **settings)
        except ImportError as error:  # of a package that a setting needs
            raise InputError(" ".join(str(error).split())) from error
        finally:
            torch.set_num_threads(threads)
            self.stop.restore()
        self._require_last_loss()
        return trained

    @property
    def seconds(self) -> float:
        """How long the fit took, with what it took before it was stopped, and the pass of a frozen base before it."""
        return next(self._of(Stopwatch)).seconds

    def _of(self, kind: type[TrainerCallback]) -> Iterator[TrainerCallback]:
        return (each for each in self.callback_handler.callbacks if isinstance(each, kind))

    def whole(self, model: PreTrainedModel) -> PreTrainedModel:
        """The trained classifier in one piece: the model itself unless FSDP has spread its weights over processes."""
        if not self.is_fsdp_enabled:
            return model
        weights = self.accelerator.get_state_dict(self.model)  # asked for by all processes, given to the main one
        gathered = type(model)(model.config)
        if self.args.process_index == 0:
            gathered.load_state_dict(weights)
        return gathered

    def _get_dataloader(self, *args, **settings) -> DataLoader:
        loader = super()._get_dataloader(*args, **settings)
        loader.base_dataloader.generator = torch.Generator()  # what it draws is no chance of the fit; see pass_seed
        loader.base_dataloader.worker_init_fn = partial(_begin_worker, then=loader.base_dataloader.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch = self.args.per_device_train_batch_size
        multiple = self.args.world_size * batch if self.args.world_size > 1 else 1
        row_groups = self._row_groups(self.train_dataset, batch)
        sampler = EpochSampler(len(self.train_dataset), seed, self.shares, self.args.views, multiple, row_groups)
        self.add_callback(EpochOrder(sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset):
        row_groups = self._row_groups(eval_dataset, self.args.per_device_eval_batch_size)
        if row_groups is None:
            return super()._get_eval_sampler(eval_dataset)
        return row_groups.in_turn(np.arange(len(eval_dataset))).tolist()

    def _row_groups(self, examples: Examples | Features, batch: int) -> RowGroups | None:
        if isinstance(examples, Features):
            return None
        turns = self.args.world_size * max(1, self.args.dataloader_num_workers)
        return RowGroups.of_rows(examples.rows, turns, batch)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args, model = self.args, self.model if model is None else model
            body = args.learning_rate
            head = body if args.head_learning_rate is None else args.head_learning_rate
            groups = parameter_groups(
                model, set(self.get_decay_parameter_names(model)), (body, head), args.layer_decay, args.weight_decay
            )
            try:
                kind, settings = self.get_optimizer_cls_and_kwargs(args, model)
                self.optimizer_cls_and_kwargs = kind, settings | {"params": groups}
                super().create_optimizer(model)
            except (ImportError, TypeError, ValueError) as error:
                raise InputError(f"optim {args.optim.value}: {' '.join(str(error).split())}") from error
            if args.ema_decay:
                average_weights(self.optimizer, args.ema_decay)
        return self.optimizer

    def create_scheduler(self, *args, **settings):
        try:
            return super().create_scheduler(*args, **settings)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"lr_scheduler_type {self.args.lr_scheduler_type.value} with lr_scheduler_kwargs "
                f"{self.args.lr_scheduler_kwargs or {}}: {error}"
            ) from error

    def _run_epoch(self, *args, **settings) -> None:
        if self.state.global_step >= self.state.max_steps or any(
            each.early_stopping_patience_counter >= each.early_stopping_patience
            for each in self._of(EarlyStoppingCallback)
        ):
            self.control.should_training_stop = True  # it had before: only what comes after the fit was stopped
        else:
            super()._run_epoch(*args, **settings)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.args.amplitude_mix:
            inputs = inputs | {"pixel_values": mix_amplitudes(inputs["pixel_values"], self.args.amplitude_mix)}
        if self.args.mixup or self.args.cutmix:
            pixels, labels = mix(
                inputs["pixel_values"], inputs["labels"], self.classes, self.args.mixup, self.args.cutmix
            )
            inputs = inputs | {"pixel_values": pixels, "labels": labels}
        step = partial(super().training_step, model, inputs, num_items_in_batch)
        loss = sharpness_aware(model, self.args.sam_rho, step) if self.args.sam_rho else step()
        self._require_last_loss()
        self.last_loss = loss, self.state.global_step + 1, self._get_learning_rate()
        return loss

    def evaluate(self, *args, **settings) -> dict[str, float]:
        self._require_last_loss()
        pass_seed()
        metrics = super().evaluate(*args, **settings)
        _require_number("validation loss", metrics["eval_loss"], self.state.global_step, self._get_learning_rate())
        return metrics

    def _require_last_loss(self) -> None:
        """Look at the loss of the step before, once the next is under way, so that a GPU never waits for the look."""
        if self.last_loss:
            loss, *when = self.last_loss
            self.last_loss = None
            _require_number("loss", loss.item(), *when)

    def _load_from_checkpoint(self, checkpoint, model=None) -> None:
        with _of_this_network(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        with _of_this_network(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_checkpoint(self, model, trial) -> None:
        self._require_last_loss()
        if self.args.ema_decay:
            self.optimizer.eval()  # what is kept are the averaged weights
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"cannot write a checkpoint to {self.args.output_dir}: {reason_of(error)}; make room there, and the "
                "same command goes on from the one before"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # so that trainer_state.json comes last, after every process's state


def _begin_worker(number: int, then: Callable[[int], None] | None) -> None:
    """Ctrl-C is for the main process, which needs its workers until a checkpoint is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if then:
        then(number)


def _require_number(name: str, loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the {name} was {loss} at step {step}, with a learning rate of {rate:.3g}; lower --learning_rate, or look "
            "for broken images with audit"
        )


@contextmanager
def _of_this_network(checkpoint) -> Iterator[None]:
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{checkpoint}: it is of another network or recipe ({reason_of(error)})") from error


def make_trainer(
    model: PreTrainedModel,
    processor,
    parts: Mapping[str, Dataset],
    balance: str,
    model_args: ModelArguments,
    args: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> ClassifierTrainer:
    """The trainer of a whole network or, where a frozen base need be run only once, of its head on what that gave.

    callbacks come before the one that ends the fit when it is asked to stop, so they see its last checkpoint too.
    """
    begun = time.monotonic()
    train = Examples(parts["train"], processor, model_args.augment, args.seed)
    validation = Examples(parts["validation"], processor)
    if model_args.augment == "none":
        args.views = 1
    mixed = args.mixup or args.cutmix or args.amplitude_mix
    if model_args.freeze == "all" and args.cache_features and args.views and not mixed:
        if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise InputError(
                "freeze: found all with weights spread over processes, expected a fit of more than the head there; "
                "launch this one with multi_gpu.yaml"
            )
        train = extract(model, parts["train"], train, args, args.views)
        validation = extract(model, parts["validation"], validation, args, 1)
        model = HeadOnly(model)
        args.bf16 = args.fp16 = False  # which would only slow down and blur so small a network
        args.mixed_precision = "no"  # as it follows from them, but was told before
        args.per_device_eval_batch_size = max(args.per_device_eval_batch_size, PIECE)
    elif args.world_size > 1 and not args.ddp_find_unused_parameters:
        args.ddp_find_unused_parameters = _has_unused(model, model_args.image_size)
    classes = parts["train"].features["label"].num_classes
    labels = np.asarray(parts["train"]["label"])
    return ClassifierTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        weights=class_weights(labels, classes) if balance == "class_weight" else torch.ones(classes),
        shares=draw_shares(parts["train"], balance),
        before=time.monotonic() - begun,
        processing_class=processor,
        callbacks=list(callbacks),
    )


def _has_unused(model: PreTrainedModel, size: int) -> bool:
    """Whether weights that are trained have no part in the logits, such as the mask token of DINOv2.

    Nothing is drawn by chance, and no gradient or statistic of batch norm is left behind.
    """
    logits = model.eval()(pixel_values=torch.zeros(1, 3, size, size)).logits
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return any(grad is None for grad in torch.autograd.grad(logits.sum(), trained, allow_unused=True))


def epoch_metrics(weights: torch.Tensor):
    """Loss, accuracy and AUC over the whole validation part, each image counted once whatever the batches were."""
    weights = weights.double().numpy()

    def compute(prediction: EvalPrediction) -> dict:
        logits, truth = prediction.predictions.astype(float), prediction.label_ids
        if not np.isfinite(logits).all():
            return dict.fromkeys(("loss", "accuracy", "roc_auc"), math.nan)
        given = log_softmax(logits, axis=-1)[np.arange(len(truth)), truth]
        probabilities = softmax(logits, axis=-1)
        scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
        return {
            "loss": float(-(weights[truth] * given).mean()),
            "accuracy": float((logits.argmax(axis=-1) == truth).mean()),
            "roc_auc": float(roc_auc_score(truth, scores, multi_class="ovr")),
        }

    return compute
