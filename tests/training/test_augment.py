import numpy as np
import pytest
from PIL import Image

from training.augment import augment, expose, mirror, move


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("change", [mirror, move, expose])
def test_size_and_mode_stay_and_one_seed_gives_one_result(change):
    for seed in range(5):
        one, two = (change(picture(), np.random.default_rng(seed)) for _ in range(2))
        assert (one.size, one.mode) == ((60, 40), "RGB")
        assert np.array_equal(one, two)


def test_none_changes_nothing_and_light_does():
    assert np.array_equal(augment(picture(), "none", np.random.default_rng(0)), picture())
    assert not np.array_equal(augment(picture(), "light", np.random.default_rng(0)), picture())


def test_up_stays_up():
    image = Image.new("RGB", (60, 60))
    image.paste((255, 255, 255), (0, 0, 60, 20))
    for seed in range(20):
        rows = np.asarray(augment(image, "light", np.random.default_rng(seed))).mean((1, 2))
        assert rows[:20].mean() > rows[40:].mean() + 100


def test_black_stays_black():
    image = Image.new("RGB", (20, 20))
    assert not np.asarray(augment(image, "light", np.random.default_rng(0))).any()
