"""What is seen of a fit while it runs, and how it is stopped without a loss."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from matplotlib.figure import Figure
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from training.plots import BLUE, GREY, save


class EpochTable(ProgressCallback):
    """transformers' progress bar with loss and AUC, and a table of the epochs in place of its logged dictionaries."""

    COLUMNS = ("epoch", "train_loss", "val_loss", "val_accuracy", "val_auc", "learning_rate")

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if args.disable_tqdm and state.is_world_process_zero:
            self.training_bar.disable = True
        self._write(state, "".join(f"{column:>14}" for column in self.COLUMNS))

    def on_prediction_step(self, args, state, control, **kwargs):
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "eval_loss" in logs:
            row = epochs(state.log_history)[-1]
            self._write(state, "".join(f"{row[column]:14.4g}" for column in self.COLUMNS))
            if state.is_world_process_zero and self.training_bar is not None:
                self.training_bar.set_postfix(loss=f"{row['train_loss']:.3f}", auc=f"{row['val_auc']:.3f}")

    def _write(self, state, line: str) -> None:
        if state.is_world_process_zero and self.training_bar is not None:  # it is closed after the fit
            self.training_bar.write(line)


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch, also where accelerate does not: after a resume within one, on several processes."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class LearningCurves(TrainerCallback):
    """learning_curves.png beside the checkpoints, drawn anew after an epoch, though not oftener than every 20 s."""

    drawn = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.drawn = time.monotonic()

    def on_evaluate(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self.drawn > 20:
            self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._draw(args, state)

    def _draw(self, args, state) -> None:
        if rows := epochs(state.log_history):
            save(Path(args.output_dir).parent / "learning_curves.png", learning_curves(rows))
        self.drawn = time.monotonic()


class Stopwatch(TrainerCallback, ExportableState):
    """How long a fit takes, over all its runs: checkpoints keep what it took until then."""

    def __init__(self, before: float = 0.0):
        self.before, self.begun = before, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self.begun = self.seconds, None

    @property
    def seconds(self) -> float:
        return self.before + (time.monotonic() - self.begun if self.begun else 0.0)

    def state(self) -> dict:
        return {"args": {"before": self.seconds}, "attributes": {}}


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the fit after the step in hand and a checkpoint; a second one ends it at once.

    Of several processes each is also told by the launcher, so there a second one changes nothing.
    """

    def __init__(self, accelerator):
        self.accelerator, self.asked, self.before = accelerator, False, {}

    def on_train_begin(self, args, state, control, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)

    def on_step_end(self, args, state, control, **kwargs):
        ends_epoch = state.epoch.is_integer() or control.should_training_stop  # and is measured before it is saved
        if self._any_asked() and not ends_epoch:
            control.should_save = control.should_log = True  # or the loss until here would be forgotten

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._any_asked():
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self._any_asked():
            self.restore()
            if state.is_world_process_zero:
                at = f"step {state.global_step} of {state.max_steps}"
                print(f"\nstopping after {at}; the same command goes on from there")
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def _any_asked(self) -> bool:
        """Whether one of the processes was asked, and so all are."""
        if self.asked:
            self.accelerator.set_trigger()
        self.asked = self.accelerator.check_trigger()
        return self.asked

    def _ask(self, _number, _frame) -> None:
        self.asked = True
        if self.accelerator.num_processes == 1:
            self.restore()

    def restore(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())


def epochs(log_history: list[dict]) -> list[dict]:
    """Trainer's log as one row for each time it measured on the validation part, with the loss of all steps since."""
    rows, parts, trained, measured = [], [], {}, False
    for entry in log_history:
        if "loss" in entry:
            parts = [] if measured else parts
            parts += [entry["loss"]] * (entry["step"] - trained.get("step", 0))  # the mean of so many steps
            trained, measured = entry, False
        if "eval_loss" in entry:
            measured = True
            rows.append(
                {
                    "epoch": round(entry["epoch"], 2),
                    "step": entry["step"],
                    "train_loss": sum(parts) / len(parts) if parts else float("nan"),
                    "val_loss": entry["eval_loss"],
                    "val_accuracy": entry["eval_accuracy"],
                    "val_auc": entry["eval_roc_auc"],
                    "learning_rate": trained.get("learning_rate", float("nan")),
                }
            )
    return rows


def learning_curves(rows: list[dict]) -> Figure:
    """Loss on both parts, and accuracy and AUC on validation, by epoch."""
    figure = Figure(figsize=(7, 3))
    loss, worth = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.17, "top": 0.9})
    for axes, lines in (
        (loss, {"train_loss": (GREY, "train"), "val_loss": (BLUE, "validation")}),
        (worth, {"val_accuracy": (GREY, "accuracy"), "val_auc": (BLUE, "AUC")}),
    ):
        for column, (colour, label) in lines.items():
            axes.plot([row["epoch"] for row in rows], [row[column] for row in rows], ".-", color=colour, label=label)
        axes.set_xlabel("epoch")
        axes.legend()
    loss.set_title("loss", fontsize=11)
    worth.set_title("on the validation part", fontsize=11)
    worth.set_ylim(None, 1.01)
    return figure
