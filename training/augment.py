"""Changes that leave the diagnosis as it is, on PIL images; none turns a picture upside down.

Each function takes an RGB image and a random generator and returns an RGB image of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right swapped, every other time."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def move(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turned by up to 8 degrees, zoomed by up to 12 %, shifted by up to 5 % of a side; what is laid bare is black."""
    width, height = image.size
    angle, zoom = math.radians(rng.uniform(-8, 8)), rng.uniform(0.88, 1.12)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    dx, dy = rng.uniform(-0.05, 0.05) * width, rng.uniform(-0.05, 0.05) * height
    matrix = (cos, sin, x - cos * (x + dx) - sin * (y + dy), -sin, cos, y + sin * (x + dx) - cos * (y + dy))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def expose(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gain, contrast and gamma as another operator would have set them; black stays black."""
    gain, gamma = rng.uniform(0.75, 1.3), math.exp(rng.uniform(-0.3, 0.3))
    table = (np.linspace(0, 1, 256) ** gamma * gain * 255).clip(0, 255).round().astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))


AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {"none": (), "light": (mirror, move, expose)}


def augment(image: Image.Image, name: str, rng: np.random.Generator) -> Image.Image:
    """Apply the augmentations that a recipe calls by `name`, one after the other."""
    for change in AUGMENTATIONS[name]:
        image = change(image, rng)
    return image
