"""Data sets of the Hub as rows."""

from __future__ import annotations

from collections import defaultdict

import datasets
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.exceptions import DatasetGenerationError, DatasetsError, SplitsVerificationError
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm

from space.columns import known_columns
from space.errors import InputError
from space.remote import open_parquet
from training.listings import OURS, PART_OF


def read_hub(place: str, options: dict[str, str], labelled: bool = True) -> Dataset:
    """A data set of the Hub; all of its splits, unless one is asked for. The column split is its own; where that is
    empty or missing, it names the split that a row is in.

    With the option streaming its images stay there, and each is fetched when it is looked at: see `space.remote`.
    """
    asked = {"path": place, "name": options.get("config"), "revision": options.get("revision")}
    try:
        if options.get("streaming", "").lower() == "true":
            parts = _staying(datasets.load_dataset_builder(**asked), options.get("split"))
        else:
            found = datasets.load_dataset(**asked, split=options.get("split"))
            parts = found if isinstance(found, dict) else {options["split"]: found}
    except InputError:
        raise
    except SplitsVerificationError as error:
        raise InputError(
            f"{place}: its files do not hold the splits and the numbers of rows that dataset_info in its README.md "
            f"tells; mend that, or name another revision ({error})"
        ) from None
    except (DatasetsError, HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise InputError(f"{place}: no data set of the Hub that can be read, and no folder ({reason})") from None
    return datasets.concatenate_datasets([_hub_rows(part, place, name, labelled) for name, part in parts.items()])


def _staying(builder: datasets.DatasetBuilder, wanted: str | None) -> dict[str, Dataset]:
    """The splits, or the wanted one, with all columns but the images, which are addresses."""
    files = builder.config.data_files or {}
    if wanted and wanted not in files:
        raise InputError(f"{builder.repo_id}: found no split {wanted}; the splits are {', '.join(files)}")
    chosen = {name: files[name] for name in ([wanted] if wanted else files)}
    if isinstance(builder, FolderBasedBuilder):
        return {name: _addressed(builder, name) for name in chosen}
    if isinstance(builder, Parquet):
        return {name: _addressed_cells(chosen[name], builder.info.features, name) for name in chosen}
    raise InputError(
        f"{builder.repo_id}: its images cannot stay on the Hub, for they are neither files nor in Parquet files; leave "
        "streaming=true out"
    )


def _addressed(builder: datasets.DatasetBuilder, split: str) -> Dataset:
    rows = builder.as_streaming_dataset(split)
    listed = list(tqdm(rows.decode(False), desc=f"listing {split}", unit="image", leave=False))
    return Dataset.from_list(listed, rows.features)


def _addressed_cells(files: list[str], features: Features | None, split: str) -> Dataset:
    """Of the image column only the names of files are read, which lie beside the images."""
    columns = defaultdict(list)
    for file in tqdm(files, desc=f"listing {split}", unit="file", leave=False):
        opened = open_parquet(file)
        features = features or Features.from_arrow_schema(opened.schema_arrow)
        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        others = [name for name in features if name not in pictures]
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, [*others, *(f"{name}.path" for name in pictures)])
            if lacking := [name for name in features if name not in table.column_names]:
                raise InputError(
                    f"{file}: found no column {lacking[0]} as README.md or the first file tells of it; leave "
                    "streaming=true out"
                )
            for name in others:
                columns[name] += table[name].to_pylist()
            for name in pictures:
                names = [(image or {}).get("path") or "" for image in table[name].to_pylist()]
                columns[name] += [
                    {"path": f"{file}#{name}/{group}/{row}/{each}", "bytes": None} for row, each in enumerate(names)
                ]
    return Dataset.from_dict(dict(columns), features)


def _hub_rows(part: Dataset, place: str, split: str, labelled: bool) -> Dataset:
    features = part.features
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    known = known_columns(part.column_names)
    label = known.get("label")
    if not pictures or (labelled and label is None):
        found = ", ".join(features)
        raise InputError(f"{place}: found the columns {found}; expected one of images{', and label' * labelled}")
    if len(pictures) > 1 and "image" not in pictures:
        raise InputError(
            f"{place}: found images in {', '.join(pictures)}; expected one such column, or one named image"
        )
    picture = "image" if "image" in pictures else pictures[0]
    if labelled and not isinstance(features[label], Value | ClassLabel):
        raise InputError(f"{place}: {label} holds more than one value for an image; expected one class for each")

    def text(name: str | None) -> list[str]:
        if name not in features:
            return [""] * len(part)
        if isinstance(features[name], ClassLabel):
            return ["" if value in (None, -1) else features[name].names[value] for value in part[name]]
        return ["" if value is None else str(value) for value in part[name]]

    stored = part.cast_column(picture, Image(decode=False))[picture]
    files = [image and (image["path"] or "").rpartition("/")[2] for image in stored]
    numbered = [f"{index}-{file or ''}".rstrip("-") for index, file in enumerate(files)]
    names = files if all(files) and len(set(files)) == len(files) else numbered  # groups are proposed from files' names
    paths = [f"{split}/{name}" for name in names]
    if labelled and None in files:
        raise InputError(f"{place}: {files.count(None)} rows hold no image, {paths[files.index(None)]} for one")
    columns = {
        "label": text(label),
        "group": [value or path for value, path in zip(text(known.get("group")), paths, strict=True)],
        "site": text(known.get("site")),
        "path": paths,
        "split": [value or PART_OF.get(split, split) for value in text(known.get("split"))],
    }
    kept = {picture, "path", *OURS, *(known[name] for name in known if name != "path")}
    columns |= {
        name: text(name) for name, kind in features.items() if name not in kept and isinstance(kind, Value | ClassLabel)
    }
    rows = part.select_columns([picture]).cast_column(picture, Image())
    rows = rows if picture == "image" else rows.rename_column(picture, "image")
    for name, values in columns.items():
        rows = rows.add_column(name, values, feature=Value("string"))
    return rows
