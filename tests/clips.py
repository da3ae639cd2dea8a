"""Clips for tests, written by PyAV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": "mpeg4", ".mov": "mpeg4", ".avi": "mpeg4", ".mpeg": "mpeg1video", ".gif": "gif"}


def write_clip(path: Path, frames: int) -> Path:
    """Write a clip of plain frames, each lighter than the one before: grey 20 + 200 * number / frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        for number in range(frames):
            grey = np.full((48, 64, 3), grey_of(number, frames), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def retimed(clip: Path, path: Path, place: Callable[[int], int]) -> Path:
    """Write the packets of a clip again, each at the place of its number in frames; below 0 it is not shown."""
    with av.open(str(clip)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(packet for packet in given.demux() if packet.size):
            packet.pts = packet.dts = place(number) * packet.duration
            packet.stream = stream
            container.mux(packet)
    return path


def grey_of(number: int, frames: int) -> int:
    return 20 + 200 * number // frames
