import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import traceback
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import ClassLabel
from huggingface_hub.repocard import metadata_load
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, TrainerState

from space.errors import InputError
from space.predictor import Predictor
from tests.conftest import RECIPES, ROOT, SMALL, made_once
from tests.fits import GROUP_NORM, distance, save_base, weights
from training import evaluate, train
from training.arguments import TrainingArguments, read_recipe
from training.evaluate import select_rows
from training.learned import has_seen_nobody
from training.measure import predict_rows
from training.phantom import write_phantom
from training.processes import require_processes
from training.sources import load_data
from training.unfinished import difference

PHANTOM = str(RECIPES / "phantom.yaml")


def test_the_model_folder_holds_what_it_should_and_nothing_else(small_model):
    files = sorted(path.relative_to(small_model).as_posix() for path in small_model.rglob("*") if path.is_file())
    evaluations = [
        f"eval/{name}{end}"
        for name in ("external", "test")
        for end in (".csv", ".json", "_gallery.png", "_performance.png", "_trust.png")
    ]
    assert files == sorted(
        ["README.md", "abstention.safetensors", "config.json", "model.safetensors", "preprocessor_config.json"]
        + ["recipe.yaml", "report.html", "split.csv", "trainer_state.json", "eval/audit.json", "eval/comparison.png"]
        + ["eval/learning_curves.png", "eval/samples.png", "eval/training.json", *evaluations]
    )
    assert not list(small_model.parent.glob(".*"))


def test_whoever_may_read_the_configuration_may_read_the_weights(small_model):
    assert len({path.stat().st_mode for path in small_model.iterdir() if path.is_file()}) == 1


def test_the_split_is_written_with_every_image_once_and_no_group_twice(small_model):
    split = pd.read_csv(small_model / "split.csv")
    assert list(split.columns) == ["path", "label", "group", "site", "pixels", "split"]
    assert set(split["split"]) == {"train", "validation", "test"}
    assert not split["path"].duplicated().any()
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert split["label"].value_counts().nunique() == 1


def test_the_saved_model_is_the_best_checkpoint_also_in_place_of_another(small_model, small_home, tmp_path):
    """Of one that lies where a link leads."""
    shutil.copytree(small_model, tmp_path / "disk" / "real")
    (tmp_path / "disk" / "real" / "mine.txt").touch()
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "real")
    train.main(
        [PHANTOM, "--data", str(small_home), "--output_dir", str(tmp_path / "m"), *SMALL, "--overwrite", "true"]
        + ["--num_train_epochs", "4", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    )
    assert (tmp_path / "m").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["real"]
    assert not (tmp_path / "disk" / "real" / "mine.txt").exists()
    history = json.loads((tmp_path / "m" / "eval" / "training.json").read_text())
    losses = {epoch["epoch"]: epoch["val_loss"] for epoch in history["epochs"]}
    assert history["best_epoch"] == min(losses, key=losses.get)
    rows = select_rows(load_data(small_home), tmp_path / "m", "validation", None)
    table = predict_rows(Predictor(tmp_path / "m"), rows)
    given = np.where(table["label"] == "sick", table["probability_sick"], table["probability_normal"])
    assert -np.log(given.clip(1e-6)).mean() == pytest.approx(min(losses.values()), abs=2e-3)


def exit_code(work) -> int:
    """That of a fork of this process which does some work; of a killed one the signal, as a negative number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(function, call: int, after=lambda *arguments: None):
    """The function, but at that call the process is killed before it, once it has done `after`."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments, **settings):
        if next(calls) == call:
            after(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)

    return wrapped


def half_a_file(_state, path):
    with open(path, "w") as file:
        file.write('{"epoch": 1.0, "glob')


def half_a_tensor_file(_tensor, path):
    with open(path, "wb") as file:
        file.write(b"PK")


def test_a_run_stopped_again_and_again_ends_with_the_same_bytes(small_model, small_home, tmp_path, monkeypatch):
    """Killed within an epoch, in the middle of a checkpoint's files, before the last one, and when the folder is made;
    and stopped by Ctrl-C, which saves what was learnt.
    """
    command = [PHANTOM, "--data", str(small_home), "--output_dir", str(tmp_path / "m"), *SMALL]
    step = torch.optim.AdamW.step
    prepared = train.prepare(read_recipe(command)[0])  # once, for all but the run that ends

    def die(owner, name, fatal) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(train, "prepare", lambda _: prepared)
            patch.setattr(owner, name, fatal)
            assert exit_code(lambda: train.main(command)) == -signal.SIGKILL, name
        assert os.listdir(tmp_path) == [".m.unfinished"], name

    die(torch.optim.AdamW, "step", dying(step, 2))
    die(torch, "save", dying(torch.save, 1, half_a_tensor_file))
    die(TrainerState, "save_to_json", dying(TrainerState.save_to_json, 1, half_a_file))

    interrupt = iter([False, False, True] + [False] * 100)

    def interrupted(*arguments, **settings):
        if next(interrupt):
            signal.raise_signal(signal.SIGINT)
        return step(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(train, "prepare", lambda _: prepared)
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(command)
        assert (tmp_path / ".m.unfinished" / "checkpoints" / "checkpoint-3" / "trainer_state.json").is_file()
        with pytest.raises(InputError, match="a stopped run is there with learning_rate: 0.005 where this one has 0.1"):
            train.main([*command, "--learning_rate", "0.1"])

    die(torch.optim.AdamW, "step", dying(step, 1))  # the last one
    die(train, "measure", dying(train.measure, 1))
    train.main(command)
    assert os.listdir(tmp_path) == ["m"]
    for name in ("model.safetensors", "abstention.safetensors", "split.csv", "eval/test.csv"):
        assert (tmp_path / "m" / name).read_bytes() == (small_model / name).read_bytes(), name


@pytest.fixture
def of_a_frozen_base(small_home, tmp_path):
    """A command that fits a head alone, and its base."""
    base = save_base(tmp_path / "base", GROUP_NORM)
    given = ["--data", str(small_home), "--output_dir", str(tmp_path / "m"), "--model_name_or_path", str(base)]
    return [PHANTOM, *given, "--freeze", "all", "--image_size", "32", "--num_train_epochs", "1"], base


def test_what_was_put_in_a_model_s_place_while_it_was_fitted_is_not_deleted(of_a_frozen_base, tmp_path, monkeypatch):
    command, _ = of_a_frozen_base
    judge = train._judge

    def judge_and_take_the_place(*given):
        judge(*given)
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "notes.txt").write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(train, "_judge", judge_and_take_the_place)
        with pytest.raises(InputError, match="m exists; move that away and run this again, which ends what .m.unf"):
            train.main(command)
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    (tmp_path / "m").rename(tmp_path / "away")
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # nothing is fitted again
    train.main(command)
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_a_run_does_not_go_on_from_another_base_of_the_same_name(of_a_frozen_base, tmp_path, monkeypatch):
    command, base = of_a_frozen_base

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_judge", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(command)
    changed = {name: value + 0.1 for name, value in weights(base).items()}
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="a stopped run is there with base: [0-9a-f]{12} where this one has [0-9a-f]"):
        train.main(command)


def test_a_run_is_another_once_an_image_has_another_label(parts, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path))
    before = train._run({}, parts, args)
    for part in ("train", "validation"):
        labels = parts[part]["label"]
        mended = parts[part].remove_columns("label").add_column("label", [1 - labels[0], *labels[1:]])
        mended = mended.cast_column("label", parts[part].features["label"])
        after = train._run({}, {**parts, part: mended}, args)
        assert {key for key in before if before[key] != after[key]} == {"labels"}


def test_a_run_is_another_with_the_classes_in_another_order(parts, tmp_path):
    def turned(rows):
        label = ClassLabel(names=rows.features["label"].names[::-1])
        turned = [1 - index for index in rows["label"]]
        return rows.remove_columns("label").add_column("label", turned, feature=label)

    args = TrainingArguments(output_dir=str(tmp_path))
    others = {part: turned(parts[part]) for part in ("train", "validation")}
    before, after = (train._run({}, rows, args) for rows in (parts, others))
    assert difference(before, after) == "classes: ['normal', 'sick'] where this one has ['sick', 'normal']"


@pytest.mark.parametrize("column", ["site", "merged"])
def test_a_run_that_draws_by_site_is_another_once_an_image_is_of_another_site_or_group(parts, tmp_path, column):
    def run(rows, balance="sites"):
        return train._run({"balance": balance}, dict(parts) | {"train": rows}, args)

    def with_column(values):
        return rows.remove_columns(column).add_column(column, values)

    args, rows = TrainingArguments(output_dir=str(tmp_path)), parts["train"]
    other = next((value for value in rows[column] if value != rows[column][0]), "another")
    mended = with_column([other, *rows[column][1:]])
    renamed = with_column([f"moved {value}" for value in rows[column]])
    assert {key for key, value in run(rows).items() if run(mended)[key] != value} == {"sites_and_groups"}
    assert run(rows) == run(renamed)
    assert run(rows, "none") == run(mended, "none")


def test_a_run_is_the_same_on_other_cores_and_another_gpu_but_not_in_another_precision(parts, tmp_path):
    def run(**settings):
        args = TrainingArguments(output_dir=str(tmp_path), **settings)
        return train._run({"seed": 1} | settings, parts, args)

    picked = TrainingArguments(output_dir=str(tmp_path))  # by this machine, which its mode names
    assert run() == run(bf16=picked.bf16, dataloader_num_workers=3)
    assert difference(run(bf16=True), run(bf16=False)) == "mode: bf16 where this one has float32"


def test_a_run_of_images_fetched_by_the_row_group_is_another_with_other_workers(parts, tmp_path):
    """For who decodes which images decides their order."""

    def run(workers):
        args = TrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=workers)
        return train._run({"dataloader_num_workers": workers}, fetched, args)

    cells = [{"path": f"hf://datasets/a/b@c/d.parquet#image/0/{row}/x.png", "bytes": None} for row in range(2)]
    rows = parts["train"].select(range(2))
    fetched = dict(parts) | {"train": rows.remove_columns("image").add_column("image", cells)}
    assert run(0) == run(1)
    assert difference(run(2), run(3)) == "dataloader_num_workers: 2 where this one has 3"


def test_a_model_is_synthetic_when_what_its_base_has_learned_from_is_too(parts, tmp_path):
    data, told = SimpleNamespace(home=parts["train"], parts={}), tmp_path / "eval" / "training.json"
    told.parent.mkdir()
    for synthetic in (True, False):
        told.write_text(json.dumps({"synthetic": synthetic}))
        recipe = {"model_name_or_path": str(tmp_path), "data": "phantom", "external": None, "also": None}
        assert train._learned_from(data, has_seen_nobody(str(tmp_path)), recipe)["synthetic"] == synthetic


def test_the_study_s_recipe_runs_with_no_hub_and_trains_the_head_only(small_base, small_home, tmp_path):
    """Also where its folder is a link."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "real")
    train.main(
        [str(RECIPES / "study.yaml"), "--data", str(small_home), "--output_dir", str(tmp_path / "m")]
        + ["--model_name_or_path", str(small_base), "--image_size", "32", "--num_train_epochs", "1"]
    )
    assert (tmp_path / "m").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["real"]
    config = json.loads((tmp_path / "disk" / "real" / "config.json").read_text())
    assert config["architectures"] == ["MlpHeadForImageClassification"]
    assert config["body"]["model_type"] == "bit"
    assert (tmp_path / "m" / "mlp_head.py").is_file()
    card = (tmp_path / "m" / "README.md").read_text()
    assert "split is by image" in card
    assert "- Threshold 0.500 fixed in the recipe, " in card
    assert "license: other\nlicense_name: that-of-the-base-and-the-training-data\n" in card  # though the data are free
    assert "has seen no person" not in card
    history = json.loads((tmp_path / "m" / "eval" / "training.json").read_text())
    assert history["epochs"][0]["learning_rate"] == 1e-4


@pytest.fixture(scope="session")
def taught_again(small_model, small_home, tmp_path_factory):
    """A model of the default recipe whose base has learned from images of its test part."""
    command = [str(RECIPES / "default.yaml"), "--data", str(small_home), "--model_name_or_path", str(small_model)]
    command += ["--image_size", "64", "--num_train_epochs", "1", "--split_seed", "1", "--strict", "false"]
    return made_once(tmp_path_factory, "again", lambda folder: train.main([*command, "--output_dir", str(folder)]))


def test_the_default_recipe_runs_from_a_local_folder(taught_again):
    config = AutoModelForImageClassification.from_pretrained(taught_again).config
    assert 0 < config.threshold < 1
    assert config.threshold_origin["rule"] == "youden"
    assert config.threshold_origin["data"].startswith("validation part, ")
    assert "fewer than 20" in config.calibration["reason"]
    assert yaml.safe_load((taught_again / "recipe.yaml").read_text())["balance"] == "class_weight"


def test_the_ultrasound_recipe_learns_from_simulated_sites_first_and_besides(
    small_model, small_home, tmp_path, capfd, monkeypatch
):
    drawn, make_trainer = [], train.make_trainer
    monkeypatch.setattr(
        train, "make_trainer", lambda *given: drawn.append(set(given[2]["train"]["site"])) or make_trainer(*given)
    )
    shifted, interpolate = [], train.interpolate
    monkeypatch.setattr(
        train, "interpolate", lambda *given: shifted.append(set(given[3]["site"])) or interpolate(*given)
    )
    shown, save_samples = [], train.save_samples
    monkeypatch.setattr(train, "save_samples", lambda path, seen: shown.append(len(seen)) or save_samples(path, seen))
    write_phantom(tmp_path / "many", sites=10)
    listed = pd.read_csv(tmp_path / "many" / "metadata.csv", keep_default_na=False)
    listed.drop(columns=["synthetic", "license"]).to_csv(tmp_path / "many" / "metadata.csv", index=False)
    first = yaml.safe_load((RECIPES / "simulated.yaml").read_text()) | {
        "data": str(tmp_path / "many"),
        "validation_share": 0.4,
        "test_share": 0.2,
        "image_size": 32,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "output_dir": str(tmp_path / "first"),
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    command = [str(RECIPES / "ultrasound.yaml"), "--data", str(small_home)]
    command += ["--also", str(tmp_path / "many"), "--pretrain", str(tmp_path / "first.yaml"), "--image_size", "32"]
    command += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "m")]
    checkpoint = tmp_path / ".first.unfinished" / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (tmp_path / ".first.unfinished" / "run.yaml").write_text("model_name_or_path: another\n")
    still = ["--learning_rate", "0", "--weight_decay", "0"]
    train.main([*command, "--model_name_or_path", str(small_model), *still, "--overwrite", "true"])
    given, taken = weights(tmp_path / "first"), weights(tmp_path / "m")
    assert all(torch.equal(given[name], taken[name]) for name in given if name.endswith("convolution.weight"))
    told = capfd.readouterr().out
    assert told.index(f"first {tmp_path / 'first'}") < told.index(f"starting from {tmp_path / 'first'}")
    assert told.count("50% of the weights are those of the start, whose logits the train part shifts by normal") == 1
    assert yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())["model_name_or_path"] == str(small_model)

    def pretrained(base):
        *_, args, recipe = read_recipe([*command, "--model_name_or_path", str(base)])
        return train._pretrain(recipe, args, True, print)

    older = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    del older["keep_start"]  # of a version that had no such key
    (tmp_path / "first" / "recipe.yaml").write_text(yaml.safe_dump(older))
    assert pretrained(small_model) == tmp_path / "first"
    with pytest.raises(InputError, match="first: found another model than that of .*move it away"):
        pretrained("scratch:resnet-18")
    made = tmp_path / "first" / "eval" / "training.json"
    history = json.loads(made.read_text())
    made.write_text(json.dumps(history | {"phantom": "0123456789ab"}))
    with pytest.raises(InputError, match="first: found a model of the phantom as another version drew it; move"):
        pretrained(small_model)
    split = pd.read_csv(tmp_path / "m" / "split.csv")
    simulated = pd.read_csv(tmp_path / "many" / "metadata.csv")
    besides = split["split"] == "also"
    assert set(split["site"][~besides]) == {"A"}
    before = [pd.read_csv(folder / "split.csv") for folder in (small_model, tmp_path / "first")]
    learned = set().union(*(table["pixels"][table["split"] == "train"] for table in before))
    assert len(learned) > len(simulated) / 2
    assert learned <= set(split["pixels"][split["split"].isin(["train", "also"])])
    assert len(set(split["pixels"][besides])) == len(simulated)
    evaluate.main(
        [str(tmp_path / "m"), "--data", str(tmp_path / "many"), "--sites", simulated["site"][0], "--name", "one"]
    )
    told = json.loads((tmp_path / "m" / "eval" / "one.json").read_text())
    assert (told["seen_in_training"], told["elsewhere"]) == (2, False)
    steps = json.loads((tmp_path / "m" / "trainer_state.json").read_text())["global_step"]
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"trained besides on {tmp_path / 'many'}" in card
    assert f"first trained by {tmp_path / 'first.yaml'}" in card
    assert "1 epochs, the last one kept, 50 % of the weights those of the start; seed" in card
    assert "has seen no person" not in card
    assert metadata_load(tmp_path / "m" / "README.md")["license"] == "other"
    licences = json.loads((tmp_path / "m" / "eval" / "training.json").read_text())["licences"]
    assert set(licences) == {"", "Apache-2.0"}
    assert licences[""] == len(simulated)
    fitted = (split["split"] == "train").sum() + len(simulated)
    assert steps == -(-fitted // 4)
    assert drawn[-1] == {"A", str(tmp_path / "many")}  # simulated sites are drawn as often as one real one
    assert shifted == [drawn[-1]]  # and have as much to say of what is usual
    assert shown[-1] == fitted  # what a view is depends on how many images there are


def test_a_base_is_first_trained_as_the_command_says_and_is_the_same_however_it_was_computed(
    small_home, small_base, tmp_path
):
    first = {"data": str(small_home), "model_name_or_path": "microsoft/resnet-50", "image_size": 32}
    first |= {"num_train_epochs": 1, "output_dir": str(tmp_path / "first")}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))

    def pretrained(*settings):
        command = [PHANTOM, "--pretrain", str(tmp_path / "first.yaml"), "--model_name_or_path", str(small_base)]
        *_, args, recipe = read_recipe([*command, *settings])
        return train._pretrain(recipe, args, False, print)

    checkpoint = tmp_path / ".first.unfinished" / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    (tmp_path / ".first.unfinished" / "run.yaml").write_text("model_name_or_path: another\n")
    with pytest.raises(InputError, match="first.unfinished: a stopped run is there with .* --overwrite true"):
        pretrained()
    shutil.rmtree(tmp_path / ".first.unfinished")
    mode = json.loads((pretrained("--bf16", "true") / "eval" / "training.json").read_text())["mode"]
    assert mode.startswith("bf16 (as asked for), ")
    made = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    assert made["bf16"] is True
    (tmp_path / "first" / "recipe.yaml").write_text(yaml.safe_dump(made | {"use_cpu": False}))  # of another machine
    for settings in ([], ["--bf16", "false"], ["--use_cpu", "true"]):
        assert pretrained(*settings) == tmp_path / "first"
    (tmp_path / "first" / "recipe.yaml").write_text(yaml.safe_dump(made | {"seed": 7}))
    with pytest.raises(InputError, match="first: found another model than that of "):
        pretrained()


def test_folds_side_by_side_train_their_base_once(small_home, small_base, tmp_path, capfd):
    first = {"data": str(small_home), "model_name_or_path": "microsoft/resnet-50", "image_size": 32}
    first |= {"max_steps": 1, "output_dir": str(tmp_path / "first")}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))

    def start():
        command = [PHANTOM, "--pretrain", str(tmp_path / "first.yaml"), "--model_name_or_path", str(small_base)]
        *_, args, recipe = read_recipe(command)
        train._pretrain(recipe, args, False, print)

    folds = [multiprocessing.get_context("fork").Process(target=start) for _ in range(2)]
    for fold in folds:
        fold.start()
    for fold in folds:
        fold.join()
    told = capfd.readouterr().out
    assert [fold.exitcode for fold in folds] == [0, 0]
    assert (told.count(f"first {tmp_path / 'first'}"), told.count(f"starting from {tmp_path / 'first'}")) == (1, 2)


def test_what_a_base_has_learned_from_is_not_taken_for_new(taught_again, small_model, small_home, tmp_path):
    table = pd.read_csv(small_model / "split.csv")
    taught = set(table["pixels"][table["split"] == "train"])
    command = [PHANTOM, "--data", str(small_home), "--output_dir", str(tmp_path / "m"), *SMALL, "--split_seed", "1"]
    command[command.index("scratch:resnet-8-thin")] = str(small_model)
    with pytest.raises(InputError, match=rf"{small_model} was trained on \d+ of \d+ images of the test part, images/"):
        train.main(command)
    assert not (tmp_path / "m").exists()
    split = pd.read_csv(taught_again / "split.csv")
    seen = split["pixels"][split["split"] == "test"].isin(taught).sum()
    assert json.loads((taught_again / "eval" / "test.json").read_text())["seen_in_training"] == seen > 0
    leaks = json.loads((taught_again / "eval" / "audit.json").read_text())["leaks"]
    assert f"{small_model} was trained on {seen} of " in leaks[-1]


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(small_home, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("precious")
    command = [PHANTOM, "--data", str(small_home), "--output_dir", str(tmp_path / "m"), *SMALL]
    with pytest.raises(InputError, match="m exists; choose another --output_dir, or replace it"):
        train.main(command)
    with pytest.raises(InputError, match="m exists; choose another --output_dir"):  # for it is no model folder
        train.main([*command, "--overwrite", "true"])
    for name in ("recipe.yaml", "config.json"):
        (tmp_path / "m" / name).touch()
    with pytest.raises(InputError, match="no such folder"):
        train.main([*command, "--overwrite", "true", "--data", "nowhere"])
    assert (tmp_path / "m" / "mine.txt").read_text() == "precious"


def test_a_place_that_cannot_be_written_is_one_line_at_the_start_and_at_the_end(
    small_home, small_base, tmp_path, monkeypatch
):
    command = [
        PHANTOM,
        "--data",
        str(small_home),
        *SMALL,
        "--model_name_or_path",
        str(small_base),
        "--image_size",
        "32",
    ]
    with pytest.raises(InputError, match="cannot write /proc/m: "):
        train.main([*command, "--output_dir", "/proc/m"])

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "_judge", fill)
    with pytest.raises(InputError, match="cannot write .*/m: .*No space left on device"):
        train.main([*command, "--max_steps", "1", "--output_dir", str(tmp_path / "m")])
    assert not (tmp_path / "m").exists()


def test_a_model_is_not_made_in_the_place_of_a_disk(small_home):
    with pytest.raises(InputError, match="^/proc: a disk is mounted there"):
        train.main([PHANTOM, "--data", str(small_home), "--overwrite", "true", "--output_dir", "/proc"])


def test_two_processes_train_the_model_that_one_trains(small_home, small_base, tmp_path):
    """Also with a last step that is not full and by sharpness-aware steps; they count every validation image once."""
    command = [PHANTOM, "--data", str(small_home), "--model_name_or_path", str(small_base), "--image_size", "32"]
    command += ["--num_train_epochs", "1", "--bf16", "false", "--balance", "class_weight", "--balance_scope", "train"]
    command += ["--sam_rho", "0.05", "--output_dir"]
    train.main([*command, str(tmp_path / "one"), "--per_device_train_batch_size", "16"])
    config = str(RECIPES / "accelerate" / "cpu.yaml")
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "training.train", *command]
        + [str(tmp_path / "two"), "--per_device_train_batch_size", "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("on cpu, 2 process(es)") == 1
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    one, two = (json.loads((tmp_path / name / "eval" / "training.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for epoch, same in zip(one["epochs"], two["epochs"], strict=True):
        assert epoch == pytest.approx(same, rel=1e-5)


def test_an_unfit_base_is_told_of_before_any_image_is_read(tmp_path):
    settings = ["--data", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "m")]
    with pytest.raises(InputError, match=r"^scratch:resnet-7: no such random start"):
        train.main([PHANTOM, *settings, "--model_name_or_path", "scratch:resnet-7"])


def test_a_launch_that_got_fewer_processes_than_it_asked_for_stops(small_phantom, tmp_path, monkeypatch):
    """As with --use_cpu false and no GPU, when transformers would train two models in one place."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched but 1 would train"):
        train.main([PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m"), "--use_cpu", "false"])
    with pytest.raises(InputError, match=r"^2 processes were launched on a machine with 0 GPU\(s\); expected one"):
        require_processes(found=2, here=2, use_cpu=False)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="several processes were asked for but accelerate started one"):
        train.main([PHANTOM, "--data", str(small_phantom), "--output_dir", str(tmp_path / "m")])
    assert os.listdir(tmp_path) == []
