import numpy as np
import pytest
from PIL import Image

from space.errors import InputError
from tests.images import speckle
from training.fingerprint import SIDE, require_readable, take_fingerprints
from training.sources import load_data


@pytest.fixture
def taken(tmp_path):
    """The data set and fingerprints of one picture in four files and sizes, a black one and a broken file."""
    (tmp_path / "sick").mkdir()
    picture = Image.fromarray(speckle(1))
    picture.save(tmp_path / "sick" / "1.png")
    picture.convert("RGB").save(tmp_path / "sick" / "2.bmp")
    picture.save(tmp_path / "sick" / "3.jpg", quality=90)
    picture.resize((80, 60)).save(tmp_path / "sick" / "4.png")
    (tmp_path / "sick" / "5.png").write_bytes(b"no image")
    Image.new("L", (70, 70)).save(tmp_path / "sick" / "6.png")
    rows = load_data(tmp_path)
    return rows, take_fingerprints(rows)


def test_the_content_hash_is_of_the_pixels_whatever_the_file(taken):
    png, bmp, jpg, small, _, black = taken[1].facts["pixels"]
    assert png == bmp
    assert len({png, jpg, small, black}) == 4


def test_facts_tell_file_brightness_and_borders(taken):
    facts = taken[1].facts
    assert facts["format"].tolist()[:4] == ["PNG", "BMP", "JPEG", "PNG"]
    assert facts.loc[0, ["width", "height", "aspect"]].tolist() == [160, 120, 160 / 120]
    assert facts["quantization"].tolist()[2] > 0 == facts["quantization"].tolist()[0]
    assert facts.loc[0, "mean"] == pytest.approx(speckle(1).mean() / 255, abs=0.002)
    assert facts.loc[0, "deviation"] == pytest.approx(speckle(1).std() / 255, abs=0.002)
    assert facts.loc[0, "corner_top_left"] == pytest.approx(speckle(1)[:15, :20].mean() / 255, abs=0.01)
    assert facts.loc[0, [f"level_{level}" for level in range(16)]].sum() == pytest.approx(1)
    assert facts.loc[5, ["mean", "deviation", "entropy", "edges"]].tolist() == [0, 0, 0, 0]


def test_thumbnails_are_grey_squares_in_the_order_of_the_rows(taken):
    thumbnails = taken[1].thumbnails
    assert thumbnails.shape == (6, SIDE, SIDE)
    assert np.corrcoef(thumbnails[0].ravel(), thumbnails[3].ravel())[0, 1] > 0.95
    assert not thumbnails[5].any()


def test_broken_images_are_passed_over_or_refused_by_name(taken):
    rows, prints = taken
    assert prints.readable.tolist() == [0, 1, 2, 3, 5]
    with pytest.raises(InputError, match=r"found 1 of 6 images broken: sick/5.png \(it is no image"):
        require_readable(rows, prints.facts["broken"].tolist())
    require_readable(rows, [""] * 6)
