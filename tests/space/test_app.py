"""The folder space/ on its own, and how the page starts and ends."""

import base64
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio import mcp, route_utils
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import expect

from space import app, many, server, texts
from space.errors import InputError
from space.page import Model, Page
from tests.conftest import ROOT
from tests.dicom import write_dicom
from tests.images import speckle
from tests.page import ask

EXAMPLES = ROOT / "space" / "examples"


def test_the_demo_s_page_answers(demo):
    answer = Client(demo.url, verbose=False).predict(
        handle_file(EXAMPLES / "synthetic-effusion.png"), api_name="/predict"
    )[3]
    assert answer["prediction"] == "sick", answer


def test_the_folder_alone_serves_under_any_name_and_leaves_no_upload_behind(small_model, tmp_path):
    folder = tmp_path / "app-1"
    shutil.copytree(ROOT / "space", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tmp").mkdir()
    inherited = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    with subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        env=inherited | {"MODEL_ID": str(small_model), "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where nohup started the tests
    ) as process:
        try:
            address = next(line for line in process.stdout if line.startswith("page: ")).removeprefix("page: ").strip()
            said = Client(address, verbose=False).predict(
                handle_file(EXAMPLES / "synthetic-normal.png"), api_name="/predict"
            )[2]
            kept = [path for path in (tmp_path / "tmp").rglob("*.png")]
            process.send_signal(signal.SIGHUP)  # its terminal is closed, and says so twice
            process.send_signal(signal.SIGHUP)
            process.wait(30)
        finally:
            process.kill()
    assert re.search("calls this image (normal|sick)", said)
    assert kept
    assert process.returncode == 0
    assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".py",
        ".md",
        ".txt",
        ".css",
        ".toml",
        ".png",
    }


def test_uploads_and_overlays_are_deleted_after_a_while_and_a_host_s_own_files_are_not(model, monkeypatch, tmp_path):
    own = tmp_path / "notes.txt"
    own.write_text("no upload")
    os.utime(own, (0, 0))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    server.keep_uploads_private()
    monkeypatch.setattr(mcp, "DEFAULT_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # as when gradio is imported now
    monkeypatch.setattr(server, "SWEPT", 1)
    monkeypatch.setattr(server, "KEPT", 2)
    blocks = app.serve(ThreadPoolExecutor(1).submit(lambda: model), texts.Texts())
    before = files_below(tmp_path)
    ask(blocks.local_url.rstrip("/"), "a-scan-of-somebody.png", (EXAMPLES / "synthetic-normal.png").read_bytes())
    assert files_below(tmp_path) > before
    ask_as_an_agent(blocks.local_url, (EXAMPLES / "synthetic-normal.png").read_bytes())
    end = time.monotonic() + 20
    while files_below(tmp_path) - before and time.monotonic() < end:
        time.sleep(0.2)
    assert files_below(tmp_path) == before
    blocks.close()


def test_uploads_are_deleted_also_where_gradio_cannot_look_through_its_own_list_of_them(monkeypatch):
    def changed_meanwhile(*given):
        raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(route_utils, "delete_files_created_by_app", changed_meanwhile)
    monkeypatch.setattr(server, "SWEPT", 1)
    monkeypatch.setattr(server, "KEPT", 2)
    blocks = app.serve(Future(), texts.Texts())
    upload = {"files": ("a-scan-of-somebody.png", b"not looked at")}
    file = Path(httpx.post(f"{blocks.local_url}gradio_api/upload", files=upload, timeout=60).json()[0])
    end = time.monotonic() + 20
    while (file.exists() or blocks.upload_file_set) and time.monotonic() < end:
        time.sleep(0.2)
    assert not file.exists()
    assert not blocks.upload_file_set  # or it would grow for as long as the server runs
    monkeypatch.undo()
    blocks.close()


def test_the_files_of_a_long_batch_are_kept_until_it_ends(model, monkeypatch, tmp_path):
    monkeypatch.setattr(server, "SWEPT", 0.5)
    monkeypatch.setattr(server, "KEPT", 3)
    monkeypatch.setattr(many, "BATCH", 1)
    answer = model.batches.answer
    monkeypatch.setattr(model.batches, "answer", lambda *given: (time.sleep(0.7), answer(*given))[1])
    blocks = app.serve(ThreadPoolExecutor(1).submit(lambda: model), texts.Texts())
    before = files_below(os.environ["GRADIO_TEMP_DIR"])
    files = [tmp_path / f"{seed}.png" for seed in range(7)]
    for seed, file in enumerate(files):
        Image.fromarray(speckle(seed)).save(file)
    rows, _ = Client(blocks.local_url, verbose=False).predict(list(map(handle_file, files)), api_name="/predict_batch")
    assert [row[rows["headers"].index("error")] for row in rows["data"]] == [""] * len(files)
    end = time.monotonic() + 20
    while files_below(os.environ["GRADIO_TEMP_DIR"]) - before and time.monotonic() < end:
        time.sleep(0.2)
    assert files_below(os.environ["GRADIO_TEMP_DIR"]) - before == set()
    blocks.close()


def test_an_upload_lies_no_longer_than_is_said(tmp_path):
    """Which came half way between two looks."""
    (file := tmp_path / "scan.png").write_text("not looked at")
    blocks, there = gr.Blocks(), []
    for now in time.time() + server.SWEPT * (np.arange(2 * server.KEPT / server.SWEPT) + 0.5):
        there.append(file.exists())
        server.look(blocks, str(tmp_path), now)
    assert server.KEPT - 2 * server.SWEPT <= sum(there) * server.SWEPT <= server.KEPT


@pytest.fixture(scope="module")
def window(browser):
    """Whose pages find in its cache what they all load."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture(scope="module")
def blocks(model):
    """A server of which only the tests of this file ask anything, and that sweeps every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "SWEPT", 1)
        blocks = app.serve(ThreadPoolExecutor(1).submit(lambda: model), texts.Texts())
        yield blocks
        blocks.close()


@pytest.fixture
def page(blocks, window):
    """The only page of that server, with an example that is answered."""
    blocks.state_holder.session_data.clear()
    page = window.new_page()
    page.goto(blocks.local_url)
    page.get_by_text("synthetic normal").click(timeout=20_000)
    page.locator("#seen .answer").wait_for(timeout=15_000)
    yield page
    page.close()


def test_the_first_files_of_a_slow_upload_are_kept_until_the_last_has_come(blocks, monkeypatch):
    def body():
        for name in ("a.png", "b.png"):
            yield f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n{name}\r\n'.encode()
        time.sleep(3)  # the first is whole and on the disk, the second not
        yield b"--x--\r\n"

    broken_off = Path(os.environ["GRADIO_TEMP_DIR"]) / "raw"
    broken_off.write_text("the start of an image")
    monkeypatch.setattr(server, "KEPT", 2)  # for what is raw
    time.sleep(2)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{blocks.local_url}gradio_api/upload", content=body(), headers=form, timeout=60)
    assert [Path(path).read_text() for path in answer.json()] == ["a.png", "b.png"]
    assert not broken_off.exists()


def test_of_a_visitor_s_image_the_server_holds_no_pixels(tmp_path):
    Image.fromarray(speckle(0)).save(tmp_path / "scan.png")
    held, _ = Page(Future(), texts.Texts()).open(str(tmp_path / "scan.png"))
    assert len(pickle.dumps(held)) < 1000


def test_the_image_of_a_closed_page_is_forgotten_after_a_while(blocks, page, monkeypatch):
    assert opened(blocks)
    monkeypatch.setattr(server, "KEPT", 2)  # for an open page it is still what it was when the page was built
    page.close()
    end = time.monotonic() + 20
    while opened(blocks) and time.monotonic() < end:
        time.sleep(0.2)
    assert opened(blocks) == []


def test_pictures_that_are_shown_are_not_kept_by_the_server(blocks, page):
    ((name, session),) = blocks.state_holder.session_data.items()
    before = files_below(os.environ["GRADIO_TEMP_DIR"])
    httpx.get(f"{blocks.local_url}gradio_api/deep_link", params={"session_hash": name})  # asks for a link to it
    written = files_below(os.environ["GRADIO_TEMP_DIR"]) - before
    assert not [path for path in written if b"data:image/jpeg" in path.read_bytes()]
    assert "data:image/jpeg" not in str(list(session.components))


def test_an_image_that_is_no_longer_held_is_opened_again_or_to_be_given_again(blocks, page, tmp_path):
    seen = page.locator("#seen")

    def explain(label):
        blocks.state_holder.session_data.clear()  # as when many others have come meanwhile
        page.locator("#explain").get_by_label(label, exact=True).check()

    for label in ("sick", "normal"):
        explain(label)
        expect(seen).to_contain_text(f"speaks for {label}")
    assert opened(blocks) == []
    example = seen.locator(".picture img").first.get_attribute("src")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a DICOM file").click()
    chooser.value.set_files(write_dicom(tmp_path / "held.dcm", speckle(0)))
    page.wait_for_function("src => document.querySelector('#seen .picture img').src !== src", arg=example)
    scan = seen.locator(".picture img").first.get_attribute("src")
    explain("sick")
    expect(seen).to_contain_text("speaks for sick")
    assert seen.locator(".picture img").first.get_attribute("src") == scan  # the example still lies in the box
    next(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("held.dcm")).unlink()
    explain("normal")
    expect(seen).to_have_text("The image is no longer held: give it again.")
    page.locator("#image").get_by_label(re.compile("clear|remove", re.IGNORECASE)).first.click()
    expect(seen).to_contain_text("Give an image")


def test_only_an_upload_is_opened_again(tmp_path):
    Image.fromarray(speckle(0)).save(tmp_path / "scan.png")
    above = Path(os.environ["GRADIO_TEMP_DIR"])
    for given in (tmp_path / "scan.png", above / os.path.relpath(tmp_path / "scan.png", above)):
        assert given.is_file()
        assert "no longer held: give it again" in Page(Future(), texts.Texts()).see(None, -1, "cam", str(given))


def ask_as_an_agent(address, png):
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    answer = httpx.post(
        f"{address}gradio_api/mcp/",
        headers={"Accept": "application/json, text/event-stream"},
        json={
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "predict", "arguments": {"image": image}},
        },
        timeout=60,
    )
    assert "calls this image" in answer.text


def opened(blocks):
    """The images that are held for pages."""
    held = [value for each in blocks.state_holder.session_data.values() for value in each.state_data.values()]
    return [value for value in held if value is not None]


def files_below(folder):
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def test_a_missing_model_is_one_line(tmp_path, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(SystemExit, match="error: MODEL_ID is not set"):
        app.main()
    monkeypatch.setenv("MODEL_ID", str(tmp_path))
    with pytest.raises(SystemExit, match="^error: .* found no image classifier there"):
        app.main()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_model_in_the_folder_where_one_stands_has_its_name(small_model, monkeypatch):
    monkeypatch.chdir(small_model)
    assert Model.load(".").name == small_model.name


def test_the_space_s_requirements_are_the_versions_that_were_measured():
    constraints = set((ROOT / "constraints.txt").read_text().splitlines())
    required = (ROOT / "space" / "requirements.txt").read_text().replace("[mcp]", "")
    assert set(required.splitlines()) <= constraints
    gradio = next(line for line in constraints if line.startswith("gradio==")).removeprefix("gradio==")
    assert f"sdk_version: {gradio}\n" in (ROOT / "space" / "README.md").read_text()


def test_every_example_is_marked_as_synthetic():
    files = list(Path(EXAMPLES).iterdir())
    assert len(files) >= 4
    for file in files:
        with Image.open(file) as image:
            assert file.name.startswith("synthetic-")
            assert image.text["Synthetic"] == "yes"


def test_another_language_is_one_more_file(tmp_path, monkeypatch):
    shutil.copytree(texts.FILES, tmp_path / "languages")
    english = (tmp_path / "languages" / "en.toml").read_text()
    (tmp_path / "languages" / "de.toml").write_text(english.replace('title = "Chest opacity"', 'title = "Lunge"'))
    monkeypatch.setattr(texts, "FILES", tmp_path / "languages")
    assert texts.Texts("de")("page.title") == "Lunge"
    assert texts.Texts()("page.model", name="x") == "Model: x"
    with pytest.raises(InputError, match="expected one of de, en"):
        texts.Texts("fr")


def test_every_text_is_used_and_every_one_that_is_used_is_there():
    sections = tomllib.loads((texts.FILES / "en.toml").read_text())
    there = {f"{section}.{key}" for section, keys in sections.items() for key in keys}
    code = "".join(file.read_text() for file in (ROOT / "space").glob("*.py"))
    named = set(re.findall(rf"""["']((?:{"|".join(sections)})\.\w+)["']""", code))
    assert named - {"page.css"} <= there
    made = {key for key in there if key.partition(".")[0] in {"places", "methods"}}  # by numbers and names
    made |= {"stage.divider", "stage.strength", "answer.called", "clip.called"}
    assert there - named - made == set()


def test_space_never_imports_training():
    for file in (ROOT / "space").glob("*.py"):
        assert not re.search(r"^\s*(from|import) training\b", file.read_text(), re.MULTILINE), file
