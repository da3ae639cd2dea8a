import os
from pathlib import Path

import pandas as pd
import pytest

from space.errors import InputError
from tests.images import write_images, write_table
from training.inputs import find_inputs
from training.listings import read_table
from training.sources import load_data


def write_as(file: Path, columns: list[str], *rows: list[str]) -> None:
    """Write a table in the form that the file's ending says."""
    table = pd.DataFrame(rows, columns=columns)
    (table.to_parquet if file.suffix == ".parquet" else table.to_csv)(file, index=False)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_white_space_around_a_table_s_cells_makes_no_other_patients_or_classes(tmp_path, ending):
    write_images(tmp_path, "1.png", "2.png", "3.png")
    columns = ["file_name", " label", "patient ", "site", "split\xa0"]
    rows = [["1.png", "normal", "P7", "A", "train"], ["2.png", "normal ", "P7 ", " A", "train "]]
    write_as(tmp_path / f"list.{ending}", columns, *rows, ["3.png", "sick", "", "A", "test"])
    read = load_data(tmp_path / f"list.{ending}")
    assert read.features["label"].names == ["normal", "sick"]
    assert list(read["group"]) == ["P7", "P7", "3.png"]
    assert list(read["site"]) == ["A", "A", "A"]
    assert list(read["split"]) == ["train", "train", "test"]


def test_white_space_around_a_path_is_passed_over_unless_it_is_part_of_the_file_s_name(tmp_path):
    write_images(tmp_path, "1.png", " 1.png")
    write_table(tmp_path / "list.csv", ["path", "label"], ["1.png ", "sick"], [" 1.png", "sick"])
    assert [row["path"] for row in read_table(tmp_path / "list.csv")] == ["1.png", " 1.png"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("patient", ["Patient ID", "Patient-ID", "PatientID", "PATIENT_ID", "participant_id", "Group "])
def test_capitals_blanks_and_hyphens_in_the_names_of_columns_mean_nothing(tmp_path, ending, patient):
    write_images(tmp_path, "1.png", "2.png")
    rows = [["1.png", "normal", "P7", "A", "train"], ["2.png", "sick", "P8", "B", "test"]]
    write_as(tmp_path / f"plain.{ending}", ["path", "label", "group", "site", "split"], *rows)
    write_as(tmp_path / f"list.{ending}", ["FileName", "Label", patient, "Site", "SPLIT"], *rows)
    plain, read = (load_data(tmp_path / f"{name}.{ending}").remove_columns("image") for name in ("plain", "list"))
    assert read.column_names == plain.column_names
    assert read[:] == plain[:]


def test_a_column_of_patients_comes_before_one_that_may_be_of_the_arms_of_a_study(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    rows = [["1.png", "normal", "control", "P7"], ["2.png", "sick", "case", "P8"]]
    write_table(tmp_path / "list.csv", ["path", "label", "Group", "Patient ID"], *rows)
    assert list(load_data(tmp_path / "list.csv")["group"]) == ["P7", "P8"]


def test_of_columns_with_one_name_the_one_written_in_small_letters_is_read_and_the_others_are_kept(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    columns = ["Label", "file_name", "label", "Group", "patient_id"]
    rows = [["3", "1.png", "normal", "arm", "P7"], ["4", "2.png", "sick", "arm", "P8"]]
    write_table(tmp_path / "list.csv", columns, *rows)
    rows = load_data(tmp_path / "list.csv")
    assert rows.features["label"].names == ["normal", "sick"]
    assert list(rows["group"]) == ["P7", "P8"]
    assert (list(rows["Label"]), list(rows["Group"])) == (["3", "4"], ["arm", "arm"])


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_table_is_read_as_spreadsheets_write_it_where_commas_stand_in_numbers(tmp_path, between):
    write_images(tmp_path, "1.png", "2.png")
    rows = [["file_name", "label", "patient", "dose"], ["1.png", "normal", "P7", "1,5"], ["2.png", "sick", "P8", "2,5"]]
    (tmp_path / "list.csv").write_text("\r\n".join(map(between.join, rows)), "utf-8-sig")
    read = load_data(tmp_path / "list.csv")
    assert (list(read["group"]), list(read["dose"])) == (["P7", "P8"], ["1,5", "2,5"])


@pytest.mark.parametrize("more", ['"notes; with; some"', "diagnosis (0=normal; 1=covid; 2=flu)"])
def test_semicolons_in_the_name_of_a_column_part_no_cells(tmp_path, more):
    write_images(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text(f"path,label,{more}\n1.png,sick,-\n")
    assert list(load_data(tmp_path / "list.csv")["path"]) == ["1.png"]


def test_a_table_may_come_through_a_pipe():
    read, write = os.pipe()
    os.write(write, b"path,label\n1.png,sick\n")
    os.close(write)
    assert [row["label"] for row in read_table(Path(f"/dev/fd/{read}"))] == ["sick"]
    os.close(read)


def test_a_table_in_another_encoding_says_how_to_save_it(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n1.png,Entzündung\n", "cp1252")
    with pytest.raises(InputError, match="list.csv: no table that can be read; save it as CSV in UTF-8$"):
        load_data(tmp_path / "list.csv")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_in_which_all_is_blank_are_no_images(tmp_path, ending):
    write_images(tmp_path, "1.png", "2.png")
    blank, file = ["", ""], tmp_path / f"list.{ending}"
    write_as(file, ["path", "label"], ["1.png", "sick"], blank, ["2.png", "normal"], blank, [" ", None])
    assert list(load_data(file)["path"]) == ["1.png", "2.png"]
    assert [found.path for found in find_inputs([str(file)])] == [str(tmp_path / name) for name in ("1.png", "2.png")]


@pytest.mark.parametrize(("ending", "where"), [("csv", "line 4"), ("parquet", "row 3")])
def test_a_row_with_a_label_but_no_path_is_refused_with_its_number(tmp_path, ending, where):
    write_images(tmp_path, "1.png")
    write_as(tmp_path / f"list.{ending}", ["path", "label"], ["1.png", "sick"], ["", ""], [" ", "sick"])
    with pytest.raises(InputError, match=f"list.{ending}: {where} names no file; fill in its path, or delete it"):
        load_data(tmp_path / f"list.{ending}")


def test_a_path_that_is_a_folder_is_a_missing_file(tmp_path):
    write_images(tmp_path, "images/1.png")
    write_table(tmp_path / "list.csv", ["path", "label"], ["images/1.png", "sick"], ["images", "sick"])
    with pytest.raises(InputError, match="1 of 2 files do not exist, .*/images for one; expected paths from the"):
        load_data(tmp_path / "list.csv")


def groups_of(folder: Path, *names: str) -> list[str]:
    write_images(folder, *names)
    return list(load_data(folder)["group"])


@pytest.mark.parametrize(
    ("folders", "groups"),
    [
        (["2016/patient003n", "2017/patient003n"], ["patient003n"]),  # who came again a year later
        (["2019/03/patient17", "2020/04/patient17"], ["patient17"]),
        (["2019/03/P17", "2019/04/P17"], ["2019"]),
        (["derivatives/sub-S3001/ses-1", "derivatives/sub-S3001/ses-2"], ["sub-S3001"]),
        (["P003/case1", "P003/case2"], ["P003"]),
        (["P003/sub-costal1", "P003/sub-costal2"], ["P003"]),
        (["P003/2016", "P003/2017"], ["P003"]),
        (["images/P003", "frames/P003"], ["P003"]),
        (["2016", "2016"], ["2016"]),
        (["1901/study1", "1902/study1"], ["1901", "1902"]),
        (["patient_01_0001", "patient_01_0002"], ["patient_01_0001", "patient_01_0002"]),
        (["siteA_patient1", "siteB_patient1"], ["siteA_patient1", "siteB_patient1"]),
    ],
)
def test_the_folder_that_tells_a_patient_is_found_below_a_class(tmp_path, folders, groups):
    names = [f"sick/{folder}/{number}.png" for number, folder in enumerate(folders)]
    assert sorted(set(groups_of(tmp_path, *names))) == [f"sick/{group}" for group in groups]


def test_a_class_folder_that_was_unpacked_into_itself_is_no_patient(tmp_path):
    names = ["NORMAL/NORMAL/IM-0001-0001.jpeg", "NORMAL/NORMAL/IM-0003-0001.jpeg"]
    assert groups_of(tmp_path, *names) == names


@pytest.mark.parametrize("start", ["", "train/"])
def test_a_folder_for_each_patient_is_refused_where_those_of_classes_are_expected(tmp_path, start):
    write_images(tmp_path, *(f"{start}sub-S{number}/ses-1/{number}.png" for number in range(3000, 3004)))
    with pytest.raises(InputError, match="found a folder for each patient, sub-S3000 for one; expected one for each"):
        load_data(tmp_path)


def test_a_folder_of_no_images_beside_those_of_parts_is_passed_over(tmp_path):
    write_images(tmp_path, "train/sick/1.png", "test/sick/2.png")
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text("{}")
    assert list(load_data(tmp_path)["split"]) == ["test", "train"]
