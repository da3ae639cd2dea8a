"""Many different thumbnails in little time."""

from __future__ import annotations

import numpy as np
from PIL import Image

from training.fingerprint import SIDE


def thumbnail(image: Image.Image) -> np.ndarray:
    """An image as (SIDE, SIDE) uint8."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def blends(frames: np.ndarray, number: int) -> np.ndarray:
    """Thumbnails (number, SIDE, SIDE), each a mixture of its own of three of the frames (n, SIDE, SIDE)."""
    rng = np.random.default_rng(0)
    made = np.empty((number, SIDE, SIDE), np.uint8)
    for start in range(0, number, 5000):
        size = min(5000, number - start)
        chosen = frames[rng.integers(0, len(frames), (3, size))].astype(np.float32)
        shares = rng.dirichlet((1, 1, 1), size).T[:, :, None, None].astype(np.float32)
        noise = rng.normal(0, 6, (size, SIDE, SIDE)).astype(np.float32)
        made[start : start + size] = ((chosen * shares).sum(axis=0) + noise).clip(0, 255)
    return made
