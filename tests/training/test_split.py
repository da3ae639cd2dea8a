import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from training.split import PARTS, assign_parts, draw_shares, oversample, undersample

SHARES = {"train": 1.0, "validation": 0.2, "test": 0.16}

units_with_labels = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=20, max_size=120).map(
    lambda pairs: ([f"g{unit}" for unit, _ in pairs], [label for _, label in pairs])
)
patients = st.lists(st.integers(1, 6), min_size=12, max_size=60)  # frames of each


def frames(sizes):
    """Units and labels of patients with so many frames, every other one sick."""
    units = [f"g{index}" for index, size in enumerate(sizes) for _ in range(size)]
    return units, [int(unit[1:]) % 2 for unit in units]


def counts(labels, parts):
    return {part: Counter(label for label, p in zip(labels, parts, strict=True) if p == part) for part in PARTS}


@given(units_with_labels, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_unit_is_in_two_parts_and_every_image_is_in_one(data, seed):
    units, labels = data
    parts = assign_parts(units, labels, SHARES, seed)
    assert len(parts) == len(units)
    assert set(parts) <= set(PARTS)
    parts_of = defaultdict(set)
    for unit, part in zip(units, parts, strict=True):
        parts_of[unit].add(part)
    assert all(len(found) == 1 for found in parts_of.values())


@given(units_with_labels, st.integers(0, 3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_seed_decides_everything_and_the_order_of_the_images_nothing(data, seed, random):
    units, labels = data
    given = dict(zip(units, assign_parts(units, labels, SHARES, seed), strict=True))
    shuffled = random.sample(range(len(units)), len(units))
    again = assign_parts([units[index] for index in shuffled], [labels[index] for index in shuffled], SHARES, seed)
    assert dict(zip([units[index] for index in shuffled], again, strict=True)) == given


@given(patients, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_wanted_numbers_are_met_to_less_than_the_largest_group(sizes, seed):
    units, labels = frames(sizes)
    found = counts(labels, assign_parts(units, labels, SHARES, seed))
    for label in (0, 1):
        for part in ("validation", "test"):
            assert abs(found[part][label] - SHARES[part] * labels.count(label)) <= max(sizes)


@given(st.lists(st.integers(1, 6), min_size=60, max_size=100), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_new_patient_moves_few_others(sizes, new, seed):
    def parts_of(units, labels):
        return dict(zip(units, assign_parts(units, labels, SHARES, seed), strict=True))

    before, after = parts_of(*frames(sizes)), parts_of(*frames([*sizes, new]))
    assert sum(before[unit] != after[unit] for unit in before) <= 0.25 * len(
        before
    )  # half of them, were all drawn anew


def test_a_new_image_moves_two_of_a_hundred_patients_on_average():
    def parts_of(units, labels):
        return dict(zip(units, assign_parts(units, labels, SHARES), strict=True))

    moved = []
    for seed in range(20):
        sizes = np.random.default_rng(seed).integers(1, 7, 100)
        before, after = parts_of(*frames(sizes)), parts_of(*frames([*sizes, 1]))
        moved.append(sum(before[unit] != after[unit] for unit in before))
    assert np.mean(moved) <= 3


def test_thousands_of_patients_with_images_of_several_classes_meet_the_wanted_numbers_in_little_memory():
    random = np.random.default_rng(0)
    sizes = np.array([random.multinomial(random.integers(5, 30), random.dirichlet([1] * 4)) for _ in range(3000)])
    units, labels = np.repeat(np.arange(3000), sizes.sum(axis=1)), np.repeat(np.tile(np.arange(4), 3000), sizes.ravel())
    tracemalloc.start()
    parts = assign_parts([f"g{unit}" for unit in units], labels.tolist(), SHARES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # bytes
    for part in PARTS[1:]:
        found = np.bincount(labels[np.asarray(parts) == part], minlength=4)
        assert (np.abs(found - SHARES[part] * sizes.sum(axis=0)) < sizes.max(axis=0)).all()


def test_single_images_meet_the_counts_of_the_study_exactly():
    labels = [0] * 350 + [1] * 350
    found = counts(labels, assign_parts([str(index) for index in range(700)], labels, SHARES))
    assert found == {"train": {0: 224, 1: 224}, "validation": {0: 70, 1: 70}, "test": {0: 56, 1: 56}}


def equal(folds):
    return {str(fold): 1 / folds for fold in range(folds)}


@pytest.mark.parametrize(("folds", "images"), [(10, 35), (5, 8), (5, 12), (10, 3), (7, 39), (2, 9), (5, 7)])
def test_folds_of_few_single_images_differ_by_one_at_most(folds, images):
    labels = [0] * images + [1] * 2 * folds
    found = Counter(assign_parts([str(index) for index in range(len(labels))], labels, equal(folds))[:images])
    sizes = [found[fold] for fold in equal(folds)]
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("images", "first"), [(178, 34), (482, 98), (11, 3)])
def test_where_rounding_makes_little_of_a_fold_the_first_takes_what_is_left(images, first):
    found = Counter(assign_parts([str(index) for index in range(images)], [0] * images, equal(5)))
    assert found["0"] == first
    assert len({found[fold] for fold in "1234"}) == 1


def test_another_seed_gives_another_split():
    names, labels = [str(index) for index in range(100)], [index % 2 for index in range(100)]
    assert assign_parts(names, labels, SHARES, 0) != assign_parts(names, labels, SHARES, 1)


def test_three_groups_of_a_class_go_to_three_parts():
    units = ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + [str(index) for index in range(40)]
    labels = [1] * 15 + [0] * 40
    assert all(found[1] == 5 for found in counts(labels, assign_parts(units, labels, SHARES)).values())


def test_undersampling_keeps_as_many_of_each_class_as_the_rarest_has():
    paths, labels = [str(index) for index in range(50)], [0] * 30 + [1] * 20
    kept = undersample(paths, labels)
    assert Counter(labels[index] for index in kept) == {0: 20, 1: 20}
    assert kept == sorted(kept)
    assert Counter(labels[index] for index in undersample(paths, labels, most=7)) == {0: 7, 1: 7}


def test_undersampling_drops_the_same_images_when_one_is_added():
    paths, labels = [str(index) for index in range(50)], [0] * 30 + [1] * 20
    kept = {paths[index] for index in undersample(paths, labels)}
    more = undersample([*paths, "new"], [*labels, 0])
    assert len(kept ^ {[*paths, "new"][index] for index in more}) <= 2


def test_oversampling_repeats_the_rarer_class_as_evenly_as_can_be():
    paths, labels = [str(index) for index in range(50)], [0] * 35 + [1] * 15
    taken = oversample(paths, labels)
    assert Counter(labels[index] for index in taken) == {0: 35, 1: 35}
    repeats = Counter(index for index in taken if labels[index] == 1)
    assert set(repeats.values()) == {2, 3}
    assert set(taken) == set(range(50))


images = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["A", "B", ""]), st.integers(0, 4)), min_size=2, max_size=60
).filter(lambda rows: {label for label, _, _ in rows} == {0, 1})


def table_of(rows) -> Dataset:
    labels, sites, _ = zip(*rows, strict=True)
    groups = [f"{site}{label}{patient}" for label, site, patient in rows]
    return Dataset.from_dict({"label": labels, "site": sites, "merged": groups})


@given(images)
@settings(deadline=None)
def test_classes_are_drawn_equally_often_and_within_a_class_its_sites(rows):
    images = table_of(rows)
    table = images.to_pandas()
    for balance in ("sampler", "sites"):
        share = pd.Series(draw_shares(images, balance))
        assert (share > 0).all()
        assert share.groupby(table["label"]).sum().to_numpy() == pytest.approx([0.5, 0.5])
    for label, of_sites in share.groupby([table["label"], table["site"]]).sum().groupby("label"):
        assert of_sites.to_numpy() == pytest.approx(0.5 / len(of_sites)), label


def test_within_a_site_many_frames_of_a_patient_have_less_of_a_say():
    share = draw_shares(table_of([(0, "A", 0)] * 9 + [(0, "A", 1), (1, "A", 0)]), "sites")
    assert share[:9].sum() == pytest.approx(3 * share[9])
    assert len(set(share[:9])) == 1


def test_without_a_draw_every_image_is_seen_once():
    assert draw_shares(table_of([(0, "A", 0), (1, "A", 1)]), "class_weight") is None
