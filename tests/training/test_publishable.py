"""A data set on the Hub: what comes back from it, and what never gets there."""

import io
import json

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub.repocard import metadata_load
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from space.errors import InputError
from space.images import load_image
from tests.dicom import write_dicom
from tests.hub import LICENCES
from tests.images import speckle, white_is_nought, write_table
from training.fingerprint import take_fingerprints
from training.publishable import licence, read_publishable, write_data_card, write_publishable
from training.push import data_upload
from training.sources import load_data


@pytest.mark.xdist_group("hub")
def test_the_data_set_comes_back_with_the_same_pixels_and_the_same_split(hub, client, small_model, small_phantom):
    words = ["push", small_model, "--repo", "clinic/m", "--dataset", "clinic/frames", "--data", small_phantom]
    assert client.run(*words).code == 0
    repository = hub.repository("dataset", "clinic/frames")
    parts = ("train", "validation", "test", "external", "unlabelled", "left_out")
    files = {".gitattributes", "README.md"} | {f"data/{part}-00000-of-00001.parquet" for part in parts}
    assert repository.files().keys() == files
    assert [commit["title"] for commit in repository.log(repository.find("main"))] == ["Push small", "initial commit"]
    code = """
import hashlib, json
from datasets import load_dataset

def told(row):
    image = row["image"].convert("RGB")
    pixels = hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
    return [pixels, row["image"].mode, row["label"], row["group"], row["site"]]

data = load_dataset("clinic/frames")
features = {name: str(feature) for name, feature in data["train"].features.items()}
streamed = load_dataset("clinic/frames", split="validation", streaming=True)
rows = {part: list(map(told, data[part])) for part in data}
print(json.dumps([features, rows, list(map(told, streamed))]))
"""
    features, rows, streamed = json.loads(client.read(code))
    assert features["label"] == "ClassLabel(names=['normal', 'sick'])"
    assert features["image"].startswith("Image(")
    assert streamed == rows["validation"]
    split = pd.read_csv(small_model / "split.csv").set_index("pixels")
    for part in ("train", "validation", "test"):
        back = pd.DataFrame(rows[part], columns=["pixels", "mode", "label", "group", "site"]).set_index("pixels")
        here = split[split["split"] == part]
        assert sorted(back.index) == sorted(here.index)
        both = back.join(here.add_suffix("_here"))
        assert (both["label"].map({0: "normal", 1: "sick"}) == both["label_here"]).all()
        assert set(back["mode"]) == {"L"}
        assert (both["site"] == both["site_here"]).all()
        assert both.groupby("group")["group_here"].nunique().eq(1).all()
        assert both.groupby("group_here")["group"].nunique().eq(1).all()
    hub.asked.clear()
    assert "nothing has changed" in client.run(*words).out
    assert hub.sent() == 0


@pytest.mark.xdist_group("hub")
def test_images_without_a_licence_that_allows_it_are_refused_before_anything_is_made(
    hub, client, small_model, small_phantom, tmp_path
):
    table = pd.read_csv(small_phantom / "metadata.csv", keep_default_na=False)
    table.loc[3, "license"] = "all rights reserved"
    (tmp_path / "images").symlink_to(small_phantom / "images")
    table.to_csv(tmp_path / "metadata.csv", index=False)
    words = ["push", small_model, "--repo", "clinic/bare", "--dataset", "clinic/bare", "--data", tmp_path]
    told = client.run(*words)
    assert told.code == 1
    assert f"1 of {len(table)} images have no licence that allows sharing, {table.loc[3, 'file_name']} for" in told.line
    assert hub.asked == []
    assert client.run(*words, "--i-have-the-rights", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc-by-nc-sa-3.0", "cc-by-nc-sa-3.0"),
        ("CC BY 4.0 (Mendeley Data)", "cc-by-4.0"),
        ("CC0", "cc0-1.0"),
        ("CC0 1.0", "cc0-1.0"),
        ("https://creativecommons.org/licenses/by-nc/4.0/deed.en", "cc-by-nc-4.0"),
        ("Apache-2.0", "apache-2.0"),
        ("CC BY-NC-ND 4.0", ""),
        ("https://creativecommons.org/licenses/by-nd/4.0/", ""),
        ("all rights reserved", ""),
        ("not CC BY 4.0", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_a_licence_is_known_by_its_name_and_whether_it_allows_sharing(text, name):
    assert licence(text) == name


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["CC0"], ("cc0-1.0", None)),
        (["CC BY-NC-SA 4.0"], ("cc-by-nc-sa-4.0", None)),
        (["CC BY"], ("other", "cc-by")),
        (["CC BY-SA 2.0"], ("other", "cc-by-sa-2.0")),
        (["public domain"], ("other", "public-domain")),
        (["CC BY 4.0", "public domain"], ("other", "several")),
        ([""], ("other", "see-the-card")),
    ],
)
def test_the_card_s_licence_is_one_of_the_hub_s_list_and_another_is_named_beside_it(
    small_model, tmp_path, texts, named
):
    labels = ClassLabel(names=["normal", "sick"])
    rows = {"image": [None], "label": [1], "group": ["g00001"], "site": [""], "license": [""]}
    features = Features({"label": labels} | {name: Value("string") for name in rows if name != "label"})
    rows |= {name: values * len(texts) for name, values in rows.items()} | {"license": list(map(licence, texts))}
    write_data_card({"train": Dataset.from_dict(rows, features)}, "clinic/x", small_model, tmp_path / "README.md")
    card = metadata_load(tmp_path / "README.md")
    assert (card["license"], card.get("license_name")) == named
    assert card["license"] in LICENCES


@pytest.mark.xdist_group("hub")
def test_images_in_the_public_domain_are_pushed_though_the_hub_s_list_has_no_such_licence(
    hub, client, small_model, small_phantom, tmp_path
):
    table = pd.read_csv(small_phantom / "metadata.csv", keep_default_na=False)
    (tmp_path / "images").symlink_to(small_phantom / "images")
    table.assign(license="public domain").to_csv(tmp_path / "metadata.csv", index=False)
    words = ["push", small_model, "--repo", "clinic/free", "--dataset", "clinic/free", "--data", tmp_path]
    told = client.run(*words)
    assert told.code == 0, told.err
    assert "license_name: public-domain" in hub.repository("dataset", "clinic/free").read("README.md").decode()


@pytest.fixture
def secret(tmp_path):
    """A folder in which everything but the pixels tells of John Doe, and a model folder that was trained with it."""
    data, model = tmp_path / "data", tmp_path / "model"
    for folder in ("Doe_John", "Doe_Jane", "scans"):
        (data / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.Orientation] = "Doe", 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = "Doe Street"
    photo = {"exif": exif, "comment": b"Doe", "icc_profile": b"Doe" * 99, "quality": 95}
    Image.fromarray(speckle(1)).save(data / "Doe_John" / "Doe1.jpg", **photo)
    note = PngImagePlugin.PngInfo()
    note.add_text("Patient", "Doe " * 99, zip=True)
    deep = (speckle(2).astype(np.uint16) << 6) + 5
    Image.fromarray(deep).save(data / "Doe_John" / "Doe2.png", pnginfo=note)
    Image.fromarray(speckle(3)).convert("P").save(data / "Doe_Jane" / "Doe3.png", pnginfo=note)
    Image.fromarray(np.dstack([speckle(4)] * 4)).save(data / "Doe_Jane" / "Doe4.tif", description="Doe")
    write_dicom(data / "scans" / "Doe5.dcm", speckle(5, 60, 80), PatientID="Doe-7")
    names = ["Doe_John/Doe1.jpg", "Doe_John/Doe2.png", "Doe_Jane/Doe3.png", "Doe_Jane/Doe4.tif", "scans/Doe5.dcm"]
    groups = ["Doe_John", "Doe_John", "Doe_Jane", "Doe_Jane", ""]
    table = [
        [name, label, group, "home", "CC BY 4.0 (Doe)", "Doe's remark", "the Clinic"]
        for name, label, group in zip(names, ["normal", "sick", "sick", "normal", "sick"], groups, strict=True)
    ]
    columns = ["file_name", "label", "group", "site", "license", "remark", "attribution"]
    write_table(data / "metadata.csv", columns, *table)
    rows = load_data(data)
    split = rows.select_columns(["path", "label", "group", "site"]).to_pandas()
    split["pixels"], split["split"] = (
        take_fingerprints(rows).facts["pixels"],
        ["train", "train", "test", "test", "train"],
    )
    model.mkdir()
    besides = pd.DataFrame(
        [["theirs.png", 1, "P9", "", "0a", "also"]], columns=list(split)
    )  # nothing of this is theirs
    pd.concat([split, besides]).to_csv(model / "split.csv", index=False)
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "normal", "1": "sick"}}))
    (model / "recipe.yaml").write_text(yaml.safe_dump({"split_by": "group", "data": str(data)}))
    return data, model


def test_nothing_of_a_file_but_its_pixels_leaves_the_machine(secret, tmp_path):
    data, model = secret
    parts = read_publishable(str(data), model, rights=False)
    files = write_publishable(parts, tmp_path / "out")
    write_data_card(parts, "clinic/frames", model, tmp_path / "out" / "README.md")
    tables = {name: pq.read_table(file) for name, file in files.items()}
    rows = [row for table in tables.values() for row in table.to_pylist()]
    assert {row["image"]["path"] for row in rows} == {None}
    said = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    said += b"".join(row["image"]["bytes"] for row in rows) + repr(rows).encode()
    said += repr([table.schema.metadata for table in tables.values()]).encode()
    for word in (b"Doe", b"1970", b"Secret", str(tmp_path).encode(), b"remark", b"scans"):
        assert word not in said, word
    shown = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    assert all(image.info == {} and not image.getexif() for image in shown)
    assert {row["attribution"] for row in rows} == {"the Clinic"}
    assert {row["license"] for row in rows} == {"cc-by-4.0"}
    assert len({row["group"] for row in rows}) == 3
    originals = {take(data / path).tobytes() for path in load_data(data)["path"]}
    assert {take(image).tobytes() for image in shown} == originals


def test_a_tiff_in_which_white_is_nought_is_written_as_it_is_seen(tmp_path):
    Image.fromarray(speckle(0).astype(np.uint16) * 200).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    negative = {"path": "a.tif", "bytes": white_is_nought(content)}
    rows = Dataset.from_dict({"image": [negative]}, Features({"image": datasets.Image()}))
    (file,) = write_publishable({"train": rows}, tmp_path).values()
    written = pq.read_table(file).to_pylist()[0]["image"]["bytes"]
    assert Image.open(io.BytesIO(written)).mode == "I;16"
    assert np.abs(np.asarray(load_image(written)) - (255.0 - np.asarray(load_image(content)))).max() <= 1


def test_many_images_are_written_a_few_at_a_time_and_load_dataset_reads_them(tmp_path):
    images = [Image.fromarray(speckle(number, 20, 20)) for number in range(60)]
    rows = {"image": images, "label": [0, 1] * 30}
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["normal", "sick"])})
    files = write_publishable({"train": Dataset.from_dict(rows, features)}, tmp_path)
    told = pq.ParquetFile(files["data/train-00000-of-00001.parquet"]).metadata
    assert [told.row_group(number).num_rows for number in range(told.num_row_groups)] == [25, 25, 10]
    back = datasets.load_dataset(
        "parquet", data_files=str(*files.values()), split="train", cache_dir=tmp_path / "cache"
    )
    assert back.features == features
    assert back["label"] == rows["label"]
    assert [image.tobytes() for image in back["image"]] == [image.tobytes() for image in images]


def test_what_fails_on_this_machine_is_not_said_of_the_hub(secret, tmp_path):
    data, model = secret
    (work := tmp_path / "work").mkdir()
    (work / "data").write_text("in the way")
    with pytest.raises(InputError, match="cannot write .*work: .*File exists"):
        data_upload(model, str(data), "clinic/x", work, rights=False)


def take(image):
    """The pixels as they are: all bits of a file of more than 8, and turned as EXIF says."""
    if not isinstance(image, Image.Image):
        if image.suffix == ".dcm":
            return np.asarray(load_image(image))
        image = Image.open(image)
    if image.mode == "P":
        return np.asarray(image.convert("RGB"))
    return np.asarray(ImageOps.exif_transpose(image))


def test_a_model_folder_without_classes_is_refused(secret, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="config.json: found no classes in it"):
        read_publishable(str(tmp_path), tmp_path, True)


def test_other_data_than_the_model_s_is_refused(secret):
    data, model = secret
    Image.fromarray(speckle(9)).save(data / "Doe_John" / "Doe1.jpg")
    with pytest.raises(InputError, match=r"1 of the 5 images in the model's split.csv are not there as they were"):
        read_publishable(str(data), model, rights=False)
    (model / "split.csv").write_text("")
    with pytest.raises(
        InputError, match=r"split.csv: found no table of path, label, group, site, pixels and split \(No columns"
    ):
        read_publishable(str(data), model, rights=False)


def test_a_given_split_says_what_is_external_and_what_it_does_not_name_is_left_out(secret, tmp_path):
    data, model = secret
    given = ["train", "train", "test", "external", ""]
    table = pd.read_csv(data / "metadata.csv", dtype=str, keep_default_na=False)
    table.assign(split=given).to_csv(data / "metadata.csv", index=False)
    split = pd.read_csv(model / "split.csv", dtype=str, keep_default_na=False)
    split[split["path"].isin(table["file_name"][:3])].to_csv(model / "split.csv", index=False)
    (model / "recipe.yaml").write_text(yaml.safe_dump({"split_by": "column", "data": str(data)}))
    parts = read_publishable(str(data), model, rights=False)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 2, "test": 1, "external": 1, "left_out": 1}
    write_data_card(parts, "clinic/x", model, tmp_path / "README.md")
    told = "left_out: not used, because the given split names no part for them or so that the classes were balanced."
    assert told in (tmp_path / "README.md").read_text()


def test_images_without_a_site_are_published_as_left_out_and_not_as_another_site_s(secret, tmp_path):
    data, model = secret
    table = pd.read_csv(data / "metadata.csv", dtype=str, keep_default_na=False)
    table.assign(site=["A", "A", "A", "B", ""]).to_csv(data / "metadata.csv", index=False)
    split = pd.read_csv(model / "split.csv", dtype=str, keep_default_na=False)
    split[split["path"].isin(table["file_name"][:3])].to_csv(model / "split.csv", index=False)
    (model / "recipe.yaml").write_text(yaml.safe_dump({"split_by": "group", "data": str(data), "sites": ["A"]}))
    parts = read_publishable(str(data), model, rights=False)
    assert {part: list(rows["site"]) for part, rows in parts.items()} == {
        "train": ["A", "A"],
        "test": ["A"],
        "external": ["B"],
        "left_out": [""],
    }
    write_data_card(parts, "clinic/x", model, tmp_path / "README.md")
    assert "left_out: not used, because they have no site or" in (tmp_path / "README.md").read_text()


def test_names_with_pipes_and_new_lines_break_no_table_of_the_card(small_model, tmp_path):
    labels = ClassLabel(names=["normal", "a|b <i>"])
    rows = {"image": [None], "label": [1], "group": ["g00001"], "site": ["one\ntwo"], "license": [""]}
    features = Features({"label": labels} | {name: Value("string") for name in rows if name != "label"})
    write_data_card({"train": Dataset.from_dict(rows, features)}, "clinic/x", small_model, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert "(one two)" in text
    assert "| split | normal | a\\|b &lt;i> | unlabelled | groups |" in text
    assert "<i>" not in text
