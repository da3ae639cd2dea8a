"""The page in a real browser, its API, and the folder space/ on its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
EXAMPLES = ROOT / "space" / "examples"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, demo):
    page = browser.new_page()
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(demo.url)
    expect(page.get_by_text("This is not a medical device.")).to_be_visible(timeout=20_000)
    return page


def expect_an_answer(page):
    expect(page.locator("#said")).to_contain_text(re.compile("calls this image (normal|sick)"), timeout=15_000)
    expect(page.locator("#label")).to_contain_text("%")
    overlay = page.locator("#overlay img").first
    expect(overlay).to_be_visible()
    page.wait_for_function("document.querySelector('#overlay img').naturalWidth > 100")


def test_an_example_gives_label_and_overlay_and_is_marked_synthetic(page):
    expect(page.get_by_text("Synthetic examples")).to_be_visible()
    page.get_by_text("synthetic effusion").click()
    expect_an_answer(page)


def test_an_upload_gives_label_and_overlay(page):
    page.locator("#image input[type=file]").first.set_input_files(EXAMPLES / "synthetic-normal.png")
    expect_an_answer(page)


def test_a_broken_upload_is_one_friendly_line_without_a_path(page, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    page.locator("#image input[type=file]").first.set_input_files(tmp_path / "broken.png")
    toast = page.locator(".toast-body").first
    expect(toast).to_contain_text("it is no image that can be read", timeout=15_000)
    assert "/" not in toast.inner_text().replace("JPEG, PNG", "")
    assert "Traceback" not in page.content()


def test_the_page_asks_nobody_else(page, demo):
    page.get_by_text("synthetic normal").click()
    expect_an_answer(page)
    elsewhere = [url for url in page.requested if not url.startswith((demo.url, "data:", "blob:"))]
    assert elsewhere == []


def test_the_api_answers_like_the_page(demo):
    client = Client(demo.url, verbose=False)
    label, overlay, said = client.predict(handle_file(EXAMPLES / "synthetic-b-lines.png"), api_name="/predict")
    scores = {each["label"]: each["confidence"] for each in label["confidences"]}
    assert set(scores) == {"normal", "sick"}
    assert sum(scores.values()) == pytest.approx(1)
    assert f"**{label['label']}**" in said
    with Image.open(overlay) as seen, Image.open(EXAMPLES / "synthetic-b-lines.png") as original:
        assert seen.size == original.size


def test_the_folder_alone_serves_under_any_name(small_model, tmp_path):
    folder = tmp_path / "app-1"
    shutil.copytree(ROOT / "space", folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import runpy, sys; page = runpy.run_path('app.py');"
        "predictor = page['Predictor'](sys.argv[1]);"
        "page['build_page'](predictor, 'x');"
        "print(page['answer'](predictor, str(page['EXAMPLES'][0]))[0]);"
        "print([name for name in sys.modules if name.startswith('training')], sys.modules['space.images'].__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(small_model)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("{'normal': ")
    assert ran.stdout.strip().endswith(f"[] {folder}/images.py")
    assert not list(folder.glob("*.pyi"))


@pytest.mark.parametrize(("model", "message"), [(None, "MODEL_ID is not set"), ("FOLDER", "no image classifier")])
def test_a_missing_model_is_one_line(tmp_path, model, message):
    named = {"MODEL_ID": str(tmp_path)} if model else {}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "space" / "app.py")],
        env={name: value for name, value in os.environ.items() if name != "MODEL_ID"} | named,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_space_s_requirements_are_the_versions_that_were_measured():
    constraints = set((ROOT / "constraints.txt").read_text().splitlines())
    assert set((ROOT / "space" / "requirements.txt").read_text().splitlines()) <= constraints
    gradio = next(line for line in constraints if line.startswith("gradio==")).removeprefix("gradio==")
    assert f"sdk_version: {gradio}\n" in (ROOT / "space" / "README.md").read_text()


def test_every_example_is_marked_as_synthetic():
    files = list(Path(EXAMPLES).iterdir())
    assert len(files) >= 4
    for file in files:
        with Image.open(file) as image:
            assert file.name.startswith("synthetic-")
            assert image.text["Synthetic"] == "yes"


def test_space_never_imports_training():
    for file in (ROOT / "space").glob("*.py"):
        assert not re.search(r"^\s*(from|import) training\b", file.read_text(), re.MULTILINE), file
