import errno
import io
import os
import zipfile

import datasets
import pandas as pd
import pytest
from PIL import Image

from space.errors import InputError
from space.predictor import Predictor
from tests.images import write_images, write_table
from training.groups import with_groups
from training.inputs import find_inputs
from training.sources import load_data


def paths(*given):
    return [found.path for found in find_inputs(map(str, given))]


def denied(scandir):
    """The system's function where two folders may not be read."""

    def scan(folder):
        if os.path.basename(folder) in {"locked", "lost+found"}:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    return scan


def test_the_phantom_may_be_given_with_its_options():
    groups = [given.group for given in find_inputs(["phantom?sites=2&seed=1"])]
    assert groups == ["S0010001", "S0010002", "S0020001", "S0020002"]


def test_a_folder_with_a_table_gives_its_rows_and_groups_and_one_without_its_files(small_phantom):
    table = pd.read_csv(small_phantom / "metadata.csv", keep_default_na=False)
    found = list(find_inputs([str(small_phantom)]))
    assert [given.group for given in found] == table["group"].tolist()
    assert [given.path for given in found] == [str(small_phantom / name) for name in table["file_name"]]
    assert paths(small_phantom / "images") == sorted(str(path) for path in (small_phantom / "images").iterdir())


def test_files_folders_patterns_and_tables_come_in_the_order_given(tmp_path):
    write_images(tmp_path, "b/2.png", "b/10.png", "b/c/1.png", "a/1.png", "a/.hidden.png", "a/notes.png")
    (tmp_path / "a" / "notes.txt").write_text("text")
    assert paths(tmp_path / "b") == [str(tmp_path / name) for name in ("b/10.png", "b/2.png", "b/c/1.png")]
    assert paths(tmp_path / "b/2.png", tmp_path / "a") == (
        [str(tmp_path / name) for name in ("b/2.png", "a/1.png", "a/notes.png")]
    )
    every = [str(tmp_path / name) for name in ("a/1.png", "b/10.png", "b/2.png", "b/c/1.png")]
    assert paths(tmp_path / "**" / "[0-9]*.png") == every
    assert paths(tmp_path / "?") == paths(tmp_path)
    write_table(tmp_path / "list.csv", ["image", "patient"], ["b/2.png", "p1"], ["absent.png", ""])
    found = list(find_inputs([str(tmp_path / "list.csv")]))
    assert [(given.path, given.group) for given in found] == (
        [(str(tmp_path / "b/2.png"), "p1"), (str(tmp_path / "absent.png"), "")]
    )


def test_a_pattern_of_any_file_takes_no_table_as_a_folder_takes_none(tmp_path):
    write_images(tmp_path, "images/1.png", "2.png", "3.csv/4.png")
    write_table(tmp_path / "metadata.csv", ["file_name", "patient"], ["images/1.png", "p"], ["2.png", "q"])
    write_table(tmp_path / "images" / "list.CSV", ["image"], ["1.png"])
    one, two, four = (str(tmp_path / name) for name in ("images/1.png", "2.png", "3.csv/4.png"))
    assert paths(tmp_path / "*") == [two, four, one]
    assert paths(tmp_path / "**") == paths(tmp_path / "**" / "*") == [two, four, one]
    assert paths(tmp_path / "*.csv") == [four, one, two]
    assert paths(tmp_path / "**" / "*.[cC][sS][vV]") == [one, one, two]
    (tmp_path / "2.png").unlink()
    with pytest.raises(InputError, match=r"met\*: no file has such a name; a table needs its suffix, as in "):
        find_inputs([str(tmp_path / "met*")])


def test_links_that_lead_back_are_not_followed_by_a_pattern(tmp_path):
    write_images(tmp_path, "a/b/1.png", "a/[x]/2.png", "else/3.png", "a/.hidden/4.png", "5.png")
    for link, to in (("a/b/up", ".."), ("a/b/top", "../.."), ("a/back", "."), ("a/linked", "../else")):
        (tmp_path / link).symlink_to(to)
    every = [str(tmp_path / name) for name in ("a/[x]/2.png", "a/b/1.png", "a/linked/3.png")]
    for pattern in ("a/**/*.png", "?/**/*.png", "[!e]*/**/*.png", "a/**", "a/**/**/[0-9].png"):
        assert paths(tmp_path / pattern) == every
    assert paths(tmp_path / "a/**/b/*.png") == [every[1]]


def test_a_pattern_goes_on_behind_what_cannot_be_read(tmp_path, monkeypatch):
    write_images(tmp_path, "a.png", "locked/b.png", "z.png")
    write_table(tmp_path / "notes.csv", ["name"], ["1.png"])
    found = list(find_inputs([str(tmp_path / "*.*")]))
    assert [given.path for given in found] == [str(tmp_path / name) for name in ("a.png", "notes.csv", "z.png")]
    assert "expected path" in str(found[1].source)
    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    found = list(find_inputs([str(tmp_path / "**" / "*.png")]))
    assert [given.path for given in found] == [str(tmp_path / name) for name in ("a.png", "z.png", "locked")]
    assert "the folder cannot be read" in str(found[2].source)


def test_an_archive_gives_its_files_and_reasons_and_is_not_unpacked(tmp_path, small_model):
    buffer = io.BytesIO()
    Image.new("L", (40, 30), 90).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("b.png", buffer.getvalue())
        archive.writestr("../a.png", b"no image")
        archive.writestr("more.zip", b"")
    (tmp_path / "broken.tar").write_text("no archive")
    found = list(find_inputs([str(tmp_path / "scans.zip"), str(tmp_path / "broken.tar")]))
    inside = [str(tmp_path / "scans.zip") + name for name in ("/../a.png", "/b.png", "/more.zip")]
    assert [given.path for given in found] == [*inside, str(tmp_path / "broken.tar")]
    answers = list(Predictor(small_model).stream(given.source for given in found))
    assert [isinstance(answer, InputError) for answer in answers] == [True, False, True, True]
    assert "the archive is broken" in str(answers[3])
    assert sorted(os.listdir(tmp_path)) == ["broken.tar", "scans.zip"]


def test_standard_input_names_a_path_a_line_and_a_bad_one_is_a_reason(tmp_path, monkeypatch):
    write_images(tmp_path, "a/1.png", "a/2.png", "3.png")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/3.png\n\n{tmp_path}/absent.png\n{tmp_path}/a\n"))
    found = list(find_inputs(["-"]))
    assert [given.path for given in found] == (
        [f"{tmp_path}/3.png", f"{tmp_path}/absent.png", f"{tmp_path}/a/1.png", f"{tmp_path}/a/2.png"]
    )
    assert "no such file" in str(found[1].source)


def test_a_file_that_is_not_there_is_not_asked_for_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("doe_john/1\ndoe_john/1.png\n"))
    for given, name in zip(find_inputs(["-"]), ("doe_john/1", "doe_john/1.png"), strict=True):
        assert str(given.source) == f"{name}: no such file or folder"
    for name in ("doe_john/1.png", "doe_john/1.MP4", "doe_john/1.dcm", "doe_john/1.tar.gz", "doe_john/list.csv"):
        with pytest.raises(InputError, match=f"{name}: no such file or folder"):
            find_inputs([name])


def test_standard_input_that_names_itself_is_read_on(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png", "2.png")
    names = f"{tmp_path}/1.png\n-\n{tmp_path}/2.png\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names), "utf-8"))
    assert paths("-", "-") == [str(tmp_path / name) for name in ("1.png", "2.png")]


def test_names_on_standard_input_may_be_too_long_or_no_utf_8(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path / "\udcff.png"))
    names = [os.fsencode(tmp_path / name) for name in ("\udcff.png", "\udcfe.png", "n" * 300)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(names)), "utf-8"))
    found = list(find_inputs(["-"]))
    assert found[0].source.is_file()
    for given in found[1:]:
        assert f"{given.path}: no such file" in str(given.source)
        f"{given.path}{given.source}".encode()


def test_a_folder_that_cannot_be_read_is_a_reason_and_is_not_trained_without(tmp_path, monkeypatch):
    write_images(tmp_path, "normal/1.png", "normal/locked/2.png", "sick/3.png")
    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    *read, last = find_inputs([str(tmp_path)])
    assert [given.path for given in read] == [str(tmp_path / name) for name in ("normal/1.png", "sick/3.png")]
    assert last.path == str(tmp_path / "normal/locked")
    assert str(last.source) == "the folder cannot be read (Permission denied)"
    with pytest.raises(InputError, match="normal/locked: the folder cannot be read"):
        load_data(str(tmp_path))
    with pytest.raises(InputError, match="normal/locked: the folder cannot be read"):
        load_data(str(tmp_path / "normal/locked"))


def test_an_empty_path_is_not_the_folder_that_this_is_called_in(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="an empty PATH: no such file or folder"):
        find_inputs([""])


def test_a_data_set_of_the_hub_needs_no_labels(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png", "2.png")
    rows = datasets.Dataset.from_dict(
        {"picture": [str(tmp_path / "1.png"), str(tmp_path / "2.png")], "patient": ["p", "q"]},
        datasets.Features({"picture": datasets.Image(), "patient": datasets.Value("string")}),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(test=rows))
    found = list(find_inputs(["user/name"]))
    assert [(given.path, given.group) for given in found] == (
        [("user/name/test/1.png", "p"), ("user/name/test/2.png", "q")]
    )
    assert found[0].source["path"] == str(tmp_path / "1.png")


def test_groups_of_a_data_set_of_the_hub_are_proposed_from_the_names_of_its_files(tmp_path, monkeypatch):
    names = [f"clip{clip}_frame{frame}.png" for clip in range(6) for frame in range(4)]
    write_images(tmp_path, *names)
    rows = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / name) for name in names], "label": ["sick", "normal"] * 12},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=rows))
    groups = with_groups(load_data("user/name"))["group"]
    assert list(groups) == [f"clip{clip}" for clip in range(6) for _ in range(4)]


def test_a_row_of_the_hub_without_an_image_is_a_reason_and_no_data_to_train_on(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png")
    rows = datasets.Dataset.from_dict(
        {"image": [None, str(tmp_path / "1.png")], "label": ["sick", "normal"]},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(test=rows))
    found = list(find_inputs(["user/name"]))
    assert [given.path for given in found] == ["user/name/test/0", "user/name/test/1-1.png"]
    assert "holds no image" in str(found[0].source)
    with pytest.raises(InputError, match="user/name: 1 rows hold no image, test/0 for one"):
        load_data("user/name")


@pytest.mark.parametrize("name", ["a name \udcff.png", "two\nlines.png"])
def test_a_file_of_any_name_can_be_told_of(tmp_path, name):
    write_images(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path / name))
    (found,) = find_inputs([str(tmp_path)])
    found.path.encode()
    assert found.source.is_file()


def test_a_table_without_paths_is_refused_before_anything_is_read(tmp_path):
    write_table(tmp_path / "list.csv", ["name"], ["1.png"])
    with pytest.raises(InputError, match=r"found the columns name; expected path \(or file_name\)"):
        find_inputs([str(tmp_path / "list.csv")])
