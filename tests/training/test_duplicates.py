import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.images import COPIES, copy_of, speckle
from training import duplicates
from training.duplicates import find_copies, near_copies
from training.fingerprint import SIDE, Fingerprints, take_fingerprints
from training.sources import load_data, phantom_folder


def thumbnails(images):
    small = [image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in small])


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(speckle(seed)).convert("RGB") for seed in range(40)]


def found(images, turned=False):
    return {tuple(pair) for pair in near_copies(thumbnails(images), turned)[0].tolist()}


@pytest.mark.parametrize("kind", COPIES)
def test_every_kind_of_copy_is_found_and_nothing_else(pictures, kind):
    assert found(pictures + [copy_of(picture, kind) for picture in pictures]) == {(n, n + 40) for n in range(40)}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_kind_of_copy_is_found_among_few_images(pictures, kind, count):
    few = pictures[:count]
    assert found(few + [copy_of(picture, kind) for picture in few]) == {(n, n + count) for n in range(count)}


def test_planted_copies_among_the_phantom_s_frames(demo):
    """200 copies of all kinds: at least 98 % are found, and at most 1 % of the pairs are of different patients."""
    rows = load_data(phantom_folder())
    prints = take_fingerprints(rows)
    originals = np.random.default_rng(0).permutation(len(rows))[:200]
    kinds = [COPIES[n % len(COPIES)] for n in range(len(originals))]
    pictures = [rows[int(index)]["image"].convert("RGB") for index in originals]
    copies = list(map(copy_of, pictures, kinds))
    pairs, _ = near_copies(np.concatenate([prints.thumbnails, thumbnails(copies)]))
    pairs = {tuple(pair) for pair in pairs.tolist()}
    planted = {(int(index), len(rows) + n) for n, index in enumerate(originals)}
    group = [*rows["group"], *[rows["group"][int(index)] for index in originals]]
    assert len(planted & pairs) >= 0.98 * len(planted)
    assert sum(group[one] != group[other] for one, other in pairs) <= 0.01 * len(pairs)


@pytest.mark.parametrize(
    "turn",
    [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE],
    ids=lambda t: t.name,
)
def test_mirrored_and_turned_copies_are_found_when_asked_for(pictures, turn):
    images = [*pictures, pictures[7].transpose(turn)]
    assert found(images) == set()
    assert found(images, turned=True) == {(7, 40)}


def test_pairs_are_sorted_with_likeness_and_the_lower_index_first(pictures):
    images = [*pictures[:5], copy_of(pictures[3], "JPEG q60"), copy_of(pictures[0], "cropped 3 %")]
    pairs, likeness = near_copies(thumbnails(images))
    assert pairs.tolist() == [[0, 6], [3, 5]]
    assert likeness[1] > likeness[0] > 0.75


def test_images_without_structure_have_no_copies():
    blank = np.full((10, SIDE, SIDE), 90, np.uint8)
    assert near_copies(blank)[0].shape == (0, 2)
    assert near_copies(blank[:1])[0].shape == (0, 2)


def test_exact_copies_are_set_aside_before_near_ones_are_looked_for(pictures):
    """200 exact copies and a near one: comparing each with each takes 100 MB, and the first with the near one 1 MB."""
    images = thumbnails([*[pictures[0]] * 200, copy_of(pictures[0], "JPEG q60")])
    prints = Fingerprints(images, pd.DataFrame({"pixels": [*["same"] * 200, "other"]}))
    tracemalloc.start()
    pairs = find_copies(prints)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = list(zip(pairs["one"], pairs["other"], pairs["kind"], strict=True))
    assert found == [*[(0, number, "exact") for number in range(1, 200)], (0, 200, "near")]
    assert peak < 50 << 20


def test_of_many_copies_only_the_nearest_crop_of_each_pair_is_held(monkeypatch):
    """100 copies of one picture: all that is found of the 4,950 pairs in 12 crops, at once, takes 10 MB."""
    monkeypatch.setattr(duplicates, "CHUNK", 32)  # of which the other parts take little
    noise = np.random.default_rng(0).normal(0, 2, (100, SIDE, SIDE))
    copies = (speckle(0, SIDE, SIDE) + noise).clip(0, 255).astype(np.uint8)
    tracemalloc.start()
    pairs, _ = near_copies(copies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) == 4950
    assert peak < 4 << 20
