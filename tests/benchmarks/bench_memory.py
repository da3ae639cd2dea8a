"""Memory for reading a data set: 1,000 thumbnails against 100,000, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from thumbnails import blends
from tqdm import tqdm

from training.fingerprint import take_fingerprints
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


def peak(folder: Path, number: int) -> float:
    """Peak memory in MB of a process that reads and decodes every image."""
    told = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, check=True).stdout
    seen, kilobytes = map(int, told.split())
    assert seen == number
    print(f"{number:,} images: {kilobytes / 1024:.0f} MB", flush=True)
    return kilobytes


with tempfile.TemporaryDirectory() as scratch:
    write_phantom(Path(scratch) / "phantom", scale=0.1)
    frames = take_fingerprints(load_data(Path(scratch) / "phantom")).thumbnails
    peaks = []
    for number in (1_000, 100_000):
        folder = Path(scratch) / str(number)
        for label in ("normal", "sick"):
            (folder / label).mkdir(parents=True)
        for index, image in enumerate(tqdm(blends(np.asarray(frames), number), desc="writing", leave=False)):
            Image.fromarray(image).save(folder / ("normal", "sick")[index % 2] / f"{index}.png", compress_level=1)
        peaks.append(peak(folder, number))
    print(f"peak memory, 100,000 images / 1,000: {peaks[1] / peaks[0]:.2f}")
