"""Features of an image that nobody has learned: histograms of gradients and of local binary patterns."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE, CELL = 128, 16


def handmade(image: Image.Image) -> np.ndarray:
    """HOG in 8 x 8 cells and uniform LBP in 4 x 4, of the image in grey at SIDE x SIDE: (2708,)."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255
    return np.concatenate([hog(grey), lbp(grey)])


def hog(grey: np.ndarray) -> np.ndarray:
    """Dalal and Triggs, Histograms of oriented gradients, CVPR 2005: 9 directions, blocks of 2 x 2 cells, L2-hys."""
    dy, dx = np.gradient(grey)
    strength, direction = np.hypot(dx, dy), (np.arctan2(dy, dx) % np.pi) / np.pi * 9
    low = np.floor(direction).astype(int) % 9
    share = direction - np.floor(direction)
    votes = strength[..., None] * (
        (np.arange(9) == low[..., None]) * (1 - share)[..., None]
        + (np.arange(9) == (low[..., None] + 1) % 9) * share[..., None]
    )
    count = grey.shape[0] // CELL
    cells = votes.reshape(count, CELL, count, CELL, 9).sum((1, 3))
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=2)
    blocks = blocks / np.sqrt((blocks**2).sum(2, keepdims=True) + 1e-4)
    blocks = blocks.clip(None, 0.2)
    return (blocks / np.sqrt((blocks**2).sum(2, keepdims=True) + 1e-4)).ravel()


def lbp(grey: np.ndarray) -> np.ndarray:
    """Ojala et al., PAMI 2002: 8 neighbours at distance 1, the 58 uniform patterns and one bin for all others."""
    steps = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    middle = grey[1:-1, 1:-1]
    around = [grey[1 + y : grey.shape[0] - 1 + y, 1 + x : grey.shape[1] - 1 + x] >= middle for y, x in steps]
    codes = sum(ring.astype(int) << place for place, ring in enumerate(around))
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    uniform = (bits != np.roll(bits, 1, axis=1)).sum(1) <= 2
    bins = np.full(256, 58)
    bins[uniform] = np.arange(58)
    parts = [part for rows in np.array_split(bins[codes], 4) for part in np.array_split(rows, 4, axis=1)]
    return np.concatenate([np.sqrt(np.bincount(part.ravel(), minlength=59) / part.size) for part in parts])
