"""A data set that may leave this machine: Parquet files and a card, with nothing of the files that it was read from.

Pixels are written anew as PNG, so EXIF, GPS, DICOM tags, colour profiles and comments stay behind. Groups get numbers
for names, since a folder's or a patient's name may be one; of all other columns only KEPT go along.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.arrow_writer import ParquetWriter
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image as Picture
from PIL import PngImagePlugin
from tqdm.auto import tqdm

from space.dicom import is_dicom
from space.errors import InputError
from space.images import load_image, upright
from space.remote import read_content
from training.card import find_template, plain
from training.evaluate import with_pixels
from training.groups import with_groups
from training.listings import ASIDE
from training.outputs import labels_of, read_again, read_split
from training.repositories import TAG
from training.sources import IMAGES_A_GROUP, UNLABELLED, all_synthetic, column, load_data
from training.split import PARTS

KEPT = ("license", "attribution", "synthetic")
ORDER = (*PARTS, *ASIDE)
IMAGES_A_FILE = 500
PLAIN = frozenset({"1", "L", "LA", "RGB", "RGBA", "I;16"})  # what a PNG holds as it is
SHARING = re.compile(  # licences under which an image may be passed on as another file; not the NoDerivatives ones
    r"cc0(-1\.0)?|cc-by(-nc)?(-sa)?(-\d\.\d)?|public-domain|pddl|odbl|odc-by|apache-2\.0|mit|cdla-permissive-[12]\.0"
)
LISTED = re.compile(  # those of them that a card on the Hub may name, which refuses all others
    r"cc0-1\.0|cc-by-(2\.0|2\.5|3\.0|4\.0)|cc-by-sa-[34]\.0|cc-by-nc(-sa)?-[234]\.0|pddl|odbl|odc-by|apache-2\.0|mit|"
    r"cdla-permissive-[12]\.0"
)


def licence(text: str) -> str:
    """A licence that allows sharing, named as the Hub writes it (CC BY 4.0 (a remark): cc-by-4.0); "" for others."""
    text = re.sub(r"https?://creativecommons\.org/licenses/([a-z-]+)/(\d\.\d).*", r"cc-\1-\2", text.strip().lower())
    name = re.sub(r"[\s_-]+", "-", text.partition("(")[0].strip())
    return {"cc0": "cc0-1.0"}.get(name, name) if SHARING.fullmatch(name) else ""  # CC0 has one version


def read_publishable(data: str, model: Path, rights: bool) -> dict[str, Dataset]:
    """DATA as the splits of a model folder, ready to be written: image, label, group, site and what there is of KEPT.

    train, validation and test are those of split.csv; what is in none is external (another site's, or what a given
    split calls so), unlabelled, or left_out (by balancing, by a given split, or without a site). Raises InputError when
    DATA is not what the model was trained with, or when an image's licence does not allow it to be shared and `rights`
    is false.
    """
    names = labels_of(model)
    rows = load_data(data, names)
    licences = _licences(rows)
    if not rights and (bare := [index for index, name in enumerate(licences) if not name]):
        given = sorted(set(column(rows, "license")) | set(column(rows, "licence")))
        raise InputError(
            f"{data}: {len(bare)} of {len(rows)} images have no licence that allows sharing, {rows['path'][bare[0]]} "
            f"for one (column license: {', '.join(filter(None, given))[:100] or 'empty'}); leave them out, or say "
            "--i-have-the-rights"
        )
    rows = with_pixels(with_groups(rows))
    parts = _parts(rows, model, data)
    columns = {"group": _numbered(rows), "site": list(rows["site"])}
    columns |= {name: column(rows, name) for name in KEPT if name in rows.column_names}
    columns["license"] = licences
    table = rows.select_columns(["image", "label"])
    for name, values in columns.items():
        table = table.add_column(name, values, feature=Value("string"))
    return {part: table.select(np.flatnonzero(parts == part)) for part in ORDER if (parts == part).any()}


def write_publishable(parts: Mapping[str, Dataset], folder: Path) -> dict[str, Path]:
    """Write data/PART-NNNNN-of-NNNNN.parquet below a folder, IMAGES_A_GROUP rows in each row group; the files by their
    names in a repository."""
    features = Features(
        {"image": Image()} | {n: f for n, f in next(iter(parts.values())).features.items() if n != "image"}
    )
    files = {}
    (folder / "data").mkdir(parents=True)
    total = sum(map(len, parts.values()))
    with tqdm(total=total, desc="writing", unit="image", leave=False) as progress, ThreadPoolExecutor() as pool:
        for part, rows in parts.items():
            rows, count = rows.cast_column("image", Image(decode=False)), -(-len(rows) // IMAGES_A_FILE)
            for number in range(count):
                name = f"data/{part}-{number:05d}-of-{count:05d}.parquet"
                files[name] = folder / name
                some = range(len(rows))[number * IMAGES_A_FILE :][:IMAGES_A_FILE]
                with ParquetWriter(features=features, path=str(files[name]), writer_batch_size=IMAGES_A_GROUP) as file:
                    for start in some[::IMAGES_A_GROUP]:
                        group = rows.select(range(start, min(start + IMAGES_A_GROUP, some.stop)))
                        for row in pool.map(_clean, group):
                            file.write(row)
                            progress.update()
                    file.finalize()
    return files


def write_data_card(parts: Mapping[str, Dataset], repo: str, model: Path, file: Path) -> None:
    """Write the card of a data set that will be `repo`, from its rows and the recipe of the model folder."""
    recipe = read_again(model / "recipe.yaml")
    names = next(iter(parts.values())).features["label"].names
    licences = Counter(name for rows in parts.values() for name in rows["license"])
    synthetic = all(map(all_synthetic, parts.values()))
    only = next(iter(licences)) if len(licences) == 1 else "several"
    listed = LISTED.fullmatch(only)
    data = DatasetCardData(
        pretty_name=repo.partition("/")[2],
        license=only if listed else "other",
        license_name=None if listed else only or "see-the-card",
        task_categories=["image-classification"],
        tags=["chest", "medical", TAG, *(["synthetic"] if synthetic else [])],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": part, "path": f"data/{part}-*.parquet"} for part in parts],
            }
        ],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(find_template("data_card.md")),
        plain=plain,
        repo=repo,
        labels=names,
        synthetic=synthetic,
        parts={part: _counts(rows) for part, rows in parts.items()},
        sites=sorted({site for rows in parts.values() for site in rows["site"]} - {""}),
        licences=licences.most_common(),
        columns=[name for name in next(iter(parts.values())).column_names if name != "image"],
        recipe=recipe,
    )
    file.write_text(str(card))


def _licences(rows: Dataset) -> list[str]:
    given = zip(column(rows, "license"), column(rows, "licence"), strict=True)
    return [licence(american or british) for american, british in given]


def _parts(rows: Dataset, model: Path, data: str) -> np.ndarray:
    """The split of each row, (n,) of text."""
    split = read_split(model)
    split = split[split["split"].isin(PARTS)]
    recipe = read_again(model / "recipe.yaml")
    sites = recipe.get("sites")
    found = rows.select_columns(["path", "pixels"]).to_pandas()
    key = "path" if split["path"].isin(found["path"]).any() else "pixels"  # a model of the Hub has numbers for names
    split = split.drop_duplicates(key).set_index(key, drop=False)
    same = split["pixels"] == found.drop_duplicates(key).set_index(key, drop=False)["pixels"].reindex(split.index)
    if not same.all():
        raise InputError(
            f"{data}: {(~same).sum()} of the {len(split)} images in the model's split.csv are not there as they were, "
            f"{split['path'][~same].iloc[0]} for one; give the data that it was trained with"
        )
    parts = split["split"].reindex(found[key]).fillna("").to_numpy(dtype=object)
    rest, known = parts == "", np.asarray(rows["label"]) != UNLABELLED
    away = ~np.isin(np.asarray(rows["site"]), [*sites, ""]) if sites else np.zeros(len(rows), bool)
    if recipe.get("split_by") == "column":
        away |= np.asarray(column(rows, "split")) == "external"
    parts[rest & ~known], parts[rest & known & away], parts[rest & known & ~away] = "unlabelled", "external", "left_out"
    return parts


def _numbered(rows: Dataset) -> list[str]:
    """Groups as g00001, g00002, ...; in the order of their pixels, which tells of no name."""
    images = rows.select_columns(["group", "pixels"]).to_pandas()
    first = images.groupby("group")["pixels"].min().sort_values()
    number = {group: f"g{index:05d}" for index, group in enumerate(first.index, 1)}
    return [number[group] for group in images["group"]]


def _clean(row: dict) -> dict:
    content = read_content(row["image"])
    image = load_image(content) if is_dicom(content) else upright(Picture.open(io.BytesIO(content)))
    if image.mode not in PLAIN:
        image = load_image(content)
    bare, buffer, note = (
        Picture.frombytes(image.mode, image.size, image.tobytes()),
        io.BytesIO(),
        PngImagePlugin.PngInfo(),
    )
    if row.get("synthetic") == "yes":
        note.add_text("Synthetic", "yes")
    bare.save(buffer, "PNG", pnginfo=note)
    return row | {"image": {"bytes": buffer.getvalue(), "path": None}}


def _counts(rows: Dataset) -> dict[str, int]:
    feature: ClassLabel = rows.features["label"]
    labels = np.asarray(rows["label"])
    counts = {name: int((labels == index).sum()) for index, name in enumerate(feature.names)}
    return counts | {"unlabelled": int((labels == UNLABELLED).sum()), "groups": len(set(rows["group"]))}
