import base64
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from space.batches import Batches
from space.card import Card
from space.errors import InputError
from space.predictor import Answer, Predictor
from space.texts import Texts
from space.words import describe
from tests.images import speckle

TEXTS = Texts()


@pytest.fixture(scope="module")
def predictor(small_model):
    return Predictor(small_model)


def said(predictor, probability, threshold, distance=0.5, **more):
    judge = SimpleNamespace(labels=["normal", "sick"], threshold=threshold)
    judge.decide = lambda probabilities: Predictor.decide(judge, probabilities)
    return describe(judge, Answer(np.array([1 - probability, probability]), distance, **more), TEXTS)


def test_the_side_of_the_threshold_and_the_doubts_are_told(predictor):
    sure = said(predictor, 0.9, 0.3)
    assert sure.called == "The model calls this image sick"
    assert "0.900, is above the threshold of 0.300" in sure.side
    assert sure.doubts == []
    assert "is above the threshold of 0.0003." in said(predictor, 0.9, 0.0003).side
    assert "below" in said(predictor, 0.29, 0.3).side
    assert "near the threshold" in said(predictor, 0.29, 0.3).doubts[0]
    assert len(said(predictor, 0.41, 0.5).doubts) == len(said(predictor, 0.021, 0.02).doubts) == 1
    assert said(predictor, 0.0001, 0.02).doubts == said(predictor, 0.999, 0.95).doubts == []
    assert "unlike the training images" in said(predictor, 0.9, 0.3, distance=1.1).doubts[0]
    assert str(said(predictor, 0.9, 0.3, distance=1.1)).startswith("It is unlike")


@pytest.mark.parametrize(
    ("probability", "threshold"),
    [
        (0.99991, 0.99995),
        (0.00002, 0.00001),
        (0.4996, 0.5),
        (0.2998, 0.3001),
        (0.3004, 0.3),
        (1e-30, 0.5),
        (1.0, 0.999),
    ],
)
def test_the_numbers_in_the_sentence_stand_on_the_side_that_it_names(predictor, probability, threshold):
    side = said(predictor, probability, threshold).side
    told, beside = (float(number.rstrip(".")) for number in re.findall(r"[01]\.\d+", side))
    assert (told > beside) == ("above" in side) == (probability > threshold)
    assert len(side) < 90


def test_the_region_is_told_in_words(predictor):
    saliency = np.zeros((9, 9))
    saliency[:3, 6:] = 1
    assert (
        "speaks for sick lies mostly in the upper right of the image, on 1"
        in said(predictor, 0.9, 0.3, saliency=saliency).where
    )
    saliency[6:, :3] = saliency[6:, 6:] = 1.1
    assert said(predictor, 0.9, 0.3, saliency=saliency).where.startswith(
        "What speaks for sick lies in the lower left of the image more than in any other part, on "
    )
    assert said(predictor, 0.9, 0.3, saliency=-saliency).where == "Nothing in the image speaks for sick."


def test_images_that_wait_together_are_answered_together_each_with_its_own(predictor):
    batches = Batches(predictor)
    images = [Image.fromarray(speckle(seed)).convert("RGB") for seed in range(12)]
    ways = [(predictor.methods[seed % 2], seed % 3 % 2) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda pair: batches.answer(pair[0], *pair[1]), zip(images, ways, strict=True)))
    for image, way, answer in zip(images, ways, found, strict=True):
        expected = predictor.answer([image], *way)[0]
        assert np.allclose(answer.probabilities, expected.probabilities, atol=1e-5)
        assert np.allclose(answer.saliency, expected.saliency, atol=1e-4)


def test_one_that_cannot_be_answered_does_not_stop_the_others(predictor):
    batches, good = Batches(predictor), Image.new("RGB", (60, 60))
    with pytest.raises(Exception, match="classes|index|out of"):
        batches.answer(good, predictor.methods[0], 99)
    assert batches.answer(good).probabilities.sum() == pytest.approx(1)


def test_the_card_gives_its_figures_and_only_its_own_pictures(small_model, tmp_path):
    card = Card(small_model)
    home, away = card.figures()
    assert (home.name, home.at_home, away.name, away.at_home) == ("test", True, "external", False)
    assert home.accuracy[:4].replace(".", "").isdigit()
    assert "data:image/png;base64," in card.text()
    assert "model-index" not in card.text()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text(
        "---\nlicense: mit\n---\n![a](../secret.png) ![b](https://x.org/b.png)"
    )
    assert Card(tmp_path / "folder").text().strip() == ""
    assert Card(tmp_path / "folder").figures() == []
    assert Card(tmp_path).text() == ""


def test_a_card_made_by_others_may_say_anything(tmp_path):
    metrics = [{"type": "accuracy", "value": "0.9 or so"}, {"type": "f1", "value": 0.5, "args": ["a", "list"]}]
    results = [{"task": {"type": "image-classification"}, "dataset": {"name": "x", "type": "x"}, "metrics": metrics}]
    told = yaml.safe_dump({"model-index": [{"name": "m", "results": results}]})
    (tmp_path / "README.md").write_text(f"---\n{told}---\ntext\n")
    assert Card(tmp_path).figures() == []
    assert Card(tmp_path).text().strip() == "text"


@pytest.mark.parametrize("told", ["foo: [bad", "- a\n- b", "model-index: 3", "caf\xe9: 1", "eval_results: 3"])
def test_a_card_whose_metadata_are_none_is_its_text(tmp_path, told):
    (tmp_path / "README.md").write_bytes(f"---\n{told}\n---\ntext\n".encode("latin-1"))
    assert Card(tmp_path).figures() == []
    assert Card(tmp_path).text().strip() == "text"


def test_pictures_of_the_hub_s_cache_are_shown_where_files_are_links_out_of_their_folder(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"picture")
    folder = tmp_path / "snapshots" / "a"
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "roc.png").symlink_to("../../../blobs/1")
    (folder / "README.md").write_text("![curve](eval/roc.png)![other](../../blobs/1)")
    assert Card(folder).text() == f"![curve](data:image/png;base64,{base64.b64encode(b'picture').decode()})"


@pytest.mark.parametrize("link", [f"data:image/png;base64,{'A' * 5000}", "a\0.png"], ids=["picture", "null"])
def test_a_card_with_a_picture_that_is_no_file_is_its_text(tmp_path, link):
    (tmp_path / "README.md").write_text(f"text\n![a]({link})\n")
    assert Card(tmp_path).text().strip() == "text"


def test_a_card_that_cannot_be_fetched_is_one_line():
    with pytest.raises(InputError, match="^nobody/nothing: its card cannot be fetched .*; try again later$"):
        Card("nobody/nothing")


def test_an_interval_that_is_none_is_left_out(tmp_path):
    metrics = [{"type": name, "value": 0.9, "args": {"ci95": 0.1}} for name in ("accuracy", "roc_auc")]
    results = [{"task": {"type": "image-classification"}, "dataset": {"name": "x", "type": "x"}, "metrics": metrics}]
    told = yaml.safe_dump({"model-index": [{"name": "m", "results": results}]})
    (tmp_path / "README.md").write_text(f"---\n{told}---\ntext\n")
    assert [(each.accuracy, each.auc) for each in Card(tmp_path).figures()] == [("0.90", "0.90")]
