"""push_to_hub: what goes to the Hub while a model is trained, and going on from what is there.

The keys are transformers' own (push_to_hub, hub_model_id, hub_strategy, hub_private_repo, hub_revision), but Trainer is
not told of them: it would write a card of its own, and pickle its arguments, with this machine's paths, beside it.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import transformers
import yaml
from huggingface_hub import HfApi, snapshot_download
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from space.errors import InputError
from training import hub, repositories
from training.arguments import OF_A_RUN
from training.nameless import without_places
from training.outputs import copy_files
from training.push import model_upload, push
from training.repositories import Upload
from training.unfinished import RUN, difference, read_run

LAST, BEST = "last-checkpoint", "best-checkpoint"  # folders in the repository, the first as Trainer calls it
MODEL = ("config.json", "model.safetensors", "preprocessor_config.json")
ABSENT = f"found no {LAST}/ there; a run with hub_strategy: checkpoint has one till its end"
HERE_ONLY = "training_args.bin"
STATE = "trainer_state.json"  # which is written last, so that a checkpoint without it is not whole
PLACES = {  # what a run may have otherwise and still end with the same weights, but for rounding (mode)
    *("data", "external", "also", "output_dir", "report_to", "mode"),
    *OF_A_RUN,  # which stand in recipes of earlier versions
}


class HubSaves(TrainerCallback):
    """After each checkpoint, the model (every_save), or also the checkpoint (checkpoint), as one commit.

    Where the checkpoint holds the head alone, no model is sent, and one that is there stays as it is till the end.
    A push that fails is said and does not end the training; the next one sends what is missing.
    """

    def __init__(self, args: transformers.TrainingArguments, model: Path, recipe: dict, from_hub: dict):
        """Take push_to_hub out of the arguments, and see that the repository is there and can be written to.

        from_hub: what of the recipe's base and images is the Hub's; other folders are not named there.
        Raises InputError when it is not, so before hours of training.
        """
        args.push_to_hub = False
        self.strategy = HubStrategy(args.hub_strategy)
        self.private, self.revision = bool(args.hub_private_repo), args.hub_revision
        self.from_hub, self.recipe = from_hub, yaml.safe_dump(without_places(recipe, from_hub), sort_keys=False)
        if args.hub_token:
            raise InputError("hub_token would stand where others see it; give it as HF_TOKEN, or with hf auth login")
        hub.require_token()
        self.repo = args.hub_model_id or model.name
        if "/" not in self.repo:
            with hub.plainly(f"model {self.repo}"):
                self.repo = f"{HfApi().whoami()['name']}/{self.repo}"
        hub.check_name(self.repo)
        if args.process_index == 0:
            plan = repositories.survey(Upload("model", self.repo, {}), self.revision, self.private)
            repositories.create(plan, self.revision, self.private)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or self.strategy is HubStrategy.END:
            return
        checkpoints = Path(args.output_dir)
        last = checkpoints / f"checkpoint-{state.global_step}"
        recipe = checkpoints / "recipe.yaml"
        recipe.write_text(self.recipe)
        files = {"recipe.yaml": recipe}
        whole = (last / "config.json").is_file()  # which is not there when the head alone is in the checkpoint
        if whole:
            files |= {name: last / name for name in MODEL}
            files |= {path.name: path for path in last.glob("*.py")}  # a head's own code, which config.json names
        elif self.strategy is HubStrategy.EVERY_SAVE:
            return
        if self.strategy is HubStrategy.CHECKPOINT:
            files |= {f"{LAST}/{path.name}": path for path in last.iterdir() if path.name != HERE_ONLY}
            best = Path(state.best_model_checkpoint or last)
            kept = json.loads((last / STATE).read_text()) | {"best_model_checkpoint": best.name}
            (checkpoints / STATE).write_text(json.dumps(kept, indent=2) + "\n")
            run = _placeless(without_places(read_run(checkpoints.parent), self.from_hub))
            (checkpoints / RUN).write_text(yaml.safe_dump(run, sort_keys=False))
            files |= {f"{LAST}/{name}": checkpoints / name for name in (STATE, RUN)}
            if best.name != last.name:
                files[f"{BEST}/model.safetensors"] = best / "model.safetensors"
        try:
            plan = repositories.survey(Upload("model", self.repo, files), self.revision)
            if not whole:  # what is there of a model belongs to its weights
                changed, deleted = map(_of_checkpoints, (plan.changed, plan.deleted))
                plan = dataclasses.replace(plan, changed=changed, deleted=deleted)
            repositories.commit(plan, f"Training in progress, step {state.global_step}", self.revision)
        except InputError as error:
            tqdm.write(f"warning: {error}; the training goes on")

    def push(self, model: Path) -> None:
        """The whole model folder, with its own card, as the last commit, which leaves no checkpoint there."""
        try:
            with tempfile.TemporaryDirectory(prefix="chest-opacity-") as work:
                upload = model_upload(model, self.repo, Path(work))
                push([upload], f"Train {model.name}", self.private, self.revision)
        except InputError as error:
            again = f"chest-opacity push {model} --repo {self.repo}{' --private' if self.private else ''}"
            again += f" --revision {self.revision}" if self.revision else ""
            raise InputError(f"{error}; {model} is whole: {again}") from None


def fetch_start(
    work: Path, args: transformers.TrainingArguments, saves: HubSaves | None, overwrite: bool, from_hub: dict
) -> None:
    """Bring what a run is to go on from into the checkpoints of its unfinished folder, where none is there yet.

    That is the last checkpoint of the repository that resume_from_checkpoint names, or with hub_strategy: checkpoint
    the last one of this very run, unless it is to be given up. from_hub: as HubSaves has it. Raises InputError when
    resume_from_checkpoint has none, or one of another recipe or other images.
    """
    checkpoints = work / "checkpoints"
    if list(checkpoints.glob(f"checkpoint-*/{STATE}")):
        return
    if (repo := args.resume_from_checkpoint) is not None:
        hub.check_name(repo)
        if differs := _fetch(repo, args.hub_revision, work, from_hub):
            raise InputError(f"{repo}: {differs}; name a run of this recipe, or begin anew without it")
    elif saves and saves.strategy is HubStrategy.CHECKPOINT and not overwrite:
        differs = _fetch(saves.repo, saves.revision, work, from_hub)
        if differs and differs != ABSENT:
            print(f"{saves.repo}: {differs}, so training begins anew")


def _of_checkpoints(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith((f"{LAST}/", f"{BEST}/"))]


def _placeless(run: dict) -> dict:
    return {key: value for key, value in run.items() if key not in PLACES}


def _fetch(repo: str, revision: str | None, work: Path, from_hub: dict) -> str | None:
    """Copy a last checkpoint, and the best one's weights, into the unfinished folder; why not, where it cannot be."""
    wanted = [f"{LAST}/*", f"{BEST}/*"]
    with hub.plainly(f"model {repo}"):
        fetched = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        if not (fetched / LAST / STATE).is_file():
            return ABSENT
        before, run = read_run(fetched / LAST), without_places(read_run(work), from_hub)
        if differs := difference(_placeless(before), _placeless(run)):
            return f"the last checkpoint is of a run with {differs}"
        state = json.loads((fetched / LAST / STATE).read_text())
        checkpoints = work / "checkpoints"
        last = checkpoints / f"checkpoint-{state['global_step']}"
        best = checkpoints / Path(state["best_model_checkpoint"] or last).name
        if best != last:
            copy_files(fetched / BEST, best)
        copy_files(fetched / LAST, last)
        state["best_model_checkpoint"] = str(best)
        (last / STATE).write_text(json.dumps(state, indent=2) + "\n")
    print(f"going on from step {state['global_step']}, the last checkpoint of {repo}")
    return None
