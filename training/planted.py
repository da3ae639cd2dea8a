"""Signs of disease drawn into real frames of healthy lungs: what a site's own sick patients may not show, on its own
machines, and as often as the same lungs without them.

The phantom's lesions (training/anatomy.py) change a frame in its beam coordinates, below its pleural line:

1. the fan that the probe scanned is found by the outermost grey pixels, the pleural line as the brightest smooth path
   across the beams in the upper half. That may be a layer of the chest wall above it: the signs then begin too high.
2. grey values are taken for decibels, and the lesions write what they echo over the mean of the place, as in
   training/ultrasound.py. The frame keeps its speckle; where it is black, speckle is drawn.
3. only the change is brought back, so that whatever no lesion touches stays as it was to the pixel.

Foreign patches in healthy images have been used to find what is abnormal (Tan et al., Detecting outliers with foreign
patch interpolation, J. Mach. Learn. Biomed. Imaging 2022:013); here they are signs with a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from space.errors import InputError
from training.anatomy import FINDINGS, Anatomy
from training.phantom_sites import draw_varied_anatomy
from training.ultrasound import BEAMS, SAMPLES, add_lesion

LARGEST = 400  # pixels that the longest side of a frame is scaled down to
DARK, FAINT = 4, 10  # grey values up to which nothing is seen, and no speckle
SEEN, LEAST = 20, 0.03  # grey values that a sign changes a pixel by, and the least share of such pixels
TRIES = 5  # of frames, before the one that was to be replaced is shown after all
USUAL_HALF = 28.0  # mm from the middle of the pleural line to its end, which the phantom's lesions are placed by


class Planting:
    """Which images of a train part give their place to others that are planted, whenever they are shown: a share of
    those of disease, to healthy ones of any site, each site as often."""

    def __init__(self, rows: Dataset, share: float):
        """rows: of two classes, the healthy one first. Raises InputError when there are others."""
        if (names := rows.features["label"].names)[2:]:
            raise InputError(f"planted: found the classes {', '.join(names)}, expected two, the healthy one first")
        labels, sites = np.asarray(rows["label"]), np.asarray(rows["site"])
        self.share, self.sick = share, labels == 1
        self.healthy = [np.flatnonzero((labels == 0) & (sites == site)) for site in sorted(set(sites[labels == 0]))]

    def draw(self, index: int, rng: np.random.Generator, load: Callable[[int], Image.Image]) -> Image.Image | None:
        """What is shown for an image, in RGB; None where that is itself. load gives the picture of an index."""
        if index >= len(self.sick) or not self.sick[index] or rng.random() >= self.share:
            return None
        for _ in range(TRIES):
            frames = self.healthy[rng.integers(len(self.healthy))]
            if planted := plant(load(rng.choice(frames)).convert("L"), rng):
                return planted.convert("RGB")
        return None


class Fan(NamedTuple):
    """The scanned part of a frame, in pixels: a sector below `apex`, or a rectangle where that is None."""

    middle: float  # column
    apex: float | None  # row that the beams meet at
    half: float  # half the opening angle, of a rectangle half the width
    near: float  # distance of the probe's face from the apex, of a rectangle its row
    far: float

    def pixels_of_beams(self) -> np.ndarray:
        """Row and column of each sample of each beam (2, SAMPLES, BEAMS)."""
        depth = self.near + np.linspace(0, 1, SAMPLES)[:, None] * (self.far - self.near)
        across = np.linspace(-1, 1, BEAMS) * self.half
        if self.apex is None:
            return np.stack(np.broadcast_arrays(depth, self.middle + across))
        return np.stack([self.apex + depth * np.cos(across), self.middle + depth * np.sin(across)])

    def beams_of_pixels(self, shape: tuple[int, int]) -> np.ndarray:
        """Sample and beam of each pixel of a frame (2, height, width), both as fractional indices."""
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        x -= self.middle
        depth, across = y, x
        if self.apex is not None:
            y -= self.apex
            depth, across = np.hypot(x, y), np.arctan2(x, y)
        return np.stack(
            [
                (depth - self.near) / (self.far - self.near) * (SAMPLES - 1),
                (across / self.half + 1) / 2 * (BEAMS - 1),
            ]
        )


def find_fan(grey: np.ndarray) -> Fan | None:
    """The fan of a frame (height, width) of grey values; None where less than a third of its rows shows anything."""
    height, width = grey.shape
    lit = gaussian_filter(grey, 2) > DARK
    rows = np.flatnonzero(lit.sum(axis=1) > 0.08 * width)
    if len(rows) < height / 3:
        return None
    top = rows[0]
    left, right = lit[rows].argmax(axis=1), width - 1 - lit[rows, ::-1].argmax(axis=1)
    upper = rows < top + 0.6 * (rows[-1] - top)  # further down the sides fade, or are cut off
    edges = [_edge(rows, left, upper & (left > 3)), _edge(rows, right, upper & (right < width - 4))]
    outward = [sign * edge[0] for sign, edge in zip((-1, 1), edges, strict=True) if edge]
    spread = np.mean(outward) if outward else 0.0
    if spread < 0.08:
        return Fan((left.min() + right.max()) / 2, None, max(right.max() - left.min(), 1) / 2, top, height - 1)
    if all(edges):
        (one, at), (other, to) = edges
        ends = at + one * top, to + other * top
        middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    else:
        middle, half = width / 2, 0.2 * width
    near = max(half, 0.05 * width) / spread
    return Fan(middle, top - near, np.arctan(spread), near, height - top + near)


def _edge(rows: np.ndarray, columns: np.ndarray, seen: np.ndarray) -> tuple[float, float] | None:
    """Slope and offset of the line through most of the columns that are seen; None of too few."""
    if seen.sum() < 15:
        return None
    slopes = np.linspace(-1, 1, 51)
    levels = columns[seen] - slopes[:, None] * rows[seen]
    offsets = np.median(levels, axis=1)
    best = np.abs(levels - offsets[:, None]).clip(0, 10).mean(axis=1).argmin()
    return slopes[best], offsets[best]


def find_pleura(beams: np.ndarray) -> np.ndarray:
    """The sample that the pleural line is at in each beam (BEAMS,): of the paths across the upper half of the grey
    values (SAMPLES, BEAMS) that change by two samples a beam at most, the one that stands out most."""
    first, last, reach = int(0.06 * SAMPLES), int(0.45 * SAMPLES), 2
    ridge = (gaussian_filter(beams, (3, 4)) - gaussian_filter(beams, (25, 4)))[first:last]
    steps = np.arange(-reach, reach + 1)
    total, came = ridge[:, 0], []
    for beam in ridge.T[1:]:
        padded = np.pad(total, reach, constant_values=-1e9)
        options = np.stack([padded[reach + step : reach + step + len(total)] - abs(step) for step in steps])
        came.append(np.arange(len(total)) + steps[options.argmax(axis=0)])
        total = options.max(axis=0) + beam
    path = [total.argmax()]
    for back in reversed(came):
        path.append(back[path[-1]])
    return gaussian_filter(np.array(path[::-1], float), 1.5) + first


def plant(image: Image.Image, rng: np.random.Generator, finding: str | None = None) -> Image.Image | None:
    """A frame of healthy lungs with signs of a finding of the phantom's, or of one drawn by chance.

    image and what is returned are of mode L, the latter LARGEST pixels at most; None where too little is seen of the
    lungs or of the signs.
    """
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST))
    grey = np.asarray(image, np.float32)
    fan = find_fan(grey)
    if fan is None:
        return None
    beams = map_coordinates(grey, fan.pixels_of_beams(), order=1)
    if (beams[int(0.3 * SAMPLES) : int(0.7 * SAMPLES)] > FAINT).mean() < 0.2:
        return None
    path = find_pleura(beams)
    scale = rng.uniform(80, 160)  # mm that the frame is deep, which it does not tell
    depth = np.linspace(0, scale, SAMPLES, dtype=np.float32)[:, None]
    pleura = (path / (SAMPLES - 1) * scale).astype(np.float32)
    mm = scale / (fan.far - fan.near)
    half = fan.half * (mm if fan.apex is None else fan.near * mm + pleura.mean())
    u = np.linspace(-half, half, BEAMS, dtype=np.float32)
    dynamic_range = rng.uniform(45, 65)

    wall = beams[(depth < pleura) & (beams > DARK)]
    lung = beams[(depth > pleura + 3) & (depth < pleura + 0.35 * scale)]
    level = wall.mean() if len(wall) else 100.0
    decibels = (beams - level) / 255 * dynamic_range
    haze = (np.percentile(lung, 60) - level) / 255 * dynamic_range
    finding = finding or rng.choice(FINDINGS, p=(0.55, 0.3, 0.15))
    anatomy = draw_varied_anatomy(rng, finding)
    change = _change(anatomy, decibels, haze, depth, u, pleura, beams < FAINT, rng)
    reach = gaussian_filter(beams, (30, 2)) / max(lung.mean(), 1)
    change *= np.where(depth > pleura, reach.clip(0.15, 1), 1)  # little is seen behind ribs
    if finding == "b-lines":
        gaps = (anatomy.pleura_gaps(u) - 2).clip(0, None)
        change -= 1.5 * gaps * np.exp(-(((depth - pleura) / 1.2) ** 2))
    back = fan.beams_of_pixels(grey.shape)
    planted = grey + map_coordinates(change / dynamic_range * 255, back, order=1)
    scanned = map_coordinates(gaussian_filter((beams > 3).astype(np.float32), 6), back, order=1) > 0.3
    planted[(grey < 1) & ~scanned] = 0
    if (np.abs(planted.clip(0, 255) - grey) > SEEN).mean() < LEAST:
        return None  # drawn where nothing shows
    return Image.fromarray(planted.clip(0, 255).round().astype(np.uint8))


def _change(anatomy: Anatomy, decibels, haze, depth, u, pleura, black, rng) -> np.ndarray:
    """What the patient's lesions add to the decibels of a frame (SAMPLES, BEAMS)."""
    mean = gaussian_filter(decibels, (8, 3))
    diffuse, specular, ray = mean.copy(), np.full_like(mean, -90), np.zeros(mean.shape, bool)
    for lesion in anatomy.lesions:
        placed = replace(lesion, u=lesion.u * np.abs(u).max() / USUAL_HALF)
        ray |= add_lesion(placed, diffuse, specular, haze, depth, u, pleura)
    change = gaussian_filter(np.maximum(diffuse, specular) - mean, (1.2, 0.8))
    speckle = np.hypot(*gaussian_filter(rng.standard_normal((2, SAMPLES, BEAMS)).astype(np.float32), (0, 2, 1.6)))
    speckle = 20 * np.log10(speckle / np.sqrt((speckle**2).mean()) + 1e-3)
    own = (decibels - mean) * np.where(ray & (change > 3), 0.7, 1)  # a B-line wipes out the A-lines
    changed = np.abs(change) > 0.5
    full = mean + change + np.where(black, 0.7 * speckle, own)
    return gaussian_filter(changed.astype(np.float32), (1.5, 1)) * np.where(changed, full - decibels, 0)
