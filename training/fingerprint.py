"""One look at every image: what duplicates, confounds and odd files are told by."""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from tqdm.auto import tqdm

from space.dicom import DicomFile, is_dicom
from space.errors import InputError, some_of
from space.images import load_image
from space.remote import read_content

SIDE = 64  # of a thumbnail
LEVELS = 16  # bins of the brightness histogram
CORNER = 8  # side of a thumbnail's corner
AHEAD = 128  # images whose files are held in memory at a time


@dataclass(frozen=True)
class Fingerprints:
    """What is known of n images without looking at them again.

    thumbnails: (n, SIDE, SIDE) uint8, grey, each image squeezed to a square; on disk, for there may be many.
    facts: n rows of numbers, see `_facts`; "pixels" is the SHA-256 of size and RGB values, "broken" why an image
    cannot be read, or "" (then all other facts are missing and the thumbnail is black).
    """

    thumbnails: np.ndarray
    facts: pd.DataFrame

    @property
    def readable(self) -> np.ndarray:
        """Indices of the images that can be read."""
        return np.flatnonzero(self.facts["broken"].to_numpy() == "")


def take_fingerprints(rows: Dataset, read: Callable[[dict], bytes] = read_content) -> Fingerprints:
    """Decode every image of a data set once. read: gives the bytes of an undecoded image {"path", "bytes"}.

    Raises InputError when there is no room for the thumbnails.
    """
    with tempfile.TemporaryFile() as file:  # which goes when nobody looks at the thumbnails any more
        shape = (max(len(rows), 1), SIDE, SIDE)
        try:
            if hasattr(os, "posix_fallocate"):  # as it is not on a Mac
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # or a full disk would kill the process later
        except OSError as error:
            raise InputError(
                f"cannot write {tempfile.gettempdir()}: {error}; set TMPDIR to a folder that has room"
            ) from error
        thumbnails = np.memmap(file, np.uint8, "w+", shape=shape)
    undecoded = rows.select_columns(["image"]).cast_column("image", ImageFeature(decode=False))

    def take(numbered: tuple[int, dict]) -> dict:
        index, row = numbered
        try:
            content = read(row["image"])
            if is_dicom(content):  # a listing has frames in place of a file that can be read
                raise InputError(_reason_without_frames(content))
            facts, thumbnails[index] = _facts(content, load_image(content))
            return facts | {"broken": ""}
        except (InputError, OSError) as error:
            return {"pixels": "", "broken": str(error)}

    with ThreadPoolExecutor() as pool:
        progress = tqdm(enumerate(undecoded), total=len(rows), desc="looking", unit="image", leave=False)
        numbered = iter(progress)  # map takes all that it is given at once
        facts = [found for _ in range(0, len(rows), AHEAD) for found in pool.map(take, islice(numbered, AHEAD))]
    return Fingerprints(thumbnails[: len(rows)], pd.DataFrame(facts))


def require_readable(rows: Dataset, broken: list[str]) -> None:
    """Raise InputError, with the number and the first few names, when some of the reasons `broken` are not ""."""
    named = [f"{path} ({reason})" for path, reason in zip(rows["path"], broken, strict=True) if reason]
    if named:
        raise InputError(f"found {len(named)} of {len(rows)} images broken: {some_of(named, '; ')}")


def _reason_without_frames(content: bytes) -> str:
    try:
        dicom = DicomFile(content)
        for number in range(dicom.frames):
            dicom.frame(number)
    except InputError as error:
        return str(error)
    return "the DICOM file could not be read when it was listed, and can now: save it anew"


def _facts(content: bytes, image: Image.Image) -> tuple[dict, np.ndarray]:
    width, height = image.size
    facts = {"pixels": hashlib.sha256(f"{width}x{height}".encode() + image.tobytes()).hexdigest()}
    facts |= _file_facts(content, width, height)
    grey = image.convert("L")
    histogram = np.array(grey.histogram()) / (width * height)
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    facts |= {
        "mean": float(histogram @ np.arange(256)) / 255,
        "deviation": float(np.sqrt(histogram @ (np.arange(256) - histogram @ np.arange(256)) ** 2)) / 255,
        "black": float(histogram[:6].sum()),
        "white": float(histogram[-6:].sum()),
        "entropy": grey.entropy(),
        "most_common": float(histogram.max()),
    }
    levels = histogram.reshape(LEVELS, -1).sum(axis=1)
    facts |= {f"level_{index}": float(share) for index, share in enumerate(levels)}
    small = thumbnail.astype(np.float32) / 255
    corners = {
        "top_left": small[:CORNER, :CORNER],
        "top_right": small[:CORNER, -CORNER:],
        "bottom_left": small[-CORNER:, :CORNER],
        "bottom_right": small[-CORNER:, -CORNER:],
    }
    strips = {"top": small[:1], "bottom": small[-1:], "left": small[:, :1], "right": small[:, -1:]}
    facts |= {f"corner_{name}": float(part.mean()) for name, part in corners.items()}
    facts |= {f"border_{name}": float(part.mean()) for name, part in strips.items()}
    colours = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    facts["colour"] = float((colours.max(axis=2) - colours.min(axis=2)).mean())
    facts["edges"] = float(np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean())
    return facts, thumbnail


def _file_facts(content: bytes, width: int, height: int) -> dict:
    share = len(content) / (width * height)
    facts = {"width": width, "height": height, "aspect": width / height, "bytes_per_pixel": share}
    with Image.open(io.BytesIO(content)) as file:
        quantization = getattr(file, "quantization", None) or {}
        return facts | {
            "format": file.format or "",
            "mode": file.mode,
            "quantization": float(sum(sum(table) for table in quantization.values())),
            "exif_tags": float(len(file.getexif())),
        }
