"""A data set whose images stay on the Hub."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets
from PIL import Image as Picture

from space.errors import InputError
from space.remote import ROW_GROUPS
from tests.fits import distance, weights
from tests.images import write_images
from training.hub_data import read_hub
from training.sources import load_data


def write_parquet(source: Path, folder: Path, images_a_group: int) -> int:
    """The images of a folder as a data set's repository; how many row groups they take."""
    rows = load_data(source)
    undecoded = rows.cast_column("image", Image(decode=False))
    held = [row | {"image": {"path": None, "bytes": Path(row["image"]["path"]).read_bytes()}} for row in undecoded]
    folder.mkdir()
    Dataset.from_list(held, rows.features).to_parquet(folder / "train.parquet", batch_size=images_a_group)
    return -(-len(rows) // images_a_group)


@pytest.mark.xdist_group("hub")
def test_images_that_stay_on_the_hub_train_the_same_model_and_are_fetched_by_the_row_group(
    hub, client, small_home, small_base, tmp_path
):
    groups = write_parquet(small_home, tmp_path / "stay", 16)
    assert 4 < groups <= ROW_GROUPS  # all of them stay in memory, and the order is that of images on disk
    hub.add("dataset", "clinic/stay", tmp_path / "stay")
    code = """
import json
from tests.fits import fit
from training.arguments import DataArguments
from training.prepare import prepare

parts = prepare(DataArguments("{source}")).parts
settings = dict(augment="light", save_strategy="no", load_best_model_at_end=False)
fit(parts, "{base}", "{folder}", **settings)[0].save_model("{folder}")
print(json.dumps({{part: list(rows["path"]) for part, rows in parts.items()}}))
"""

    def train(source, name):
        told = client.read(code.format(source=source, base=small_base, folder=tmp_path / name))
        return told.splitlines()[-1], weights(tmp_path / name)

    split, there = train("clinic/stay?streaming=true", "there")
    fetched = [asked for asked in hub.asked if asked.method == "GET" and asked.path.startswith("/lfs/")]
    assert {asked.status for asked in fetched} == {206}  # never the whole file
    assert len(fetched) <= 2 * groups + 2  # to list each and to look into it, and to learn where they are
    same, here = train("clinic/stay", "here")
    assert same == split
    assert distance(there, here) == 0


@pytest.mark.xdist_group("hub")
def test_what_cannot_be_fetched_is_told_of_by_image(hub, client, small_home, tmp_path):
    write_parquet(small_home, tmp_path / "gone", 16)
    hub.add("dataset", "clinic/gone", tmp_path / "gone")
    code = """
from datasets import Image
from space.images import load_image
from training.sources import load_data

images = load_data("clinic/gone?streaming=true").cast_column("image", Image(decode=False))["image"]
try:
    {}
except ValueError as error:
    print(type(error).__name__, error)
"""
    told = client.read(code.format("load_image(images[0] | {'path': images[0]['path'].replace('train', 'no')})"))
    assert told.startswith("InputError it cannot be fetched from the Hub (")
    assert told.count("\n") == 1


@pytest.mark.xdist_group("hub")
def test_a_file_that_stays_on_the_hub_may_have_any_name(hub, client, small_home, tmp_path):
    image = sorted((small_home / "images").iterdir())[0]
    for name in ("normal/A#1.png", "sick/b.parquet#1.png", "sick/c 2%20é.png"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, tmp_path / "files" / name)
    hub.add("dataset", "clinic/files", tmp_path / "files")
    code = """
from datasets import Image
from space.remote import read_content, row_group_of
from training.sources import load_data

images = load_data("clinic/files?streaming=true").cast_column("image", Image(decode=False))["image"]
for image in images:
    print(image["path"].rpartition("/")[2], len(read_content(image)), row_group_of(image))
"""
    told = sorted(client.read(code).splitlines())
    assert told == [f"{name} {image.stat().st_size} None" for name in ("A#1.png", "b.parquet#1.png", "c 2%20é.png")]


@pytest.mark.xdist_group("hub")
@pytest.mark.parametrize(
    ("packed", "streaming", "message"),
    [
        ("tar", False, "found the columns png, cls, __key__, __url__; expected one of images, and label"),
        ("tar", True, "its images cannot stay on the Hub, for they are neither files nor in Parquet files"),
        ("zip", False, "no data set of the Hub that can be read"),  # datasets takes no labels from inside an archive
    ],
)
def test_images_in_archives_are_refused_in_one_line(hub, client, small_home, tmp_path, packed, streaming, message):
    folder, images = tmp_path / "archives", sorted((small_home / "images").iterdir())[:4]
    folder.mkdir()
    if packed == "tar":
        with tarfile.open(folder / "a.tar", "w") as archive:
            for number, image in enumerate(images):
                archive.add(image, f"{number}.png")
                told = tarfile.TarInfo(f"{number}.cls")
                told.size = 1
                archive.addfile(told, io.BytesIO(b"1"))
    else:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for number, image in enumerate(images):
                archive.write(image, f"{'normal' if number % 2 else 'sick'}/{number}.png")
    place = f"clinic/{packed}{'_stays' * streaming}"
    hub.add("dataset", place, folder)
    source = place + "?streaming=true" * streaming
    told = client.run("data", source, "--output", tmp_path / "out")
    assert told.code == 1
    assert told.line.startswith(f"error: {place}: {message}")
    assert not (tmp_path / "out").exists()


def card(rows: int, *splits: str) -> str:
    """A data set's README.md that tells of so many rows in the split train, and of further splits."""
    features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": "string"}]
    told = [{"name": name, "num_bytes": 1, "num_examples": rows} for name in ("train", *splits)]
    return f"---\n{yaml.safe_dump({'dataset_info': {'features': features, 'splits': told}})}---\n"


@pytest.mark.xdist_group("hub")
def test_images_in_another_form_than_the_card_tells_cannot_stay_on_the_hub(hub, client, tmp_path):
    (tmp_path / "plain").mkdir()
    Dataset.from_dict({"image": [b"1"], "label": ["sick"]}).to_parquet(tmp_path / "plain" / "0.parquet")
    (tmp_path / "plain" / "README.md").write_text(card(1))
    hub.add("dataset", "clinic/plain", tmp_path / "plain")
    told = client.run("data", "clinic/plain?streaming=true", "--output", tmp_path / "out")
    assert told.code == 1
    assert told.line.startswith("error: hf://datasets/clinic/plain@")
    assert told.line.endswith(
        "/0.parquet: found no column image as README.md or the first file tells of it; leave streaming=true out"
    )


@pytest.mark.parametrize(("rows", "splits"), [(3, ()), (2, ("test",))])
def test_files_that_do_not_hold_what_the_card_tells_are_refused_in_one_line(tmp_path, rows, splits):
    (tmp_path / "README.md").write_text(card(rows, *splits))
    with pytest.raises(InputError, match="the numbers of rows that dataset_info in its README.md tells") as refusal:
        as_published(tmp_path, image=PICTURES)
    assert "\n" not in str(refusal.value)


TEXT = Value("string")
PICTURES = ([Picture.new("L", (4, 4))] * 2, Image())


def as_published(folder: Path, **columns: tuple) -> Dataset:
    """The rows of a data set of the Hub with these columns, (values, feature), and label unless that is among them."""
    columns = {"label": (["normal", "sick"], TEXT)} | columns
    features = Features({name: feature for name, (_, feature) in columns.items()})
    Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features).to_parquet(
        folder / "0.parquet"
    )
    return read_hub(str(folder), {})


def test_a_split_that_a_column_gives_comes_before_that_of_the_file(tmp_path):
    rows = as_published(tmp_path, image=PICTURES, split=(["Test", None], TEXT))
    assert list(rows["split"]) == ["Test", "train"]


def test_capitals_and_blanks_in_the_names_of_columns_mean_nothing(tmp_path):
    columns = {name: ([value, None], TEXT) for name, value in (("Patient ID", "P7"), ("Site", "A"), ("Split", "test"))}
    rows = as_published(tmp_path, image=PICTURES, **columns).remove_columns("image")
    assert sorted(rows.column_names) == ["group", "label", "path", "site", "split"]
    assert [rows[0][name] for name in ("group", "site", "split")] == ["P7", "A", "test"]


def test_of_several_columns_of_images_the_one_named_image_is_read(tmp_path):
    rows = as_published(tmp_path, mask=([Picture.new("L", (9, 9))] * 2, Image()), image=PICTURES)
    assert [image.size for image in rows["image"]] == [(4, 4)] * 2


def test_several_columns_of_images_with_other_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="found images in mask, xray; expected one such column, or one named image"):
        as_published(tmp_path, mask=PICTURES, xray=PICTURES)


def test_columns_of_classes_are_told_by_their_names(tmp_path):
    columns = {name: ([1, None], ClassLabel(names=["no", "yes"])) for name in ("label", "patient", "site", "finding")}
    row, unknown = as_published(tmp_path, image=PICTURES, **columns).remove_columns("image")
    assert [row[name] for name in ("label", "group", "site", "finding")] == ["yes"] * 4
    assert [unknown[name] for name in ("label", "group", "site", "finding")] == ["", unknown["path"], "", ""]


def test_several_classes_for_an_image_are_refused(tmp_path):
    labels = ([[0], [0, 1]], List(ClassLabel(names=["effusion", "oedema"])))
    with pytest.raises(InputError, match="label holds more than one value for an image; expected one class for each"):
        as_published(tmp_path, image=PICTURES, label=labels)


@pytest.mark.parametrize("feature", [Image(mode="L"), Image(decode=False)])
def test_images_are_decoded_as_other_data_whatever_their_feature_says(tmp_path, feature):
    rows = as_published(tmp_path, image=(PICTURES[0], feature))
    write_images(tmp_path / "other", "sick/1.png")
    both = concatenate_datasets([each.select_columns(["image"]) for each in (rows, load_data(tmp_path / "other"))])
    assert both.features["image"] == Image()
