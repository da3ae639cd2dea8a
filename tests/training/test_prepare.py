import re
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from space.errors import InputError
from tests.images import speckle, write_table
from training.arguments import DataArguments
from training.evaluate import with_pixels
from training.prepare import prepare
from training.sources import load_data
from training.split import PARTS, deviation, require_test_part, split


def sizes_of(parts):
    return {name: np.bincount(rows["label"], minlength=2).tolist() for name, rows in parts.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """24 patients at three sites with 2 images each, one class rarer, and a given split."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for patient in range(24):
        for frame in range(2):
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
    assert np.sum(list(all_.values()), axis=0).tolist() == [16, 16]


def test_folds_are_a_partition_by_group_and_every_one_is_the_test_part_once(plain):
    tested = []
    for fold in range(4):
        parts = split(plain.home, DataArguments("clips", folds=4, fold=fold))
        tested += parts["test"]["path"]
        groups = [set(parts[part]["group"]) for part in PARTS]
        assert not any(groups[a] & groups[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert sorted(tested) == sorted(plain.home["path"])


def test_other_patients_choose_the_checkpoint_of_each_fold_so_that_all_are_trained_on_in_some(plain):
    folds = [split(plain.home, DataArguments("clips", folds=5, fold=fold)) for fold in range(5)]
    validated = [frozenset(parts["validation"]["group"]) for parts in folds]
    assert len(set(validated)) == 5
    assert set().union(*(parts["train"]["group"] for parts in folds)) == set(plain.home["group"])


def single_images(number: int) -> Dataset:
    """Rows of patients with one image each, of two classes at three sites."""
    names = [str(index) for index in range(number)]
    sites, labels = (["ABC"[index % 3] for index in range(number)], [index // 3 % 2 for index in range(number)])
    rows = Dataset.from_dict({"path": names, "merged": names, "site": sites, "label": labels})
    return rows.cast_column("label", ClassLabel(names=["normal", "sick"]))


def test_other_patients_of_a_site_choose_the_checkpoint_where_another_one_is_left_out():
    rows, at_c = single_images(240), {str(index) for index in range(2, 240, 3)}
    parts = [split(rows, DataArguments("clips", test_site=site)) for site in "AB"]
    one, other = (at_c & set(part["validation"]["path"]) for part in parts)
    assert len(one & other) < min(len(one), len(other)) / 2


def test_of_folds_of_single_images_the_wanted_shares_are_met():
    rows, args = single_images(240), DataArguments("clips", folds=4, fold=1)
    assert deviation(rows, split(rows, args), args) == "the wanted shares are met to less than one image"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["D"]}, "found no site D; the sites are A, B, C"),
        ({"labels": ["normal", "covid", "sick"]}, "found images of normal, sick only, expected normal, covid, sick"),
        ({"split_by": "column", "folds": 4}, "found split_by: column and folds; expected one of them"),
        ({"test_site": "A", "folds": 4}, "found test_site and folds; expected one"),
        ({"test_site": "B", "sites": ["A"]}, "test_site B: found the sites A among the images of home; expected"),
        ({"test_site": "A", "sites": ["A"]}, "test_site A: found the sites A among the images of home; expected"),
        ({"test_site": "Z"}, "found no site Z; the sites are A, B, C"),
    ],
)
def test_a_choice_that_the_data_does_not_offer_is_refused_before_any_image_is_read(
    clips, monkeypatch, settings, message
):
    monkeypatch.setattr("training.audit.take_fingerprints", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(InputError, match=message):
        prepare(DataArguments(str(clips), **settings))


@pytest.mark.parametrize(("site", "lacking", "found"), [("C", "C", "A, B"), ("B", "AC", "B")])
def test_a_test_site_is_refused_where_a_class_is_not_there_or_nowhere_else(plain, site, lacking, found):
    rows = plain.home.filter(lambda row: row["label"] == 0 or row["site"] not in lacking)
    with pytest.raises(InputError, match=f"test_site {site}: found the sites {found} among the images of class sick; "):
        require_test_part(rows, DataArguments("clips", test_site=site))


def test_more_folds_than_groups_of_a_class_are_refused(clips):
    with pytest.raises(
        InputError,
        match=r"in 8 groups \(the largest, p0, has 2\), which leaves the test part without any; make fewer",
    ):
        prepare(DataArguments(str(clips), folds=10))


def test_a_fold_without_an_image_and_a_split_without_words_or_with_others_are_refused(plain):
    with pytest.raises(InputError, match="fold 12 of 30 holds no image; make fewer folds"):
        split(plain.home, DataArguments("clips", folds=30, fold=12))
    by_column = DataArguments("clips", split_by="column")
    without = plain.home.remove_columns("split")
    with pytest.raises(InputError, match="split_by: column needs a column split"):
        require_test_part(without, by_column)
    words = ["valdiation" if index == 3 else part for index, part in enumerate(plain.home["split"])]
    with pytest.raises(InputError, match="clips: found split 'valdiation'; expected train, validation, test"):
        require_test_part(without.add_column("split", words), by_column)


def test_copies_in_two_parts_leak_also_by_way_of_an_image_in_none(clips, tmp_path):
    names = sorted(path.name for path in clips.glob("*.png"))
    rows = [[str(clips / name), "sick" if int(name.split("-")[0]) % 3 == 0 else "normal", name[:-6]] for name in names]
    rows = [[path, label, group, "test" if group in {"8", "9"} else "train"] for path, label, group in rows]
    content = (clips / "8-0.png").read_bytes()  # of the test part
    for name, label in (("a.png", ""), ("b.png", "normal")):  # in no part, and in train
        (tmp_path / name).write_bytes(content)
        rows.insert(0, [str(tmp_path / name), label, name, "train"])
    rows.sort(key=lambda row: row[1])  # the unlabelled one first
    write_table(tmp_path / "list.csv", ["path", "label", "group", "split"], *rows)
    with pytest.raises(InputError, match="1 sets of copies stand in different parts by way of an image in none"):
        prepare(DataArguments(str(tmp_path / "list.csv"), split_by="column"))


def test_one_site_left_out_is_the_whole_test_part(plain):
    parts = split(plain.home, DataArguments("clips", test_site="B"))
    assert set(parts["test"]["site"]) == {"B"}
    assert len(parts["test"]) == 16
    assert set(parts["train"]["site"]) | set(parts["validation"]["site"]) == {"A", "C"}


def test_a_given_split_is_kept_and_a_validation_part_is_taken_from_train(plain):
    parts = split(plain.home, DataArguments("clips", split_by="column"))
    assert set(parts["test"]["split"]) == {"test"}
    assert set(parts["train"]["split"]) == set(parts["validation"]["split"]) == {"train"}
    assert len(parts["test"]) == plain.home["split"][:].count("test")
    assert not set(parts["validation"]["group"]) & set(parts["train"]["group"])


def test_images_that_a_given_split_puts_in_no_part_are_in_none(plain):
    words = ["" if index % 5 == 0 else word for index, word in enumerate(plain.home["split"])]
    rows = plain.home.remove_columns("split").add_column("split", words)
    parts = split(rows, DataArguments("clips", split_by="column"))
    assert sum(map(len, parts.values())) == len(rows) - words.count("")
    assert not any("" in part["split"] for part in parts.values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train valid test", "the parts are as given"),
        ("train train Test", "the parts are as given, with validation drawn from train"),
        ("train train train", "the parts are as given, with validation and test drawn from train"),
        ("train valid test none", "the parts are as given; 1 labelled images are in none"),
    ],
)
def test_parts_that_were_drawn_are_not_called_given_and_images_in_none_are_counted(words, told):
    parts = {part: Dataset.from_dict({"split": [word]}) for part, word in zip(PARTS, words.split(), strict=False)}
    rows = Dataset.from_dict({"split": words.split()})
    assert deviation(rows, parts, DataArguments("clips", split_by="column")) == told


def test_a_split_that_was_published_is_trained_on_as_it_was(clips, tmp_path):
    """With images of another site, which are measured, and such as balancing had left out."""
    rows = load_data(clips)
    part_of = {"p0": "left_out", "p1": "left_out", "p2": "validation", "p3": "validation"} | dict.fromkeys(
        (f"p{patient}" for patient in range(16, 24)), "external"
    )
    table = [
        [str(clips / path), ("normal", "sick")[label], group, part_of.get(group, given)]
        for path, label, group, given in zip(*(rows[name] for name in ("path", "label", "group", "split")), strict=True)
    ]
    write_table(tmp_path / "list.csv", ["path", "label", "group", "split"], *table)
    parts = prepare(DataArguments(str(tmp_path / "list.csv"), split_by="column", balance_scope="all")).parts
    for part in (*PARTS, "external"):
        assert set(parts[part]["split"]) == {part}
        assert len(parts[part]) == [row[-1] for row in table].count(part)


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
    assert allowed.deviation == "the parts are as given, with validation drawn from train"


@pytest.mark.parametrize(
    ("name", "group", "args", "remedy"),
    [
        ("p{0}_{1}.png", "", {"split_by": "column"}, "8 groups are proposed from file names"),
        ("{0}-of-{1}.png", "p{0}", {"sites": ["A"]}, "8 groups stand at more than one site; write the site"),
    ],
)
def test_a_run_that_stops_because_of_groups_says_where_they_are_from(clips, tmp_path, name, group, args, remedy):
    table = []
    for number, file in enumerate(sorted(clips.glob("*.png"))[:32]):
        patient, frame = number % 8, number // 8
        shutil.copy(file, tmp_path / name.format(patient, frame))
        told = [("normal", "sick")[patient % 2], group.format(patient), "AB"[frame // 2], ("train", "test")[frame % 2]]
        table.append([name.format(patient, frame), *told])
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "group", "site", "split"], *table)
    with pytest.raises(InputError, match=f"8 groups stand in more than one part, .*; .*{remedy}.*, or tell groups in"):
        prepare(DataArguments(str(tmp_path), **args))


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


def test_images_that_are_copies_of_one_count_as_one_patient_in_training_and_evaluation(clips, tmp_path):
    rows = load_data(clips)
    table = [
        [str(clips / path), ("normal", "sick")[label], f"{path}{again}"]
        for path, label in zip(rows["path"], rows["label"], strict=True)
        for again in ("", " again")
    ]
    for line in table[1::2]:
        shutil.copy(line[0], tmp_path / line[0].rpartition("/")[2])
        line[0] = line[0].rpartition("/")[2]
    write_table(tmp_path / "list.csv", ["path", "label", "group"], *table)
    test = prepare(DataArguments(str(tmp_path / "list.csv"))).parts["test"]
    assert len(test) == 2 * len(set(test["group"]))
    again = with_pixels(load_data(tmp_path / "list.csv"))
    assert len(again) == 2 * len(rows) == 2 * len(set(again["group"]))


def test_a_blank_frame_in_many_clips_joins_no_patients_and_is_no_leak(clips, tmp_path):
    Image.new("L", (160, 120)).save(tmp_path / "blank.png")
    rows, table = load_data(clips), []
    for path, label, group in zip(rows["path"], rows["label"], rows["group"], strict=True):
        told = [("normal", "sick")[label], group, PARTS[int(group[1:]) // 3 % 3]]
        table.append([str(clips / path), *told])
        if path.endswith("-0.png"):
            shutil.copy(tmp_path / "blank.png", tmp_path / path)
            table.append([path, *told])
    write_table(tmp_path / "list.csv", ["path", "label", "group", "split"], *table)
    prepared = prepare(DataArguments(str(tmp_path / "list.csv"), split_by="column", strict=False))
    assert not prepared.leaks
    assert len({group for part in PARTS for group in prepared.parts[part]["group"]}) == 24
    assert "24 images are blank" in prepared.audit["warnings"]
    assert len(set(with_pixels(load_data(tmp_path / "list.csv"))["group"])) == 24


def test_a_copy_at_the_other_site_stops_the_run(clips, tmp_path):
    for name in ("normal", "sick"):
        (tmp_path / "away" / name).mkdir(parents=True)
    Image.open(clips / "1-0.png").save(tmp_path / "away" / "normal" / "theirs.jpg", quality=80)
    Image.fromarray(speckle(5000)).save(tmp_path / "away" / "sick" / "other.png")
    args = {"data": str(clips), "external": str(tmp_path / "away")}
    with pytest.raises(InputError, match=r"1 pairs of near copies stand in different parts, 1-0.png \(\w+\) and "):
        prepare(DataArguments(**args))
    assert len(prepare(DataArguments(**args, strict=False)).parts["external"]) == 2


def test_a_copy_at_the_other_site_stops_the_run_also_where_a_split_by_image_was_asked_for(clips, tmp_path):
    for name in ("normal", "sick"):
        (tmp_path / "away" / name).mkdir(parents=True)
    shutil.copy(clips / "1-0.png", tmp_path / "away" / "normal" / "theirs.png")
    Image.fromarray(speckle(5000)).save(tmp_path / "away" / "sick" / "other.png")
    args = {"data": str(clips), "split_by": "image"}
    assert "groups stand in more than one part" in prepare(DataArguments(**args)).leaks[0]
    with pytest.raises(
        InputError, match=r"^1 pairs of exact copies stand .* \(internal\) and .*theirs.png \(external\)"
    ):
        prepare(DataArguments(**args, external=str(tmp_path / "away")))


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


def test_external_data_that_is_given_is_what_is_measured_also_with_sites(clips, tmp_path):
    for number in range(2):
        Image.fromarray(speckle(900 + number)).save(tmp_path / f"{number}.png")
    write_table(tmp_path / "metadata.csv", ["file_name", "label"], ["0.png", "normal"], ["1.png", "sick"])
    parts = prepare(DataArguments(str(clips), sites=["A", "B"], external=str(tmp_path))).parts
    assert list(parts["external"]["path"]) == ["0.png", "1.png"]
    assert not any("C" in parts[part]["site"] for part in PARTS)


def test_images_without_a_site_are_neither_home_nor_elsewhere_and_that_is_said(clips, tmp_path):
    names = ("path", "label", "group", "site")
    table = [list(row) for row in zip(*(load_data(clips)[name] for name in names), strict=True)]
    table = [[clips / path, ("normal", "sick")[label], group, site.strip("C")] for path, label, group, site in table]
    write_table(tmp_path / "list.csv", list(names), *table)
    prepared = prepare(DataArguments(str(tmp_path / "list.csv"), sites=["A"]))
    sites = {name: "".join(sorted(set(rows["site"]))) for name, rows in prepared.parts.items()}
    assert sites == dict.fromkeys(PARTS, "A") | {"external": "B"}
    assert f"{tmp_path / 'list.csv'}: 16 labelled images have no site and are left out" in prepared.audit["warnings"]


@pytest.mark.parametrize("key", ["external", "also"])
def test_other_data_without_labels_is_refused_before_any_image_is_read(clips, tmp_path, monkeypatch, key):
    monkeypatch.setattr("training.audit.take_fingerprints", lambda *_: pytest.fail("an image was read"))
    Image.fromarray(speckle(999)).save(tmp_path / "1.png")
    write_table(tmp_path / "metadata.csv", ["file_name", "label"], ["1.png", ""])
    with pytest.raises(InputError, match="found no labelled images; what is measured or trained on needs labels"):
        prepare(DataArguments(str(clips), **{key: str(tmp_path)}))


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
