import json
import shutil
import time

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.fits import distance, fit, make, weights
from training import features
from training.stages import head_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A features cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "chest-opacity-features"


def ran(monkeypatch) -> list[int]:
    """The numbers of images that the base is run over from now on."""
    numbers, run = [], features._run
    monkeypatch.setattr(features, "_run", lambda *given: numbers.append(len(given[1])) or run(*given))
    return numbers


@pytest.mark.parametrize(
    "settings",
    [
        {"base": "scratch:resnet-8-thin", "balance": "sampler"},  # batch norm has to stay as it is
        {"head": "mlp", "balance": "class_weight", "label_smoothing_factor": 0.1},
        {"augment": "light", "views": 2, "num_train_epochs": 3},
    ],
    ids=["batch norm", "mlp", "two views"],
)
def test_the_head_learns_the_same_from_the_cache_as_without_it(parts, small_base, tmp_path, cache, settings):
    settings = {"base": small_base, "freeze": "all"} | settings
    cached, learnt = fit(parts, folder=tmp_path / "a", **settings)
    uncached, same = fit(parts, folder=tmp_path / "b", cache_features=False, **settings)
    assert type(cached.model).__name__ == "HeadOnly"
    assert distance(learnt, same) < 1e-6
    for one, two in zip(cached.state.log_history, uncached.state.log_history, strict=True):
        compared = {key for key in one if key in {"loss", "eval_loss", "eval_roc_auc", "grad_norm"}}
        assert {key: one[key] for key in compared} == pytest.approx({key: two[key] for key in compared}, rel=1e-4)


def test_the_head_learns_in_float32_whatever_the_base_runs_in(parts, small_base, tmp_path, cache):
    few = {part: parts[part].select(range(4)) for part in ("train", "validation")}
    trainer, model = make(few, small_base, tmp_path, freeze="all", bf16=True)
    kinds = set()
    head_of(model).register_forward_hook(lambda _head, _given, logits: kinds.add(logits.dtype))
    trainer.train()
    assert kinds == {torch.float32}


def test_the_base_is_run_once_for_each_image_and_view_and_never_again(parts, small_base, tmp_path, cache, monkeypatch):
    settings = {"freeze": "all", "augment": "light", "views": 2, "num_train_epochs": 4}
    images = 2 * len(parts["train"]) + len(parts["validation"])
    numbers = ran(monkeypatch)
    fit(parts, small_base, tmp_path / "a", **settings)
    assert sum(numbers) == images
    fit(parts, small_base, tmp_path / "b", **settings | {"learning_rate": 1e-3, "num_train_epochs": 1})
    assert sum(numbers) == images


def test_the_pass_of_the_frozen_base_counts_as_time_of_the_fit(parts, small_base, tmp_path, cache, monkeypatch):
    few = {part: parts[part].select(range(4)) for part in ("train", "validation")}
    run = features._run
    monkeypatch.setattr(features, "_run", lambda *given: time.sleep(0.5) or run(*given))
    trainer, _ = make(few, small_base, tmp_path, freeze="all")
    passed = trainer.seconds
    assert passed >= 1  # of two parts
    trainer.train()
    again, _ = fit(few, small_base, tmp_path, freeze="all", num_train_epochs=2)  # goes on, with the features at hand
    assert again.seconds > passed


def test_features_are_in_the_order_of_their_images_however_many_threads_look(parts, small_base, tmp_path, cache):
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            trainer, _ = make(parts, small_base, tmp_path, freeze="all", per_device_eval_batch_size=4)
            found.append([np.asarray(trainer.train_dataset[key]["features"]) for key in range(len(parts["train"]))])
            assert torch.get_num_threads() == number
            shutil.rmtree(cache)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(*found, atol=1e-6)
    assert np.ptp(found[0], axis=0).max() > 0.01


@pytest.mark.parametrize("change", ["size", "seed", "augment", "bf16", "weights", "config"])
def test_what_matters_to_the_features_is_in_their_key(parts, small_base, tmp_path, cache, monkeypatch, change):
    few = {part: parts[part].select(range(4)) for part in ("train", "validation")}
    settings = {"base": small_base, "freeze": "all", "augment": "light", "views": 1}
    changed = {"size": 48, "seed": 1, "augment": "ultrasound", "bf16": True}
    numbers = ran(monkeypatch)
    make(few, folder=tmp_path / "a", **settings)
    if change == "weights":
        shutil.copytree(small_base, tmp_path / "base")
        tensors = weights(small_base)
        tensors["bit.norm.weight"] += 0.1
        save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
        settings["base"] = tmp_path / "base"
    elif change == "config":  # as the number of attention heads, which no weight tells
        shutil.copytree(small_base, tmp_path / "base")
        config = json.loads((small_base / "config.json").read_text()) | {"hidden_act": "gelu"}
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        settings["base"] = tmp_path / "base"
    else:
        settings[change] = changed[change]
    make(few, folder=tmp_path / "b", **settings)
    assert numbers == ([4, 4, 4] if change in {"seed", "augment"} else [4, 4, 4, 4])  # validation is not augmented


def test_a_pass_that_was_stopped_goes_on_with_the_next_piece(parts, small_base, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 10)
    numbers, write, calls = ran(monkeypatch), features.feather.write_feather, iter([1, 2, 3])

    def failing(*arguments, **settings):
        if next(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(features.feather, "write_feather", failing)
        with pytest.raises(KeyboardInterrupt):
            make(parts, small_base, tmp_path, freeze="all")
    assert len(list(cache.iterdir())) == 2
    numbers.clear()
    trainer, model = make(parts, small_base, tmp_path, freeze="all")
    assert sum(numbers) == len(parts["train"]) - 20 + len(parts["validation"])
    with torch.inference_mode():  # each piece is where it belongs
        batch = make(parts, small_base, tmp_path, freeze="all", cache_features=False)[0].train_dataset[37]
        logits = trainer.model(torch.tensor(trainer.train_dataset[37]["features"])[None]).logits
        assert torch.allclose(logits, model.eval()(pixel_values=batch["pixel_values"][None]).logits, atol=1e-5)
