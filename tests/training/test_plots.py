import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import precision_recall_curve, roc_curve

from training.callbacks import learning_curves
from training.plots import COMPARED, GRID, _precision_recall, _roc, comparison, performance, save, trust, write


def of_sklearn(truth, score):
    alarms, found, _ = roc_curve(truth, score, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, score)
    recall, first = np.unique(recall[::-1], return_index=True)  # of one recall the highest threshold
    return np.interp(GRID, alarms, found), np.interp(GRID, recall, precision[::-1][first])


@pytest.mark.parametrize("digits", [1, 6])  # with and without images that share a score
def test_curves_of_draws_are_those_of_sklearn_on_repeated_images(digits):
    rng = np.random.default_rng(digits)
    truth, score = rng.random(40) < 0.3, rng.random(40).round(digits)
    draws = rng.integers(0, 3, (50, 40))
    expected = [of_sklearn(np.repeat(truth, draw), np.repeat(score, draw)) for draw in draws]
    for curves, wanted in zip((_roc, _precision_recall), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(curves(truth, score, draws), wanted, atol=1e-12)


def test_a_draw_of_one_class_has_no_curve():
    truth, score = np.array([True, False, True]), np.array([0.9, 0.1, 0.4])
    draws = np.array([[1, 0, 2], [1, 1, 1], [0, 3, 0]])
    assert len(_roc(truth, score, draws)) == len(_precision_recall(truth, score, draws)) == 1


def table_of(label, sites):
    table = pd.DataFrame({"label": ["normal", label] * 10, "site": [f"S{number % sites}" for number in range(20)]})
    table = table.assign(group=table.index, prediction=label, distance=0.5, probability_normal=0.4)
    return {"labels": ["normal", label], "threshold": 0.5, "ece": 0.1}, table.assign(**{f"probability_{label}": 0.6})


@pytest.mark.parametrize("labels", [["normal", "sick"], ["normal", "bacterial pneumonia", "viral pneumonia"]])
@pytest.mark.parametrize("number", [0, 1, 6])
def test_what_evaluations_are_compared_by_lies_within_the_picture(number, labels):
    result = {"n": 240, **dict.fromkeys(COMPARED, 0.95)}
    result["ci95"] = {name: [0.9, 1.0] for name in COMPARED}
    figure = comparison([result | {"name": f"external_{each}"} for each in range(number)], labels)
    figure.draw_without_rendering()
    extent = figure.axes[0].get_tightbbox()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1
    assert 0 <= extent.y0 < extent.y1 <= figure.bbox.y1
    named = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert named[4] == ("specificity" if len(labels) == 2 else "specificity\n(viral pneumonia)")


def test_long_names_that_begin_and_end_alike_are_told_apart():
    labels = ["normal", "Lungenentzündung, bakterielle Form", "Lungenentzündung, virale Form"]
    nothing = {"roc_auc": {labels[-1]: None}, "average_precision": {labels[-1]: None}}
    result = {"labels": labels, "name": "test", "n": 9, "per_class": nothing, "ci95": {"per_class": nothing}}
    table = pd.DataFrame({"label": labels, "group": labels, f"probability_{labels[-1]}": 0.5})
    axes = performance(result | {"confusion_matrix": np.eye(3).tolist()}, table).axes[0]
    assert len({name.get_text() for name in axes.get_yticklabels()}) == 3


def test_letters_of_other_languages_are_written_into_pictures():
    def written(text, **settings):
        write(ImageDraw.Draw(page := Image.new("L", (100, 20), "white")), (0, 0), text, 12, **settings)
        return np.asarray(page)

    assert not [letter for letter in "üößéłΩж" if (written(letter) == written("\uffff")).all()]
    assert (written("ü" * 20, width=50)[:, 51:] == 255).all()
    assert (written("ü" * 20)[:, 51:] < 255).any()


def test_names_that_begin_with_an_underscore_stand_in_the_legends():
    result = {"n": 240, **dict.fromkeys(COMPARED, 0.95)}
    result["ci95"] = {name: [0.9, 1.0] for name in COMPARED}
    legend = comparison([result | {"name": name} for name in ("test", "_x")], ["normal", "_x"]).axes[0].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["test (n = 240)", "_x (n = 240)"]
    legend = trust(*table_of("_sick", 1)).axes[1].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["not _sick S0", "_sick S0"]


def test_the_reliability_of_one_of_three_classes_is_not_given_the_error_of_all():
    result, table = table_of("sick", 1)
    title = trust(result, table).axes[0].get_title()
    assert title == "reliability, ECE 0.100"
    result["labels"] = ["normal", "other", "sick"]
    assert trust(result, table.assign(probability_other=0.0)).axes[0].get_title() == "reliability"


@pytest.mark.parametrize("sites", [1, 4, 5])
def test_images_of_every_site_are_drawn(sites):
    outlines = [patch.get_xy() for patch in trust(*table_of("sick", sites)).axes[1].patches]
    areas = [np.diff(outline[:, 0])[1::2] @ outline[1:-1:2, 1] for outline in outlines]
    assert sum(areas) == pytest.approx(20 * 0.05)  # bins of 0.05


def test_names_are_no_formulas(tmp_path):
    figure = trust(*table_of(r"$\sick$", 1))
    save(tmp_path / "trust.png", figure)
    assert r"$\sick$ S0" in [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert (tmp_path / "trust.png").is_file()


def test_learning_curves_lie_within_their_picture_with_what_they_are_called():
    rows = [{"epoch": n, "train_loss": 5 / n, "val_loss": 5 / n, "val_accuracy": 0.5, "val_auc": 0.7} for n in (1, 2)]
    figure = learning_curves(rows)
    figure.canvas.draw()
    for axes in figure.axes:
        extent = axes.get_tightbbox()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1
        assert 0 <= extent.y0 < extent.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    "labels",
    [
        ["normal", "sick"],
        ["NORMAL", "PNEUMONIA"],
        ["normal", "consolidation", "pleural effusion", "pneumothorax"],
        [f"finding {number}, of which nobody has a shorter name" for number in range(12)],
    ],
)
def test_names_of_classes_can_be_read_beside_the_confusion_matrix(labels):
    nothing = {"roc_auc": {labels[-1]: None}, "average_precision": {labels[-1]: None}}
    result = {"labels": labels, "name": "test", "n": 9, "per_class": nothing, "ci95": {"per_class": nothing}}
    result["confusion_matrix"] = np.full((len(labels), len(labels)), 999).tolist()
    table = pd.DataFrame({"label": labels, "group": labels, f"probability_{labels[-1]}": 0.5})
    figure = performance(result, table)
    figure.canvas.draw()
    axes = figure.axes[0]
    for names in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts[: len(labels)]):
        boxes = [name.get_window_extent() for name in names]
        assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert axes.get_tightbbox().x0 >= 0
    assert axes.title.get_window_extent().x1 < figure.axes[1].title.get_window_extent().x0
    assert figure.axes[1].title.get_window_extent().x1 < figure.axes[2].title.get_window_extent().x0
