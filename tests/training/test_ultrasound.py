import numpy as np
import pytest

from training.anatomy import FINDINGS, draw_anatomy
from training.phantom import SITES
from training.ultrasound import Probe, outline, simulate


def probe(geometry: str) -> Probe:
    site = SITES["A"]
    shape = {name: sum(span) / 2 for name, span in getattr(site, geometry).items()}
    return Probe(geometry, **shape, dynamic_range=60, noise=50, tgc_slope=0.0, smoothing=0.5, brightness=0.3)


def see(geometry: str, finding: str, seed: int = 0, **view):
    anatomy = draw_anatomy(np.random.default_rng(seed), finding)
    return simulate(anatomy, probe(geometry), np.random.default_rng(seed + 1), size=200, **view)


@pytest.mark.parametrize("geometry", ["convex", "linear"])
@pytest.mark.parametrize("finding", ["regular", *FINDINGS])
def test_a_frame_and_its_mask_have_one_shape(geometry, finding):
    frame, mask = see(geometry, finding)
    assert frame.shape == mask.shape
    assert max(frame.shape) == 200
    assert frame.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask.any()) == (finding != "regular")


@pytest.mark.parametrize("finding", ["regular", *FINDINGS])
def test_the_outline_is_the_mask_and_leaves_the_chances_that_a_frame_leaves(finding):
    anatomy, one, other = draw_anatomy(np.random.default_rng(3), finding), *map(np.random.default_rng, (4, 4))
    mask = simulate(anatomy, probe("convex"), one, size=150)[1]
    assert np.array_equal(outline(anatomy, probe("convex"), other, size=150), mask)
    assert one.random() == other.random()


def test_the_same_seeds_give_the_same_frame():
    assert np.array_equal(see("convex", "b-lines"), see("convex", "b-lines"))
    assert not np.array_equal(see("convex", "b-lines"), see("convex", "b-lines", seed=5))


def test_a_sector_leaves_the_corners_black_and_a_rectangle_does_not():
    sector, rectangle = see("convex", "regular")[0], see("linear", "regular")[0]
    assert not sector[:20, :20].any()
    assert not sector[-5:, -5:].any()
    assert rectangle[:20, :20].any()


def test_frames_of_one_patient_are_more_alike_than_those_of_two():
    def likeness(one, other):
        return np.corrcoef(one.ravel(), other.ravel())[0, 1]

    first, again = see("linear", "regular")[0], see("linear", "regular", shift=0.5)[0]
    others = [see("linear", "regular", seed=seed)[0] for seed in range(10, 15)]
    assert likeness(first, again) > max(likeness(first, other) for other in others)
