"""The pictures of an evaluation, for the model folder, the report and the card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from datasets import Dataset, Image
from matplotlib.figure import Figure
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont, ImageOps

from space.images import load_image
from space.predictor import Predictor
from space.saliency import overlay
from space.words import in_digits
from training.metric.bootstrap import draw_groups
from training.outputs import new_file
from training.tables import whose

matplotlib.rcParams["text.parse_math"] = False  # a dollar in the name of a class or site is a dollar

# Blue and orange, and markers of different shape, are told apart by colour-blind people and in grey print too.
BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#777777"
STYLES = ("-", "--", ":", "-.")  # of lines, one for each site
PANEL = 4.0  # inches of a panel's side
LONGEST = 16  # letters of a name
LETTER = 0.1  # inches of one
ACROSS = 26  # letters that fit side by side below the confusion matrix
DRAWS = 100  # of the bootstrap behind the bands
GRID = np.linspace(0, 1, 101)
SHOWN = 4  # images of a kind in the gallery
FRAME = (200, 150)  # pixels of each, and again of its overlay
GAP, LINE = 12, 18  # pixels between images, and of a line of text
FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
COMPARED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ece": "calibration error",
}


def save(path: Path, picture: Figure | Picture.Image) -> None:
    """Write a picture as PNG, whole or not at all; the same picture gives the same bytes."""
    with new_file(path) as file:
        if isinstance(picture, Figure):
            picture.savefig(file, format="png", dpi=110, metadata={"Software": None})
        else:
            picture.save(file, "PNG")


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, width: float = np.inf) -> None:
    """Write a line of black text into a picture, smaller where it would be wider than that; in the font of figures,
    for Pillow's own has no letters but English ones."""
    font = ImageFont.truetype(FONT, size)
    if (length := font.getlength(text)) > width:
        font = font.font_variant(size=size * width / length)
    draw.text(at, text, "black", font)


def performance(result: dict, table: pd.DataFrame) -> Figure:
    """Confusion matrix, ROC and precision-recall curve, the latter two with 95 % bands over groups."""
    names = list(_short(result["labels"]).values())
    longest = max(map(len, names))
    upright = longest * len(names) > ACROSS
    more = LETTER * max(0, longest - 4)  # letters that have room as it is
    figure, (left, middle, right) = _panels(3, left=more, bottom=more if upright else 0)
    _confusion(left, result, names, upright)
    truth, score, groups = _positive(result, table)
    positive = result["labels"][-1]
    drawn = draw_groups(np.random.default_rng(0), DRAWS, groups.max() + 1)[:, groups]
    for axes, title, curve, name, labels in (
        (middle, "ROC", _roc, "roc_auc", ("1 - specificity", "sensitivity")),
        (right, "precision and recall", _precision_recall, "average_precision", ("recall (sensitivity)", "precision")),
    ):
        axes.set(title=f"{title} of {names[-1]}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel=labels[0], ylabel=labels[1])
        area, interval = result["per_class"][name][positive], result["ci95"]["per_class"][name][positive]
        if area is None:
            axes.text(0.5, 0.5, "needs images of both kinds", ha="center", color=GREY)
            continue
        low, high = np.quantile(curve(truth, score, drawn), [0.025, 0.975], axis=0)
        axes.fill_between(GRID, low, high, color=BLUE, alpha=0.15, linewidth=0)
        label = f"{'AUC' if curve is _roc else 'average precision'} {area:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
        axes.plot(GRID, *curve(truth, score, np.ones((1, len(truth)))), color=BLUE, label=label)
        axes.legend(loc="lower right", fontsize=9)
    if result["per_class"]["roc_auc"][positive] is not None:
        middle.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        if len(result["labels"]) == 2:
            point = (1 - result["specificity"], result["sensitivity"])
            middle.plot(*point, "o", color=ORANGE, label=f"threshold {in_digits(result['threshold'])}")
            middle.legend(loc="lower right", fontsize=9)
    return figure


def trust(result: dict, table: pd.DataFrame) -> Figure:
    """Reliability, the probabilities by true class, and the error that remains when more and more are set aside."""
    figure, (left, middle, right) = _panels(3)
    truth, score, _ = _positive(result, table)
    positive = list(_short(result["labels"]).values())[-1]
    bins = [chosen for chosen in np.array_split(np.argsort(score, kind="stable"), 10) if len(chosen)]
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    left.plot([score[b].mean() for b in bins], [truth[b].mean() for b in bins], "o-", color=BLUE)
    error = f", ECE {result['ece']:.3f}" if len(result["labels"]) == 2 else ""  # of more it is that of all of them
    left.set(title=f"reliability{error}", xlabel=f"probability given for {positive}",
             ylabel="share that was", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")  # fmt: skip
    sites = table["site"].to_numpy()
    if (several := len(set(sites))) > len(STYLES):  # no more can be told apart
        sites = np.full(len(sites), f"at {several} sites")
    for style, (site, place) in zip(STYLES, _short(sorted(set(sites))).items(), strict=False):
        for is_positive, colour in ((False, BLUE), (True, ORANGE)):
            chosen = (sites == site) & (truth == is_positive)
            name = f"{'' if is_positive else 'not '}{positive} {place}"
            middle.hist(score[chosen], GRID[::5], histtype="step", color=colour, linestyle=style, label=_legible(name))
    if len(result["labels"]) == 2:
        middle.axvline(result["threshold"], color=GREY, linewidth=1)
    middle.set(title="probabilities by true class", xlabel=f"probability of {positive}", ylabel="images")
    middle.legend(fontsize=8)
    wrong = (table["label"] != table["prediction"]).to_numpy()
    probabilities = table[[f"probability_{label}" for label in result["labels"]]].to_numpy().max(axis=1)
    for name, order, style in (
        ("the least certain", -probabilities, {"color": BLUE}),
        ("the least like training", table["distance"].to_numpy(), {"color": ORANGE, "linestyle": "--"}),
    ):
        if np.isfinite(order).all():
            risk = np.cumsum(wrong[np.argsort(order, kind="stable")]) / np.arange(1, len(wrong) + 1)
            right.plot(np.arange(1, len(wrong) + 1) / len(wrong), risk, label=f"without {name}", **style)
    right.set(title="risk and coverage", xlabel="share of images answered", ylabel="share of answers that are wrong")
    right.set(xlim=(0, 1.02), ylim=(0, None))
    right.legend(fontsize=8)
    return figure


def gallery(predictor: Predictor, rows: Dataset, table: pd.DataFrame, method: str) -> Picture.Image:
    """Overlays of the most certain, the most wrong, the least certain and the most unlike images; a row each."""
    probabilities = table[[f"probability_{label}" for label in predictor.labels]].to_numpy()
    place = {label: index for index, label in enumerate(predictor.labels)}
    short = _short(predictor.labels)
    given = probabilities[np.arange(len(table)), table["label"].map(place)]
    certain = probabilities.max(axis=1)
    distance = table["distance"].to_numpy()
    kinds = {
        "most certain": np.argsort(-np.where(given == certain, certain, -1), kind="stable"),
        "most wrong": np.argsort(given, kind="stable"),
        "least certain": np.argsort(certain, kind="stable"),
        "most unlike the training images": np.argsort(-np.nan_to_num(distance), kind="stable"),
    }
    width, height = FRAME
    sheet = Picture.new("RGB", (SHOWN * (2 * width + GAP), len(kinds) * (height + 3 * LINE)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    undecoded = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
    for kind, order in kinds.items():
        first = ~table["group"].iloc[order].duplicated().to_numpy()  # one image of a patient or clip
        chosen = order[first][:SHOWN]
        images = [load_image(each) for each in undecoded[chosen]["image"]]
        write(draw, (0, top), kind, LINE - 4)
        for column, (index, image, answer) in enumerate(
            zip(chosen, images, predictor.answer(images, method), strict=True)
        ):
            row, left = table.iloc[index], column * (2 * width + GAP)
            said = f"is {short[row['label']]}, called {short[row['prediction']]}"
            said += f": p {row[f'probability_{row.prediction}']:.2f}"
            write(draw, (left, top + LINE), f"{said}, distance {row['distance']:.2f}", LINE - 7, 2 * width)
            sheet.paste(ImageOps.pad(image, FRAME), (left, top + 2 * LINE))
            sheet.paste(ImageOps.pad(overlay(image, answer.saliency), FRAME), (left + width, top + 2 * LINE))
        top += height + 3 * LINE
    return sheet


def comparison(evaluations: Sequence[dict], labels: Sequence[str]) -> Figure:
    """Home and away side by side: the chief figures of all evaluations with their intervals."""
    figure, axes = _panels(1, width=2 * PANEL)
    for number, result in enumerate(evaluations):
        shift = 0.12 * (number - (len(evaluations) - 1) / 2)
        told = [(place, name) for place, name in enumerate(COMPARED) if result[name] is not None]
        values = np.array([result[name] for _, name in told])
        low, high = np.array([result["ci95"][name] for _, name in told]).reshape(-1, 2).T
        places = np.array([place for place, _ in told]) + shift
        errors = np.maximum([values - low, high - values], 0)
        style = {"fmt": "os^Dv"[number % 5], "color": (BLUE, ORANGE, GREY)[number % 3], "capsize": 3}
        axes.errorbar(places, values, errors, label=_legible(f"{result['name']} (n = {result['n']})"), **style)
    short = list(_short(labels).values())
    titles = [title + whose(name, short).replace(" ", "\n", 1) for name, title in COMPARED.items()]
    axes.set_xticks(range(len(COMPARED)), titles, fontsize=9)
    axes.set(title="95 % intervals over patients or clips", xlim=(-0.5, len(COMPARED) - 0.5), ylim=(-0.02, 1.02))
    axes.grid(axis="y", alpha=0.3)
    if evaluations:
        axes.legend(loc="lower left", fontsize=9)
    return figure


def _legible(label: str) -> str:
    """A label that a legend does not leave out, as matplotlib does with those that begin so."""
    return f" {label}" if label.startswith("_") else label


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names of classes or sites as they fit into a picture: of long ones both ends, as much as tells them apart."""
    half, short = LONGEST // 2, {}
    while len(set(short.values())) < len(set(names)):
        short = {name: name if len(name) <= 2 * half else f"{name[:half]}…{name[1 - half :]}" for name in names}
        half += 1
    return short


def _panels(number: int, width: float = PANEL, left: float = 0, bottom: float = 0):
    """A figure and its axes side by side; with fixed margins, for finding them takes longer than drawing.

    left, bottom: inches that it is larger by there.
    """
    size = number * width + left, PANEL + bottom
    figure = Figure(figsize=size)
    margins = {"left": (left + 0.75) / size[0], "right": 1 - 0.15 / size[0], "wspace": 0.34}
    margins |= {"bottom": (bottom + 0.16 * PANEL) / size[1], "top": 1 - 0.1 * PANEL / size[1]}
    return figure, figure.subplots(1, number, gridspec_kw=margins)


def _confusion(axes, result: dict, names: Sequence[str], upright: bool) -> None:
    matrix = np.array(result["confusion_matrix"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = min(14, 72 / len(names))
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(title=f"{result['name']}: n = {result['n']}", xlabel="called", ylabel="true")


def _positive(result: dict, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each image is of the positive class, its probability, and its group as a number."""
    positive = result["labels"][-1]
    groups = np.unique(table["group"], return_inverse=True)[1]
    return (table["label"] == positive).to_numpy(), table[f"probability_{positive}"].to_numpy(), groups


def _roc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sensitivity over GRID of 1 - specificity, for weights (draws, images); draws of one class are left out."""
    found, alarms = _called(truth, score, weights)
    return np.array(
        [np.interp(GRID, b / b[-1], a / a[-1]) for a, b in zip(found, alarms, strict=True) if a[-1] * b[-1]]
    )


def _precision_recall(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision over GRID of recall, as `_roc`; of one recall that of the highest threshold."""
    curves = []
    for found, alarms in zip(*_called(truth, score, weights), strict=True):
        if found[-1] * alarms[-1]:
            first = np.r_[0, 1 + np.flatnonzero(np.diff(found))]
            precision = np.r_[1, found[first[1:]] / (found + alarms)[first[1:]]]
            curves.append(np.interp(GRID, found[first] / found[-1], precision))
    return np.array(curves)


def _called(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the images that are called positive, rightly and wrongly, at ever lower thresholds from none on.

    weights: (draws, images); returns (draws, thresholds) twice.
    """
    order = np.argsort(-score, kind="stable")
    last = 1 + np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of the images that share a score
    totals = []
    for kind in (truth, ~truth):
        total = np.zeros((len(weights), len(score) + 1))
        np.cumsum((weights * kind)[:, order], axis=1, out=total[:, 1:])
        totals.append(total[:, np.r_[0, last]])
    return totals[0], totals[1]
