import gzip
import io
import re
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from space import archives
from space.archives import read_archive
from space.clips import is_clip, read_frames
from space.errors import InputError
from space.images import load_image
from tests.clips import write_clip
from tests.dicom import write_dicom


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (9, 8), grey).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, members):
    """Write an archive of (name, bytes), in this order."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def refusals(path):
    return {name: str(content) for name, content in read_archive(path) if isinstance(content, InputError)}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_pictures_of_every_kind_come_by_name_and_all_else_is_left_out(tmp_path, name):
    clip = write_clip(tmp_path / "clip.mp4", 5).read_bytes()
    dicom = write_dicom(tmp_path / "scan.dcm", np.zeros((3, 8, 8), np.uint8)).read_bytes()
    members = [
        ("b/2.png", png(2)),
        ("./a/1.PNG", png(1)),
        ("clip.mp4", clip),
        ("a/IM0001", dicom),
        ("DICOMDIR", dicom),
        ("notes.txt", b"text"),
        (".hidden.png", png(3)),
        (".cache/3.png", png(3)),
        ("__MACOSX/b/._2.png", b"resource"),
    ]
    found = list(read_archive(pack(tmp_path / name, members)))
    expected = ["b/2.png", "a/1.PNG", "clip.mp4", "a/IM0001"]
    order = [name for name, _ in found]
    assert order == expected if name != "a.zip" else sorted(order) == sorted(expected)
    assert name != "a.zip" or order[-2:] == ["b/2.png", "clip.mp4"]
    content = dict(found)
    assert load_image(content["b/2.png"]).getpixel((0, 0)) == (2, 2, 2)
    assert is_clip(content["clip.mp4"], "clip.mp4")
    assert is_clip(content["a/IM0001"], "a/IM0001")
    assert not is_clip(content["b/2.png"], "b/2.png")
    assert [number for number, _ in read_frames(content["clip.mp4"], 3, "clip.mp4")] == [0, 2, 4]
    assert [number for number, _ in read_frames(content["a/IM0001"], 2, "a/IM0001")] == [0, 2]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_names_are_shown_and_lead_nowhere(tmp_path, name):
    outside = {path.name for path in tmp_path.parent.iterdir()}
    path = pack(tmp_path / name, [("../up.png", png(1)), ("/etc/abs.png", png(2)), ("two\nlines.png", png(3))])
    found = dict(read_archive(path))
    assert sorted(found) == ["../up.png", "/etc/abs.png", "two?lines.png"]
    assert all(load_image(content).size == (9, 8) for content in found.values())
    assert [child.name for child in tmp_path.iterdir()] == [name]
    assert {path.name for path in tmp_path.parent.iterdir()} == outside


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_bomb_is_refused_before_it_unfolds(tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    path = pack(tmp_path / name, [("1.png", png(1)), ("2.png", bytes(64 << 20)), ("3.png", png(3))])
    assert path.stat().st_size < 1 << 20
    if name == "a.zip":
        assert refusals(path) == {"2.png": "it unfolds to more than 200 times its packed size, as no picture does"}
        assert [each for each, _ in read_archive(path)] == ["1.png", "2.png", "3.png"]
    else:
        reading = read_archive(path)
        assert next(reading)[0] == "1.png"
        with pytest.raises(InputError, match="unfolds to more"):
            next(reading)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_file_and_all_files_together_have_a_size_that_is_read(tmp_path, name, monkeypatch):
    noise = np.random.default_rng(0).bytes(3000)
    path = pack(tmp_path / name, [("1.png", png(1)), ("2.png", noise), ("3.png", png(3))])
    with pytest.raises(InputError, match="unfolds to more"):
        list(read_archive(path, total=2000))
    monkeypatch.setattr(archives, "MOST_BYTES", 2000)
    assert list(refusals(path)) == ["2.png"]


def test_a_zip_that_lies_about_a_size_is_not_believed(tmp_path):
    path = pack(tmp_path / "a.zip", [("1.png", bytes(50_000))])
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(mark) + place, 100)
    path.write_bytes(content)
    assert "broken inside" in refusals(path)["1.png"]


def test_a_tar_that_lies_about_the_length_of_a_name_is_not_believed(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(2048))
    with pytest.raises(InputError, match="unlikely size"):
        list(read_archive(tmp_path / "a.tar"))


def write_headers(path, kind, size, count, member):
    """Write a tar.gz in which headers of a kind, of so many bytes, come after one another, or each before a member."""
    plain = tarfile.TarInfo("notes.txt").tobuf() if member else b""
    with gzip.open(path, "wb") as file:
        for number in range(count):
            header = tarfile.TarInfo("header")
            header.type, header.size = kind, size
            file.write(header.tobuf() + f"{size} a{number}=".encode().ljust(size - 1, b"x") + b"\n" + plain)
        file.write(tarfile.TarInfo("1.png").tobuf() + bytes(1024))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize(("size", "count"), [(8 << 20, 1), (32 << 10, 200)], ids=["one", "many"])
def test_a_tar_with_more_than_a_long_name_before_a_member_is_refused_before_it_unfolds(tmp_path, kind, size, count):
    path = write_headers(tmp_path / "a.tar.gz", kind, size, count, member=False)
    tracemalloc.start()
    with pytest.raises(InputError, match="unlikely size"):
        list(read_archive(path))
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_tar_with_a_number_of_very_many_digits_before_a_member_is_refused_before_they_are_searched(tmp_path, kind):
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 60 << 10
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(header.tobuf() + b"1" * header.size + tarfile.TarInfo("1.png").tobuf() + bytes(1024))
    with pytest.raises(InputError, match="a number of unlikely length"):
        list(read_archive(tmp_path / "a.tar.gz"))


def test_what_a_tar_says_of_all_that_follows_is_not_kept(tmp_path):
    path = write_headers(tmp_path / "a.tar.gz", tarfile.XGLTYPE, 32 << 10, 200, member=True)
    tracemalloc.start()
    assert list(read_archive(path)) == [("1.png", b"")]
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_in_a_tar_is_read(tmp_path, format):
    name = "folder/" * 1000 + "1.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        archive.addfile(tarfile.TarInfo(name))
    assert list(read_archive(tmp_path / "a.tar")) == [(name, b"")]


def test_a_member_without_a_name_is_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("!", b"text")
        archive.writestr("b.png", b"picture")
    packed = (tmp_path / "some.zip").read_bytes().replace(b"!", b"\0")  # which ends a name, so that nothing is left
    (tmp_path / "some.zip").write_bytes(packed)
    assert list(read_archive(tmp_path / "some.zip")) == [("b.png", b"picture")]


def test_what_is_encrypted_a_link_or_an_archive_is_refused_in_one_line(tmp_path):
    path = pack(tmp_path / "a.zip", [("1.png", png(1)), ("2.png", png(2)), ("more.zip", b""), ("old.7z", b"")])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04") + 6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    told = refusals(path)
    assert list(told) == ["1.png", "more.zip", "old.7z"]
    assert "encrypted" in told["1.png"]
    assert "archive inside an archive" in told["more.zip"]

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert all("link or no plain file" in reason for reason in refusals(tmp_path / "a.tar").values())
    assert len(refusals(tmp_path / "a.tar")) == 3

    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link" in refusals(tmp_path / "b.zip")["link.png"]


@pytest.mark.parametrize("name", ["DICOM/PAT1/IM000001", "1.2.840.113"])
def test_what_is_encrypted_under_a_name_as_scanners_give_is_refused_in_one_line(tmp_path, name):
    path = pack(tmp_path / "a.zip", [(name, b"DICM"), ("DICOMDIR", b""), ("notes.txt", b"")])
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(mark, bytes(content)):
            content[found.start() + place] |= 1
    path.write_bytes(content)
    assert refusals(path) == {name: "it is encrypted: pack it without a password"}


def test_a_broken_archive_gives_what_it_can_and_one_line(tmp_path):
    noise = [(f"{n}.png", np.random.default_rng(n).bytes(5000)) for n in range(9)]
    whole = pack(tmp_path / "whole.tar.gz", noise).read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    plain = bytearray(pack(tmp_path / "whole.tar", noise).read_bytes())
    plain[4 * 5632 : 4 * 5632 + 512] = b"x" * 512
    (tmp_path / "damaged.tar").write_bytes(plain)
    for name, at_least in (("half.tar.gz", 3), ("damaged.tar", 4)):
        seen = []
        with pytest.raises(InputError, match="the archive is broken") as refusal:
            seen.extend(read_archive(tmp_path / name))
        assert "\n" not in str(refusal.value)
        reading = read_archive(tmp_path / name)
        assert [next(reading)[0] for _ in range(at_least)] == [f"{n}.png" for n in range(at_least)]
    for name in ("text.zip", "text.tar", "text.tar.gz", "text.tgz"):
        (tmp_path / name).write_text("no archive")
        with pytest.raises(InputError, match="broken or none"):
            list(read_archive(tmp_path / name))
    with pytest.raises(InputError, match="does not exist"):
        list(read_archive(tmp_path / "absent.zip"))
