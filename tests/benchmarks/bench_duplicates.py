"""Search for copies: how many are found, against imagehash with all pairs compared, and how the time grows.

Recall is of 200 copies planted among 5,000 frames of the phantom. Speed and growth are of blends of those frames.
"""

from __future__ import annotations

import tempfile
import time
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from thumbnails import blends, thumbnail
from timing import compare

from tests.images import COPIES, copy_of
from training.duplicates import near_copies
from training.fingerprint import take_fingerprints
from training.phantom import write_phantom
from training.sources import load_data

FRAMES, PLANTED, COMPARED = 5000, 200, 10_000
BITS = 8  # that two hashes may differ in


def hashes_of(images: np.ndarray) -> list[imagehash.ImageHash]:
    return [imagehash.phash(Image.fromarray(image)) for image in images]


def by_one_product(images: np.ndarray, bits: int) -> set[tuple[int, int]]:
    """All pairs of perceptual hashes that differ in at most so many bits, compared by a product of matrices."""
    matrix = np.stack([each.hash.ravel() for each in hashes_of(images)]).astype(np.float32)
    found = set()
    for start in range(0, len(matrix), 1000):
        rows = matrix[start : start + 1000]
        apart = rows @ (1 - matrix.T) + (1 - rows) @ matrix.T
        found |= {(one + start, other) for one, other in np.argwhere(apart <= bits).tolist() if one + start < other}
    return found


def one_by_one(images: np.ndarray, bits: int) -> list[tuple[int, int]]:
    """The same as imagehash's own documentation does it: each hash minus each other one."""
    hashes = hashes_of(images)
    return [(one, other) for one, other in combinations(range(len(hashes)), 2) if hashes[one] - hashes[other] <= bits]


def told(name: str, pairs: set[tuple[int, int]], planted: set[tuple[int, int]], groups: list[str]) -> str:
    false = sum(groups[one] != groups[other] for one, other in pairs)
    return f"{name}: recall {len(planted & pairs) / len(planted):.3f}, {false} of {len(pairs)} pairs are false"


with tempfile.TemporaryDirectory() as scratch:
    write_phantom(Path(scratch) / "phantom", scale=FRAMES / 989)
    rows = load_data(Path(scratch) / "phantom")
    frames = take_fingerprints(rows).thumbnails
    chosen = np.random.default_rng(0).permutation(len(rows))[:PLANTED].tolist()
    copies = [copy_of(rows[index]["image"].convert("RGB"), COPIES[n % len(COPIES)]) for n, index in enumerate(chosen)]
    planted = {(index, len(rows) + n) for n, index in enumerate(chosen)}
    groups = [*rows["group"], *[rows[index]["group"] for index in chosen]]
    thumbnails = np.concatenate([frames, np.stack([thumbnail(copy) for copy in copies])])

print(f"{len(frames)} frames of the phantom and {PLANTED} copies")
print(told("near_copies", {tuple(pair) for pair in near_copies(thumbnails)[0].tolist()}, planted, groups))
for bits in (4, BITS, 12):
    print(told(f"imagehash, {bits} bits", by_one_product(thumbnails, bits), planted, groups), flush=True)

made = blends(frames, 100_000)
some = made[:COMPARED]
compare(
    f"imagehash one by one / near_copies, {COMPARED:,} images",
    lambda: one_by_one(some, BITS),
    lambda: near_copies(some),
    runs=1,
)
compare(
    f"imagehash by one product / near_copies, {COMPARED:,} images",
    lambda: by_one_product(some, BITS),
    lambda: near_copies(some),
    runs=3,
)
for number in (1_000, 10_000, 100_000):
    started = time.perf_counter()
    pairs = len(near_copies(made[:number])[0])
    print(f"near_copies, {number:,} images: {time.perf_counter() - started:.1f} s, {pairs} pairs", flush=True)
