"""The images, DICOM files and clips of a .zip, .tar or .tar.gz, one after the other, with nothing unpacked to disk.

An archive may come from anybody: names are shown and never used as paths, links and archives inside are not followed,
and a few kilobytes that unfold to gigabytes are refused before they do.
"""

from __future__ import annotations

import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from space import clips, dicom, images
from space.errors import InputError, reason_of

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_BYTES = 512 << 20  # of one file inside
MOST_HEADER = 64 << 10  # bytes that tell of one file in a tar, with its name: as many as a zip's name may have
MOST_TOTAL = 1 << 40  # of all files inside, where the caller allows no less
MOST_RATIO = 200  # unpacked to packed: pictures hardly reach 50, nothing but zeros 1,000
SMALL = 16 << 20  # bytes up to which a ratio says nothing: a black frame is a few bytes
LONG_NUMBER = re.compile(rb"\d{300}")  # Python before 3.11.10 reads a header with one in the square of its length
KNOWN = images.SUFFIXES | clips.SUFFIXES | dicom.SUFFIXES
FAULTS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError)


def is_archive(path: str | Path) -> bool:
    """Whether a file's name is that of an archive that can be read."""
    return str(path).lower().endswith(SUFFIXES)


def read_archive(path: Path, total: int = MOST_TOTAL) -> Iterator[tuple[str, bytes | InputError]]:
    """What `KNOWN` suffixes or DICOM's mark show to be a picture: (name, bytes), or (name, why it is refused).

    A zip is read in the order of its names, a tar in its own; one file at a time is in memory. Hidden files and all
    others are left out. total: bytes, unpacked, of all that may be read. Raises InputError when the archive itself
    cannot be read, or not to its end, which may be after some of its files.
    """
    try:
        with open(path, "rb") as file:
            read = _read_zip if path.suffix.lower() == ".zip" else _read_tar
            yield from read(file, min(total, MOST_RATIO * path.stat().st_size + SMALL))
    except FileNotFoundError:
        raise InputError("the file does not exist") from None
    except (*FAULTS, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the archive is broken or none ({reason_of(error)}): give a whole .zip, .tar or .tar.gz"
        ) from None


def _read_zip(file: BinaryIO, total: int) -> Iterator[tuple[str, bytes | InputError]]:
    with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            name = _shown(member.filename)
            if member.filename.endswith("/") or _left_out(name):  # is_dir fails for a name that is empty
                continue
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
                yield from _refused(name, _LINK)
            elif member.flag_bits & 1:
                yield from _refused(name, "it is encrypted: pack it without a password")
            elif member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                yield from _refused(name, "it is packed in an unusual way: pack it by deflate, as zip does")
            elif member.file_size > max(MOST_RATIO * member.compress_size, SMALL):
                yield from _refused(name, _BOMB)
            elif _is_nested(name):
                yield name, InputError(_NESTED)
            else:
                try:
                    with archive.open(member) as packed:
                        content = _content(packed, name, member.file_size)
                except (*FAULTS, zlib.error) as error:
                    yield from _refused(name, f"it is broken inside the archive ({' '.join(str(error).split())[:100]})")
                    continue
                if content is not None:
                    total = _spend(total, member.file_size)
                    yield name, content


def _read_tar(file: BinaryIO, total: int) -> Iterator[tuple[str, bytes | InputError]]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with tarfile.open(fileobj=_Forward(gzip.GzipFile(fileobj=file) if packed else file), mode="r:") as archive:
        while member := archive.next():
            archive.members.clear()  # it would keep them all
            archive.pax_headers.clear()  # of which there may be one before each member
            archive.fileobj.allow(MOST_HEADER)
            name = _shown(member.name)
            _spend(total, member.offset_data + member.size)  # what is not read has to be unpacked as well
            if member.isdir() or _left_out(name):
                continue
            if not member.isreg() or member.issparse():
                yield from _refused(name, _LINK)
            elif _is_nested(name):
                yield name, InputError(_NESTED)
            else:
                archive.fileobj.allow(MOST_BYTES)
                content = _content(archive.extractfile(member), name, member.size)
                archive.fileobj.allow(MOST_HEADER)
                if content is not None:
                    yield name, content
        if archive.fileobj.last.strip(b"\0"):  # a header that is none is an end to tarfile
            raise tarfile.ReadError("a header is damaged")


class _Forward:
    """A file as tarfile reads it, which takes the lengths of headers from the archive and would believe any."""

    def __init__(self, file: BinaryIO):
        self.file, self.tell, self.seek, self.last = file, file.tell, file.seek, b""
        self.allow(MOST_HEADER)

    def allow(self, most: int) -> None:
        """From here on `most` bytes may be read, without those passed over: MOST_HEADER of headers, or of a content."""
        self.most = self.left = most

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a header of unlikely size")
        self.last = self.file.read(size)
        if self.most == MOST_HEADER and LONG_NUMBER.search(self.last):
            raise tarfile.ReadError("a header with a number of unlikely length")
        return self.last


_LINK = "it is a link or no plain file: pack the file itself"
_BOMB = f"it unfolds to more than {MOST_RATIO} times its packed size, as no picture does"
_NESTED = "it is an archive inside an archive, which is not opened: give it by itself"


def _content(file: BinaryIO, name: str, size: int) -> bytes | InputError | None:
    """The bytes of a picture, None for another file."""
    suffix = PurePosixPath(name).suffix.lower()
    head = b""
    if suffix not in KNOWN:
        head = file.read(132)
        if PurePosixPath(name).name == "DICOMDIR" or not dicom.is_dicom(head):
            return None
    if size > MOST_BYTES:
        return InputError(f"it has {size >> 20} MB, expected {MOST_BYTES >> 20} MB at the most")
    content = head + file.read(size + 1 - len(head))
    return content if len(content) == size else InputError("it is cut short inside the archive")


def _refused(name: str, reason: str) -> Iterator[tuple[str, InputError]]:
    """A line for what may be a picture by its name, which scanners give no suffix or a number; nothing for others."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in KNOWN or (not suffix.strip(".0123456789") and PurePosixPath(name).name != "DICOMDIR"):
        yield name, InputError(reason)


def _spend(total: int, size: int) -> int:
    if size > total:
        raise InputError("the archive unfolds to more than is read of one: give its files in parts, or as a folder")
    return total - size


def _is_nested(name: str) -> bool:
    return is_archive(name) or PurePosixPath(name).suffix.lower() in {".7z", ".rar", ".gz", ".bz2", ".xz"}


def _left_out(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in PurePosixPath(name).parts)


def _shown(name: str) -> str:
    """A name as it can be printed in one line."""
    return str(PurePosixPath("".join(letter if letter.isprintable() else "?" for letter in name)))
