"""A page that is served from this process for a small model, and a browser to look at it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from space.app import serve
from space.page import Model
from space.texts import Texts

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
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


def pytest_itemcollected(item):
    """The tests that need the page or a browser in one process."""
    if {"address", "browser"} & set(item.fixturenames):
        item.add_marker(pytest.mark.xdist_group("page"))


@pytest.fixture(scope="session")
def model(small_model) -> Model:
    return Model.load(str(small_model))


@pytest.fixture(scope="session")
def address(model):
    """Where the page is served, without a slash at the end."""
    blocks = serve(ThreadPoolExecutor(1).submit(lambda: model), Texts())
    yield blocks.local_url.rstrip("/")
    blocks.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser whose camera sees white at the left and black at the right."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: install the package chromium")
    frame = np.tile(np.where(np.arange(320) < 160, 235, 16).astype(np.uint8), (240, 1))
    colours = bytes([128]) * (2 * 160 * 120)
    camera = tmp_path_factory.mktemp("camera") / "camera.y4m"
    camera.write_bytes(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n" + (b"FRAME\n" + frame.tobytes() + colours) * 10)
    with sync_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-video-capture={camera}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
