"""The model card: rendered from the model folder, never typed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from training.outputs import new_file

HERE = Path(__file__).parent
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def write_card(folder: Path) -> None:
    """Render README.md of a model folder from its config, recipe, split and evaluations."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    split = pd.read_csv(folder / "split.csv", dtype=str, keep_default_na=False)
    config = json.loads((folder / "config.json").read_text())
    training = json.loads((folder / "eval" / "training.json").read_text())
    audit = json.loads((folder / "eval" / "audit.json").read_text())
    files = sorted((folder / "eval").glob("*.json"), key=lambda file: (file.stem != "test", file.stem))
    evaluations = [json.loads(file.read_text()) for file in files if file.stem not in {"training", "audit"}]
    base = recipe["model_name_or_path"]
    name = training["name"]
    data = ModelCardData(
        model_name=name,
        license="apache-2.0" if training["synthetic"] else "other",
        license_name=None if training["synthetic"] else "that-of-the-training-data",
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=None if base.startswith("scratch:") or Path(base).exists() else base,
        metrics=["accuracy", "roc_auc"],
        tags=["chest", "lung-ultrasound", "chest-x-ray", "medical", *(["synthetic"] if training["synthetic"] else [])],
        eval_results=_eval_results(evaluations) or None,
    )
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    card = ModelCard.from_template(
        data,
        template_path=str(find_template("model_card.md")),
        name=name,
        labels=labels,
        threshold=config["threshold"],
        recipe=recipe,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False).strip(),
        training=training,
        audit=audit,
        parts=_parts(split, labels),
        evaluations=evaluations,
        titles=TITLES,
        figure=_figure,
    )
    with new_file(folder / "README.md") as file:
        file.write_text(str(card))


def find_template(name: str) -> Path:
    """A card's template: beside the packages in a checkout, inside this one when installed."""
    return next(path for path in (HERE.parent / name, HERE / name) if path.is_file())


def _eval_results(evaluations: list[dict]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="phantom" if evaluation["synthetic"] else "imagefolder",
            dataset_name=evaluation["name"],
            dataset_split=evaluation["name"],
            metric_type=metric,
            metric_name=title,
            metric_value=round(evaluation[metric], 4),
            metric_args={"ci95": [round(bound, 4) for bound in evaluation["ci95"][metric]]},
        )
        for evaluation in evaluations
        for metric, title in TITLES.items()
        if evaluation[metric] is not None
    ]


def _parts(split: pd.DataFrame, labels: list[str]) -> list[dict]:
    return [
        {
            "name": part,
            "counts": [int((rows["label"] == label).sum()) for label in labels],
            "groups": rows["group"].nunique(),
        }
        for part in ("train", "validation", "test")
        for rows in [split[split["split"] == part]]
    ]


def _figure(evaluation: dict, metric: str, of: str | None = None) -> str:
    """A number with its interval as it stands in the card's tables."""
    value, interval = evaluation[metric], evaluation["ci95"][metric]
    if of is not None:
        value, interval = value[of], interval[of]
    return "not defined" if value is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
