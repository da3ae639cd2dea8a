"""The model card: rendered from the model folder, never typed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from space.card import HOME
from space.words import in_digits
from training.outputs import EXPORTS, labels_of, new_file, read_again, read_evaluations, read_split
from training.tables import whose

HERE = Path(__file__).parent
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "AUC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "ece": "expected calibration error",
}
MOST_SUBGROUPS = 20  # of a column (sites, findings) that are told apart where people read
ENOUGH = 12  # groups of a class under which 95 % intervals are too narrow
WATTS = {"cpu": 100, "cuda": 400}  # assumed for each process with what is around it; others count as a processor
GRAMS_PER_KWH = 475  # of CO2, the world's mean (International Energy Agency, Global energy & CO2 status report 2019)


def gather(folder: Path) -> dict:
    """All that card and report tell, from the files of a model folder."""
    recipe = read_again(folder / "recipe.yaml")
    config = read_again(folder / "config.json")
    training, audit = (read_again(folder / "eval" / f"{name}.json") for name in ("training", "audit"))
    evaluations = sorted(read_evaluations(folder).values(), key=lambda each: (each["name"] not in HOME, each["name"]))
    exports = [read_again(file) for file in sorted((folder / "eval").glob("*.json")) if file.stem in EXPORTS]
    labels = labels_of(folder)
    hours = training["seconds"] / 3600 * training["processes"]
    return {
        "name": training["name"],
        "labels": labels,
        "config": config,
        "threshold": config.get("threshold", 0.5),
        "recipe": recipe,
        "recipe_text": yaml.safe_dump(recipe, sort_keys=False).strip(),
        "training": training,
        "audit": audit,
        "parts": _parts(read_split(folder), labels),
        "evaluations": evaluations,
        "exports": exports,
        "titles": _titles(labels),
        "figure": _figure,
        "between": _between,
        "plain": plain,
        "in_digits": in_digits,
        "elsewhere": any(each.get("elsewhere", each["name"] not in HOME) for each in evaluations),
        "few": [each["name"] for each in evaluations if each.get("fewest_groups", ENOUGH) < ENOUGH],
        "enough": ENOUGH,
        "most_subgroups": MOST_SUBGROUPS,
        "grams": hours * WATTS.get(training["device"], WATTS["cpu"]) / 1000 * GRAMS_PER_KWH,
        "watts": WATTS.get(training["device"], WATTS["cpu"]),
        "grams_per_kwh": GRAMS_PER_KWH,
    }


def _titles(labels: list[str]) -> dict[str, str]:
    return {name: title + whose(name, labels) for name, title in TITLES.items()}


def write_card(folder: Path, place: Path | None = None) -> None:
    """Render README.md of a model folder from its config, recipe, split and evaluations.

    place: where its example of use finds the folder; by default where the recipe put it.
    """
    told = gather(folder)
    told["place"] = place or told["recipe"]["output_dir"]
    synthetic, base = told["training"]["synthetic"], told["recipe"]["model_name_or_path"]
    from_hub = told["training"].get("from_hub", {})
    of_others = "the-training-data" if base.startswith("scratch:") else "the-base-and-the-training-data"
    data = ModelCardData(
        model_name=told["name"],
        license="apache-2.0" if synthetic else "other",
        license_name=None if synthetic else f"that-of-{of_others}",
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=from_hub.get("base"),
        datasets=from_hub.get("data"),
        metrics=["accuracy", "roc_auc"],
        tags=["chest", "lung-ultrasound", "chest-x-ray", "medical", *(["synthetic"] if synthetic else [])],
        co2_eq_emissions={
            "emissions": round(told["grams"], 2),
            "source": f"estimate: {told['watts']} W for each process, {GRAMS_PER_KWH} g/kWh",
            "training_type": "from scratch" if base.startswith("scratch:") else "fine-tuning",
        },
        eval_results=_eval_results(told["evaluations"]) or None,
    )
    with new_file(folder / "README.md") as file:
        file.write_text(str(ModelCard.from_template(data, template_path=str(find_template("model_card.md")), **told)))


def find_template(name: str) -> Path:
    """A card's template, or constraints.txt: beside the packages in a checkout, inside this one when installed."""
    return next(path for path in (HERE.parent / name, HERE / name) if path.is_file())


def _eval_results(evaluations: list[dict]) -> list[EvalResult]:
    """Each number of the evaluations with its interval, for the metadata; of F1 the mean of the classes.

    Those on images that were trained on, or of the validation part, are left out: here, and where it is read, no
    warning would stand beside them.
    """

    def told(numbers: dict, metric: str):
        return numbers["f1"]["macro"] if metric == "f1" else numbers[metric]

    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="phantom" if evaluation["synthetic"] else "imagefolder",
            dataset_name=evaluation["name"],
            dataset_split=evaluation["name"],
            metric_type=metric,
            metric_name=" ".join(title.split()),
            metric_value=round(told(evaluation, metric), 4),
            metric_args={
                "ci95": [round(bound, 4) for bound in told(evaluation["ci95"], metric)],
                "elsewhere": evaluation.get("elsewhere", evaluation["name"] not in HOME),
            },
        )
        for evaluation in evaluations
        for metric, title in (_titles(evaluation["labels"]) | {"f1": "F1 macro"}).items()
        if not (evaluation.get("seen_in_training") or evaluation.get("chosen_on"))
        and told(evaluation, metric) is not None
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
        if len(rows)
    ]


def plain(name: str) -> str:
    """A name, or a line that holds one, as it stands in Markdown, where a pipe or a new line would end a cell."""
    return " ".join(name.split()).replace("|", "\\|").replace("<", "&lt;")


def _between(interval: list[float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "not defined"


def _figure(evaluation: dict, metric: str, of: str | None = None) -> str:
    """A number with its interval as it stands in tables."""
    value, interval = evaluation[metric], evaluation["ci95"][metric]
    if of is not None:
        value, interval = value[of], interval[of]
    return "not defined" if value is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
