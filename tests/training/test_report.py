import json
import re
import shutil

from tests.fits import copy_as_mean
from training.push import SYNTHETIC
from training.report import of_a_hundred, write_report


def test_the_report_is_one_page_with_its_pictures_inside(small_model):
    page = (small_model / "report.html").read_text()
    assert len(re.findall(r'<img class="wide" src="data:image/png;base64,[\w+/=]{1000,}"', page)) == 1 + 2 * 3 + 1
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert SYNTHETIC in page
    for told in (
        "Can small be trusted?",
        "not a medical device",
        "training images are synthetic",
        "Is the saliency true?",
        "Nothing leaks between the parts",
    ):
        assert told in page


def test_a_report_with_one_evaluation_of_real_images_is_not_marked_as_synthetic(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    told = json.loads((model / "eval" / "external.json").read_text())
    (model / "eval" / "external.json").write_text(json.dumps(told | {"synthetic": False}))
    write_report(model)
    assert SYNTHETIC not in (model / "report.html").read_text()


def test_a_model_that_came_without_pictures_of_its_images_has_a_report(small_model, tmp_path):
    """As one of real images comes from the Hub."""
    model = shutil.copytree(small_model, tmp_path / "m", ignore=shutil.ignore_patterns("test_gallery.png"))
    write_report(model)
    page = (model / "report.html").read_text()
    assert page.count('<img class="wide"') == 1 + 2 * 3
    assert page.count("<figcaption>") == page.count("they were not published with the model") == 1


def test_the_report_says_the_figures_in_words(small_model):
    page = " ".join((small_model / "report.html").read_text().split())
    results = [json.loads((small_model / "eval" / f"{name}.json").read_text()) for name in ("test", "external")]
    for result in results:
        assert f"it recognises {of_a_hundred(result, 'sensitivity')} sick images" in page
        assert f"leaves {of_a_hundred(result, 'specificity')} others alone" in page
    rows = {"weights": "rank", "deletion": "deletion", "insertion": "insertion", "place": "pointing game"}
    for test, begin in rows.items():
        (cells,) = re.findall(f"<tr><td>{begin}.*?</tr>", page)
        passed = ["passed" if result["saliency"][test]["passed"] else "FAILED" for result in results]
        assert re.findall("passed|FAILED", cells) == passed


def test_of_a_mean_the_report_says_whose_maps_and_abstentions_it_tells_of(small_model, tmp_path):
    model = copy_as_mean(small_model, tmp_path / "m")
    write_report(model)
    page = " ".join((model / "report.html").read_text().split())
    whose = "those of the first of the averaged models, on its own test part."
    assert page.count(f"Images and maps are {whose}</figcaption>") == 1
    assert page.count(f"<p>test: maps and tests are {whose}</p>") == page.count(whose) - 1 == 1
    assert len(re.findall(r"Unlike the training images of the model that judged them: \d+ of", page)) == 1


def test_a_share_in_words():
    told = {"sensitivity": 0.934, "ci95": {"sensitivity": [0.85, 0.981]}, "specificity": None}
    assert of_a_hundred(told, "sensitivity") == "93 (85 to 98) of 100"
    assert of_a_hundred(told, "specificity") == "an unknown number of 100"


def test_the_report_counts_epochs_and_not_how_often_it_was_measured(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "m")
    told = json.loads((model / "eval" / "training.json").read_text())
    told["epochs"] = [row | {"epoch": row["epoch"] - half} for row in told["epochs"] for half in (0.5, 0)]
    (model / "eval" / "training.json").write_text(json.dumps(told))
    write_report(model)
    assert "<p>2 epochs, " in (model / "report.html").read_text()
