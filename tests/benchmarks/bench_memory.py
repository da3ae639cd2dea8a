"""Memory for reading and for predicting: 1,000 thumbnails against 100,000, each time in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from thumbnails import blends
from tqdm import tqdm

from training.arguments import ModelArguments
from training.fingerprint import take_fingerprints
from training.model import load_base
from training.phantom import write_phantom
from training.sources import load_data

# VmHWM and not getrusage's ru_maxrss, which a new process inherits from the one that started it.
READ = """
import re, sys
from training.sources import load_data

rows = load_data(sys.argv[1])
seen = sum(row["image"].size[0] > 0 for row in rows)
print(seen, re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


PREDICT = """
import re, sys
from training import predict

output = sys.argv[1] + ".csv"
predict.main([sys.argv[2], sys.argv[1], "--output", output])
seen = sum(1 for _ in open(output)) - 1
print(seen, re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak(script: str, folder: Path, number: int, model: Path) -> float:
    """Peak memory in kB of a process that goes through every image."""
    command = [sys.executable, "-c", script, folder, model]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen, kilobytes = map(int, told.splitlines()[-1].split())
    assert seen == number
    print(f"  {number:,} images: {kilobytes / 1024:.0f} MB", flush=True)
    return kilobytes


with tempfile.TemporaryDirectory() as scratch:
    write_phantom(Path(scratch) / "phantom", scale=0.1)
    frames = take_fingerprints(load_data(Path(scratch) / "phantom")).thumbnails
    model, processor = load_base(ModelArguments("scratch:resnet-8-thin", image_size=32), ["normal", "sick"])
    for part in (model, processor):
        part.save_pretrained(f"{scratch}/model")
    peaks: dict[str, list[float]] = {"reading": [], "predicting": []}
    for number in (1_000, 100_000):
        folder = Path(scratch) / str(number)
        for label in ("normal", "sick"):
            (folder / label).mkdir(parents=True)
        for index, image in enumerate(tqdm(blends(np.asarray(frames), number), desc="writing", leave=False)):
            Image.fromarray(image).save(folder / ("normal", "sick")[index % 2] / f"{index}.png", compress_level=1)
        for work, script in (("reading", READ), ("predicting", PREDICT)):
            print(work)
            peaks[work].append(peak(script, folder, number, Path(scratch) / "model"))
    for work, (few, many) in peaks.items():
        print(f"peak memory of {work}, 100,000 images / 1,000: {many / few:.2f}")
