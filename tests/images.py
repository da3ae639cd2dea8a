"""Small data sets for tests."""

from __future__ import annotations

import csv
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_sample_images


def write_images(folder: Path, *names: str) -> None:
    """Write images of 9 x 8 pixels, each of another grey, with a folder for those that need one."""
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9), index * 9, np.uint8)).save(folder / name)


def drawn_over(jpeg: bytes, times: int) -> bytes:
    """The bytes of a progressive JPEG file with its last scan so many times more."""
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * times + jpeg[end:]


def white_is_nought(tiff: bytes) -> bytes:
    """The bytes of a TIFF file of grey with its values as they are, said to be 0 where it is white."""
    tag = struct.pack("<HHI", 262, 3, 1)
    assert tiff.count(tag) == 1
    return tiff.replace(tag + b"\1", tag + b"\0")


def write_table(file: Path, columns: list[str], *rows: list[str]) -> None:
    with open(file, "w", newline="") as target:
        csv.writer(target).writerows([columns, *rows])


def speckle(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """An image like no other, with structure at every scale: (height, width) uint8."""
    rng, image = np.random.default_rng(seed), np.zeros((height, width))
    for side, weight in ((3, 1.0), (8, 0.7), (24, 0.5), (64, 0.4)):
        noise = Image.fromarray(rng.random((side, side), np.float32))
        image += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


def strange_pictures(seed: int = 0) -> dict[str, list[Image.Image]]:
    """Pictures that show no chest: pieces of two photographs, pages of text, noise and plain areas, in RGB."""
    rng = np.random.default_rng(seed)
    pages = []
    for ink, paper in ((20, 255), (235, 0)):
        for _ in range(10):
            page = Image.new("L", (400, 500), paper)
            for line, text in enumerate(rng.integers(97, 123, (24, 40), np.uint8)):
                ImageDraw.Draw(page).text((20, 10 + 20 * line), text.tobytes().decode(), fill=ink)
            pages.append(page.convert("RGB"))
    pieces = []
    for photograph in map(Image.fromarray, load_sample_images().images):
        for _ in range(15):
            left, top = rng.integers(0, 340), rng.integers(0, 220)
            pieces.append(photograph.crop((left, top, left + 300, top + 200)))
    return {
        "photographs": pieces,
        "photographs in grey": [piece.convert("L").convert("RGB") for piece in pieces],
        "pages of text": pages,
        "noise": [Image.fromarray(rng.integers(0, 256, (150, 200, 3), np.uint8)) for _ in range(10)],
        "plain areas": [Image.new("RGB", (200, 150), (level,) * 3) for level in (60, 128, 250)],
    }


COPIES = (
    *("JPEG q60", "resized 80 %", "brighter 10 %", "darker 10 %", "cropped 3 %", "text burned in"),
    "cropped 5 % at the top",
)


def copy_of(image: Image.Image, kind: str) -> Image.Image:
    """A near copy of an RGB image, as images come about that are saved again, scaled, cropped or marked."""
    width, height = image.size
    if kind == "JPEG q60":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
        return Image.open(buffer).convert("RGB")
    if kind == "resized 80 %":
        return image.resize((round(width * 0.8), round(height * 0.8)), Image.Resampling.BICUBIC)
    if kind in {"brighter 10 %", "darker 10 %"}:
        return ImageEnhance.Brightness(image).enhance(1.1 if kind == "brighter 10 %" else 0.9)
    if kind == "cropped 3 %":
        left, top = round(width * 0.03), round(height * 0.03)
        return image.crop((left, top, width - left, height - top))
    if kind == "cropped 5 % at the top":
        return image.crop((0, round(height * 0.05), width, height))
    marked = image.copy()
    ImageDraw.Draw(marked).text((width * 0.7, height * 0.05), "R 12:07", fill=(255, 255, 255), font_size=height // 16)
    return marked
