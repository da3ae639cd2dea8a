"""The page's server as programs see it: two functions, many people at once, bad input, and what it tells browsers."""

import base64
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import anyio
import httpx
import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from space import server
from space.images import load_image
from space.texts import Texts
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.dicom import write_dicom
from tests.images import speckle
from tests.page import ask

EXAMPLE = ROOT / "space" / "examples" / "synthetic-b-lines.png"


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_two_functions_are_named_and_documented(client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert set(told) == {"/predict", "/predict_batch"}
    assert [each["parameter_name"] for each in told["/predict"]["parameters"]] == ["image", "shown", "method"]
    assert [each["label"] for each in told["/predict"]["returns"]] == ["label", "overlay", "said", "answer"]
    assert [each["label"] for each in told["/predict_batch"]["returns"]] == ["rows", "csv"]


def test_an_image_is_answered_like_by_the_predictor(client, model):
    label, overlay, said, answer = client.predict(handle_file(EXAMPLE), api_name="/predict")
    expected = model.predictor.answer([load_image(EXAMPLE)])[0].probabilities
    assert [answer["probabilities"][name] for name in model.predictor.labels] == pytest.approx(expected, abs=1e-6)
    assert sum(each["confidence"] for each in label["confidences"]) == pytest.approx(1)
    assert f"calls this image {model.predictor.labels[int(expected[1] >= model.predictor.threshold)]}" in said
    assert answer["threshold"] == model.predictor.threshold
    with Image.open(overlay) as seen, Image.open(EXAMPLE) as original:
        assert seen.size == original.size
    with pytest.raises(AppError, match="expected one of normal, sick"):
        client.predict(handle_file(EXAMPLE), "pneumonia", api_name="/predict")


def test_the_label_is_what_was_decided_and_empty_where_the_model_abstains(client, model, monkeypatch):
    negative, positive = model.predictor.answer([load_image(EXAMPLE)])[0].probabilities
    likely, unlikely = ("sick", "normal") if positive > negative else ("normal", "sick")
    monkeypatch.setattr(model.predictor, "threshold", (1 + positive) / 2 if positive > negative else positive / 2)
    label, _, _, answer = client.predict(handle_file(EXAMPLE), api_name="/predict")
    assert label["label"] == answer["prediction"] == unlikely
    assert [each["label"] for each in label["confidences"]] == [likely, unlikely]
    monkeypatch.setitem(model.predictor.abstention.tensors, "limit", np.array([1e-6]))
    label, _, _, answer = client.predict(handle_file(EXAMPLE), api_name="/predict")
    assert label["label"] == answer["prediction"] == ""
    assert answer["abstained"]


def test_many_files_are_answered_in_order_and_a_broken_one_has_its_reason(client, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 9)
    (tmp_path / "broken.png").write_text("no image")
    files = [handle_file(file) for file in (EXAMPLE, tmp_path / "broken.png", clip)]
    rows, csv = client.predict(files, api_name="/predict_batch")
    told = [dict(zip(rows["headers"], row, strict=True)) for row in rows["data"]]
    assert [row["path"] for row in told] == [EXAMPLE.name, "broken.png", "clip.mp4"]
    assert [bool(row["error"]) for row in told] == [False, True, False]
    assert list(pd.read_csv(io.StringIO(csv))) == rows["headers"]


def test_where_one_of_many_files_could_not_be_read_its_probabilities_are_null(address):
    with httpx.Client(base_url=f"{address}/gradio_api", timeout=60) as http:
        given = {"broken.png": b"no image", "scan.png": EXAMPLE.read_bytes()}
        paths = http.post("/upload", files=[("files", pair) for pair in given.items()]).json()
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        event = http.post("/call/predict_batch", json={"data": [files]}).json()["event_id"]
        answer = http.get(f"/call/predict_batch/{event}").text.strip().rpartition("data: ")[2]
    rows = json.loads(answer, parse_constant=pytest.fail)[0]
    assert [row[rows["headers"].index("probability_sick")] is None for row in rows["data"]] == [True, False]


@pytest.mark.parametrize(("name", "key"), [("clip.dcm", "image.first"), ("pages.tif", "image.page"), ("one.tif", "")])
def test_of_a_file_of_several_frames_it_is_said_that_the_first_is_answered(address, tmp_path, name, key):
    frames, path = np.stack([speckle(seed) for seed in range(3)]), tmp_path / name
    if path.suffix == ".dcm":
        write_dicom(path, frames)
    else:
        first, *others = map(Image.fromarray, frames)
        first.save(path, save_all=True, append_images=others if key else [])
    said = ask(address, name, path.read_bytes())[2]
    assert "calls this image" in said
    assert said.endswith(f" {Texts()(key)}" if key else " in all.")


def test_a_file_is_called_what_it_was_called_before_it_was_uploaded(address):
    name = "{scan} 1: left!.png"  # of letters that gradio leaves out of paths
    rows, csv = ask(address, name, EXAMPLE.read_bytes(), "predict_batch")
    assert rows["data"][0][0] == name
    assert name in csv


def test_agents_find_and_use_it_with_a_picture_itself_or_the_address_of_one_uploaded_here(address):
    async def use():
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, {"image": each}) for name in tools for each in pictures]

    (uploaded,) = httpx.post(f"{address}/gradio_api/upload", files={"files": EXAMPLE.read_bytes()}).json()
    pictures = [f"data:image/png;base64,{base64.b64encode(EXAMPLE.read_bytes()).decode()}"]
    pictures += [f"{address}/gradio_api/file={path}" for path in (quote(uploaded), ROOT / "docs" / "page.png")]
    tools, answers = ThreadPoolExecutor(1).submit(anyio.run, use).result()  # a browser's loop may run in this thread
    assert set(tools) == {"predict"}
    assert [answer.isError for answer in answers] == [False, False, True]
    assert all("calls this image" in str(answer.content) for answer in answers[:2])
    assert "Not for medical use" in tools["predict"].description
    assert "DICOM" in tools["predict"].inputSchema["properties"]["image"]["description"]


def test_fifty_people_at_once_get_the_answers_to_their_own_images(address, model):
    pictures = [speckle(seed, 60, 80) for seed in range(50)]
    with ThreadPoolExecutor(50) as people:
        answers = list(people.map(lambda pair: ask(address, f"{pair[0]}.png", png(pair[1])), enumerate(pictures)))
    images = [Image.fromarray(picture).convert("RGB") for picture in pictures]
    expected = [model.predictor.answer([image])[0].probabilities[1] for image in images]
    assert [answer[3]["probabilities"]["sick"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 50


def huge_png() -> bytes:
    """8000 x 8000 pixels in 8 KB."""
    rows = zlib.compress(bytes(1001) * 8000, 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = (8000).to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def dicom_without_pixels(folder) -> bytes:
    from pydicom import dcmread

    data = dcmread(write_dicom(folder / "scan.dcm", speckle(0)))
    del data.PixelData
    data.save_as(folder / "scan.dcm")
    return (folder / "scan.dcm").read_bytes()


BAD = {
    "cut short.png": lambda folder: png(speckle(0))[:900],
    "nothing.png": lambda folder: b"",
    "text.png": lambda folder: b"no image at all",
    "huge.png": lambda folder: huge_png(),
    "drawing.svg": lambda folder: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "page.html": lambda folder: b"<html><script>alert(1)</script></html>",
    "empty.dcm": dicom_without_pixels,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_friendly_line(address, tmp_path, name):
    data = BAD[name](tmp_path)
    with pytest.raises(ValueError, match="give|expected") as refusal:
        ask(address, name, data)
    rows = ask(address, name, data, "predict_batch")[0]
    reason = dict(zip(rows["headers"], rows["data"][0], strict=True))["error"]
    assert reason in str(refusal.value)
    assert not any(word in str(refusal.value) for word in ("Traceback", str(tmp_path.parent), "\n", "gradio"))


def test_no_file_at_all_is_one_friendly_line(client):
    for name, given in (("/predict", None), ("/predict_batch", [])):
        with pytest.raises(AppError, match="Give some files first"):
            client.predict(given, api_name=name)


def test_other_files_of_other_folders_are_not_read(address):
    with httpx.Client(base_url=f"{address}/gradio_api") as http:
        assert http.get(f"/file={ROOT / 'README.md'}").status_code == 403
        file = {"path": str(EXAMPLE.parent.parent / "app.py"), "meta": {"_type": "gradio.FileData"}}
        event = http.post("/call/predict", json={"data": [file, "", ""]}).json()["event_id"]
        assert "event: error" in http.get(f"/call/predict/{event}").text


def test_nothing_is_fetched_from_other_servers(address):
    with httpx.Client(base_url=f"{address}/gradio_api") as http:
        file = {"path": "http://93.184.215.14/scan.png", "meta": {"_type": "gradio.FileData"}}
        for name, given in (("predict", [file, "", ""]), ("predict_batch", [[file]])):
            event = http.post(f"/call/{name}", json={"data": given}).json()["event_id"]
            assert "nothing is fetched from other servers" in http.get(f"/call/{name}/{event}").text
        assert http.get("/file=http://93.184.215.14/scan.png").status_code == 403


def test_browsers_are_told_to_allow_nothing_from_elsewhere(address):
    told = httpx.get(address).headers
    for name, value in server.HEADERS.items():
        assert told[name] == value
    assert "default-src 'self'" in told["content-security-policy"]
    config = httpx.get(f"{address}/config").json()
    assert config["analytics_enabled"] is False
    assert httpx.get(f"{address}/monitoring").status_code in {403, 404}


def test_an_upload_that_is_too_large_is_refused_with_413(address):
    block = bytes(1 << 20)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="scan.png"\r\n\r\n'

    def body():
        yield head
        for _ in range(220):
            yield block
        yield b"\r\n--x--\r\n"

    answer = httpx.post(
        f"{address}/gradio_api/upload",
        content=body(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=60,
    )
    assert answer.status_code == 413
