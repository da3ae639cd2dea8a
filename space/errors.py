"""The error that is shown to people as it is, and the limits that keep out the largest of pictures and strips."""

import re
from collections.abc import Sequence

MOST_PIXELS = 20_000_000  # a few kilobytes of PNG can hold gigabytes of pixels
MOST_SCANS = 200  # of a JPEG file; a progressive one has some ten, and each is a pass over the whole picture
MOST_RATIO = 50  # of the sides: many models scale the shorter one to a length, and the longer one with it


class InputError(ValueError):
    """What was found, what was expected and what to do, in one line; verbs print it and exit with 1."""


def reason_of(error: Exception) -> str:
    """What another library's error says, in one short line, without the path that system errors end with, and without
    objects' places in memory."""
    told = re.sub(r" ?<\S+ object at 0x\w+>", "", str(getattr(error, "strerror", None) or error))
    return " ".join(told.split())[:200] or type(error).__name__


def some_of(found: Sequence[str], between: str = ", ") -> str:
    """The first three of what was found, and how many more there are."""
    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
    return between.join(found[:3]) + more


def check_size(width: int, height: int) -> None:
    """Raise InputError when an image of this size is too large to be decoded, or too narrow to be scaled."""
    if width * height > MOST_PIXELS:
        most = MOST_PIXELS // 1_000_000
        raise InputError(f"the image has {width} x {height} pixels, expected {most} million at the most: scale it down")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise InputError(
            f"the image has {width} x {height} pixels, expected one side at most {MOST_RATIO} times as long as the "
            "other: give the whole picture"
        )


def check_scans(jpeg: bytes) -> None:
    """Raise InputError when a JPEG file has so many scans that it would be decoded for minutes or hours."""
    scans = jpeg.count(b"\xff\xda")
    if scans > MOST_SCANS:
        raise InputError(
            f"the JPEG image is drawn over {scans:,} times, expected {MOST_SCANS} at the most: save it again"
        )
