"""Images that stay on the Hub: each is fetched when it is looked at, and kept nowhere.

Where a file has its path, such an image has an address:

    hf://datasets/user/name@COMMIT/images/1.png                     a file
    hf://datasets/user/name@COMMIT/train.parquet#image/3/17/1.png   row 17 of the column image in row group 3

A row group is fetched whole. The last ROW_GROUPS are kept in memory, so images are best looked at in the order of the
files, or at random among a few row groups at a time.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HTTPError

from space.errors import InputError, reason_of

ROW_GROUPS = 8
SCHEME = "hf://"
CELL = re.compile(  # any other file may have a # in its name
    r"(hf://.+?\.(?:parquet|geoparquet|gpq))#([^/]+)/(\d+)/(\d+)/", re.IGNORECASE
)
_fetching = threading.Lock()  # so that threads that look into one row group do not fetch it twice


def content_of(image: dict) -> bytes | Path:
    """The file of an undecoded `datasets` image {"path", "bytes"}: its bytes, or where it lies on disk.

    Raises InputError when it is on the Hub and cannot be fetched.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    if not image["path"].startswith(SCHEME):
        return Path(image["path"])
    try:
        if not (cell := CELL.match(image["path"])):
            with HfFileSystem().open(image["path"], "rb", block_size=0) as opened:
                return opened.read()
        file, column, group, row = cell.groups()
        with _fetching:
            images = _row_group(file, column, int(group))
        content = (images[int(row)].as_py() or {}).get("bytes")
    except (HTTPError, OSError, ValueError) as error:
        raise InputError(f"it cannot be fetched from the Hub ({reason_of(error)}); try again later") from None
    if content is None:
        raise InputError("its Parquet file on the Hub names it but does not hold it")
    return content


def read_content(image: dict) -> bytes:
    """The bytes of such a file. Raises OSError too, when it cannot be read from disk."""
    content = content_of(image)
    return content if isinstance(content, bytes) else content.read_bytes()


def row_group_of(image: dict) -> str | None:
    """What names the row group that an image is fetched with; None for an image that is fetched, or lies, alone."""
    cell = CELL.match(image["path"] or "")
    return f"{cell[1]}#{cell[2]}/{cell[3]}" if cell else None


def open_parquet(file: str):
    """A Parquet file on the Hub, of which only what is asked for is fetched."""
    import pyarrow.parquet as pq  # what the page for a model has no use for

    return pq.ParquetFile(HfFileSystem().open(file, "rb", cache_type="none"), metadata=_metadata(file), pre_buffer=True)


@lru_cache
def _metadata(file: str):
    import pyarrow.parquet as pq

    with HfFileSystem().open(file, "rb", block_size=2**16) as opened:
        return pq.read_metadata(opened)


@lru_cache(ROW_GROUPS)
def _row_group(file: str, column: str, group: int):
    return open_parquet(file).read_row_group(group, [f"{column}.bytes"]).column(0)
