import csv
import os
import shutil

import numpy as np
import pytest
from datasets import ClassLabel
from PIL import Image

from space.errors import InputError
from training import data
from training.data import UNLABELLED, check_images, load_data


def write_images(folder, *names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9), index * 9, np.uint8)).save(folder / name)


def write_table(folder, columns, *rows):
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_class_folders_give_labels_by_name_with_normal_first(tmp_path):
    write_images(tmp_path, "abnormal/1.png", "normal/1.png", "abnormal/2.jpg")
    rows = load_data(tmp_path)
    assert rows.features["label"] == ClassLabel(names=["normal", "abnormal"])
    assert list(rows["path"]) == ["abnormal/1.png", "abnormal/2.jpg", "normal/1.png"]
    assert list(rows["label"]) == [1, 1, 0]
    assert rows[0]["image"].size == (9, 8)


def test_folders_inside_class_folders_are_groups_and_files_without_one_are_their_own(tmp_path):
    write_images(tmp_path, "sick/p1/1.png", "sick/p1/2.png", "sick/p2/1.png", "normal/7.png")
    assert list(load_data(tmp_path)["group"]) == ["normal/7.png", "sick/p1", "sick/p1", "sick/p2"]


def test_file_names_with_test_in_them_are_rows_like_all_others(tmp_path):
    names = ["images/a_test_1.png", "images/train_2.png", "images/test/3.png", "images/4.png"]
    write_images(tmp_path, *names)
    write_table(
        tmp_path,
        ["file_name", "label", "group", "site", "probe"],
        *[
            [name, label, f"g{index}", "home", "convex"]
            for index, (name, label) in enumerate(zip(names, "abab", strict=True))
        ],
    )
    rows = load_data(tmp_path)
    assert list(rows["path"]) == names
    assert list(rows["group"]) == ["g0", "g1", "g2", "g3"]
    assert set(rows["site"]) == {"home"}
    assert set(rows["probe"]) == {"convex"}


def test_labels_are_mapped_by_name_whatever_their_order(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png")
    assert load_data(tmp_path, ["sick", "normal"]).features["label"].names == ["sick", "normal"]
    assert list(load_data(tmp_path, ["sick", "normal"])["label"]) == [1, 0]
    with pytest.raises(InputError, match="expected only normal, covid"):
        load_data(tmp_path, ["normal", "covid"])


def test_an_empty_label_is_unlabelled(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    write_table(tmp_path, ["file_name", "label"], ["1.png", "sick"], ["2.png", ""])
    assert list(load_data(tmp_path)["label"]) == [0, UNLABELLED]


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ([], None, "found no images; expected a folder for each class, or metadata.csv"),
        (["loose.png", "normal/1.png"], None, "1 images outside class folders, loose.png"),
        (["train/1.png", "test/1.png"], None, "which are parts and no classes"),
        (["1.png"], [["name", "label"], ["1.png", "sick"]], "found the columns name, label; expected file_name"),
        (["1.png"], [["file_name", "label"], ["2.png", "sick"]], "1 of 1 files do not exist, 2.png"),
        (["1.png"], [["file_name", "label"], ["1.png", "sick"], ["1.png", "normal"]], "1 file names twice, 1.png"),
        (["1.png"], [["file_name", "label"]], "found no rows"),
    ],
)
def test_a_folder_that_cannot_be_taken_as_it_is_is_refused_in_one_line(tmp_path, files, table, message):
    write_images(tmp_path, *files)
    if table:
        write_table(tmp_path, *table)
    with pytest.raises(InputError, match=message) as refusal:
        load_data(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no/where: no such folder"):
        load_data("no/where")


def test_broken_images_are_named_before_any_work(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png", "normal/2.png")
    (tmp_path / "sick" / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"found 1 of 4 images broken: sick/broken.png \(it is no image"):
        check_images(load_data(tmp_path))


def test_checked_images_have_the_hash_of_their_bytes(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png")
    shutil.copy(tmp_path / "sick" / "1.png", tmp_path / "normal" / "copy.png")
    hashes = dict(zip(*(list(check_images(load_data(tmp_path))[c]) for c in ("path", "sha256")), strict=True))
    assert hashes["sick/1.png"] == hashes["normal/copy.png"] != hashes["normal/1.png"]


def test_the_verb_writes_any_data_in_one_layout(tmp_path, small_phantom, capsys):
    write_images(tmp_path / "mine", "sick/p1/1.png", "normal/1.png")
    data.main([str(tmp_path / "mine"), "--output", str(tmp_path / "copy")])
    assert "normal  sick  groups" in capsys.readouterr().out
    rows = load_data(tmp_path / "copy")
    assert list(rows["path"]) == ["images/normal/1.png", "images/sick/p1/1.png"]
    assert list(rows["group"]) == ["normal/1.png", "sick/p1"]

    data.main([str(small_phantom), "--output", str(tmp_path / "phantom")])
    for part in ("images", "masks"):
        assert sorted(os.listdir(tmp_path / "phantom" / part)) == sorted(os.listdir(small_phantom / part))
    assert (
        load_data(tmp_path / "phantom")
        .to_pandas()
        .drop(columns="image")
        .equals(load_data(small_phantom).to_pandas().drop(columns="image"))
    )


def test_the_verb_overwrites_nothing_and_leaves_nothing_half_written(tmp_path):
    write_images(tmp_path / "mine", "sick/1.png", "normal/1.png")
    (tmp_path / "mine" / "sick" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="broken"):
        data.main([str(tmp_path / "mine"), "--output", str(tmp_path / "copy")])
    assert os.listdir(tmp_path) == ["mine"]
    with pytest.raises(InputError, match="exists"):
        data.main(["phantom", "--output", str(tmp_path / "mine")])
