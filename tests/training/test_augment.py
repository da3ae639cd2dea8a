import numpy as np
import pytest
from PIL import Image

from training.augment import AUGMENTATIONS, augment

CHANGES = sorted({change for chosen in AUGMENTATIONS.values() for change in chosen}, key=lambda change: change.__name__)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_size_and_mode_stay_and_one_seed_gives_one_result(change):
    for seed in range(12):
        one, two = (change(picture(), np.random.default_rng(seed)) for _ in range(2))
        assert (one.size, one.mode) == ((60, 40), "RGB")
        assert np.array_equal(one, two)
    assert any(not np.array_equal(change(picture(), np.random.default_rng(seed)), picture()) for seed in range(12))


@pytest.mark.parametrize("name", ["light", "ultrasound", "xray"])
def test_a_grey_image_gives_what_its_three_channels_would(name):
    grey = Image.fromarray(np.asarray(picture())[..., 0]).convert("RGB")
    for seed in range(12):
        rng, slowly = np.random.default_rng(seed), grey
        for change in AUGMENTATIONS[name]:
            slowly = change(slowly, rng)
        assert np.array_equal(augment(grey, name, np.random.default_rng(seed)), slowly)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_of_odd_sizes_are_taken(name, size):
    for seed in range(12):
        assert augment(Image.new("RGB", size, (90, 90, 90)), name, np.random.default_rng(seed)).size == size


def test_none_changes_nothing():
    assert np.array_equal(augment(picture(), "none", np.random.default_rng(0)), picture())


@pytest.mark.parametrize("name", ["light", "ultrasound", "xray"])
def test_up_stays_up(name):
    image = Image.new("RGB", (60, 60))
    image.paste((255, 255, 255), (0, 0, 60, 20))
    for seed in range(60):
        rows = np.asarray(augment(image, name, np.random.default_rng(seed))).mean((1, 2))
        assert rows[:20].mean() > rows[40:].mean() + 100


def test_an_x_ray_is_not_mirrored():
    """The heart is on one side."""
    image = Image.new("RGB", (60, 60))
    image.paste((255, 255, 255), (0, 0, 20, 60))
    for seed in range(60):
        columns = np.asarray(augment(image, "xray", np.random.default_rng(seed))).mean((0, 2))
        assert columns[:20].mean() > columns[40:].mean() + 50


def test_black_stays_black():
    image = Image.new("RGB", (20, 20))
    assert not np.asarray(augment(image, "light", np.random.default_rng(0))).any()
