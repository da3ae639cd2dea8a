"""Data sets of the Hub as rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset, Image, Value

from space.errors import InputError
from training.listings import GROUPS, LABELS, PART_OF


def read_hub(place: str, options: dict[str, str], labelled: bool = True) -> Dataset:
    """A data set of the Hub; all of its splits, named in the column split, unless one is asked for."""
    streaming = options.get("streaming", "").lower() == "true"
    try:
        found = datasets.load_dataset(
            place,
            options.get("config"),
            split=options.get("split"),
            revision=options.get("revision"),
            streaming=streaming,
        )
        parts = found if isinstance(found, dict) else {options["split"]: found}
        parts = {name: _stream(part, place, options, name) if streaming else part for name, part in parts.items()}
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{place}: no data set of the Hub that can be read, and no folder ({reason})") from None
    return datasets.concatenate_datasets([_hub_rows(part, place, name, labelled) for name, part in parts.items()])


def _stream(part: datasets.IterableDataset, place: str, options: dict[str, str], name: str) -> Dataset:
    """Read a split over the network, row by row onto disk, without downloading its files first."""
    features = part.features or part._resolve_features().features
    undecoded = part.cast_column("image", Image(decode=False)) if "image" in features else part

    def rows(place: str, options: dict[str, str], name: str) -> Iterator[dict]:  # the arguments name the cache
        yield from undecoded

    named = {"place": place, "options": options, "name": name}
    return Dataset.from_generator(rows, features=features, gen_kwargs=named)


def _hub_rows(part: Dataset, place: str, split: str, labelled: bool) -> Dataset:
    features = part.features
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    label = next((name for name in LABELS if name in features), None)
    if not pictures or (labelled and label is None):
        found = ", ".join(features)
        raise InputError(f"{place}: found the columns {found}; expected one of images{', and label' * labelled}")
    picture = pictures[0]
    names = getattr(features[label], "names", None) if label else None
    group = next((name for name in GROUPS if name in features), None)

    def text(name: str | None) -> list[str]:
        return ["" if value is None else str(value) for value in part[name]] if name else [""] * len(part)

    labels = text(label)
    if names:
        labels = ["" if value in {"", "-1"} else names[int(value)] for value in labels]
    stored = part.cast_column(picture, Image(decode=False))[picture]
    paths = [f"{split}/{index}-{Path(image['path'] or '').name}".rstrip("-") for index, image in enumerate(stored)]
    columns = {
        "label": labels,
        "group": [value or path for value, path in zip(text(group), paths, strict=True)],
        "site": text("site" if "site" in features else None),
        "path": paths,
        "split": [PART_OF.get(split, split)] * len(part),
    }
    kept = {picture, label, group, "site", "path", "split"}
    columns |= {name: text(name) for name, kind in features.items() if name not in kept and isinstance(kind, Value)}
    rows = part.select_columns([picture])
    rows = rows if picture == "image" else rows.rename_column(picture, "image")
    for name, values in columns.items():
        rows = rows.add_column(name, values, feature=Value("string"))
    return rows
