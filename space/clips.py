"""Clips (mp4, avi, mov, gif, mpeg) and DICOM files of many frames, as evenly spaced frames."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from space.dicom import DicomFile, is_dicom
from space.errors import InputError, check_size, reason_of
from space.images import frames_in, load_image
from space.remote import content_of

SUFFIXES = frozenset({".mp4", ".m4v", ".avi", ".mov", ".gif", ".mpeg", ".mpg", ".mkv", ".webm"})
FRAMES = 24  # of a clip that is predicted: their mean is its answer
FORMATS = "avi,gif,matroska,mov,mpeg,mpegts,mpegvideo"  # not those that name other files, such as playlists
AT_ONCE = threading.Semaphore(2)  # clips that the page holds in memory, whoever gave them; one of 4K takes 600 MB
DECODED_WHOLE = 2_000  # frames; of longer clips only what is near the wanted frames is decoded


def import_av():
    """PyAV, which is needed for clips alone. Raises InputError when it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError("reading clips needs PyAV: pip install av") from None
    return av


def is_clip(source: Path | bytes, name: str = "") -> bool:
    """Whether a file is a clip by its suffix, but for a .gif of one frame, or a DICOM file of several frames.

    name: what a file that is given as bytes is called.
    """
    if (suffix := _suffix(source, name)) in SUFFIXES:
        return suffix != ".gif" or frames_in(source) != 1
    return (isinstance(source, bytes) or os.path.isfile(source)) and is_dicom(source) and DicomFile(source).frames > 1


def read_frames(source: Path | bytes, count: int, name: str = "") -> list[tuple[int, Image.Image]]:
    """At most `count` evenly spaced frames of a file, as of `read_clip`; the one of a file that is no clip."""
    if not is_clip(source, name):
        return [(0, load_image(source))]
    return read_clip(source, count) if _suffix(source, name) in SUFFIXES else DicomFile(source).spread(count)


def load_frames(source: str | Path | bytes | dict) -> list[Image.Image]:
    """A file as RGB images: at most FRAMES of a clip or a DICOM file of many frames, and one of any other.

    source is as for `load_image`; of a dict with bytes, path is its name. Raises InputError as that does.
    """
    name = str(source["path"] or "") if isinstance(source, dict) else ""
    source = content_of(source) if isinstance(source, dict) else source
    source = source if isinstance(source, bytes) else Path(source)
    return [frame for _, frame in read_frames(source, FRAMES, name)]


def read_clip(source: Path | bytes, count: int) -> list[tuple[int, Image.Image]]:
    """At most `count` evenly spaced frames, first and last included, as (number in the clip, RGB image).

    Raises InputError when the file is no clip that can be read, or PyAV is not installed.
    """
    av = import_av()

    def opened():
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        return av.open(file, options={"format_whitelist": FORMATS})

    try:
        with opened() as container:
            times = _times(container)
        wanted = np.unique(np.linspace(0, max(len(times) - 1, 0), count).round().astype(int)).tolist()
        with opened() as container:
            stream = container.streams.video[0]
            check_size(stream.width, stream.height)
            stream.thread_type = "AUTO"
            if len(times) <= DECODED_WHOLE:
                frames = _walk(container, stream, wanted)
            else:
                frames = _jump(container, stream, wanted, times)
    except InputError:
        raise
    except Exception as error:  # damaged files can raise anything
        raise InputError(f"it is no clip that can be read ({reason_of(error)})") from None
    if not frames:
        raise InputError("the clip holds no frame that can be read")
    return frames


def _suffix(source: Path | bytes, name: str) -> str:
    return (Path(name) if isinstance(source, bytes) else source).suffix.lower()


def _times(container) -> list[int]:
    """When each frame of a clip is shown, in order, without those that were cut off and only begin the decoding."""
    packets = container.demux(container.streams.video[0])
    shown = (packet for packet in packets if packet.size and not packet.is_discard)
    return sorted(packet.pts if packet.pts is not None else packet.dts or 0 for packet in shown)


def _walk(container, stream, wanted: list[int]) -> list[tuple[int, Image.Image]]:
    numbers = set(wanted)
    return [(n, _to_image(frame)) for n, frame in enumerate(container.decode(stream)) if n in numbers]


def _jump(container, stream, wanted: list[int], times: list[int]) -> list[tuple[int, Image.Image]]:
    found, later = [], (stream.start_time or 0) - times[0]  # after a seek some formats count from there
    for number in wanted:
        time = times[number] + later
        container.seek(time, stream=stream)
        frame = None
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts >= time:
                break
        if frame is not None:
            found.append((number, _to_image(frame)))
    return found


def _to_image(frame) -> Image.Image:
    check_size(frame.width, frame.height)
    return frame.to_image().rotate(frame.rotation, expand=True)  # counter-clockwise both; phones film on their side
