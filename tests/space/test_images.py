import errno
import io
import os
import struct
import time
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as pipeline_load_image

from space.clips import load_frames
from space.errors import InputError
from space.images import FORMATS, frames_in, load_image
from tests.images import drawn_over, white_is_nought


def file_of(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_8_bit_images_give_the_pixels_that_pipeline_sees(mode, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(noise(30, 40, 3)).convert(mode).save(path)
    assert np.array_equal(load_image(path), pipeline_load_image(str(path)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_every_format_is_read_from_bytes_and_path(format, tmp_path):
    content = file_of(Image.fromarray(noise(20, 24, 3)), format)
    (tmp_path / "file").write_bytes(content)
    for source in (content, tmp_path / "file", {"path": None, "bytes": content}):
        image = load_image(source)
        assert (image.mode, image.size) == ("RGB", (24, 20))


def test_cmyk_is_converted():
    content = file_of(Image.fromarray(noise(20, 24, 3)).convert("CMYK"), "JPEG")
    assert load_image(content).mode == "RGB"


@pytest.mark.parametrize("values", [np.linspace(0, 60_000, 1000), np.linspace(300, 4_095, 1000)])
def test_16_bits_are_scaled_by_their_range_and_not_clipped(values):
    ramp = Image.fromarray(values.reshape(10, 100).astype(np.uint16))
    grey = np.asarray(load_image(file_of(ramp)))[..., 0].ravel()
    assert grey.min() == 0
    assert grey.max() == 255
    assert (np.diff(grey.astype(int)) >= 0).all()
    assert len(np.unique(grey)) == 256


def test_an_image_of_16_bits_takes_little_more_memory_than_its_pixels():
    content = file_of(Image.fromarray((np.arange(1 << 20) % 50_000).astype(np.uint16).reshape(1024, 1024)))
    tracemalloc.start()
    load_image(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_in_which_white_is_nought_is_no_negative(kind, orientation):
    values = np.linspace(0, 255, 200).reshape(10, 20).round().astype(kind) * kind(1 if kind == np.uint8 else 200)
    content = file_of(Image.fromarray(values), "TIFF", tiffinfo={274: orientation})
    turned = load_image(white_is_nought(content))
    assert np.abs(np.asarray(turned) - (255 - np.asarray(load_image(content)).astype(int))).max() <= 1
    assert turned.size == ((20, 10) if orientation == 1 else (10, 20))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    content = file_of(Image.fromarray(noise(20, 40, 3)), "JPEG", exif=exif)
    assert load_image(content).size == (20, 40)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(content).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG", "MPO"])
def test_one_frame_or_more_are_told_apart_without_a_count_and_a_preview_is_none(format):
    frames = [Image.fromarray(noise(20, 24, 3)) for _ in range(3)]
    frames[1] = frames[1].rotate(180)
    several = file_of(frames[0], format, save_all=True, append_images=frames[1:])
    assert frames_in(several) == (1 if format == "MPO" else 2)
    assert frames_in(file_of(frames[0], format)) == 1
    assert frames_in(b"no image") == 0


def test_a_tiff_file_of_very_many_pages_is_seen_to_have_several_at_once():
    tags = b"".join(struct.pack("<HHLL", tag, 3, 1, value) for tag, value in ((256, 1), (257, 1), (262, 1), (273, 8)))
    nexts = [8 + 54 * page for page in range(1, 20_000)] + [0]
    pages = b"".join(struct.pack("<H", 4) + tags + struct.pack("<L", place) for place in nexts)
    content = b"II*\0" + struct.pack("<L", 8) + pages
    started = time.perf_counter()
    assert frames_in(content) == 2
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image"),
        (b"just text", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n", "no image"),
        (file_of(Image.fromarray(noise(64, 64, 3)), "JPEG")[:1500], "cut short"),
        (file_of(Image.fromarray(noise(64, 64, 3)))[:5000], "cut short"),
    ],
)
def test_what_is_no_whole_image_is_refused_in_one_line(content, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        load_image(content)
    assert "\n" not in str(refusal.value)


def test_no_other_program_is_started_for_an_image():
    started = Image.registered_extensions()
    assert {"EPS", "GRIB", "HDF5", "BUFR", "WMF"} <= set(started.values())
    assert not {"EPS", "GRIB", "HDF5", "BUFR", "WMF"} & set(FORMATS)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    content = file_of(Image.new("L", (8000, 8000)))
    started = time.perf_counter()
    with pytest.raises(InputError, match="8000 x 8000 pixels"):
        load_image(content)
    assert time.perf_counter() - started < 0.5


def test_a_jpeg_that_is_drawn_over_very_often_is_refused_before_it_is_decoded(tmp_path):
    content = file_of(Image.fromarray(noise(64, 64, 3)), "JPEG", progressive=True)
    (tmp_path / "often.jpg").write_bytes(drawn_over(content, 500))
    for source in (tmp_path / "often.jpg", drawn_over(content, 500)):
        with pytest.raises(InputError, match="drawn over 510 times, expected 200 at the most: save it again"):
            load_image(source)
    assert load_image(content).size == (64, 64)


def tags_that_share_their_bytes(count: int, size: int) -> bytes:
    """A TIFF file of 8 x 8 pixels with so many more tags, all of which say to hold the same bytes."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    entries = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHLL", 1000 + tag, 7, size, 8) for tag in range(count)]
    start = b"II*\0" + struct.pack("<L", 8 + size) + bytes(size)
    return start + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_tags_that_say_to_hold_the_same_bytes_take_no_more_memory_than_the_file(format):
    few, many = tags_that_share_their_bytes(1, 900), tags_that_share_their_bytes(500, 50_000)
    if format != "TIFF":
        few, many = (file_of(Image.new("RGB", (8, 8)), format, exif=b"Exif\0\0" + tags) for tags in (few, many))
    assert load_image(few).size == (8, 8)
    refused = pytest.raises(InputError, match="its tags hold more than the file itself does: save it again")
    tracemalloc.start()
    with nullcontext() if format == "JPEG" else refused:  # which is opened without its tags
        load_image(many)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_a_strip_which_would_become_huge_when_its_shorter_side_is_scaled_is_refused():
    for size in ((51, 1), (1, 51)):
        with pytest.raises(InputError, match="expected one side at most 50 times as long as the other"):
            load_image(file_of(Image.new("L", size)))
    assert load_image(file_of(Image.new("L", (50, 1)))).size == (50, 1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "absent.png")


def test_a_file_that_the_system_does_not_give_is_not_called_damaged(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, reason in (("loop.png", "Too many levels"), ("n" * 300 + ".png", "name too long"), ("", "a directory")):
        with pytest.raises(InputError, match=f"it cannot be read .*{reason}"):
            load_image(tmp_path / name)


def test_a_file_on_a_failing_disk_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / "IM0001").write_bytes(b"")
    fails = OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / "IM0001"))
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(fails))
    with pytest.raises(InputError, match=r"it cannot be read \(Input/output error\)$"):
        load_frames(tmp_path / "IM0001")
