import multiprocessing
import os
import resource
import signal

import pytest
import torch
from transformers import CLIPConfig, Dinov2Config, TrainerState

from space.errors import InputError
from tests.fits import distance, fit, make, save_base
from tests.training.test_model import FAMILIES
from training.arguments import TrainingArguments
from training.callbacks import epochs
from training.unfinished import last_checkpoint


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_steps_equal_whole_ones(parts, small_base, tmp_path, steps):
    """Also in the last step of an epoch, which is not full."""
    settings = {"balance": "class_weight", "label_smoothing_factor": 0.1, "layer_decay": 0.7, "augment": "light"}
    assert len(parts["train"]) % 16
    whole = fit(parts, small_base, tmp_path / "whole", **settings)[1]
    batch = {"per_device_train_batch_size": 16 // steps, "gradient_accumulation_steps": steps}
    assert distance(whole, fit(parts, small_base, tmp_path / "parts", **settings | batch)[1]) < 1e-5


def test_the_validation_loss_is_the_mean_over_images_whatever_the_batches(parts, small_base, tmp_path):
    losses = [
        fit(parts, small_base, tmp_path / str(size), per_device_eval_batch_size=size)[0].state.best_metric
        for size in (5, 32)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("base", ["scratch:resnet-8-thin", "small"])
def test_recomputed_stages_learn_the_same(parts, small_base, tmp_path, base):
    base = small_base if base == "small" else base
    few = {"train": parts["train"].select(range(32)), "validation": parts["validation"]}
    kept = fit(few, base, tmp_path / "kept")[1]
    assert distance(kept, fit(few, base, tmp_path / "again", activation_checkpointing=True)[1]) < 1e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"ema_decay": 0.8, "mixup": 0.4, "cutmix": 1.0, "amplitude_mix": 0.5, "sam_rho": 0.05},
        {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"mode": "min", "patience": 0},
            "early_stopping_patience": 2,
            "greater_is_better": True,  # a falling loss counts as getting worse
        },
    ],
    ids=["averaging, mixing and looking uphill", "plateau and early stopping"],
)
def test_a_stopped_fit_goes_on_to_the_same_end(parts, small_base, tmp_path, settings):
    settings |= {"num_train_epochs": 4, "lr_scheduler_type": settings.get("lr_scheduler_type", "cosine")}
    trainer, whole = fit(parts, small_base, tmp_path / "whole", **settings)
    stopped, _ = make(parts, small_base, tmp_path / "stopped", **settings)
    step = stopped.training_step

    def interrupted(*given):
        if stopped.state.global_step == 9:
            stopped.stop.asked = True
        return step(*given)

    stopped.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert stopped.state.global_step == 10
    state = TrainerState.load_from_json(f"{last_checkpoint(tmp_path / 'stopped' / 'checkpoints')}/trainer_state.json")
    again, same = fit(parts, small_base, tmp_path / "stopped", **settings)
    for row, told in zip(epochs(trainer.state.log_history), epochs(again.state.log_history), strict=True):
        assert told == pytest.approx(row, rel=1e-5)
    assert again.seconds > state.stateful_callbacks["Stopwatch"]["args"]["before"] > 0
    assert distance(whole, same) == 0
    assert again.state.global_step == trainer.state.global_step
    if "early_stopping_patience" in settings:
        assert trainer.state.epoch == 3
        ended, same = fit(parts, small_base, tmp_path / "stopped", **settings)  # as when what comes after was killed
        assert ended.state.global_step == trainer.state.global_step
        assert distance(whole, same) == 0


def stop_in(trainer, step) -> None:
    """Train, and be asked to stop while that step is taken."""
    taken = trainer.training_step

    def interrupted(*given):
        trainer.stop.asked = trainer.state.global_step == step - 1
        return taken(*given)

    trainer.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == step


@pytest.mark.parametrize("part", ["train", "eval"])
def test_workers_that_inherit_no_handler_decode_on_after_ctrl_c(parts, small_base, tmp_path, part):
    """As spawned ones do not, and a terminal sends it to them too."""
    few = {part: parts[part].select(range(16)) for part in ("train", "validation")}
    trainer, _ = make(
        few, small_base, tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=2, dataloader_num_workers=1
    )
    others = multiprocessing.active_children()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a worker has that is no fork
    try:
        batches = iter(getattr(trainer, f"get_{part}_dataloader")())
        next(batches)  # so it has begun
    finally:
        signal.signal(signal.SIGINT, before)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 7


@pytest.mark.parametrize("step", [2, 3], ids=["after an epoch", "within an epoch"])
def test_a_stopped_fit_of_mixed_images_ends_with_workers_as_a_whole_one_without(parts, small_base, tmp_path, step):
    few = {part: parts[part].select(range(16)) for part in ("train", "validation")}
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "mixup": 0.4, "load_best_model_at_end": False}
    _, whole = fit(few, small_base, tmp_path / "whole", dataloader_num_workers=0, **settings)
    stopped, _ = make(few, small_base, tmp_path / "stopped", dataloader_num_workers=1, **settings)
    stop_in(stopped, step)
    _, same = fit(few, small_base, tmp_path / "stopped", dataloader_num_workers=1, **settings)
    assert distance(whole, same) == 0


@pytest.mark.parametrize("length", [{"num_train_epochs": 2}, {"num_train_epochs": 1.5}, {"max_steps": 6}], ids=str)
def test_a_fit_that_had_ended_takes_no_further_step(parts, small_base, tmp_path, length):
    """As when what comes after it was killed; also where the best checkpoint is not the last, or an epoch not whole."""
    settings = length | {"freeze": "all", "load_best_model_at_end": False, "greater_is_better": True}  # the loss falls
    trainer, ended = fit(parts, small_base, tmp_path, **settings)
    assert trainer.state.best_global_step < trainer.state.max_steps
    assert last_checkpoint(tmp_path / "checkpoints").endswith(f"checkpoint-{trainer.state.max_steps}")
    again, same = fit(parts, small_base, tmp_path, **settings)
    assert again.state.global_step == trainer.state.max_steps
    assert distance(ended, same) == 0


@pytest.mark.parametrize("step", [4, 8], ids=["first epoch", "last epoch"])
def test_a_fit_stopped_in_the_last_step_of_an_epoch_is_measured_before(parts, small_base, tmp_path, step):
    settings = {"num_train_epochs": 2, "lr_scheduler_type": "cosine"}
    trainer, whole = fit(parts, small_base, tmp_path / "whole", **settings)
    assert trainer.state.global_step == 8
    stopped, _ = make(parts, small_base, tmp_path / "stopped", **settings)
    stop_in(stopped, step)
    again, same = fit(parts, small_base, tmp_path / "stopped", **settings)
    assert distance(whole, same) == 0
    measured = [[entry["step"] for entry in one.state.log_history if "eval_loss" in entry] for one in (trainer, again)]
    assert measured == [[4, 8], [4, 8]]


def test_what_is_measured_and_kept_are_the_averaged_weights(parts, small_base, tmp_path):
    settings = {"num_train_epochs": 1, "lr_scheduler_type": "constant"}
    trainer, model = make(parts, small_base, tmp_path / "a", ema_decay=0.5, **settings)
    name = "bit.encoder.stages.1.layers.0.conv2.weight"
    seen, parameter = [], model.get_parameter(name)
    trainer.create_optimizer().register_step_post_hook(lambda *_: seen.append(parameter.detach().clone()))
    trainer.train()
    average = seen[0]
    for step, weights in enumerate(seen[1:], 2):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    assert torch.allclose(model.get_parameter(name), average, atol=1e-6)
    assert not torch.allclose(seen[-1], average, atol=1e-4)


def test_a_loss_that_is_no_number_stops_with_step_and_learning_rate(parts, small_base, tmp_path):
    with pytest.raises(
        InputError, match=r"the loss was (nan|inf) at step \d, with a learning rate of 1e\+15; lower"
    ) as no:
        fit(parts, small_base, tmp_path, learning_rate=1e15, max_grad_norm=0, lr_scheduler_type="constant")
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("settings", [{"head": "mlp"}, {"freeze": "1"}, {"base": "scratch:resnet-8-thin"}])
def test_a_checkpoint_of_another_network_is_refused_in_one_line(parts, small_base, tmp_path, settings):
    """As resume_from_checkpoint may name one."""
    few = {part: parts[part].select(range(16)) for part in ("train", "validation")}
    fit(few, small_base, tmp_path / "one")
    other, _ = make(few, folder=tmp_path / "other", **{"base": small_base} | settings)
    with pytest.raises(InputError, match="checkpoint-1: it is of another network or recipe") as no:
        other.train(resume_from_checkpoint=last_checkpoint(tmp_path / "one" / "checkpoints"))
    assert "\n" not in str(no.value)


def test_weights_that_are_no_numbers_after_the_last_step_stop_too(parts, small_base, tmp_path):
    settings = {"learning_rate": 1e30, "max_grad_norm": 0, "lr_scheduler_type": "constant"}
    with pytest.raises(InputError, match=r"the validation loss was nan at step 1, with a learning rate of 1e\+30"):
        fit(parts, small_base, tmp_path, per_device_train_batch_size=64, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_kwargs": {"mode": "min"}}, "lr_scheduler_type linear with .*'mode': 'min'.*unexpected keyword"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr with .*min_lr"),
        ({"optim": "lomo"}, "optim lomo: You need to install"),
        ({"use_liger_kernel": True}, "liger-kernel .* is not available"),
        ({"fsdp": "full_shard"}, "fsdp only works in distributed training"),
        ({"adam_beta1": 2.0}, "optim adamw_torch.*: Invalid beta parameter"),
    ],
)
def test_settings_that_cannot_be_had_are_one_line(parts, small_base, tmp_path, monkeypatch, settings, message):
    """As when the schedule of a recipe is changed, and its own settings stay."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")  # which fsdp sets, and leaves to the tests after it
    with pytest.raises(InputError, match=message) as no:
        fit(parts, small_base, tmp_path, **settings)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("by", ["launcher", "recipe"])
def test_a_head_alone_is_not_spread_over_processes(parts, small_base, tmp_path, monkeypatch, by):
    """As with fsdp.yaml, before the base is run over all images."""
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    settings = {"fsdp": "full_shard"} if by == "recipe" else {}
    with pytest.raises(InputError, match="^freeze: found all with weights spread over processes, .*multi_gpu.yaml$"):
        make(parts, small_base, tmp_path, freeze="all", **settings)


SMALL_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
CASES = [(FAMILIES[family], head) for family in FAMILIES for head in ("linear", "mlp")]
CASES += [(Dinov2Config(**SMALL_VIT, hidden_dropout_prob=0.5), head) for head in ("linear", "mlp")]
CASES += [(CLIPConfig(vision_config=SMALL_VIT | {"intermediate_size": 64}), "linear")]


@pytest.mark.parametrize(("config", "head"), CASES, ids=[f"{config.model_type}-{head}" for config, head in CASES])
def test_several_processes_wait_for_no_gradient_that_never_comes(parts, tmp_path, monkeypatch, config, head):
    """And looking for these changes neither the weights nor what the fit will draw."""
    base = save_base(tmp_path / "base", config)
    _, alone = make(parts, base, tmp_path, size=64, head=head)
    chances = torch.get_rng_state()
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    trainer, model = make(parts, base, tmp_path, size=64, head=head)
    assert torch.equal(chances, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert distance(alone.state_dict(), model.state_dict()) == 0
    model.train()(pixel_values=torch.randn(2, 3, 64, 64)).logits.sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert trainer.accelerator.ddp_handler.find_unused_parameters == bool(unused)


def test_a_full_disk_is_one_line_and_the_fit_goes_on_once_there_is_room(parts, small_base, tmp_path):
    _, whole = fit(parts, small_base, tmp_path / "whole", num_train_epochs=2)
    trainer, _ = make(parts, small_base, tmp_path / "m", num_train_epochs=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave_no_room(*_):
        if trainer.state.global_step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    trainer.create_optimizer().register_step_post_hook(leave_no_room)
    try:
        with pytest.raises(InputError, match="cannot write a checkpoint to .*checkpoints: .*; make room there") as no:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(no.value)
    assert distance(whole, fit(parts, small_base, tmp_path / "m", num_train_epochs=2)[1]) == 0


def test_the_kept_weights_are_the_best_and_not_the_last(parts, small_base, tmp_path):
    """By greater_is_better the best is the first, for the loss falls."""
    trainer, weights = fit(parts, small_base, tmp_path, freeze="all", num_train_epochs=3, greater_is_better=True)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[0] == max(losses) > losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert torch.equal(weights["classifier.1.weight"], trainer.model.classifier[1].weight)


def test_a_fit_has_the_precision_of_the_recipe_whatever_accelerate_was_told(parts, small_base, tmp_path, monkeypatch):
    """As by `accelerate launch --mixed_precision bf16`, or by a configuration of one's own."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    few = {part: parts[part].select(range(8)) for part in ("train", "validation")}
    trainer, model = make(few, small_base, tmp_path, bf16=False)
    kinds = set()
    model.classifier.register_forward_hook(lambda _head, _given, logits: kinds.add(logits.dtype))
    trainer.train()
    assert (trainer.args.precision, kinds) == ("float32", {torch.float32})


def test_a_checkpoint_that_cannot_be_written_for_an_untold_reason_is_one_line_too(parts, small_base, tmp_path):
    trainer, _ = make(parts, small_base, tmp_path)

    def fails(_):
        if trainer.state.global_step:
            raise OSError

    trainer.create_optimizer().register_state_dict_pre_hook(fails)
    with pytest.raises(InputError, match="cannot write a checkpoint to .*checkpoints: OSError; make room there"):
        trainer.train()
