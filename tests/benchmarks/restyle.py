"""Changes of PIL images that are no part of training/augment.py: for choosing methods, and what did not pay."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from training.augment import mark


def restyle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shown by another machine, every other time: a blend with what a random shallow network makes of the picture.

    Ouyang et al., Causality-inspired single-source domain generalization for medical image segmentation, IEEE
    Transactions on Medical Imaging 2022 (global intensity non-linear augmentation).
    """
    if rng.random() < 0.5:
        return image
    grey = np.asarray(image.convert("L"), np.float32) / 255
    maps = grey[None]
    for outputs in (2, 2, 2, 1):
        size = rng.choice([1, 3])
        weights = rng.standard_normal((outputs, len(maps), size, size)).astype(np.float32)
        padded = np.pad(maps, [(0, 0), (size // 2,) * 2, (size // 2,) * 2], mode="edge")
        rows, columns = grey.shape
        made = np.zeros((outputs, rows, columns), np.float32)
        for y in range(size):
            for x in range(size):
                seen = padded[:, y : y + rows, x : x + columns]
                made += np.tensordot(weights[:, :, y, x], seen, axes=1)
        made += rng.standard_normal((outputs, 1, 1)).astype(np.float32) * 0.1
        maps = made if outputs == 1 else np.where(made > 0, made, 0.2 * made)
    share = rng.uniform(0, 0.8)
    blend = share * maps[0] / (np.linalg.norm(maps[0]) + 1e-6) * np.linalg.norm(grey) + (1 - share) * grey
    blend *= np.linalg.norm(grey) / (np.linalg.norm(blend) + 1e-6)
    return Image.fromarray((blend * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")


def shadow(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Ribs, or a face that touches badly: up to three beams of 4 to 25 % of the width go dark below some depth.

    Every other time. They run apart as beams of a convex probe do, or are upright. After the acoustic shadows of
    Tupper and Gagné, Revisiting data augmentation for ultrasound images, TMLR 2025.
    """
    if rng.random() < 0.5:
        return image
    width, height = image.size
    light, spread = Image.new("L", image.size, 255), rng.choice([0.0, rng.uniform(0.2, 0.8)])
    for _ in range(rng.integers(1, 4)):
        middle, half, top = rng.uniform(-0.45, 0.45), rng.uniform(0.02, 0.125), rng.uniform(0.1, 0.35)
        edges = [width * (0.5 + (middle + side) * (1 + grow)) for grow in (0, 2 * spread) for side in (-half, half)]
        corners = [(edges[0], top * height), (edges[1], top * height), (edges[3], height), (edges[2], height)]
        ImageDraw.Draw(light).polygon(corners, fill=int(255 * rng.uniform(0.1, 0.7)))
    return ImageChops.multiply(image, light.filter(ImageFilter.BoxBlur(0.015 * width)).convert(image.mode))


def even(image: Image.Image) -> Image.Image:
    """Gain evened out: each grey value relative to the mean of its surroundings, a sixth of the picture wide."""
    grey = np.asarray(image.convert("L"), np.float32)
    grey = (grey / max(np.quantile(grey, 0.99), 1)).clip(0, 1)
    around = gaussian_filter(grey, image.height / 12)
    return Image.fromarray((grey / (around + 0.03) * 80).clip(0, 255).astype(np.uint8)).convert("RGB")


def altered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A frame as another machine and operator might have shown it, for choosing methods."""
    width, height = image.size
    left, top, right, bottom = (rng.uniform(0, [0.2, 0.08, 0.2, 0.25]) * (width, height, width, height)).astype(int)
    image = image.crop((left, top, width - right, height - bottom))
    low = int(rng.integers(24, 90))
    image = image.resize((low, int(low * rng.uniform(0.8, 1.25))), Image.Resampling.BOX)
    grey = np.asarray(image.convert("L"), float) / 255
    black, white = np.quantile(grey, [rng.uniform(0, 0.3), rng.uniform(0.9, 0.995)])
    grey = ((grey - black) / max(white - black, 0.05)).clip(0, 1) ** rng.uniform(0.5, 1.8)
    grey = grey * rng.uniform(0.5, 1) + rng.uniform(0, 0.15)
    image = Image.fromarray((grey * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    return mark(image.resize((width, height), Image.Resampling.BICUBIC), rng)


def exchanged(image: Image.Image, other: Image.Image) -> Image.Image:
    """The image with the grey values of another, the darkest for the darkest: equal histograms, as far as can be."""
    grey, given = (np.asarray(each.convert("L")).ravel() for each in (image, other))
    _, which, count = np.unique(grey, return_inverse=True, return_counts=True)
    middle = (np.cumsum(count) - count / 2) / len(grey)  # the rank of each grey value, from 0 to 1
    values = np.quantile(given, middle)[which].reshape(image.height, image.width)
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
