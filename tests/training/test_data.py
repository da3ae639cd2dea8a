import os
from pathlib import Path

import pytest

from space.errors import InputError
from tests.clips import write_clip
from tests.images import write_images, write_table
from training import audit, data
from training.groups import with_groups
from training.sources import load_data


def without_images(rows):
    return rows.to_pandas().drop(columns="image")


def test_the_verb_writes_any_data_in_one_layout(tmp_path, small_phantom, capsys):
    write_images(tmp_path / "mine", "sick/p1/1.png", "normal/1.png")
    data.main([str(tmp_path / "mine"), "--output", str(tmp_path / "copy")])
    assert "normal  sick  groups" in capsys.readouterr().out
    rows = load_data(tmp_path / "copy")
    assert list(rows["path"]) == ["images/normal/1.png", "images/sick/p1/1.png"]
    assert list(rows["group"]) == ["images/normal/1.png", "sick/p1"]  # of the first none is known, as before

    data.main([str(small_phantom), "--output", str(tmp_path / "phantom")])
    for part in ("images", "masks"):
        assert sorted(os.listdir(tmp_path / "phantom" / part)) == sorted(os.listdir(small_phantom / part))
    told, written = (without_images(load_data(folder)) for folder in (small_phantom, tmp_path / "phantom"))
    masks, copies = told.pop("mask"), written.pop("mask")
    assert written.equals(told)
    assert [Path(mask).name for mask in copies] == [Path(mask).name for mask in masks]
    assert (copies != "").sum() == len(os.listdir(small_phantom / "masks"))


def test_a_folder_may_be_called_phantom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mine", "sick/1.png", "normal/1.png")
    data.main(["mine", "--output", "phantom"])
    assert "all       1     1       2" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["patient{0}_{1}", "heron-{0}{1}"])
def test_what_the_verb_writes_of_clips_has_their_groups(tmp_path, name):
    for number in range(12):
        write_clip(tmp_path / "mine" / "sick" / f"{name.format(number // 2, 'ab'[number % 2])}.gif", 2)
    data.main([str(tmp_path / "mine"), "--output", str(tmp_path / "copy")])
    told, written = (list(with_groups(load_data(tmp_path / folder))["group"]) for folder in ("mine", "copy"))
    assert len(set(told)) == (6 if "patient" in name else 12)
    assert written == told


def test_a_person_in_two_parts_is_found_in_a_folder_in_what_the_verb_writes_of_it_and_in_a_table(tmp_path):
    names = [f"{part}/normal/person{n}_{k}.png" for k, part in enumerate(("train", "test")) for n in range(8)]
    write_images(tmp_path / "xray", *names)
    data.main([str(tmp_path / "xray"), "--output", str(tmp_path / "copy")])
    rows = [[f"xray/{name}", "normal", name.partition("/")[0]] for name in names]
    write_table(tmp_path / "table.csv", ["path", "label", "split"], *rows)
    for place in ("xray", "copy", "table.csv"):
        leaks = audit.audit_data({place: load_data(tmp_path / place)}).report["leaks"]
        assert any(leak.startswith(f"{place}: 8 groups stand in more than one part") for leak in leaks)


def test_the_verb_overwrites_nothing_and_leaves_nothing_half_written(tmp_path):
    write_images(tmp_path / "mine", "sick/1.png", "normal/1.png")
    (tmp_path / "mine" / "sick" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"found 1 of 3 images broken: sick/2.png \(it is no image"):
        data.main([str(tmp_path / "mine"), "--output", str(tmp_path / "copy")])
    assert os.listdir(tmp_path) == ["mine"]
    with pytest.raises(InputError, match="exists"):
        data.main(["phantom", "--output", str(tmp_path / "mine")])


def test_two_images_of_one_name_are_refused_and_a_column_file_name_is_kept(tmp_path):
    write_images(tmp_path / "mine", "images/1.png", "1.png")
    table = tmp_path / "mine" / "table.csv"
    write_table(table, ["path", "file_name", "label"], ["images/1.png", "a.png", "sick"], ["1.png", "b.png", "normal"])
    with pytest.raises(InputError, match="images/1.png and 1.png would both be images/1.png"):
        data.main([str(table), "--output", str(tmp_path / "copy")])
    assert os.listdir(tmp_path) == ["mine"]
    (tmp_path / "mine" / "1.png").rename(tmp_path / "mine" / "2.png")
    write_table(table, ["path", "file_name", "label"], ["images/1.png", "a.png", "sick"], ["2.png", "b.png", "normal"])
    data.main([str(table), "--output", str(tmp_path / "copy")])
    rows = load_data(tmp_path / "copy")
    assert list(rows["path"]) == ["images/1.png", "images/2.png"]
    assert list(rows["file_name"]) == ["a.png", "b.png"]
