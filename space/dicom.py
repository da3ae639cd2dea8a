"""DICOM files as 8-bit pictures; of everything else they hold, two tags are read and none is kept."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from space.errors import InputError, check_scans, check_size, reason_of

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom"})
OTHERS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})  # not worth opening
MARK = b"DICM"
MOST_ELEMENTS = 100_000  # pydicom keeps each in hundreds of bytes, also one that has eight in the file


def is_dicom(source: Path | bytes) -> bool:
    """Whether it is a DICOM file: by its suffix, or by the mark after the first 128 bytes."""
    if isinstance(source, bytes):
        return source[128:132] == MARK
    if source.suffix.lower() in SUFFIXES:
        return True
    if source.suffix.lower() in OTHERS or source.name == "DICOMDIR":
        return False
    if not os.path.isfile(source):  # a link to nowhere, or a pipe, which would not end
        return False
    try:
        with open(source, "rb") as file:  # scanners write trees of files named IM0001 or 1.2.840.113
            return file.read(132)[128:] == MARK
    except OSError:
        return False


class DicomFile:
    """A DICOM file's frames, its patient's id and whether text is burned into the pixels ("yes", "no", "" unknown)."""

    def __init__(self, source: Path | bytes):
        """Read the header. Raises InputError when it is no DICOM file with pixels, or pydicom is not installed."""
        try:
            import pydicom
        except ImportError:
            raise InputError("reading DICOM needs pydicom: pip install pydicom") from None
        try:
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
                _check_deflated(file)
                file.seek(0)
                data = self._data = pydicom.dcmread(_Counted(file), force=True)
            if "PixelData" not in data:
                raise InputError("the DICOM file holds no picture: give one with pixels")
            check_size(int(data.Columns), int(data.Rows))
            self.patient = str(data.get("PatientID", "") or "")
            self.burned_in = str(data.get("BurnedInAnnotation", "") or "").lower()
            self.frames = int(data.get("NumberOfFrames", 1) or 1)
        except InputError:
            raise
        except Exception as error:  # a damaged header can raise anything
            raise InputError(f"it is no DICOM file that can be read ({reason_of(error)})") from None

    def frame(self, index: int = 0) -> Image.Image:
        """One frame as 8-bit RGB: rescaled, windowed as the file says, MONOCHROME1 turned over, padding black; or the
        colours of its palette.

        Without a window 8 bits stay as they are, and more are scaled by the range that the frame uses.
        """
        from pydicom.pixels import pixel_array

        try:
            self._check_frame(index)
            values = pixel_array(self._data, index=index)
            if self._data.PhotometricInterpretation == "PALETTE COLOR":
                return _to_image(each_once(values, self._coloured))
            if values.ndim == 3:
                return _to_image(values if values.dtype == np.uint8 else each_once(values, by_range))
            return _to_image(each_once(values, self._grey))
        except InputError:
            raise
        except Exception as error:  # pydicom, Pillow and damaged values can raise anything
            if "missing dependencies" in str(error):
                name = self._data.file_meta.TransferSyntaxUID.name
                raise InputError(
                    f"the DICOM file is in {name}, which is not read here: export it uncompressed or as JPEG 2000"
                ) from None
            raise InputError(f"the DICOM file's picture cannot be decoded ({reason_of(error)})") from None

    def spread(self, count: int) -> list[tuple[int, Image.Image]]:
        """At most `count` evenly spaced frames, first and last included, as (number in the file, 8-bit RGB image)."""
        numbers = np.unique(np.linspace(0, self.frames - 1, count).round().astype(int)).tolist()
        return [(number, self.frame(number)) for number in numbers]

    def _check_frame(self, index: int) -> None:
        """Raise InputError when a JPEG, JPEG 2000 or RLE frame, which is decoded in its own size, has not the header's,
        or a JPEG frame has too many scans.

        A JPEG whose size Pillow cannot read is left to its decoder.
        """
        from pydicom.encaps import get_frame
        from pydicom.pixels import as_pixel_options
        from pydicom.uid import JPEG2000TransferSyntaxes, JPEGTransferSyntaxes, RLELossless

        data, syntax = self._data, self._data.file_meta.get("TransferSyntaxUID")
        if syntax not in [RLELossless, *JPEGTransferSyntaxes, *JPEG2000TransferSyntaxes]:
            return
        options = as_pixel_options(data)
        count, offsets = options["number_of_frames"], options.get("extended_offsets")
        frame = get_frame(data.PixelData, index, number_of_frames=count, extended_offsets=offsets)
        if syntax == RLELossless:
            _check_rle(frame, data.Columns * data.Rows)
            return
        if syntax in JPEGTransferSyntaxes:
            check_scans(frame)
        with suppress(UnidentifiedImageError), Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            if image.size != (data.Columns, data.Rows):
                raise InputError(
                    f"the DICOM file's picture has {image.width} x {image.height} pixels, expected {data.Columns} x "
                    f"{data.Rows} as its header says: export it again"
                )

    def _grey(self, values: np.ndarray) -> np.ndarray:
        """Rescaled, windowed, turned over and padded, as 8 bits; the range is that of the values."""
        from pydicom.pixels import apply_modality_lut

        values = self._without_unused_bits(values)
        padding = self._padding(values)
        values = apply_modality_lut(values, self._data).astype(np.float64)
        values[padding] = values[~padding].min(initial=values.max())  # a value that widens no range
        grey = self._windowed(values)
        return np.where(padding, 0, 255 - grey if self._data.PhotometricInterpretation == "MONOCHROME1" else grey)

    def _coloured(self, values: np.ndarray) -> np.ndarray:
        """By the palette's own colours: the upper 8 bits of 16, unless it uses the lower ones alone."""
        from pydicom.pixels import apply_color_lut

        count, first, _ = self._data.RedPaletteColorLookupTableDescriptor
        count = count % 65536 or 65536
        tables = [self._data.get(f"{name}PaletteColorLookupTableData") for name in ("Red", "Green", "Blue")]
        if all(tables):
            colours = np.stack([self._entries(table, count) for table in tables], axis=-1)
        else:  # in segments
            colours = apply_color_lut(np.arange(first, first + count), self._data)[:, :3]
        if colours.max() > 255:
            colours = colours >> 8
        return colours.astype(np.uint8)[(values.astype(int) - first).clip(0, count - 1)]

    def _without_unused_bits(self, values: np.ndarray) -> np.ndarray:
        """Drop the bits above BitsStored, where old files keep overlays."""
        stored, signed = self._data.BitsStored, self._data.PixelRepresentation == 1
        spare = values.dtype.itemsize * 8 - stored
        if spare <= 0 or values.dtype.kind not in "iu":
            return values
        wide = values.astype(np.int64) & ((1 << stored) - 1)
        return np.where(wide >> (stored - 1) == 1, wide - (1 << stored), wide) if signed else wide

    def _padding(self, values: np.ndarray) -> np.ndarray:
        """Where stored values only fill up the picture, beside a collimated field for one."""
        first = self._first("PixelPaddingValue")
        if first is None:
            return np.zeros(values.shape, bool)
        last = self._first("PixelPaddingRangeLimit")
        low, high = sorted(self._without_unused_bits(np.array([first, first if last is None else last]).astype(int)))
        return (low <= values) & (values <= high)

    def _windowed(self, values: np.ndarray) -> np.ndarray:
        table = next(iter(self._data.get("VOILUTSequence") or ()), {})
        if table.get("LUTData"):
            return self._looked_up(values, table)
        centre, width = self._first("WindowCenter"), self._first("WindowWidth")
        function = str(self._data.get("VOILUTFunction") or "LINEAR").upper()
        exact = function in ("LINEAR_EXACT", "SIGMOID")
        if centre is None or width is None or width <= (0 if exact else 1):
            shown_as_is = self._data.BitsStored == 8 and values.min() >= 0 and values.max() <= 255
            return values.astype(np.uint8) if shown_as_is else by_range(values)
        # DICOM PS3.3 C.11.2.1.2.1 (LINEAR, also by default), C.11.2.1.3.1 (SIGMOID) and C.11.2.1.3.2 (LINEAR_EXACT)
        place = (values - centre) / width if exact else (values - (centre - 0.5)) / (width - 1)
        share = (np.tanh(2 * place) + 1) / 2 if function == "SIGMOID" else place + 0.5
        return (share * 255).clip(0, 255).round().astype(np.uint8)

    def _looked_up(self, values: np.ndarray, table: Dataset) -> np.ndarray:
        """By an item of VOILUTSequence (DICOM PS3.3 C.11.2.1.1)."""
        count, first, bits = table.LUTDescriptor
        count = count % 65536 or 65536
        lowest = -(1 << self._data.BitsStored - 1) if self._data.PixelRepresentation == 1 else 0
        lowest = lowest * (self._first("RescaleSlope") or 1) + (self._first("RescaleIntercept") or 0)
        if first >= 32768 and lowest < 0 and "ModalityLUTSequence" not in self._data:
            first -= 65536  # it was written without its sign
        places = (values - first).round().clip(0, count - 1).astype(int)
        shown = self._entries(table.LUTData, count)[places] * (255 / (2**bits - 1))
        return shown.clip(0, 255).round().astype(np.uint8)

    def _entries(self, table: bytes | Sequence[int], count: int) -> np.ndarray:
        """Those of a look-up table, which are words or bytes; pydicom would keep their numbers in as few bits too."""
        if isinstance(table, bytes):
            table = np.frombuffer(table, "<u2" if self._data.original_encoding[1] else ">u2")
        words = np.atleast_1d(table).astype("<u2")
        return words.view(np.uint8) if len(words) == -(-count // 2) < count else words

    def _first(self, keyword: str) -> float | None:
        value = self._data.get(keyword)
        if value is None or value == "":
            return None
        return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


class _Counted:
    """A file for pydicom, which reads an element in three parts; after very many, `read` raises InputError."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self._left = 3 * MOST_ELEMENTS

    def read(self, *size: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise InputError(
                f"the DICOM file holds more than {MOST_ELEMENTS:,} elements, as none of a picture does: export it again"
            )
        return self._read(*size)


def _check_deflated(file: BinaryIO) -> None:
    """Raise InputError when pydicom, which inflates a deflated file whole, would take far more memory than its size."""
    from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    from space.archives import MOST_BYTES, MOST_RATIO, SMALL  # not above, for it imports this module

    read_preamble(file, force=True)
    header = _read_file_meta_info(file)
    if header.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    _read_command_set_elements(file)
    packed = file.read()
    most = min(MOST_BYTES, max(MOST_RATIO * len(packed), SMALL))
    unfolded = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most + 1)
    if len(unfolded) > most:
        raise InputError(
            f"the DICOM file unfolds to more than {most >> 20} MB, as no picture of its size does: save it uncompressed"
        )
    read_dataset(_Counted(io.BytesIO(unfolded)), False, True)  # pydicom itself will not read it through `file`


def _check_rle(frame: bytes, pixels: int) -> None:
    """Raise InputError when a segment of a frame, which holds a byte of each pixel and may be padded, unfolds to twice
    as many bytes.
    """
    from pydicom.pixels.decoders.rle import _rle_parse_header

    for place, end in pairwise([*_rle_parse_header(frame[:64]), len(frame)]):
        unfolded = 0
        while place < end:  # DICOM PS3.5 G.3.1
            head = frame[place]
            if head < 128:
                place, unfolded = place + head + 2, unfolded + head + 1
            elif head > 128:
                place, unfolded = place + 2, unfolded + 257 - head
            else:
                place += 1
            if unfolded > 2 * pixels + 128:
                raise InputError(
                    f"the DICOM file's picture unfolds to more than the {pixels:,} pixels that its header says: "
                    "export it again"
                )


def each_once(values: np.ndarray, shown: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `shown` makes of values, of each value once where they are integers of at most 16 bits: it takes ten times
    the memory of what it is given."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return shown(values)
    codes = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    used = np.zeros(1 << 8 * codes.itemsize, bool)
    for line in codes:  # an index of all would take as much memory again
        used[line] = True
    (found,) = used.nonzero()
    of_found = shown(found.astype(codes.dtype).view(values.dtype))
    table = np.zeros((len(used), *of_found.shape[1:]), np.uint8)
    table[found] = of_found
    made = np.empty(values.shape + table.shape[1:], np.uint8)
    for index, line in enumerate(codes):
        made[index] = table[line]
    return made


def by_range(values: np.ndarray) -> np.ndarray:
    """Values as 8 bits: the least as 0, the greatest as 255, and all as 0 where there is but one."""
    low, high = float(values.min()), float(values.max())
    scale = 255 / (high - low) if high > low else 0.0
    return ((values.astype(np.float64) - low) * scale).round().astype(np.uint8)


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
