"""A page that is served from this process for a small model, and a browser to look at it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

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
]


def pytest_itemcollected(item):
    """The tests that need the page in one process."""
    if "address" in item.fixturenames:
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
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
