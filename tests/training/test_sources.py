import json
import os
import resource
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture

from space import clips
from space.errors import InputError
from space.images import load_image
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.dicom import write_dicom
from tests.images import speckle, write_images, write_table
from training import data
from training.fingerprint import take_fingerprints
from training.sources import UNLABELLED, all_synthetic, load_data, normal_first, unlisted_files, unread_files


def test_class_folders_give_labels_by_name_with_normal_first(tmp_path):
    write_images(tmp_path, "COVID/1.png", "Normal/1.png", "COVID/2.jfif", "__MACOSX/Normal/1.png")
    rows = load_data(tmp_path)
    assert rows.features["label"] == ClassLabel(names=["Normal", "COVID"])
    assert list(rows["path"]) == ["COVID/1.png", "COVID/2.jfif", "Normal/1.png"]
    assert list(rows["label"]) == [1, 1, 0]
    assert rows[0]["image"].size == (9, 8)


@pytest.mark.parametrize(
    "names",
    [
        ["healthy", "covid"],
        ["regular", "covid", "pneumonia"],
        ["negative", "flu", "positive"],
        ["normal", "healthy", "covid"],
        ["No Finding", "Cardiomegaly"],
        ["NO_FINDINGS", "Edema"],
        ["edema", "not normal"],
        ["No Effusion", "Effusion"],
        ["non-COVID", "COVID"],
        ["normal", "non-COVID", "COVID"],
        ["normal", "nodule"],
    ],
)
def test_a_class_named_by_another_word_for_normal_is_not_the_positive_one(names):
    assert normal_first(set(names)) == names


def test_folders_inside_class_folders_are_groups_and_files_without_one_are_their_own(tmp_path):
    write_images(tmp_path, "sick/p1/1.png", "sick/p1/deep/2.png", "sick/p2/1.png", "normal/7.png")
    assert list(load_data(tmp_path)["group"]) == ["normal/7.png", "sick/p1", "sick/p1", "sick/p2"]


def test_a_folder_named_images_is_no_group(tmp_path):
    write_images(
        tmp_path, "COVID/images/1.png", "Normal/images/1.png", "Normal/images/p2/1.png", "Normal/images/p2/2.png"
    )
    assert list(load_data(tmp_path)["group"]) == ["COVID/images/1.png", "Normal/images/1.png", "Normal/p2", "Normal/p2"]


def test_images_are_simulated_where_that_is_told_of_each():
    told = [["yes", "yes"], ["yes", ""], ["yes", "no"]]
    assert [all_synthetic(Dataset.from_dict({"synthetic": words})) for words in told] == [True, False, False]


def test_links_to_folders_are_followed_and_those_that_lead_up_or_nowhere_are_not(tmp_path):
    write_images(tmp_path, "archive/p1/1.png", "data/sick/p2/1.png", "data/normal/1.png")
    (tmp_path / "data" / "sick" / "p1").symlink_to(tmp_path / "archive" / "p1")
    (tmp_path / "data" / "sick" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "sick" / "nowhere").symlink_to(tmp_path / "nowhere")
    assert list(load_data(tmp_path / "data")["path"]) == ["normal/1.png", "sick/p1/1.png", "sick/p2/1.png"]


def test_links_between_two_folders_are_followed_once(tmp_path):
    write_images(tmp_path, "sick/p1/1.png", "sick/p2/2.png")
    for one, other in (("p1", "p2"), ("p2", "p1")):
        (tmp_path / "sick" / one / "related").symlink_to(tmp_path / "sick" / other)
    names = ["p1/1.png", "p1/related/2.png", "p2/2.png", "p2/related/1.png"]
    assert list(load_data(tmp_path)["path"]) == [f"sick/{name}" for name in names]


def test_folders_named_after_parts_hold_class_folders_and_are_a_given_split(tmp_path):
    write_images(tmp_path, "train/sick/1.png", "train/normal/1.png", "val/sick/p1/1.png", "test/normal/1.png")
    rows = load_data(tmp_path)
    assert rows.features["label"].names == ["normal", "sick"]
    assert dict(zip(rows["path"], rows["split"], strict=True)) == {
        "test/normal/1.png": "test",
        "train/normal/1.png": "train",
        "train/sick/1.png": "train",
        "val/sick/p1/1.png": "validation",
    }
    assert list(rows["group"])[-1] == "sick/p1"


def test_file_names_with_test_in_them_are_rows_like_all_others(tmp_path):
    names = ["images/a_test_1.png", "images/train_2.png", "images/test/3.png", "images/4.png"]
    write_images(tmp_path, *names)
    write_table(
        tmp_path / "metadata.csv",
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


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_lists_images_beside_it(tmp_path, ending):
    write_images(tmp_path, "a/1.png", "b.png", "unlisted.png")
    table = pd.DataFrame({"path": ["a/1.png", "b.png"], "label": ["sick", "normal"], "patient": ["p1", None]})
    write = {"csv": table.to_csv, "parquet": table.to_parquet}[ending]
    write(tmp_path / f"list.{ending}", index=False)
    rows = load_data(tmp_path / f"list.{ending}")
    assert list(rows["path"]) == ["a/1.png", "b.png"]
    assert list(rows["label"]) == [1, 0]
    assert list(rows["group"]) == ["p1", "b.png"]
    assert [image.size for image in rows["image"]] == [(9, 8), (9, 8)]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_that_is_a_link_lists_images_beside_the_link(tmp_path, ending):
    """As of DVC, git-annex and the Hub's cache, whose files are links to names without a suffix."""
    for folder, grey in (("here", 90), ("store", 10)):
        (tmp_path / folder).mkdir()
        Picture.new("L", (9, 8), grey).save(tmp_path / folder / "1.png")
    table = pd.DataFrame({"path": ["1.png"], "label": ["sick"]})
    write = {"csv": table.to_csv, "parquet": table.to_parquet}[ending]
    write(tmp_path / "store" / "digest", index=False)
    (tmp_path / "here" / f"list.{ending}").symlink_to("../store/digest")
    assert load_data(tmp_path / "here" / f"list.{ending}")[0]["image"].getpixel((0, 0)) == 90


def test_labels_are_mapped_by_name_whatever_their_order(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png")
    rows = load_data(tmp_path, ["sick", "normal"])
    assert rows.features["label"].names == ["sick", "normal"]
    assert list(rows["label"]) == [1, 0]


def test_other_data_may_lack_a_class_but_not_have_one_more(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png")
    assert load_data(tmp_path, ["normal", "sick", "tumour"]).features["label"].names == ["normal", "sick", "tumour"]
    with pytest.raises(InputError, match="found the classes normal, sick; expected only normal, covid"):
        load_data(tmp_path, ["normal", "covid"])


def test_an_empty_label_is_unlabelled(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    write_table(tmp_path / "metadata.csv", ["file_name", "label"], ["1.png", "sick"], ["2.png", ""])
    assert list(load_data(tmp_path)["label"]) == [0, UNLABELLED]


@pytest.mark.parametrize("source", ["phantom", "FOLDER"])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, source):
    write_images(tmp_path, "data/sick/1.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(InputError, match="cannot write the cache .*file/cache: .*; set HF_DATASETS_CACHE to ") as no:
        load_data(source.replace("FOLDER", str(tmp_path / "data")))
    assert "\n" not in str(no.value)


def test_a_full_disk_of_the_cache_is_one_line(tmp_path, monkeypatch):
    write_images(tmp_path, "data/sick/1.png")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(InputError, match="cannot write the cache .*File too large.*; set HF_DATASETS_CACHE to "):
            load_data(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_changed_is_read_anew(tmp_path):
    write_images(tmp_path, "sick/1.png", "normal/1.png")
    assert len(load_data(tmp_path)) == 2
    write_images(tmp_path, "sick/1.png", "normal/2.png")
    assert len(load_data(tmp_path)) == 3
    Picture.new("L", (30, 20)).save(tmp_path / "sick" / "1.png")
    assert load_data(tmp_path)[2]["image"].size == (30, 20)


def test_a_class_may_be_called_with_mask(tmp_path):
    write_images(tmp_path, "with_mask/1.png", "without_mask/1.png")
    assert load_data(tmp_path).features["label"].names == ["with_mask", "without_mask"]


def test_files_of_no_kind_that_is_read_are_told_from_documents(tmp_path):
    write_images(tmp_path, "normal/1.png", "sick/2.png")
    for name in ("sick/3.wmv", "sick/4.nii.gz", "sick/notes.txt", "LICENSE", ".hidden.wmv", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"0")
    assert unread_files(tmp_path) == ["sick/3.wmv", "sick/4.nii.gz"]
    write_table(tmp_path / "metadata.csv", ["path", "label"], ["normal/1.png", "normal"])
    assert unread_files(tmp_path) == []


def test_of_very_many_classes_that_a_model_does_not_know_a_few_are_named(tmp_path):
    write_images(tmp_path, *(f"c{number}/1.png" for number in range(9)))
    with pytest.raises(InputError, match="found the classes c0, c1, c2 and 6 more; expected only normal, sick$"):
        load_data(tmp_path, ["normal", "sick"])


def test_masks_are_found_however_a_table_names_the_images(tmp_path):
    write_images(tmp_path, "images/0.png", "images/1.png", "images/2.png", "masks/1.png")
    paths = [str(tmp_path / "images" / "0.png"), str(tmp_path / "images" / "1.png"), "./images/2.png"]
    write_table(tmp_path / "metadata.csv", ["file_name", "label"], *([path, "sick"] for path in paths))
    assert load_data(tmp_path)["mask"][:] == ["", str(tmp_path / "masks" / "1.png"), ""]
    assert unlisted_files(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "table", "message"),
    [
        ([], None, "found no images; expected a folder for each class, or a table"),
        (["loose.png", "normal/1.png"], None, "1 images outside class folders, loose.png"),
        (["train/1.png", "test/1.png"], None, "2 images outside class folders, test/1.png"),
        (
            ["train/sick/1.png", "test/sick/1.png", "more/1.png"],
            None,
            "found more beside test, train; expected folders",
        ),
        (["normal/1.png", "sick/1.png", "test/1.png"], None, "found normal beside test; expected folders"),
        (["normal/1.png", "sick/1.png", "masks/1.png"], None, "1 masks, masks/1.png for one; "),
        (["sick/images/1.png", "sick/Lung Masks/1.png"], None, "1 masks, sick/Lung Masks/1.png for"),
        (["CXR_png/1.png", "ManualMask/leftMask/1.png"], None, "1 masks, ManualMask/leftMask/1.png for one; "),
        (["normal/1.png", "sick/1.png", "sick/1_mask.png"], None, "1 masks, sick/1_mask.png for one; "),
        (["1.png"], [["file_name", "label"], ["1.png", "sick"], ["\0.png", "sick"]], "1 of 2 files do not exist"),
        (["1.png"], [["name", "label"], ["1.png", "sick"]], r"found the columns name, label; expected path \(or file"),
        (["1.png"], [["file_name", "label"], ["2.png", "sick"]], "1 of 1 files do not exist, .*/2.png for one"),
        (["1.png"], [["file_name", "label"], ["1.png", "sick"], ["1.png", "normal"]], "1 file names twice, 1.png"),
        (["1.png"], [["file_name", "label"]], "found no images"),
        (["normal/caf\udce9.png"], None, r"found a file name that is not UTF-8, 'normal/caf\\udce9.png'; rename it"),
        (["1.png"], [["file_name", "label"], ["1.png", "sick", "more"]], "line 2 has more fields than the first"),
    ],
)
def test_a_folder_that_cannot_be_taken_as_it_is_is_refused_in_one_line(tmp_path, files, table, message):
    write_images(tmp_path, *files)
    if table:
        write_table(tmp_path / "metadata.csv", *table)
    with pytest.raises(InputError, match=message) as refusal:
        load_data(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("tests/nowhere", "tests/nowhere: no such folder"),  # and no data set of the Hub, for there is a folder tests
        ("no/where", "no/where: no data set of the Hub that can be read, and no folder"),
        ("nowhere.csv", "nowhere.csv: no such table"),
        ("", "an empty DATA: no such folder"),  # and not the one that this is called in
        ("n" * 300, "n: no such folder"),
        ("FOLDER/pictures.parquet", "pictures.parquet: the column image holds pictures; expected their paths"),
        ("phantom?frames=3", r"phantom\?frames=3: unknown option frames; expected seed, sites"),
        ("phantom?seed=-1", "seed=-1: expected a number of at least 0"),
        ("phantom?sites=0", "sites=0: expected a number of at least 1"),
        ("FOLDER?config=x", "unknown option config; expected frames"),
        ("FOLDER?frames=0", "frames=0: expected a number of at least 1"),
        ("FOLDER/text.tsv", "text.tsv: no table that can be read; expected an image folder, a .csv or .parquet table"),
        ("FOLDER/text.csv", "text.csv: no table that can be read"),
        ("FOLDER/text.parquet", "text.parquet: no table that can be read"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(ROOT)
    for ending in ("csv", "parquet", "tsv"):
        (tmp_path / f"text.{ending}").write_bytes(b"\xff\xfe\x00no table")
    pictures = Dataset.from_dict({"image": [Picture.new("L", (9, 9))], "label": ["sick"]})
    pictures.cast_column("image", Image()).to_parquet(tmp_path / "pictures.parquet")
    with pytest.raises(InputError, match=message) as refusal:
        load_data(source.replace("FOLDER", str(tmp_path)))
    assert "\n" not in str(refusal.value)


@pytest.fixture
def ward(hub, tmp_path):
    """Of the Hub's data sets ward/frames has 6 images to train on and 4 to validate, and ward/files a folder."""
    folder = tmp_path / "frames" / "data"
    folder.mkdir(parents=True)
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["sick", "normal"]),
            "patient_id": Value("string"),
            "age": Value("int64"),
            "pixels": Value("int64"),
        }
    )
    for part, count in (("train", 6), ("validation", 4)):
        rows = {
            "image": [Picture.fromarray(np.full((20, 20, 3), index * 9, np.uint8)) for index in range(count)],
            "label": [index % 2 for index in range(count)],
            "patient_id": [f"{part}-{index // 2}" for index in range(count)],
            "age": [index + 40 for index in range(count)],
            "pixels": [400] * count,
        }
        Dataset.from_dict(rows, features).to_parquet(folder / f"{part}-00000-of-00001.parquet", batch_size=4)
    for index in range(3):
        write_images(tmp_path / "files", f"sick/{index}.png", f"normal/{index}.png")
    hub.add("dataset", "ward/frames", folder.parent)
    hub.add("dataset", "ward/files", tmp_path / "files")


@pytest.mark.xdist_group("hub")
@pytest.mark.usefixtures("ward")
def test_a_data_set_of_the_hub_is_read_whole_in_part_or_streamed(client):
    """Over HTTP with the unmodified client, in a process of its own: what it knows of the Hub is set at its start."""
    code = """
import json
import numpy as np
from datasets import Image
from space.errors import InputError
from space.images import load_image
from training.sources import load_data

for source in SOURCES:
    try:
        rows = load_data(source)
        names = rows.features["label"].names
        told = rows.remove_columns("image").to_dict() | {"label": [names[label] for label in rows["label"]]}
        images = rows.cast_column("image", Image(decode=False))["image"]
        print(json.dumps(told | {"grey": [int(np.asarray(load_image(image)).max()) for image in images]}))
    except InputError as error:
        print(json.dumps(str(error)))
"""
    sources = ["", "?split=train", "?streaming=true", "?split=validation&streaming=true"]
    refused = ["?revision=nope", "?config=nope", "?sites=nope", "?split=nope&streaming=true"]
    sources = ["ward/frames" + options for options in sources + refused]
    sources = [
        "ward/files",
        "ward/files?streaming=true",
        *sources,
        "ward/nothing",
        "ward/nothing?streaming=true",
    ]
    told = client.read(code.replace("SOURCES", str(sources)), token="").splitlines()
    files, streamed_files, whole, train, streamed, validation, *refused = map(json.loads, told)
    assert streamed_files == files
    assert files["label"] == ["normal"] * 3 + ["sick"] * 3
    assert whole["label"] == ["sick", "normal"] * 5
    assert whole["grey"] == [0, 9, 18, 27, 36, 45, 0, 9, 18, 27]
    assert whole["group"][::2] == ["train-0", "train-1", "train-2", "validation-0", "validation-1"]
    assert whole["split"] == ["train"] * 6 + ["validation"] * 4
    assert whole["age"][:2] == ["40", "41"]
    assert "pixels" not in whole  # the name of a column that is added later
    assert len(set(whole["path"])) == 10
    assert train["grey"] == whole["grey"][:6]
    assert streamed == whole
    assert validation["path"] == whole["path"][6:]
    reasons = ["'nope' doesn't", "'nope' not found", "unknown option", "no split nope", "doesn't", "doesn't"]
    for answer, reason in zip(refused, reasons, strict=True):
        assert reason in answer
        assert "\n" not in answer


def test_dicom_files_are_read_by_patient_with_all_frames_and_nothing_else_of_them(tmp_path):
    frames = np.stack([speckle(number, 60, 80) for number in range(5)])
    write_dicom(tmp_path / "data" / "sick" / "IM0001", frames)
    write_dicom(tmp_path / "data" / "sick" / "IM0002", frames[0], PatientID="patient-8", BurnedInAnnotation="NO")
    write_dicom(tmp_path / "data" / "normal" / "one.dcm", frames[1], PatientID="")
    write_images(tmp_path / "data", "normal/plain.png")
    (tmp_path / "data" / "sick" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    rows = load_data(f"{tmp_path / 'data'}?frames=3")
    assert list(zip(rows["path"], rows["group"], rows["burned_in"], strict=True)) == [
        ("normal/one.dcm", "normal/one.dcm", "yes"),
        ("normal/plain.png", "normal/plain.png", ""),
        ("sick/IM0001#0", "patient-7", "yes"),
        ("sick/IM0001#2", "patient-7", "yes"),
        ("sick/IM0001#4", "patient-7", "yes"),
        ("sick/IM0002", "patient-8", "no"),
    ]
    assert np.array_equal(np.asarray(rows[3]["image"].convert("L")), frames[2])
    data.main([f"{tmp_path / 'data'}?frames=3", "--output", str(tmp_path / "copy")])
    written = [path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    kept = [Path(file["filename"]).read_bytes() for file in rows.cache_files]
    assert len(written) == 7
    for secret in (b"Doe", b"1970", b"Secret"):
        assert not any(secret in content for content in written + kept)


def test_frames_are_decoded_anew_by_another_version_of_what_decodes_them(tmp_path, monkeypatch):
    write_dicom(tmp_path / "sick" / "1.dcm", speckle(0, 30, 40))
    names = ("clips.py", "dicom.py", "images.py")
    codes = [shutil.copy(Path(clips.__file__).with_name(name), tmp_path) for name in names]
    monkeypatch.setattr(clips, "__file__", codes[0])
    kept = [load_data(tmp_path).cache_files, load_data(tmp_path).cache_files]
    assert kept[0] == kept[1]
    for code in codes:
        Path(code).write_text(Path(code).read_text() + "# another version\n")
        kept.append(load_data(tmp_path).cache_files)
    assert kept[1] not in kept[2:]
    assert kept[2] != kept[3] != kept[4]


def test_of_a_dicom_file_with_a_broken_frame_the_reason_is_told_until_it_is_replaced(tmp_path):
    frames = np.stack([speckle(number, 30, 40) for number in range(3)])
    file = write_dicom(tmp_path / "sick" / "1.dcm", frames, jpeg=True)
    whole = file.read_bytes()
    last = whole.rindex(b"\xff\xd8")  # where its last frame starts

    def reasons(content: bytes) -> list[str]:
        file.write_bytes(content)
        os.utime(file, (0, 0))
        return take_fingerprints(load_data(tmp_path)).facts["broken"].tolist()

    (reason,) = reasons(whole[:last] + b"\0\0" + whole[last + 2 :])
    assert reason.startswith("the DICOM file's picture cannot be decoded")
    assert "0x" not in reason
    assert reasons(whole) == [""] * 3


def test_frames_are_written_a_few_at_a_time(tmp_path):
    write_dicom(tmp_path / "sick" / "1.dcm", np.stack([speckle(number, 8, 8) for number in range(60)]))
    rows = load_data(f"{tmp_path}?frames=60")
    assert [len(chunk) for chunk in rows.data["image"].chunks] == [25, 25, 10]


def groups_by_id(folder: Path, ids: dict[str, str]) -> list[str]:
    """The groups of DICOM files with these patients' ids, in the order that they are read in."""
    for number, name in enumerate(ids):
        write_dicom(folder / name, speckle(number, 30, 40), PatientID=ids[name])
    return list(load_data(folder)["group"])


@pytest.mark.parametrize("ids", [["ANONYMOUS"] * 4, ["anon-1", "anon-2", "anon-3", "anon-4"]])
def test_dicom_files_of_a_patients_folder_are_one_group_whatever_an_anonymiser_wrote(tmp_path, ids):
    names = [f"normal/patient-{patient}/study{number}.dcm" for patient in range(2) for number in range(2)]
    folders = ["normal/patient-0"] * 2 + ["normal/patient-1"] * 2
    assert groups_by_id(tmp_path, dict(zip(names, ids, strict=True))) == folders


@pytest.mark.parametrize("none", ["ANONYMOUS", "anon", "De-Identified", "Unknown", "XXXX", "00000000"])
@pytest.mark.parametrize("other", ["TEST", "7"])
def test_ids_as_anonymisers_write_them_join_nobody_where_other_files_have_another(tmp_path, none, other):
    names = [f"{label}/patient-{patient}/1.dcm" for label in ("normal", "sick") for patient in range(2)]
    folders = [name.removesuffix("/1.dcm") for name in names]
    assert groups_by_id(tmp_path, dict.fromkeys(names, none) | {"sick/stray/1.dcm": other}) == [*folders, "sick/stray"]


def test_ids_that_only_begin_as_those_of_anonymisers_are_somebodys(tmp_path):
    ids = {"normal/1.dcm": "anon-1", "normal/2.dcm": "anon-1", "sick/1.dcm": "test2", "sick/2.dcm": "test2"}
    assert groups_by_id(tmp_path, ids) == ["anon-1", "anon-1", "test2", "test2"]


def test_files_of_one_id_are_one_group_beside_those_of_an_anonymiser(tmp_path):
    ids = {"normal/1.dcm": "7", "normal/2.dcm": "7", "sick/1.dcm": "ANONYMOUS", "sick/2.dcm": "ANONYMOUS"}
    assert groups_by_id(tmp_path, ids) == ["7", "7", "sick/1.dcm", "sick/2.dcm"]


def test_folders_of_one_patients_id_are_one_group(tmp_path):
    ids = {"normal/before/1.dcm": "7", "sick/single.dcm": "8", "sick/after/1.dcm": "7", "sick/other/1.dcm": "8"}
    assert groups_by_id(tmp_path, ids) == ["normal/before", "8", "normal/before", "8"]


def test_an_id_that_all_dicom_files_have_is_no_group(tmp_path):
    assert groups_by_id(tmp_path, {"normal/1.dcm": "ANON", "sick/1.dcm": "ANON"}) == ["normal/1.dcm", "sick/1.dcm"]


def test_the_groups_of_a_table_come_before_the_ids_of_dicom_files(tmp_path):
    rows = [["1.dcm", "sick", "a"], ["2.dcm", "sick", "b"], ["3.dcm", "normal", ""], ["4.dcm", "normal", ""]]
    write_table(tmp_path / "metadata.csv", ["file_name", "label", "group"], *rows)
    ids = {"1.dcm": "7", "2.dcm": "7", "3.dcm": "8", "4.dcm": "8"}
    assert groups_by_id(tmp_path, ids) == ["a", "b", "8", "8"]


def test_a_gif_of_one_frame_has_the_pixels_that_the_page_sees(tmp_path):
    see_through = np.zeros((48, 64, 4), np.uint8)
    see_through[10:30, 10:50] = 200, 30, 30, 255
    for name in ("sick", "normal"):
        (tmp_path / name).mkdir()
        Picture.fromarray(see_through).save(tmp_path / name / "one.gif")
    rows = load_data(str(tmp_path))
    assert list(rows["path"]) == ["normal/one.gif", "sick/one.gif"]
    assert np.array_equal(rows[0]["image"].convert("RGB"), load_image(tmp_path / "normal" / "one.gif"))


def test_a_clip_is_a_group_of_frames(tmp_path):
    write_clip(tmp_path / "sick" / "clip.mp4", 21)
    write_clip(tmp_path / "normal" / "other.gif", 2)
    rows = load_data(f"{tmp_path}?frames=3")
    assert list(rows["path"]) == ["normal/other.gif#0", "normal/other.gif#1"] + [
        f"sick/clip.mp4#{number}" for number in (0, 10, 20)
    ]
    assert list(rows["group"]) == ["normal/other.gif"] * 2 + ["sick/clip.mp4"] * 3
    assert list(rows["label"]) == [0, 0, 1, 1, 1]


def test_a_broken_clip_is_a_row_whose_image_cannot_be_read(tmp_path):
    write_images(tmp_path, "sick/1.png")
    (tmp_path / "sick" / "clip.mp4").write_text("no clip")
    rows = load_data(tmp_path)
    assert take_fingerprints(rows).facts["broken"].str.startswith("it is no image").tolist() == [False, True]


def test_clips_that_cannot_be_read_for_want_of_pyav_are_refused(tmp_path, monkeypatch):
    write_clip(tmp_path / "sick" / "clip.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="pip install av"):
        load_data(tmp_path)
