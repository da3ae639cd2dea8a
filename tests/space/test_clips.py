import struct
import sys

import av
import numpy as np
import pytest
from PIL import Image

from space import clips, errors
from space.clips import is_clip, load_frames, read_clip, read_frames
from space.errors import InputError
from space.images import load_image
from tests.clips import CODECS, grey_of, retimed, write_clip
from tests.dicom import write_dicom


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_evenly_spaced_from_the_first_to_the_last(tmp_path, suffix):
    frames = read_clip(write_clip(tmp_path / f"clip{suffix}", 21), 5)
    assert [number for number, _ in frames] == [0, 5, 10, 15, 20]
    for number, image in frames:
        assert (image.mode, image.size) == ("RGB", (64, 48))
        assert np.asarray(image).mean() == pytest.approx(grey_of(number, 21), abs=20 if suffix == ".gif" else 6)


def test_a_short_clip_gives_all_its_frames(tmp_path):
    assert [number for number, _ in read_clip(write_clip(tmp_path / "clip.mp4", 3), 8)] == [0, 1, 2]
    assert len(read_clip(write_clip(tmp_path / "clip.mp4", 9), 1)) == 1


@pytest.mark.parametrize("rate", ["even", "varies"])
def test_of_a_long_clip_the_same_frames_are_found_by_seeking(tmp_path, monkeypatch, rate):
    path = write_clip(tmp_path / "clip.mp4", 100)
    if rate == "varies":
        path = retimed(path, tmp_path / "varies.mkv", lambda number: number + 9 * max(0, number - 50))
    walked = read_clip(path, 7)
    monkeypatch.setattr(clips, "DECODED_WHOLE", 50)
    jumped = read_clip(path, 7)
    assert [number for number, _ in jumped] == [number for number, _ in walked]
    for (_, one), (_, other) in zip(walked, jumped, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("whole", [2_000, 20])
def test_of_a_clip_cut_out_of_another_only_frames_that_are_shown_count(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(clips, "DECODED_WHOLE", whole)
    cut = retimed(write_clip(tmp_path / "clip.mp4", 250), tmp_path / "cut.mp4", lambda number: number - 200)
    frames = read_clip(cut, 24)
    assert [number for number, _ in frames] == np.linspace(0, 49, 24).round().tolist()
    for number, image in frames:
        assert np.asarray(image).mean() == pytest.approx(grey_of(200 + number, 250), abs=6)


def test_what_is_no_clip_is_refused_in_one_line(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 21)
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "half.mp4").write_bytes(path.read_bytes()[:400])
    for name in ("text.mp4", "half.mp4"):
        with pytest.raises(InputError, match="no clip that can be read") as refusal:
            read_clip(tmp_path / name, 4)
        assert "\n" not in str(refusal.value)
        assert str(tmp_path) not in str(refusal.value)


def test_a_clip_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", 3)
    monkeypatch.setattr(errors, "MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(InputError, match="64 x 48 pixels"):
        read_clip(path, 2)


def test_a_clip_that_was_filmed_on_its_side_is_turned(tmp_path):
    path, pixels = tmp_path / "clip.mp4", np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # what is on the left
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), *stream.encode()])
    straight, one = (
        struct.pack(">9i", *matrix)
        for matrix in (
            (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
            (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30),
        )
    )  # x to the right becomes y downwards
    header = path.read_bytes()
    first = header.index(b"tkhd")
    path.write_bytes(header[:first] + header[first:].replace(straight, one, 1))
    turned = np.asarray(read_clip(path, 1)[0][1].convert("L"))
    assert turned.shape == (64, 48)
    assert turned[:24].min() > 200  # is on top
    assert turned[40:].max() < 50


def test_a_gif_of_one_frame_is_an_image_like_any_other(tmp_path):
    path, see_through = tmp_path / "one.gif", np.zeros((48, 64, 4), np.uint8)
    see_through[10:30, 10:50] = 200, 30, 30, 255
    Image.fromarray(see_through).save(path)
    assert not is_clip(path)
    assert not is_clip(path.read_bytes(), "one.gif")
    assert is_clip(write_clip(tmp_path / "two.gif", 2))
    for frames in (load_frames(path), load_frames({"path": "one.gif", "bytes": path.read_bytes()})):
        assert [np.array_equal(frame, load_image(path)) for frame in frames] == [True]
    ((number, frame),) = read_frames(path, 24)
    assert number == 0
    assert np.array_equal(frame, load_image(path))


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="pip install av"):
        read_clip(path, 2)


def test_a_dicom_file_of_many_frames_is_a_clip(tmp_path):
    frames = np.stack([np.full((8, 8), 20 * number, np.uint8) for number in range(9)])
    many, one = write_dicom(tmp_path / "many.dcm", frames), write_dicom(tmp_path / "one.dcm", frames[0])
    assert is_clip(many)
    assert not is_clip(one)
    assert [(number, image.getpixel((0, 0))[0]) for number, image in read_frames(many, 3)] == [
        (0, 0),
        (4, 80),
        (8, 160),
    ]
