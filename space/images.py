"""One decoder of images for training, evaluation, bulk prediction and the page."""

from __future__ import annotations

import errno
import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from space.dicom import DicomFile, by_range, each_once, is_dicom
from space.errors import InputError, check_scans, check_size, reason_of
from space.remote import content_of

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"})
MOST_OF_TAGS = 2  # times the bytes of a file, which each of its tags may say to hold
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # not those for which Pillow starts other programs


def load_image(source: str | Path | bytes | dict) -> Image.Image:
    """Decode an image to 8-bit RGB.

    source is a path, the bytes of a file, or the {"path", "bytes"} of an undecoded `datasets` image, which may be on
    the Hub. The EXIF orientation is applied; more than 8 bits of grey are scaled by the range that the image uses,
    where Pillow's own conversion would clip them to white; of 16 bits in colour, or beside transparency, Pillow gives
    the upper 8; of an animation or a DICOM file the first frame is taken. All but such grey and DICOM files have the
    pixels that transformers' pipeline() sees.

    Raises InputError, without the path, when it cannot be read, is no image, is cut short, or is too large.
    """
    source = content_of(source) if isinstance(source, dict) else source
    source = source if isinstance(source, bytes) else Path(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large or odd files: they are judged below
            if is_dicom(source):
                return DicomFile(source).frame(0)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                check_size(*image.size)
                if image.format in {"JPEG", "MPO"}:
                    check_scans(source if isinstance(source, bytes) else source.read_bytes())
                image.load()
                return _to_rgb(upright(image))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("the file does not exist") from None
    except Exception as error:  # damaged files can raise anything
        if getattr(error, "errno", None) not in {None, errno.EINVAL}:  # a damaged file may name places before its start
            raise InputError(f"it cannot be read ({reason_of(error)})") from None
        reason = "it is cut short" if "truncated" in str(error).lower() else "it is no image that can be read"
        raise InputError(f"{reason}: give a whole JPEG, PNG, TIFF, BMP, WebP or DICOM file") from None


def frames_in(source: Path | bytes) -> int:
    """How many frames or pages an image file holds, without a photograph's preview: 0 where it is none, 2 for any more.

    Pillow would count the pages of a TIFF file in a time that grows with their square.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return 2 if image.format != "MPO" and getattr(image, "is_animated", False) else 1
    except Exception:  # damaged files can raise anything
        return 0


def upright(image: Image.Image) -> Image.Image:
    """An image of a file turned as EXIF says, and no negative of what it shows.

    Where 0 is white in a TIFF file, Pillow inverts up to 8 bits and leaves more as they are.
    """
    negative = image.format == "TIFF" and image.mode in {"I;16", "F"} and image.tag_v2.get(262) == 0
    image = ImageOps.exif_transpose(image)
    if not negative:
        return image
    values = np.asarray(image)
    return Image.fromarray(-values if image.mode == "F" else 65535 - values)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0)
        image = Image.fromarray(each_once(values, by_range))
    return image.convert("RGB")


class _Tags:
    """A file of tags, of which no more is read than MOST_OF_TAGS times what it holds: then `read` raises InputError."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        here = self.tell()
        self.seek(0, io.SEEK_END)
        self._left = MOST_OF_TAGS * self.tell()
        self.seek(here)

    def read(self, size: int) -> bytes:
        content = self._read(size)
        self._left -= len(content)
        if self._left < 0:
            raise InputError("its tags hold more than the file itself does: save it again")
        return content


def _load_tags(tags: ImageFileDirectory_v2, file: BinaryIO, load=ImageFileDirectory_v2.load) -> None:
    load(tags, _Tags(file))


# Pillow copies the bytes of each tag of a TIFF file, or of EXIF in any other, and has no limit of its own: some hundred
# kilobytes, which ten thousand tags say to hold, would become gigabytes. This is the one place where it reads tags.
ImageFileDirectory_v2.load = _load_tags
