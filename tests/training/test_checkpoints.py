"""push_to_hub: the Hub while a model is trained, and a start from there, over HTTP with the unmodified client."""

import json
import os
import shutil

import pytest
import yaml
from huggingface_hub.repocard import metadata_load

from tests.conftest import RECIPES, ROOT, SMALL
from tests.hub import OWNER, READER, Fault
from tests.training.test_push import as_pushed, held, local_files, titles
from training.arguments import ModelArguments
from training.model import load_base

pytestmark = pytest.mark.xdist_group("hub")

CHECKPOINT = ["config.json", "model.safetensors", "optimizer.pt", "preprocessor_config.json", "rng_state.pth"]
CHECKPOINT += ["run.yaml", "scheduler.pt", "trainer_state.json"]


def command(data, repo, *settings):
    recipe = ["train", RECIPES / "phantom.yaml", "--data", data, "--output_dir", "m", *SMALL]
    return [*map(str, recipe), "--push_to_hub", "true", "--hub_model_id", repo, *settings]


STOPPED = """
import os, signal, torch
from training import train

def stopped(*arguments, count=iter(range(1, 100)), step=torch.optim.AdamW.step, **settings):
    if next(count) == 3:
        signal.raise_signal(signal.SIGTERM)
    return step(*arguments, **settings)

os.chdir({folder!r})
step, torch.optim.AdamW.step = torch.optim.AdamW.step, stopped
try:
    train.main({words!r})
except KeyboardInterrupt:
    print("stopped")
finally:
    torch.optim.AdamW.step = step
"""


def test_a_run_that_was_stopped_goes_on_elsewhere_from_the_hub_and_ends_with_the_same_weights(
    hub, client, small_home, small_model, tmp_path
):
    words = command(small_home, "clinic/run", "--hub_strategy", "checkpoint")
    for place in ("Doe_ward", "elsewhere"):
        (tmp_path / place).mkdir()
    there = ["--output_dir", str(tmp_path / "Doe_ward" / "m")]
    told = client.read(STOPPED.format(folder=str(tmp_path / "Doe_ward"), words=words[1:] + there))
    assert "stopping after step 3" in told
    assert told.endswith("stopped\n")
    repository = hub.repository("model", "clinic/run")
    last = {f"last-checkpoint/{name}" for name in CHECKPOINT}
    begun = {".gitattributes", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml"}
    assert repository.files().keys() - {"best-checkpoint/model.safetensors"} == begun | last
    told = [yaml.safe_load(repository.read(name)) for name in ("recipe.yaml", "last-checkpoint/run.yaml")]
    assert [one.get("data") for one in told] == ["DATA", None]
    assert not [name for name, content in held(repository).items() if b"Doe_ward" in content]
    hub.asked.clear()
    example = ROOT / "space" / "examples" / "synthetic-normal.png"
    assert client.run("predict", "clinic/run", example, "--output", tmp_path / "out.csv").code == 0
    assert not [one for one in hub.asked if "-checkpoint/" in one.path]

    told = client.run(*words, cwd=tmp_path / "elsewhere")
    assert told.code == 0, told.err
    assert "the last checkpoint of clinic/run" in told.out
    model = tmp_path / "elsewhere" / "m"
    assert (model / "model.safetensors").read_bytes() == (small_model / "model.safetensors").read_bytes()
    assert os.listdir(tmp_path / "elsewhere") == ["m"]
    assert held(repository) == as_pushed(model, repository.name)  # there is nothing left to go on from
    steps = [f"Training in progress, step {step}" for step in (4, 3, 2)]
    assert titles(repository) == ["Train m", *steps, "initial commit"]
    client.read("from training.hub import model_folder; model_folder('clinic/run')")
    assert local_files(client.here / "models" / "run") == as_pushed(model, repository.name)


SAVE = """
from pathlib import Path
from types import SimpleNamespace
from training.checkpoints import HubSaves

args = SimpleNamespace(output_dir=CHECKPOINTS, hub_strategy=STRATEGY, hub_model_id=REPO, hub_private_repo=None)
args = SimpleNamespace(**vars(args), hub_revision=None, hub_token=None, process_index=0)
best = CHECKPOINTS + "/checkpoint-1"
state = SimpleNamespace(is_world_process_zero=True, global_step=2, best_model_checkpoint=best)
HubSaves(args, Path("m"), RECIPE, {"base": None, "data": None}).on_save(args, state, None)
"""


def save(client, folder, repo, strategy, run):
    """What HubSaves sends of a handmade checkpoint, whose head alone was trained; what trainer_state.json holds."""
    checkpoints = folder / "checkpoints"
    for number in (1, 2):
        (checkpoints / f"checkpoint-{number}").mkdir(parents=True, exist_ok=True)
        (checkpoints / f"checkpoint-{number}" / "model.safetensors").write_bytes(b"head")
    told = {"global_step": 2, "best_model_checkpoint": str(checkpoints / "checkpoint-1")}
    (checkpoints / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(told))
    (folder / "run.yaml").write_text(yaml.safe_dump(run | {"seed": 1}))
    given = (str(checkpoints), repo, strategy, run)
    client.read(f"CHECKPOINTS, REPO, STRATEGY, RECIPE = {given}\n{SAVE}")
    return told


def test_a_checkpoint_on_the_hub_names_no_folder_of_this_machine(hub, client, tmp_path):
    run = {"model_name_or_path": "/Doe/lus", "pretrain": "/Doe/first.yaml"}
    told = save(client, tmp_path, "clinic/nameless", "checkpoint", run)
    there = held(hub.repository("model", "clinic/nameless"))
    nameless = {"model_name_or_path": "lus", "pretrain": "first.yaml"}
    assert yaml.safe_load(there["recipe.yaml"]) == nameless
    assert yaml.safe_load(there["last-checkpoint/run.yaml"]) == nameless | {"seed": 1}
    assert json.loads(there["last-checkpoint/trainer_state.json"]) == told | {"best_model_checkpoint": "checkpoint-1"}


def test_checkpoints_of_a_head_alone_leave_the_model_that_is_there_as_it_is(hub, client, small_model, tmp_path):
    repository = hub.add("model", "clinic/model", small_model)
    repository.commit("main", "older", {"last-checkpoint/older.bin": repository.keep(b"older")}, [], "clinic")
    save(client, tmp_path, "clinic/model", "every_save", {})
    assert titles(repository)[0] == "older"
    save(client, tmp_path, "clinic/model", "checkpoint", {})
    there = held(repository)
    last = {f"last-checkpoint/{name}" for name in ("model.safetensors", "run.yaml", "trainer_state.json")}
    last |= {"best-checkpoint/model.safetensors"}
    assert there.keys() - last == local_files(small_model).keys()
    assert {name: there[name] for name in there.keys() - last} == local_files(small_model)


def test_a_head_s_own_code_goes_with_each_checkpoint_of_the_whole_model(hub, client, tmp_path):
    settings = ModelArguments("scratch:resnet-8-thin", image_size=32, head="mlp")
    for part in load_base(settings, ["normal", "sick"]):
        part.save_pretrained(tmp_path / "checkpoints" / "checkpoint-2")
    save(client, tmp_path, "clinic/head", "every_save", {})
    there = held(hub.repository("model", "clinic/head"))
    named = json.loads(there["config.json"])["auto_map"]["AutoModelForImageClassification"]
    assert f"{named.partition('.')[0]}.py" in there


FETCH = """
from pathlib import Path
from types import SimpleNamespace
from transformers.trainer_utils import HubStrategy
from space.errors import InputError
from training.checkpoints import fetch_start
from training.unfinished import last_checkpoint, unfinished

for work, run, named, overwrite in CASES:
    with unfinished(Path(work), run, False):
        saves = SimpleNamespace(repo="clinic/left", revision=None, strategy=HubStrategy.CHECKPOINT)
        try:
            args = SimpleNamespace(resume_from_checkpoint=named, hub_revision=None)
            fetch_start(Path(work), args, saves, overwrite, {})
        except InputError as error:
            print(error)
    print(last_checkpoint(Path(work) / "checkpoints"))
"""


def test_only_the_same_run_goes_on_from_the_hub(hub, client, tmp_path):
    """On another machine and from another folder too; but not with other labels, nor when it is to be begun anew."""
    run = {"seed": 1, "labels": "a", "mode": "float32", "data": "here", "model_name_or_path": "lus"}
    (tmp_path / "left" / "last-checkpoint").mkdir(parents=True)
    for name, told in (("run.yaml", run), ("trainer_state.json", {"global_step": 7, "best_model_checkpoint": None})):
        (tmp_path / "left" / "last-checkpoint" / name).write_text(json.dumps(told))
    hub.add("model", "clinic/left", tmp_path / "left")

    going_on = "going on from step 7, the last checkpoint of clinic/left"
    differs = "clinic/left: the last checkpoint is of a run with labels: a where this one has b"
    cases = {
        "same": ({"mode": "bf16", "model_name_or_path": "models/lus"}, None, False, going_on),
        "labels": ({"labels": "b"}, None, False, f"{differs}, so training begins anew"),
        "anew": ({}, None, True, None),
        "moved": ({"data": "there"}, "clinic/left", False, going_on),
        "named": (
            {"labels": "b"},
            "clinic/left",
            False,
            f"{differs}; name a run of this recipe, or begin anew without it",
        ),
    }
    given = [(str(tmp_path / name), run | other, *how) for name, (other, *how, _) in cases.items()]
    told, expected = client.read(f"CASES = {given}\n{FETCH}").splitlines(), []
    for name, (*_, line) in cases.items():
        checkpoint = str(tmp_path / name / "checkpoints" / "checkpoint-7") if line == going_on else "None"
        expected += [line, checkpoint] if line else [checkpoint]
    assert told == expected


def test_every_save_ends_with_the_project_s_card_whatever_the_network_does(hub, client, small_home, tmp_path):
    hub.faults = [Fault("/commit/", 500), Fault("validate-yaml", 500)]  # a checkpoint's commit, and that of the card
    words = command(
        small_home, "clinic/saves", "--hub_private_repo", "true", "--hub_revision", "next", "--image_size", "32"
    )
    told = client.run(*words, cwd=tmp_path)
    assert told.code == 1
    assert (
        "warning: model clinic/saves: the Hub is at fault; try again later (500: no); the training goes on" in told.out
    )
    again = told.line.rpartition("m is whole: chest-opacity ")[2]
    assert again == "push m --repo clinic/saves --private --revision next"
    assert client.run(*again.split(), cwd=tmp_path).code == 0
    repository = hub.repository("model", "clinic/saves")
    assert held(repository, "next") == as_pushed(tmp_path / "m", repository.name)
    steps = yaml.safe_load((tmp_path / "m" / "eval" / "training.json").read_text())["epochs"][-1]["step"]
    assert titles(repository, "next") == ["Push m", f"Training in progress, step {steps}", "initial commit"]
    assert repository.state["private"]


def test_a_run_from_a_model_of_the_hub_is_pushed_at_its_end_and_has_seen_whom_that_has(
    hub, client, small_home, small_model, tmp_path
):
    base = shutil.copytree(small_model, tmp_path / "base")
    told = json.loads((base / "eval" / "training.json").read_text())
    (base / "eval" / "training.json").write_text(json.dumps(told | {"synthetic": False}))
    hub.add("model", "clinic/base", base)
    settings = ["--model_name_or_path", "clinic/base", "--hub_strategy", "end"]
    settings += ["--num_train_epochs", "1", "--image_size", "32"]
    told = client.run(*command(small_home, "end", *settings), cwd=tmp_path)
    assert told.code == 0, told.err
    repository = hub.repository("model", "clinic/end")
    assert titles(repository) == ["Train m", "initial commit"]
    local, there = as_pushed(tmp_path / "m", repository.name), held(repository)
    assert there.keys() == local.keys() - {"eval/samples.png"}
    named = {"README.md", "report.html", "recipe.yaml", "split.csv", "eval/audit.json", "eval/test.csv"}
    assert {name for name in there if there[name] != local[name]} == named
    card = metadata_load(tmp_path / "m" / "README.md")
    assert (card["base_model"], card["license"]) == ("clinic/base", "other")
    assert "synthetic" not in card["tags"]
    assert "has seen no person" not in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "token", "message"),
    [
        ([], "", "found no token for the Hub"),
        ([], READER, "the token may not do this: it only reads"),
        (["--hub_token", "hf_seen"], OWNER, "hub_token would stand where others see it"),
        (["--resume_from_checkpoint", "clinic/gated"], OWNER, "clinic/gated: found no last-checkpoint/ there"),
        (["--model_name_or_path", "other/gated"], OWNER, "You are trying to access a gated repo"),
    ],
)
def test_a_run_that_cannot_reach_what_it_needs_ends_in_one_line(
    hub, client, small_home, small_model, tmp_path, settings, token, message
):
    for user in ("clinic", "other"):
        if not hub.repository("model", f"{user}/gated"):
            hub.add("model", f"{user}/gated", small_model, gated="manual")
    told = client.run(*command(small_home, "clinic/never", *settings), token=token, cwd=tmp_path)
    assert told.code == 1
    assert told.line.startswith("error: ")
    assert message in told.line
    assert not (tmp_path / "m").exists()
    assert ROOT.as_posix() not in told.line
