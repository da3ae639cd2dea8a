import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from space.errors import InputError
from training.arguments import DataArguments
from training.data import load_data
from training.split import PARTS, assign_parts, leak_warning, load_parts, undersample

SHARES = {"validation": 0.2, "test": 0.16}

groups_with_labels = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=20, max_size=120).map(
    lambda pairs: ([f"g{group}" for group, _ in pairs], [label for _, label in pairs])
)


def counts(labels, parts):
    return {part: Counter(label for label, p in zip(labels, parts, strict=True) if p == part) for part in PARTS}


@given(groups_with_labels, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_group_is_in_two_parts_and_every_image_is_in_one(data, seed):
    groups, labels = data
    parts = assign_parts(groups, labels, SHARES, seed)
    assert len(parts) == len(groups)
    assert set(parts) <= set(PARTS)
    parts_of = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        parts_of[group].add(part)
    assert all(len(found) == 1 for found in parts_of.values())


@given(groups_with_labels)
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_images_does_not_matter(data):
    groups, labels = data
    forwards = dict(zip(groups, assign_parts(groups, labels, SHARES), strict=True))
    backwards = dict(zip(groups[::-1], assign_parts(groups[::-1], labels[::-1], SHARES), strict=True))
    assert forwards == backwards


@given(st.lists(st.integers(1, 6), min_size=12, max_size=60), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_wanted_numbers_are_met_to_less_than_the_largest_group(sizes, seed):
    groups = [f"g{index}" for index, size in enumerate(sizes) for _ in range(size)]
    labels = [int(group[1:]) % 2 for group in groups]
    found = counts(labels, assign_parts(groups, labels, SHARES, seed))
    for label in (0, 1):
        total = labels.count(label)
        for part, share in SHARES.items():
            assert abs(found[part][label] - share * total) <= max(sizes)


def test_single_images_meet_the_counts_of_the_study_exactly():
    labels = [0] * 350 + [1] * 350
    found = counts(labels, assign_parts([str(index) for index in range(700)], labels, SHARES))
    assert found == {"train": {0: 224, 1: 224}, "validation": {0: 70, 1: 70}, "test": {0: 56, 1: 56}}


def test_another_seed_gives_another_split():
    names, labels = [str(index) for index in range(100)], [index % 2 for index in range(100)]
    assert assign_parts(names, labels, SHARES, 0) != assign_parts(names, labels, SHARES, 1)


def test_three_groups_of_a_class_go_to_three_parts():
    groups = ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + [str(index) for index in range(40)]
    labels = [1] * 15 + [0] * 40
    assert all(found[1] == 5 for found in counts(labels, assign_parts(groups, labels, SHARES)).values())


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


def test_what_can_leak_is_said(small_phantom, tmp_path):
    rows = load_data(small_phantom)
    assert leak_warning(rows, "group") is None
    assert "may stand in train and test" in leak_warning(rows, "image")
    for label in ("normal", "sick"):
        shutil.copytree(small_phantom / "masks", tmp_path / label)
    assert "no groups are known" in leak_warning(load_data(tmp_path), "group")


@pytest.mark.parametrize("split_by", ["group", "image"])
def test_the_phantom_gives_the_tables_of_the_study(split_by, demo):
    parts, home = load_parts(
        DataArguments("phantom", sites=["A"], balance="undersample", per_class=350, split_by=split_by)
    )
    assert np.bincount(home["label"]).tolist() == [364, 351]
    assert {name: np.bincount(rows["label"]).tolist() for name, rows in parts.items() if name != "unlabelled"} == {
        "train": [224, 224],
        "validation": [70, 70],
        "test": [56, 56],
        "external": [112, 112],
    }
    assert len(parts["unlabelled"]) == 50
    shared = set(parts["train"]["group"]) & set(parts["test"]["group"])
    assert bool(shared) == (split_by == "image")


def test_other_data_is_external_too(small_phantom):
    parts, _ = load_parts(DataArguments(str(small_phantom), external=str(small_phantom)))
    assert len(parts["external"]) == sum(len(parts[part]) for part in PARTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["C"]}, "found no site C; the sites are A, B"),
        ({"labels": ["normal", "covid", "sick"]}, "found images of normal, sick only, expected normal, covid, sick"),
    ],
)
def test_a_choice_that_the_data_does_not_offer_is_refused(small_phantom, settings, message):
    with pytest.raises(InputError, match=message):
        load_parts(DataArguments(str(small_phantom), **settings))


def test_one_class_only_and_too_few_groups_are_refused(tmp_path, small_phantom):
    def link(name, count):
        for index, path in enumerate(sorted((small_phantom / "images").iterdir())[:count]):
            target = tmp_path / name / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)

    link("normal", 9)
    with pytest.raises(InputError, match="found images of normal only, expected at least two classes"):
        load_parts(DataArguments(str(tmp_path)))
    link("sick", 2)
    with pytest.raises(InputError, match=r"class sick has 2 images in 2 groups, which leaves the \w+ part without"):
        load_parts(DataArguments(str(tmp_path)))
