import re
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from space.errors import InputError
from tests.images import speckle, write_table
from training.arguments import DataArguments
from training.prepare import prepare
from training.sources import load_data
from training.split import PARTS, assign_parts, oversample, split, undersample

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


def sizes_of(parts):
    return {name: np.bincount(rows["label"], minlength=2).tolist() for name, rows in parts.items()}


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


def test_single_images_meet_the_counts_of_the_study_exactly():
    labels = [0] * 350 + [1] * 350
    found = counts(labels, assign_parts([str(index) for index in range(700)], labels, SHARES))
    assert found == {"train": {0: 224, 1: 224}, "validation": {0: 70, 1: 70}, "test": {0: 56, 1: 56}}


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


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """24 patients at three sites with 3 images each, one class rarer, and a given split."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for patient in range(24):
        for frame in range(3):
            name, label = f"{patient}-{frame}.png", "sick" if patient % 3 == 0 else "normal"
            Image.fromarray(speckle(patient * 10 + frame)).save(folder / name)
            part = "test" if patient % 8 == 0 or patient % 8 == 1 else "train"
            rows.append([name, label, f"p{patient}", "ABC"[patient // 8], part])
    write_table(folder / "metadata.csv", ["file_name", "label", "group", "site", "split"], *rows)
    return folder


def test_by_image_the_phantom_gives_the_counts_of_the_study_and_leaks(demo):
    """By group the whole way of test_demo.py does."""
    data = prepare(
        DataArguments(
            "phantom", sites=["A"], balance="undersample", balance_scope="all", per_class=350, split_by="image"
        )
    )
    assert np.bincount(data.home["label"]).tolist() == [364, 351]
    assert len(data.parts.pop("unlabelled")) == 50
    assert sizes_of(data.parts) == {
        "train": [224, 224],
        "validation": [70, 70],
        "test": [56, 56],
        "external": [112, 112],
    }
    assert data.deviation == "the wanted shares are met to less than one image"
    assert set(data.parts["train"]["group"]) & set(data.parts["test"]["group"])
    assert "groups stand in more than one part" in data.leaks[0]


@pytest.fixture(scope="module")
def plain(clips):
    return prepare(DataArguments(str(clips)))


def test_balance_touches_the_train_part_alone_unless_all_is_asked_for(clips, plain):
    under = prepare(DataArguments(str(clips), balance="undersample")).parts
    over = prepare(DataArguments(str(clips), balance="oversample")).parts
    before = sizes_of(plain.parts)
    assert sizes_of(under) == before | {"train": [min(before["train"])] * 2}
    assert sizes_of(over) == before | {"train": [max(before["train"])] * 2}
    assert list(under["test"]["path"]) == list(over["test"]["path"]) == list(plain.parts["test"]["path"])
    all_ = sizes_of(prepare(DataArguments(str(clips), balance="undersample", balance_scope="all")).parts)
    assert np.sum(list(all_.values()), axis=0).tolist() == [24, 24]


def test_folds_are_a_partition_by_group_and_every_one_is_the_test_part_once(plain):
    tested = []
    for fold in range(4):
        parts = split(plain.home, DataArguments("clips", folds=4, fold=fold))
        tested += parts["test"]["path"]
        groups = [set(parts[part]["group"]) for part in PARTS]
        assert not any(groups[a] & groups[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert sorted(tested) == sorted(plain.home["path"])


def test_one_site_left_out_is_the_whole_test_part(plain):
    parts = split(plain.home, DataArguments("clips", test_site="B"))
    assert set(parts["test"]["site"]) == {"B"}
    assert len(parts["test"]) == 24
    assert set(parts["train"]["site"]) | set(parts["validation"]["site"]) == {"A", "C"}


def test_a_given_split_is_kept_and_a_validation_part_is_taken_from_train(plain):
    parts = split(plain.home, DataArguments("clips", split_by="column"))
    assert set(parts["test"]["split"]) == {"test"}
    assert set(parts["train"]["split"]) == set(parts["validation"]["split"]) == {"train"}
    assert len(parts["test"]) == plain.home["split"][:].count("test")
    assert not set(parts["validation"]["group"]) & set(parts["train"]["group"])


def test_how_far_the_parts_are_from_what_was_wanted_is_told(plain):
    assert re.fullmatch(
        r"furthest from the wanted shares: \w+ of the \w+ part, [+-]\d images from \d+", plain.deviation
    )


def test_a_given_split_that_leaks_stops_the_run_unless_that_is_allowed(plain, clips, tmp_path):
    home, names = plain.home, ("normal", "sick")
    table = [
        [str(clips / path), names[label], group, "test" if path.endswith("-0.png") else "train"]
        for path, label, group in zip(home["path"], home["label"], home["group"], strict=True)
    ]
    write_table(tmp_path / "list.csv", ["path", "label", "group", "split"], *table)
    args = {"data": str(tmp_path / "list.csv"), "split_by": "column"}
    with pytest.raises(InputError, match=r"24 groups stand in more than one part.*go on all the same with --strict"):
        prepare(DataArguments(**args))
    allowed = prepare(DataArguments(**args, strict=False))
    assert len(allowed.leaks) == 1
    assert allowed.deviation == "the parts are as given"


@given(st.data())
@settings(max_examples=3, deadline=None)
def test_copies_across_groups_are_never_in_two_parts(clips, tmp_path_factory, data):
    """Copies of some images, made smaller and re-encoded and filed under other patients, stay with the originals."""
    folder = tmp_path_factory.mktemp("copies")
    rows = load_data(clips)
    table = [
        [str(clips / path), ("normal", "sick")[label], group]
        for path, label, group in zip(rows["path"], rows["label"], rows["group"], strict=True)
    ]
    originals = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8, unique=True))
    for number, index in enumerate(originals):
        Image.fromarray(np.asarray(rows[index]["image"])).resize((128, 96)).save(folder / f"{number}.jpg", quality=60)
        table.append([f"{number}.jpg", table[index][1], f"other-{number}"])
    write_table(folder / "list.csv", ["path", "label", "group"], *table)
    prepared = prepare(DataArguments(str(folder / "list.csv"), split_seed=data.draw(st.integers(0, 9))))
    part_of = {path: part for part in PARTS for path in prepared.parts[part]["path"]}
    for number, index in enumerate(originals):
        assert part_of[f"{number}.jpg"] == part_of[table[index][0]]
    assert not prepared.leaks


def test_a_copy_at_the_other_site_stops_the_run(clips, tmp_path):
    for name in ("normal", "sick"):
        (tmp_path / "away" / name).mkdir(parents=True)
    Image.open(clips / "1-0.png").save(tmp_path / "away" / "normal" / "theirs.jpg", quality=80)
    Image.fromarray(speckle(5000)).save(tmp_path / "away" / "sick" / "other.png")
    args = {"data": str(clips), "external": str(tmp_path / "away")}
    with pytest.raises(InputError, match=r"1 pairs of near copies stand in different parts, 1-0.png \(\w+\) and "):
        prepare(DataArguments(**args))
    assert len(prepare(DataArguments(**args, strict=False)).parts["external"]) == 2


def test_what_is_trained_on_besides_is_a_part_of_its_own_and_must_not_hold_what_is_measured(clips, plain, tmp_path):
    for name in ("normal", "sick"):
        (tmp_path / "more" / name).mkdir(parents=True)
        Image.fromarray(speckle(5000 + len(name))).save(tmp_path / "more" / name / "1.png")
    args = {"data": str(clips), "also": str(tmp_path / "more")}
    prepared = prepare(DataArguments(**args))
    assert sizes_of(prepared.parts) == sizes_of(plain.parts) | {"also": [1, 1]}
    assert len(prepared.home) == len(plain.home)
    shutil.copy(clips / plain.parts["test"][0]["path"], tmp_path / "more" / "normal" / "2.png")
    with pytest.raises(InputError, match=r"1 pairs of exact copies stand in different parts, .* \(test\) and .*train"):
        prepare(DataArguments(**args))
    with pytest.raises(InputError, match="is given twice"):
        prepare(DataArguments(**args, external=args["also"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["D"]}, "found no site D; the sites are A, B, C"),
        ({"labels": ["normal", "covid", "sick"]}, "found images of normal, sick only, expected normal, covid, sick"),
        ({"balance": "oversample", "balance_scope": "all"}, "would put copies into two parts; use train"),
    ],
)
def test_a_choice_that_the_data_does_not_offer_is_refused(clips, settings, message):
    with pytest.raises(InputError, match=message):
        prepare(DataArguments(str(clips), **settings))


def test_folds_and_columns_that_are_not_there_are_refused(plain):
    with pytest.raises(InputError, match="fold 3: expected 0 to 2, for there are 3 folds"):
        split(plain.home, DataArguments("clips", folds=3, fold=3))
    with pytest.raises(InputError, match="split_by: column needs a column split"):
        split(plain.home.remove_columns("split"), DataArguments("clips", split_by="column"))


def test_one_class_only_and_too_few_groups_are_refused(tmp_path, small_phantom):
    def link(name, count):
        for index, path in enumerate(sorted((small_phantom / "images").iterdir())[:count]):
            target = tmp_path / name / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)

    link("normal", 9)
    with pytest.raises(InputError, match="found images of normal only, expected at least two classes"):
        prepare(DataArguments(str(tmp_path)))
    link("sick", 2)
    with pytest.raises(InputError, match=r"class sick has 2 images in \d groups, which leaves the \w+ part without"):
        prepare(DataArguments(str(tmp_path)))
