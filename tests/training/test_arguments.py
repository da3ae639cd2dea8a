import re

import pytest
import torch
import yaml

from space.errors import InputError
from tests.conftest import RECIPES
from training.arguments import TrainingArguments, read_recipe


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return write


def test_the_command_line_wins_over_the_file(recipe):
    file = recipe("data: here\nmodel_name_or_path: scratch:resnet-18\nlearning_rate: 1.0e-3\nsites: [A, B]\n")
    data_args, model_args, training_args, in_force = read_recipe([file, "--learning_rate", "5e-4", "--image_size=96"])
    assert data_args.sites == ["A", "B"]
    assert model_args.image_size == 96
    assert training_args.learning_rate == 5e-4
    assert in_force["learning_rate"] == 5e-4
    assert in_force["image_size"] == 96
    assert in_force["data"] == "here"


@pytest.mark.parametrize("given", [[], ["--report_to", "none"], ["--report_to", "all"], ["--fsdp", "full_shard"]])
def test_the_recipe_in_force_read_again_is_the_same(recipe, monkeypatch, given):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # as fsdp sets it, for all that follows
    first = read_recipe([str(RECIPES / "study.yaml"), "--data", "here", *given])
    again = read_recipe([recipe(yaml.safe_dump(first[3]))])
    assert again == first


def test_a_recipe_without_a_model_folder_is_in_force_with_the_one_that_is_made(recipe):
    file = recipe("data: here\nmodel_name_or_path: scratch:resnet-18\n")
    in_force = read_recipe([file])[-1]
    assert in_force["output_dir"] == "models/new"
    assert in_force == read_recipe([file, "--output_dir", "models/new"])[-1]


def test_the_recipe_in_force_says_nothing_of_the_run_alone():
    """Or who makes the model again from its folder would push it in the place of the first."""
    given = ["--overwrite", "true", "--push_to_hub", "true", "--hub_model_id", "user/name", "--hub_strategy", "end"]
    given += ["--hub_private_repo", "true", "--hub_revision", "next", "--resume_from_checkpoint", "user/other"]
    file = [str(RECIPES / "study.yaml"), "--data", "here"]
    *_, args, in_force = read_recipe([*file, *given])
    assert (args.push_to_hub, args.hub_model_id, args.resume_from_checkpoint) == (True, "user/name", "user/other")
    assert in_force == read_recipe(file)[-1]


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_can_be_read(file):
    data_args, *_ = read_recipe([str(file), "--data", "here"])
    assert data_args.data == "here"


def test_the_study_is_what_was_published():
    data_args, model_args, training_args, _ = read_recipe([str(RECIPES / "study.yaml"), "--data", "here"])
    assert (model_args.model_name_or_path, model_args.freeze, model_args.image_size) == ("google/bit-50", "all", 150)
    assert (data_args.split_by, data_args.balance, model_args.augment) == ("image", "undersample", "none")
    assert (training_args.num_train_epochs, training_args.per_device_train_batch_size) == (70, 32)
    assert (training_args.learning_rate, training_args.weight_decay) == (1e-4, 0)
    assert training_args.lr_scheduler_type == "reduce_lr_on_plateau"
    assert training_args.lr_scheduler_kwargs == {"mode": "min", "factor": 0.2, "patience": 1}
    assert training_args.metric_for_best_model == "loss"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("lerning_rate: 1\n", [], "unknown key lerning_rate; did you mean learning_rate?"),
        ("", ["--lerning_rate", "1"], "command line: unknown key lerning_rate; did you mean learning_rate?"),
        ("learning_rate: fast\n", [], "invalid float value: 'fast'"),
        ("report_to: nonsense\n", ["--data", "x", "--model_name_or_path", "y"], "nonsense is not supported"),
        ("balance: smote\n", [], "argument --balance: invalid choice: 'smote'"),
        ("hub_strategy: all_checkpoints\n", [], "argument --hub_strategy.*: invalid choice: 'all_checkpoints'"),
        ("", [], "the following arguments are required: --data"),
        ("- a\n- b\n", [], "found a list, expected lines of key: value"),
        ("1: 2\n", [], "unknown key 1; chest-opacity train --help lists them all"),
        ("a: [\n", [], "no YAML that can be read"),
        ("folds: 1\n", ["--data", "x", "--model_name_or_path", "y"], "folds: found 1, expected at least 2"),
        ("fold: 2\n", ["--data", "x", "--model_name_or_path", "y"], "fold: found 2, expected folds to say of how many"),
        ("folds: 3\nfold: 3\n", ["--data", "x", "--model_name_or_path", "y"], "fold: found 3, expected 0 to 2"),
        (
            "balance: oversample\nbalance_scope: all\n",
            ["--data", "x", "--model_name_or_path", "y"],
            "balance_scope: found all, expected train where oversample makes copies",
        ),
        ("seed: -1\n", ["--data", "x", "--model_name_or_path", "y"], "seed: found -1, expected at least 0"),
        (
            "metric_for_best_model: f1\n",
            ["--data", "x", "--model_name_or_path", "y"],
            "found f1, expected loss",
        ),
        ("head_learning_rate: -1\n", ["--data", "x", "--model_name_or_path", "y"], "found -1.0, expected at least 0"),
        ("save_only_model: true\n", ["--data", "x", "--model_name_or_path", "y"], "found True, expected false"),
        ("prediction_loss_only: true\n", ["--data", "x", "--model_name_or_path", "y"], "found True, expected false"),
        ("keep_start: 1\n", ["--data", "x", "--model_name_or_path", "y"], "found 1.0, expected from 0 to below 1"),
        (
            "keep_start: 0.5\n",
            ["--data", "x", "--model_name_or_path", "scratch:resnet-18"],
            "model_name_or_path: found scratch:resnet-18, expected a base that has learned, with keep_start",
        ),
        ("layer_decay: 0\n", ["--data", "x", "--model_name_or_path", "y"], "found 0.0, expected more than 0"),
        ("num_train_epochs: 0\n", ["--data", "x", "--model_name_or_path", "y"], "found 0.0, expected more than 0"),
        ("label_smoothing_factor: 2\n", ["--data", "x", "--model_name_or_path", "y"], "found 2.0, expected 0 to 1"),
        ("early_stopping_patience: 0\n", ["--data", "x", "--model_name_or_path", "y"], "found 0, expected at least 1"),
        ("gradient_accumulation_steps: 0\n", ["--data", "x", "--model_name_or_path", "y"], "expected at least 1"),
        (
            "eval_strategy: steps\neval_steps: 2\nsave_strategy: steps\nsave_steps: 6\n",
            ["--data", "x", "--model_name_or_path", "y"],
            "save_steps: found 6, expected 2 as eval_steps: any may be the best",
        ),
        ("save_total_limit: 1\n", ["--data", "x", "--model_name_or_path", "y"], "found 1, expected at least 2"),
        (
            "lr_scheduler_type: reduce_lr_on_plateau\nmetric_for_best_model: roc_auc\n",
            ["--data", "x", "--model_name_or_path", "y"],
            "mode of lr_scheduler_kwargs: found min, expected max with metric_for_best_model roc_auc",
        ),
        (
            "lr_scheduler_type: greedy\nlr_scheduler_kwargs: {mode: max}\n",
            ["--data", "x", "--model_name_or_path", "y"],
            "mode of lr_scheduler_kwargs: found max, expected min with metric_for_best_model loss",
        ),
        ("test_share: 0.9\n", ["--data", "x", "--model_name_or_path", "y"], "shares that leave a train part"),
        ("save_strategy: steps\n", ["--data", "x", "--model_name_or_path", "y"], "requires the save and eval strategy"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_in_one_line(recipe, text, arguments, message):
    with pytest.raises(InputError, match=message) as refusal:
        read_recipe([recipe(text), *arguments])
    assert "\n" not in str(refusal.value)


def test_the_help_lists_nothing_but_keys_that_a_recipe_may_say(capsys):
    with pytest.raises(SystemExit):
        read_recipe(["--help"])
    listed = re.findall(r"(?<![\w-])--[\w-]+", capsys.readouterr().out.partition("options:")[2])
    assert {"--strict", "--hub_strategy", "--learning_rate"} < set(listed)
    assert not {"--hub_token", "--save_only_model", "--label_names"} & set(listed)
    with pytest.raises(InputError, match="unknown key the_last_one"):
        read_recipe([str(RECIPES / "study.yaml"), *listed, "--the_last_one"])


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="absent.yaml: no such recipe"):
        read_recipe(["absent.yaml"])
    with pytest.raises(InputError, match="found no recipe"):
        read_recipe([])


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("eval_loss", "min")])
def test_a_rate_may_fall_once_the_best_metric_is_no_longer_getting_better(recipe, metric, mode):
    file = recipe(f"lr_scheduler_type: reduce_lr_on_plateau\nlr_scheduler_kwargs: {{mode: {mode}}}\n")
    given = ["--data", "x", "--model_name_or_path", "y", "--metric_for_best_model", metric]
    assert read_recipe([file, *given])[2].lr_scheduler_kwargs == {"mode": mode}


@pytest.mark.parametrize(("gpus", "told"), [(1, False), (4, True)])
def test_one_process_trains_on_one_gpu_and_says_that_the_others_are_idle(tmp_path, monkeypatch, gpus, told):
    """Or the batch would be as many times as large, and the loss, which is divided by it already, too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=False, per_device_train_batch_size=8)
    assert (args.n_gpu, args.train_batch_size) == (1, 8)
    assert (args.device.type, args.n_gpu) == ("cpu", 1)  # also where the device is asked for again
    assert ("1 of 4 GPUs, the others idle (" in args.mode) == told
