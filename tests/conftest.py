"""What the tests share: no network, a cache of their own, a small phantom, a small model, and one whole demo."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.dont_write_bytecode = False  # or every process that a test starts would compile the project anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
CACHE = tempfile.mkdtemp(prefix="chest-opacity-tests-")
os.environ |= {
    "HF_HOME": CACHE,
    "HF_HUB_OFFLINE": "1",
    "GRADIO_TEMP_DIR": f"{CACHE}/gradio",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "OMP_NUM_THREADS": "1",  # there is a test process for each core, and one more, for many wait
    "CUDA_VISIBLE_DEVICES": "",  # what is compared to the last digit is what a processor computes
}

import pandas as pd
import pytest
from filelock import FileLock

from tests.fits import GROUP_NORM, save_base
from training import train
from training.arguments import DataArguments
from training.phantom import write_phantom
from training.prepare import prepare

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "training" / "recipes"
# A network and a fit that are small enough for tests, whatever the recipe.
SMALL = ["--model_name_or_path", "scratch:resnet-8-thin", "--image_size", "64", "--num_train_epochs", "2"]
SMALL += ["--bf16", "false"]  # the same on every machine


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_finish():
    gc.freeze()  # as a verb does: Trainer's collection before each fit would look through all that was imported


def pytest_itemcollected(item):
    """The tests that need the whole demo in one process, while the other one runs the rest."""
    if "demo" in item.fixturenames:
        item.add_marker(pytest.mark.xdist_group("demo"))


def pytest_collection_modifyitems(items):
    """The tests that need the whole demo first, for they take longest."""
    items.sort(key=lambda item: "demo" not in item.fixturenames)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first test process to want it makes for all."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "made" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def small_phantom(tmp_path_factory) -> Path:
    """The phantom at an eighth of its size, as a folder."""
    return made_once(tmp_path_factory, "phantom", lambda folder: write_phantom(folder, scale=0.125))


@pytest.fixture(scope="session")
def small_home(small_phantom, tmp_path_factory) -> Path:
    """Its site A alone: what is trained on it has no site to be measured at elsewhere, which is quicker."""

    def make(folder: Path) -> None:
        table = pd.read_csv(small_phantom / "metadata.csv", dtype=str, keep_default_na=False)
        shutil.copytree(small_phantom / "images", folder / "images")
        table[table["site"] == "A"].to_csv(folder / "metadata.csv", index=False)

    return made_once(tmp_path_factory, "home", make)


@pytest.fixture(scope="session")
def parts(small_phantom):
    """The small phantom's site A, split."""
    return prepare(DataArguments(str(small_phantom), sites=["A"])).parts


@pytest.fixture(scope="session")
def small_base(tmp_path_factory) -> Path:
    """A network of 10,000 weights with group norm, as a local folder."""
    return save_base(tmp_path_factory.mktemp("bases") / "small", GROUP_NORM)


@pytest.fixture(scope="session")
def small_model(small_phantom, tmp_path_factory) -> Path:
    """A model folder trained for two epochs on the small phantom. Copy it before changing it."""
    recipe = [str(RECIPES / "phantom.yaml"), "--data", str(small_phantom), *SMALL]
    return made_once(tmp_path_factory, "small", lambda folder: train.main([*recipe, "--output_dir", str(folder)]))


class Demo:
    """`chest-opacity demo` in a folder of its own, run until it serves the page."""

    def __init__(self, folder: Path):
        self.folder = folder
        with open(folder / "errors.txt", "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "training.demo"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.output = ""
        for line in self.process.stdout:
            self.output += line
            if line.startswith("page: "):
                break
        assert "page: " in self.output, (folder / "errors.txt").read_text()
        self.url = self.output.rpartition("page: ")[2].strip()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The whole way on the full phantom, up to the served page."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    yield demo
    demo.stop()


@pytest.fixture(scope="session")
def demo_model(demo) -> Path:
    return demo.folder / "models" / "phantom"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A Hub, and a process that asks it; at the end, no token stands in any file of either."""
    from tests.client import Client
    from tests.hub import OTHER, OWNER, READER, Hub

    hub = Hub(tmp_path_factory.mktemp("hub"))
    with hub.serve() as address:
        client = Client(address, tmp_path_factory.mktemp("client"))
        yield hub, client
        client.stop()
    files = [path for path in [*hub.root.rglob("*"), *client.here.rglob("*")] if path.is_file()]
    for token in (OWNER, READER, OTHER):
        assert not [path for path in files if token.encode() in path.read_bytes()], "a token stands in a file"
    assert not [
        asked for asked in hub.asked if asked.path.startswith("/lfs/") and "verify" not in asked.path and asked.token
    ]


@pytest.fixture
def hub(served):
    """A Hub of which only this test asks anything: tests that want it are in the xdist_group "hub"."""
    hub, _ = served
    hub.asked.clear()
    hub.faults.clear()
    return hub


@pytest.fixture
def client(served):
    return served[1]
