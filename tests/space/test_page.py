"""The page in a real browser: by mouse and by keyboard, wide and narrow, light and dark."""

import base64
import io
import re
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from space import app
from space.images import load_image
from space.page import Page
from space.texts import Texts
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.dicom import write_dicom
from tests.images import speckle, write_table
from tests.page import ask

EXAMPLES = ROOT / "space" / "examples"
CALLED = re.compile("calls this image (normal|sick)")


DESKTOP, PHONE = pytest.param((1280, 900, "light"), id="desktop"), pytest.param((390, 844, "dark"), id="phone")
on_a_desktop = pytest.mark.parametrize("window", [DESKTOP], indirect=True)  # where the width changes nothing


@pytest.fixture(scope="module", params=[DESKTOP, PHONE])
def window(request, browser):
    """An open page for all tests: to load what it shows anew takes a third of what a new one takes."""
    width, height, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(10_000)
    yield page
    page.close()


@pytest.fixture
def page(window, address):
    """The page, of which every request and fault is kept: it asks nobody else, and has no fault."""
    window.goto(f"{address}/theme.css")  # what the page of the test before had begun ends here
    requested, faults = [], []
    kept = {
        "request": lambda asked: requested.append(asked.url),
        "pageerror": lambda error: faults.append(str(error)),
        "console": lambda said: faults.append(said.text) if said.type == "error" else None,
    }
    for event, keep in kept.items():
        window.on(event, keep)
    window.goto(address)
    expect(window.locator("#head")).to_contain_text("Model: small", timeout=20_000)
    yield window
    for event, keep in kept.items():
        window.remove_listener(event, keep)
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    assert faults == []


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name).first
    if not tab.is_visible():
        page.locator(".overflow-menu > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def expect_it_can_be_used(page, what):
    """axe finds no serious fault, and nothing stands out to the right of the window."""
    found = Axe().run(page).response["violations"]
    serious = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
    serious = [pair for pair, each in zip(serious, found, strict=True) if each["impact"] in {"serious", "critical"}]
    assert serious == [], what
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what


def drawn(picture):
    """Whether an <img> shows something."""
    return picture.evaluate("image => image.complete && image.naturalWidth > 100 && image.clientWidth > 100")


def test_an_example_is_answered_with_picture_map_and_reason(page):
    expect(page.get_by_text("This is not a medical device.")).to_be_visible()
    expect(page.get_by_text("Synthetic examples")).to_be_visible()
    for figure in ("at home (test): accuracy 0.", "elsewhere (external): accuracy 0."):
        expect(page.locator("#head")).to_contain_text(figure)
    expect_it_can_be_used(page, "before an answer")
    page.get_by_text("synthetic effusion").click()
    seen = page.locator("#seen")
    expect(seen.locator(".answer h2")).to_contain_text(CALLED, timeout=15_000)
    expect(seen).to_contain_text(re.compile(r"The probability of sick, \d\.\d{3}, is (above|below) the threshold of"))
    expect(seen).to_contain_text(re.compile(r"speaks for (normal|sick)"))
    assert drawn(seen.locator(".picture img").first)
    assert drawn(seen.locator(".picture .map"))
    assert seen.evaluate("element => element.getBoundingClientRect().top < innerHeight")
    expect_it_can_be_used(page, "after an answer")
    before = seen.locator(".map").get_attribute("src")
    for option in ("normal", "sick"):
        page.locator("#explain").get_by_label(option, exact=True).check()
        expect(seen).to_contain_text(f"speaks for {option}")
    page.locator("#method").get_by_label("integrated gradients").check()  # Grad-CAM is the same map in such a network
    page.wait_for_function("source => document.querySelector('#seen .map').src !== source", arg=before)


@on_a_desktop
def test_everything_about_one_image_goes_by_keyboard(page):
    page.get_by_role("button", name="synthetic normal").focus()
    page.keyboard.press("Enter")
    seen = page.locator("#seen")
    expect(seen.locator(".answer h2")).to_contain_text(CALLED, timeout=15_000)
    picture = seen.locator(".map")
    assert picture.evaluate("image => getComputedStyle(image).opacity") == "0.7"
    seen.get_by_label("Strength of the map").focus()
    page.keyboard.press("Home")
    assert picture.evaluate("image => getComputedStyle(image).opacity") == "0"
    page.keyboard.press("End")
    seen.get_by_label("How much of the map is shown").focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert "30%" in picture.evaluate("image => getComputedStyle(image).clipPath")
    page.locator("#explain").get_by_label("the answer").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(seen).to_contain_text("speaks for normal")
    assert "30%" in picture.evaluate("image => getComputedStyle(image).clipPath")  # as it was left
    expect(seen.get_by_label("How much of the map is shown")).to_have_value("70")


@on_a_desktop
def test_uploads_are_answered_or_refused_in_one_line(page, tmp_path):
    seen, upload = page.locator("#seen"), page.locator("#image input[type=file]").first
    upload.set_input_files(EXAMPLES / "synthetic-normal.png")
    expect(seen.locator(".answer h2")).to_contain_text(CALLED, timeout=15_000)
    page.locator("#image").get_by_label(re.compile("clear|remove", re.IGNORECASE)).first.click()
    expect(seen).to_contain_text("Give an image")
    (tmp_path / "broken.png").write_text("no image")
    upload.set_input_files(tmp_path / "broken.png")
    expect(seen.get_by_role("alert")).to_contain_text("it is no image that can be read", timeout=15_000)
    assert "Traceback" not in page.content()
    scan = write_dicom(tmp_path / "scan.dcm", np.stack([speckle(0), speckle(1)]))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a DICOM file").click()
    chooser.value.set_files(scan)
    expect(seen.locator(".answer h2")).to_contain_text(CALLED, timeout=15_000)
    expect(seen).to_contain_text("this is the first of them")


def test_of_a_file_of_several_frames_it_is_said_that_the_first_is_seen(tmp_path):
    one, other = Image.fromarray(speckle(0)), Image.fromarray(speckle(1))
    more = {"save_all": True, "append_images": [other]}
    for name in ("one.gif", "one.tif", "one.webp", "one.png", "one.jpg"):
        one.save(tmp_path / name)
    for name in ("two.gif", "two.tif", "two.webp"):
        one.save(tmp_path / name, **more)
    one.save(tmp_path / "photograph.jpg", "MPO", **more)  # as cameras write them, with a preview
    write_dicom(tmp_path / "one.dcm", speckle(0))
    write_dicom(tmp_path / "two.dcm", np.stack([speckle(0), speckle(1)]))
    page = Page(Future(), Texts())
    told = {path.name: page.read(str(path)).more for path in tmp_path.iterdir()}
    assert {name for name, more in told.items() if "this is the first of them" in more} == {
        name for name in told if name.startswith("two")
    }
    assert {name for name, more in told.items() if "The tab for clips answers" in more} == {"two.gif", "two.dcm"}


@on_a_desktop
def test_a_page_that_was_not_used_answers_after_a_hundred_calls_of_others(page, address):
    with httpx.Client(base_url=f"{address}/gradio_api") as others:
        for _ in range(100):
            event = others.post("/call/predict", json={"data": [None, "", ""]}).json()["event_id"]
            assert "event: error" in others.get(f"/call/predict/{event}").text  # it has no image
    page.get_by_text("synthetic normal").click()
    expect(page.locator("#seen .answer h2")).to_contain_text(CALLED, timeout=15_000)
    page.locator("#explain").get_by_label("sick", exact=True).check()
    expect(page.locator("#seen")).to_contain_text("speaks for sick")


@on_a_desktop
def test_a_photograph_has_left_and_right_as_the_camera_saw_them(page):
    page.locator("#image").get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#image video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    seen = page.locator("#seen .picture img").first.get_attribute("src", timeout=15_000)
    photograph = np.array(Image.open(io.BytesIO(base64.b64decode(seen.partition(",")[2]))).convert("L"))
    left, right = np.split(photograph, 2, axis=1)
    assert left.mean() > 200 > 50 > right.mean()


@on_a_desktop
def test_what_is_shown_in_the_end_is_the_last_image_with_the_last_choice(page, model, monkeypatch):
    seen, picture = page.locator("#seen"), page.locator("#seen .picture img").first
    page.get_by_text("synthetic effusion").click()
    first = picture.get_attribute("src", timeout=15_000)
    answer = model.batches.answer
    monkeypatch.setattr(model.batches, "answer", lambda *given: (time.sleep(0.3), answer(*given))[1])
    page.locator("#explain").get_by_label("sick", exact=True).check()
    page.get_by_text("synthetic normal").click()  # while the other image is still being looked at
    page.wait_for_function("src => document.querySelector('#seen .picture img').src !== src", arg=first)
    page.get_by_text("synthetic effusion").click()
    for option in ("normal", "sick", "normal"):
        page.locator("#explain").get_by_label(option, exact=True).check()
        page.wait_for_timeout(80)
    page.wait_for_timeout(1_500)
    assert picture.get_attribute("src") == first
    expect(seen).to_contain_text("speaks for normal")


@on_a_desktop
def test_a_dicom_file_that_is_given_while_another_is_opened_is_what_is_shown(page, tmp_path, monkeypatch):
    opening, given = Event(), Event()
    monkeypatch.setattr("space.page.load_image", lambda file: (opening.set(), given.wait(20), load_image(file))[2])
    for name, height in (("one.dcm", 120), ("other.dcm", 240)):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Open a DICOM file").click()
        with page.expect_response(re.compile("/upload")):
            chooser.value.set_files(write_dicom(tmp_path / name, speckle(0, height)))
        assert opening.wait(20)
    page.wait_for_timeout(500)  # until the page has asked for the other one too
    given.set()
    page.wait_for_function("document.querySelector('#seen .picture img')?.naturalHeight === 240", timeout=20_000)


def test_a_clip_is_answered_and_its_frames_are_chosen_on_a_time_line(page, tmp_path):
    open_tab(page, "A clip")
    page.locator("#clip input[type=file]").set_input_files(write_clip(tmp_path / "clip.mp4", 30))
    seen = page.locator("#clip-seen")
    expect(seen.locator(".answer h2")).to_contain_text(re.compile("calls this clip (normal|sick)"), timeout=15_000)
    expect(seen).to_contain_text("24 of 30 frames")
    points, frames = seen.get_by_role("radio"), seen.locator(".frame")
    assert points.count() == frames.count() == 24
    points.nth(3).click()
    assert [frame.is_visible() for frame in frames.all()].index(True) == 3
    page.keyboard.press("ArrowRight")
    assert [frame.is_visible() for frame in frames.all()] == [number == 4 for number in range(24)]
    expect(frames.nth(4)).to_contain_text(re.compile(r"Frame \d+: sick \d\.\d{3}"))
    expect_it_can_be_used(page, "a clip")


def test_many_files_become_a_gallery_a_table_and_figures(page, tmp_path):
    names = ["a.png", "b.png", "c<img src=x onerror=alert(1)>.png"]
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for seed, name in enumerate(names):
            Image.fromarray(speckle(seed)).save(tmp_path / "scan.png")
            archive.write(tmp_path / "scan.png", f"../scans/{name}")
        archive.writestr("broken.png", "no image")
    rows = [[name, "sick" if index else "normal"] for index, name in enumerate(names)]
    write_table(tmp_path / "labels.csv", ["path", "label"], *rows)
    open_tab(page, "Many")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "scans.zip")
    page.locator("#labels input[type=file]").set_input_files(tmp_path / "labels.csv")
    expect(page.locator("#labels")).to_contain_text(".csv")
    expect(page.locator("#files")).to_contain_text(".zip")
    page.locator("#start").click()
    expect(page.locator("#summary")).to_contain_text("4 files", timeout=15_000)
    expect(page.locator("#summary")).to_contain_text("Of 3 files with a true label")
    expect(page.locator("#summary")).to_contain_text("AUC")
    tiles = page.locator("#gallery button")
    assert tiles.count() == 3
    expect(tiles.nth(2)).to_contain_text("onerror=alert(1)")
    tiles.nth(1).focus()
    page.keyboard.press("Enter")
    expect(tiles.nth(1)).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#table")).to_contain_text("it is no image that can be read")
    with page.expect_download() as download:
        page.get_by_text("The table as a CSV file").click()
    assert download.value.suggested_filename == "predictions.csv"
    assert download.value.path().read_text().count("\n") == 5
    expect_it_can_be_used(page, "many")


def test_the_card_stands_in_about(page):
    open_tab(page, "About")
    about = page.locator("#about")
    expect(about).to_contain_text("Nothing is stored", timeout=15_000)
    expect(about).to_contain_text("Intended use")
    link = page.locator("footer button").first.inner_text().strip()
    expect(about).to_contain_text(f'see "{link}" below')
    page.wait_for_function("document.querySelectorAll('#about img').length >= 4")
    assert np.all(about.locator("img").evaluate_all("images => images.map(image => image.naturalWidth > 100)"))
    expect_it_can_be_used(page, "about")


@on_a_desktop
def test_a_cold_start_and_a_full_queue_are_said(window, model, monkeypatch):
    monkeypatch.setattr(app, "WAITING", 1)
    monkeypatch.setattr(app, "ANSWERED", 1)
    loading = Future()
    blocks = app.serve(loading, Texts())
    window.goto(blocks.local_url)
    expect(window.locator("#head")).to_contain_text("The model is being loaded", timeout=20_000)
    people, address, picture = ThreadPoolExecutor(4), blocks.local_url.rstrip("/"), EXAMPLES / "synthetic-normal.png"
    asked, refused = [], None
    while len(asked) < 2 or refused is None:  # one is being answered and one waits, which it takes a moment to begin
        one = people.submit(ask, address, picture.name, picture.read_bytes())
        if wait([one], timeout=0.5).done:
            refused = one
        else:
            asked.append(one)
    assert refused.exception().response.status_code == 503
    window.get_by_text("synthetic normal").click()
    expect(window.locator(".toast-body").first).to_contain_text("busy. Please try again", timeout=20_000)
    loading.set_result(model)
    wait(asked, timeout=20)
    window.reload()
    expect(window.locator("#head")).to_contain_text("Model: small", timeout=20_000)
    window.goto("about:blank")
    people.shutdown()
    blocks.close()
