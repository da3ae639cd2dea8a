import resource
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
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


def test_rows_are_taken_as_they_are_looked_at_and_not_all_at_once(tmp_path):
    """When a row is taken the file of the one 200 before it goes, which has to have been looked at by then."""
    files = [tmp_path / f"{number}.png" for number in range(500)]
    Image.fromarray(speckle(1)).save(files[0])
    for file in files[1:]:
        file.hardlink_to(files[0])

    def take(batch):
        number = int(Path(batch["image"][0]["path"]).stem)
        if number >= 200:
            files[number - 200].unlink()
        return batch

    rows = Dataset.from_dict({"image": list(map(str, files))}, Features({"image": ImageFeature()}))
    prints = take_fingerprints(rows.with_transform(take))
    assert prints.readable.tolist() == list(range(500))
    assert sum(file.exists() for file in files) == 200


def test_a_disk_without_room_for_thumbnails_is_one_line(taken):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 * SIDE * SIDE - 1, before[1]))
        with pytest.raises(InputError, match="cannot write .*: .*File too large; set TMPDIR to "):
            take_fingerprints(taken[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
