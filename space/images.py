"""One decoder of images for training, evaluation, bulk prediction and the page."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from space.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
MOST_PIXELS = 20_000_000  # a few kilobytes of PNG can hold gigabytes of pixels


def load_image(source: str | Path | bytes | dict) -> Image.Image:
    """Decode an image to 8-bit RGB.

    source is a path, the bytes of a file, or the {"path", "bytes"} of an undecoded `datasets` image. The EXIF
    orientation is applied; more than 8 bits are scaled by the range that the image uses, where Pillow's own conversion
    would clip them to white; of an animation the first frame is taken. For 8-bit images the pixels are those that
    transformers' pipeline() sees.

    Raises InputError, without the path, when it is no image, is cut short, or has more than MOST_PIXELS.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source["bytes"] is not None else source["path"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large or odd files: they are judged below
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise InputError(
                        f"the image has {width} x {height} pixels, expected {MOST_PIXELS // 1_000_000} million at "
                        "the most: scale it down"
                    )
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("the file does not exist") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is cut short" if "truncated" in str(error).lower() else "it is no image that can be read"
        raise InputError(f"{reason}: give a whole JPEG, PNG, TIFF, BMP or WebP file") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        low, high = values.min(), values.max()
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        image = Image.fromarray(scaled.round().astype(np.uint8))
    return image.convert("RGB")
