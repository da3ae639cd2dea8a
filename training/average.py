"""The verb average: from the model folders of a cross-validation the one to use, by the mean of their weights.

    chest-opacity average models/fold-[0-4] --data FOLDER --output models/mean

Networks that were trained from one start can be averaged, weight by weight, into a network like any other, which
holds up better on images from elsewhere than they do (Wortsman et al., Model soups, ICML 2022). This one has learned
from all images or nearly all, so none are left to measure it on. What stands in its folder as the evaluation `folds`
is what each of the networks said of its own test part; calibration and threshold are taken from the same answers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import concatenate_datasets
from scipy.special import log_softmax
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from space.abstention import Abstention
from space.errors import InputError
from space.predictor import Predictor
from training.calibration import Calibration
from training.card import write_card
from training.checkpoints import PLACES
from training.cli import Parser, run
from training.evaluate import report, rows_of_folds, select_rows
from training.groups import with_groups
from training.learned import ALSO
from training.measure import measure
from training.outputs import new_folder, read_again, read_split, refuse_existing, require_model_folder
from training.report import write_report
from training.settle import decide, evenly, look_at, save
from training.sources import load_data
from training.train import COMPUTED, PICKED

NAME = "folds"  # of the evaluation
MOST_LOSS = 1.1  # of the mean on images it was trained on, for 1 of the networks on others
OWN = {  # what may differ between the recipes
    *("fold", "test_site", "seed", "run_name", "project", "disable_tqdm", "logging_strategy", "logging_first_step"),
    *(PLACES - {"data", "external", "also"}),
    *COMPUTED,
    *PICKED,
}
NEEDED = ("recipe.yaml", "split.csv", "model.safetensors", "eval/training.json")
TAKEN = ("config.json", "preprocessor_config.json", "recipe.yaml", "*.py", "eval/audit.json")


def average(folders: Sequence[Path], data: str, output: Path) -> tuple[list[str], dict]:
    """Make the model folder `output`; return what was decided, a line each, and the evaluation of the folds.

    folders: of one recipe with other test parts, all trained from one start. data: what they were trained with. Raises
    InputError when they are not, or when their mean is worse on images it was trained on than they are on others.
    """
    recipe = _recipe_of_all(folders)
    predictors = [Predictor(folder) for folder in folders]
    predictor = predictors[0]
    rows = with_groups(load_data(data, predictor.labels))
    parts = rows_of_folds(folders, select_rows(rows, folders[0], None, recipe["sites"]), None)
    rows = concatenate_datasets(parts)
    logits = np.concatenate([look_at(each, part)[0] for each, part in zip(predictors, parts, strict=True)])
    # Without avg_fn, torch goes another way on a GPU, by which the counts of batch norm have no mean.
    mean = AveragedModel(predictor.model, avg_fn=get_swa_avg_fn(), use_buffers=True)
    for each in predictors:
        mean.update_parameters(each.model)
    predictor.model.load_state_dict(mean.module.state_dict())

    with new_folder(output) as work:
        for file in [found for pattern in TAKEN for found in folders[0].glob(pattern)]:
            copy = work / file.relative_to(folders[0])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        where = f"test parts of the {len(folders)} folds"
        lines = decide(predictor, logits, rows, where, recipe["threshold"], recipe["calibrate"])
        seen, features = look_at(predictor, rows)
        _require_as_good(predictor, np.asarray(rows["label"]), seen, logits)
        held = len(parts[0])  # images whose distances from the others tell what is usual
        rest = held + evenly(len(rows) - held)
        save(predictor, Abstention.fit([each[rest] for each in features], [each[:held] for each in features]), work)
        _write_split(folders, work)
        _write_history(folders, work, output.name)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            first = shutil.copytree(folders[0], Path(scratch) / "first", ignore=shutil.ignore_patterns("eval"))
            own, *others = parts
            result = measure(first, own, NAME, folds=list(zip(folders[1:], others, strict=True)))
            for file in (first / "eval").iterdir():
                shutil.copy(file, work / "eval" / file.name)
        write_card(work, output)
        write_report(work)
    return lines, result


def _recipe_of_all(folders: Sequence[Path]) -> dict:
    if len(folders) < 2:
        raise InputError("found one model folder; expected those of several folds")
    first = {}
    for folder in folders:
        require_model_folder(folder, *NEEDED)
        recipe = read_again(folder / "recipe.yaml")
        first = first or recipe
        if differs := [key for key in first | recipe if key not in OWN and first.get(key) != recipe.get(key)]:
            key = differs[0]
            raise InputError(
                f"{folder}: found {key}: {recipe.get(key)} where {folders[0]} has {first.get(key)}; expected folds of "
                "one recipe"
            )
    return first


def _require_as_good(predictor: Predictor, truth: np.ndarray, seen: np.ndarray, others: np.ndarray) -> None:
    """Raise InputError when the mean is no network, as of weights that were not trained from one start.

    seen, others: logits (images, classes), of the mean, and of the networks before they were calibrated together.
    """
    calibration = Calibration.from_dict(predictor.model.config.calibration)
    here, there = (
        -log_softmax(each, axis=1)[np.arange(len(truth)), truth].mean() for each in (seen, calibration.apply(others))
    )
    if here > MOST_LOSS * there:
        raise InputError(
            f"the mean of these weights has a loss of {here:.3f} on images that it was trained on, where the networks "
            f"have {there:.3f} on others: give folds that were trained from one model, as with the key pretrain"
        )


def _write_split(folders: Sequence[Path], work: Path) -> None:
    listed = pd.concat(map(read_split, folders))
    besides = listed["split"] == ALSO
    split = listed[~besides]
    learned = split["path"].isin(split["path"][split["split"] == "train"])
    # Of few folds, some images may be in no train part.
    split = split.assign(split=np.where(learned, "train", "validation")).drop_duplicates("path")
    split = pd.concat([split, listed[besides].drop_duplicates("pixels")]).sort_values("path", kind="stable")
    split.to_csv(work / "split.csv", index=False, lineterminator="\n")


def _write_history(folders: Sequence[Path], work: Path, name: str) -> None:
    told = [read_again(folder / "eval" / "training.json") for folder in folders]
    told[0] |= {"name": name, "averaged": len(told), "seconds": sum(each["seconds"] for each in told)}
    (work / "eval" / "training.json").write_text(json.dumps(told[0], indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity average", description="Make one model folder of those of a cross-validation.")
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="+", help="the model folders of all folds")
    parser.add_argument("--data", required=True, help="what they were trained with")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to make")
    args = parser.parse_args(argv)
    refuse_existing(args.output, "choose another --output")
    lines, result = average(args.models, args.data, args.output)
    print("\n".join([*lines, "", report(result)]))
    print(f"\nmodel folder: {args.output}; measure it on images from elsewhere with chest-opacity evaluate")


if __name__ == "__main__":
    run(main)
