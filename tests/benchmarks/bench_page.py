"""The page under use, served as a Space serves it, with a ResNet-50 at 224 px: how long, how many, how much memory.

python tests/benchmarks/bench_page.py [--requests 2000]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.page import ask
from training.arguments import ModelArguments
from training.model import load_base

EXAMPLE = ROOT / "space" / "examples" / "synthetic-effusion.png"
PEOPLE = 50


def picture(seed: int) -> bytes:
    """A JPEG of 640 x 480 pixels like no other."""
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def timed(address: str, seed: int) -> float:
    started = time.perf_counter()
    ask(address, f"{seed}.jpg", picture(seed))
    return time.perf_counter() - started


def resident(process: subprocess.Popen) -> int:
    """Megabytes that a process has in memory now."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


def in_a_browser(address: str) -> list[float]:
    """Seconds from a click on an example to its answer and map, five times in a browser that is warm."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#head ul")
        for name in ("effusion", "normal", "consolidation", "b lines other site", "effusion", "normal"):
            page.evaluate("document.querySelector('#seen .answer')?.remove()")
            started = time.perf_counter()
            page.get_by_role("button", name=f"synthetic {name}", exact=True).click()
            page.wait_for_selector("#seen .answer")
            page.wait_for_function("document.querySelector('#seen .map').complete")
            took.append(time.perf_counter() - started)
        browser.close()
    return took[1:]


parser = argparse.ArgumentParser()
parser.add_argument("--requests", type=int, default=2000)
requests = parser.parse_args().requests
with tempfile.TemporaryDirectory() as scratch:
    for part in load_base(ModelArguments("scratch:resnet-50"), ["normal", "sick"]):
        part.save_pretrained(f"{scratch}/model")
    (uploads := Path(scratch, "uploads")).mkdir()
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, ROOT / "space" / "app.py"],
        env=os.environ | {"MODEL_ID": f"{scratch}/model", "TMPDIR": str(uploads)},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        address = next(line for line in server.stdout if line.startswith("page: ")).removeprefix("page: ").strip("/\n")
        print(f"cold start: {time.perf_counter() - started:.1f} s to an answering page")
        took = in_a_browser(address)
        print(f"an example in a browser, click to map: median {np.median(took):.2f} s, longest {max(took):.2f} s")
        alone = [timed(address, seed) for seed in range(PEOPLE)]
        started = time.perf_counter()
        with ThreadPoolExecutor(PEOPLE) as people:
            together = list(people.map(lambda seed: timed(address, seed), range(1000, 1000 + PEOPLE)))
        total = time.perf_counter() - started
        p95 = float(np.percentile(together, 95))
        print(f"{PEOPLE} images one after the other: {sum(alone):.2f} s, median {np.median(alone):.3f} s each")
        print(
            f"{PEOPLE} people at once: {total:.2f} s, 95 % of them within {p95:.2f} s = {p95 / sum(alone):.2f} of that"
        )
        with ThreadPoolExecutor(4) as people:
            measured = []
            for done in range(0, requests, 200):
                list(people.map(lambda seed: timed(address, seed), range(5000 + done, 5200 + done)))
                measured.append(resident(server))
        print(f"memory after each 200 of {requests} requests: {measured} MB")
        print(f"the last of these / the first: {measured[-1] / measured[0]:.3f}")
        kept = sum(path.is_file() for path in uploads.rglob("*"))
        server.terminate()
        server.wait(30)
    left = sum(path.is_file() for path in uploads.rglob("*"))
    print(f"files in the folder of uploads: {kept} of the last ten minutes, {left} after the end")
