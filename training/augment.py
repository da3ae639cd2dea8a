"""Changes that leave the diagnosis as it is, on PIL images; none turns a picture upside down.

Each function takes an image of mode RGB or L and a random generator and returns an image of the same mode and size.
What a change does to the anatomy, the exposure or the marks is what other people, machines and rooms would have done.
Pixels, as a unit, are those of a picture USUAL high: on a larger one, which will be scaled down, a grain or a blur is
as much larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

USUAL = 224
Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right swapped, every other time; not for X-rays, which show on which side the heart is."""
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


def time_gain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Time-gain compensation set otherwise: a smooth factor of 0.7 to 1.4 that changes with depth."""
    sliders = rng.uniform(0.7, 1.4, 5)
    rows = np.interp(np.linspace(0, 4, image.height), np.arange(5), sliders)
    return _scaled(image, rows[:, None])


def curve(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grey values on a random rising curve through four points, every other time: compression and post-processing."""
    if rng.random() < 0.5:
        return image
    at, to = (np.r_[0, np.cumsum(rng.dirichlet(np.full(5, 3.0)))] * 255 for _ in range(2))
    table = np.interp(np.arange(256), at, to).round().astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))


def cut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out of the sector, every other time: up to 20 % of each side, 30 % of the bottom, 6 % of the top."""
    if rng.random() < 0.5:
        return image
    width, height = image.size
    left, top, right, bottom = rng.uniform(0, [0.2 * width, 0.06 * height, 0.2 * width, 0.3 * height])
    return image.resize(image.size, Image.Resampling.BILINEAR, box=(left, top, width - right, height - bottom))


def speckle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another draw of speckle: multiplicative noise, grains of 1 to 3 pixels, up to 20 % strong."""
    grain = max(1, round(rng.integers(1, 4) * image.height / USUAL))
    noise = rng.standard_normal((image.height // grain + 1, image.width // grain + 1)).astype(np.float32)
    noise = np.asarray(Image.fromarray(noise).resize(image.size, Image.Resampling.BILINEAR))
    return _scaled(image, 1 + rng.uniform(0, 0.2) * noise)


def grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The noise of a lower dose: additive, up to 4 % of the range."""
    noise = rng.standard_normal((image.height, image.width)).astype(np.float32) * rng.uniform(0, 0.04) * 255
    return _to_image(np.asarray(image, np.float32) + _for_channels(image, noise))


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus, every third time: Gaussian, up to 1.5 pixels."""
    return (
        image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5) * image.height / USUAL))
        if rng.random() < 1 / 3
        else image
    )


def coarsen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A smaller copy blown up again, every third time: down to 40 % of the resolution."""
    if rng.random() >= 1 / 3:
        return image
    share = rng.uniform(0.4, 0.9)
    small = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))
    return small.resize(image.size, Image.Resampling.BILINEAR)


def mark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Text and a measuring scale burned in near the border, every other time, as machines do."""
    if rng.random() >= 0.5:
        return image
    image = image.copy()
    draw, (width, height) = ImageDraw.Draw(image), image.size
    letters = "".join(rng.choice(list("ABDEHLMPRST0123456789:. "), rng.integers(2, 12)))
    shade = _grey(image, rng.integers(120, 256))
    at = (rng.uniform(0.01, 0.7) * width, rng.choice([rng.uniform(0.0, 0.08), rng.uniform(0.88, 0.95)]) * height)
    draw.text(at, letters, fill=shade, font_size=max(6, int(height * rng.uniform(0.03, 0.06))))
    if rng.random() < 0.5:
        x, steps = rng.choice([0.02, 0.98]) * width, int(rng.integers(5, 15))
        for y in np.linspace(0.1, 0.9, steps) * height:
            draw.line((x - width * 0.01, y, x + width * 0.01, y), fill=shade)
    return image


def sector(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A narrower sector or other margins, every other time: the sides go dark along slanted or upright lines."""
    if rng.random() >= 0.5:
        return image
    width, height = image.size
    top, bottom = rng.uniform(0, 0.15, 2) * width
    black = Image.new(image.mode, image.size)
    shown = Image.new("L", image.size)
    corners = [(top, 0), (width - top, 0), (width - bottom, height), (bottom, height)]
    ImageDraw.Draw(shown).polygon(corners, fill=255)
    return Image.composite(image, black, shown)


def collimate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other collimation, every other time: borders of up to 6 % of a side go dark."""
    if rng.random() >= 0.5:
        return image
    width, height = image.size
    left, top, right, bottom = rng.uniform(0, 0.06, 4) * (width, height, width, height)
    box = (int(left), int(top), width - int(right), height - int(bottom))
    framed = Image.new(image.mode, image.size)
    framed.paste(image.crop(box), box[:2])
    return framed


def erase(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One rectangle of 2 to 10 % of the area grey, every fourth time (Zhong et al., Random erasing, AAAI 2020)."""
    if rng.random() >= 0.25:
        return image
    area, ratio = rng.uniform(0.02, 0.1), math.exp(rng.uniform(-0.7, 0.7))
    width = min(image.width, round(math.sqrt(area * ratio) * image.width))
    height = min(image.height, round(math.sqrt(area / ratio) * image.height))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    image = image.copy()
    image.paste(_grey(image, rng.integers(0, 128)), (int(left), int(top), int(left) + width, int(top) + height))
    return image


AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "none": (),
    "light": (mirror, move, expose),
    "ultrasound": (cut, curve, mirror, move, expose, time_gain, speckle, coarsen, blur, sector, mark, erase),
    "xray": (curve, move, expose, grain, coarsen, blur, collimate, mark, erase),
}


def augment(image: Image.Image, name: str, rng: np.random.Generator) -> Image.Image:
    """Apply the augmentations that a recipe calls by `name`, one after the other, to an RGB image.

    Of a grey one they see a single channel, which is quicker and gives the same.
    """
    if not AUGMENTATIONS[name]:
        return image
    red, green, blue = (channel.tobytes() for channel in image.split())
    if red == green == blue:
        image = image.getchannel(0)
    for change in AUGMENTATIONS[name]:
        image = change(image, rng)
    return image.convert("RGB")


def _scaled(image: Image.Image, factor: np.ndarray) -> Image.Image:
    """factor: (height, width), or (height, 1) for whole rows."""
    return _to_image(np.asarray(image, np.float32) * _for_channels(image, factor))


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _for_channels(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Values of (height, width) in a form that each channel of the image's pixels can be taken with."""
    return values if image.mode == "L" else values[..., None]


def _grey(image: Image.Image, value: int) -> tuple[int, ...]:
    return (int(value),) * len(image.getbands())
