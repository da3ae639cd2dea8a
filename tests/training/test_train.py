import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from space.errors import InputError
from tests.conftest import RECIPES, ROOT, SMALL
from training import evaluate, train
from training.sources import load_data

PHANTOM = str(RECIPES / "phantom.yaml")


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, two, tolerance=0.0):
    return all(torch.allclose(one[name].float(), two[name].float(), atol=tolerance, rtol=0) for name in one)


def test_the_model_folder_holds_what_it_should_and_nothing_else(small_model):
    files = sorted(path.relative_to(small_model).as_posix() for path in small_model.rglob("*") if path.is_file())
    evaluations = [
        f"eval/{name}{end}"
        for name in ("external", "test")
        for end in (".csv", ".json", "_gallery.png", "_performance.png", "_trust.png")
    ]
    assert files == sorted(
        ["README.md", "abstention.safetensors", "config.json", "model.safetensors", "preprocessor_config.json"]
        + ["recipe.yaml", "report.html", "split.csv", "eval/audit.json", "eval/comparison.png"]
        + ["eval/learning_curves.png", "eval/training.json", *evaluations]
    )
    assert not list(small_model.parent.glob(".*"))


def test_the_split_is_written_with_every_image_once_and_no_group_twice(small_model):
    split = pd.read_csv(small_model / "split.csv")
    assert list(split.columns) == ["path", "label", "group", "site", "pixels", "split"]
    assert set(split["split"]) == {"train", "validation", "test"}
    assert not split["path"].duplicated().any()
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert split["label"].value_counts().nunique() == 1


def test_the_saved_model_is_the_best_checkpoint(small_phantom, tmp_path):
    train.main(
        [PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), *SMALL]
        + ["--num_train_epochs", "4", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    )
    history = json.loads((tmp_path / "m" / "eval" / "training.json").read_text())
    losses = {epoch["epoch"]: epoch["val_loss"] for epoch in history["epochs"]}
    assert history["best_epoch"] == min(losses, key=losses.get)
    evaluate.main([str(tmp_path / "m"), "--data", str(small_phantom), "--split", "validation", "--name", "validation"])
    table = pd.read_csv(tmp_path / "m" / "eval" / "validation.csv")
    given = np.where(table["label"] == "sick", table["probability_sick"], table["probability_normal"])
    assert -np.log(given.clip(1e-6)).mean() == pytest.approx(min(losses.values()), abs=2e-3)


def test_two_runs_with_one_seed_give_the_same_bytes(small_model, small_phantom, tmp_path):
    train.main([PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "again"), *SMALL])
    for name in ("model.safetensors", "split.csv", "eval/test.csv", "eval/external.csv", "eval/test.json"):
        assert (tmp_path / "again" / name).read_bytes() == (small_model / name).read_bytes(), name


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(small_model, small_phantom, tmp_path):
    command = [PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.train", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / ".m.unfinished" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) == [".m.unfinished"]
    train.main(command)
    assert os.listdir(tmp_path) == ["m"]
    assert same(weights(tmp_path / "m"), weights(small_model))


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    for step, state in ((9, "{}"), (10, "{}"), (20, '{"half'), (30, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert train._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert train._last_checkpoint(tmp_path / "absent") is None


def test_accumulated_steps_equal_whole_ones(small_phantom, tmp_path):
    def fit(name, *settings):
        train.main(
            [PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / name), *SMALL]
            + ["--freeze", "all", "--balance", "class_weight", "--augment", "none", "--num_train_epochs", "1"]
            + list(settings)
        )
        return weights(tmp_path / name)

    whole = fit("whole", "--per_device_train_batch_size", "16")
    halves = fit("halves", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2")
    assert same(whole, halves, 1e-5)


def test_class_weight_gives_both_classes_the_same_say(small_phantom):
    rows = load_data(small_phantom).filter(lambda row: row["label"] >= 0)
    rare = rows.select(
        [*np.flatnonzero(np.asarray(rows["label"]) == 0), *np.flatnonzero(np.asarray(rows["label"]) == 1)[:10]]
    )
    labels = torch.tensor(rare["label"])
    loss = train._loss(rare, "class_weight", SimpleNamespace(label_smoothing_factor=0.0))
    logits = torch.zeros(len(rare), 2, requires_grad=True)
    loss(SimpleNamespace(logits=logits), labels).backward()
    pull = [logits.grad[labels == label, 0].sum().item() for label in (0, 1)]
    assert pull[0] == pytest.approx(-pull[1], abs=1e-6)


def test_the_study_s_recipe_runs_with_no_hub_and_trains_the_head_only(small_phantom, tmp_path):
    train.main(
        [str(RECIPES / "study.yaml"), "--data", str(small_phantom), "--sites", "A", "--output_dir", str(tmp_path / "m")]
        + ["--model_name_or_path", "scratch:bit-50", "--image_size", "64", "--num_train_epochs", "1"]
    )
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["BitForImageClassification"]
    assert "split is by image" in (tmp_path / "m" / "README.md").read_text()
    history = json.loads((tmp_path / "m" / "eval" / "training.json").read_text())
    assert history["epochs"][0]["learning_rate"] == 1e-4


def test_the_default_recipe_runs_from_a_local_folder(small_model, small_phantom, tmp_path):
    train.main(
        [str(RECIPES / "default.yaml"), "--data", str(small_phantom), "--model_name_or_path", str(small_model)]
        + ["--output_dir", str(tmp_path / "m"), "--image_size", "64", "--num_train_epochs", "1"]
    )
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "m").config
    assert 0 < config.threshold < 1
    assert config.threshold_origin["rule"] == "youden"
    assert config.threshold_origin["data"].startswith("validation part, ")
    assert "fewer than 20" in config.calibration["reason"]
    assert yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())["balance"] == "class_weight"


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(small_phantom, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("precious")
    command = [PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), *SMALL]
    with pytest.raises(InputError, match="m exists; choose another --output_dir, or replace it"):
        train.main(command)
    with pytest.raises(InputError, match="no such folder"):
        train.main([*command, "--overwrite", "true", "--data", "nowhere"])
    assert (tmp_path / "m" / "mine.txt").read_text() == "precious"
    train.main([*command, "--overwrite", "true", "--num_train_epochs", "1"])
    assert not (tmp_path / "m" / "mine.txt").exists()


def test_accelerate_launch_trains(small_phantom, tmp_path):
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "training.train", PHANTOM]
        + ["--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), *SMALL, "--num_train_epochs", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert "1 process(es)" in launched.stdout
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_two_processes_train_one_model(small_phantom, tmp_path):
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + ["-m", "training.train", PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m")]
        + [*SMALL, "--num_train_epochs", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("on cpu, 2 process(es)") == 1
    assert json.loads((tmp_path / "m" / "eval" / "training.json").read_text())["processes"] == 2


def test_a_launch_that_got_fewer_processes_than_it_asked_for_stops(small_phantom, tmp_path, monkeypatch):
    """As with --use_cpu false and no GPU, when transformers would train two models in one place."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched but 1 would train"):
        train.main([PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), "--use_cpu", "false"])
    assert os.listdir(tmp_path) == []
