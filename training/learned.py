"""What a model has learned from, its base included, so that no such image is taken for a new one.

In split.csv these are the train part and, as `also`, what was learned besides, or before, by the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers import PreTrainedConfig

from space.errors import InputError
from training.hub import plainly
from training.outputs import read_again, read_split
from training.split import PARTS

ALSO = "also"
LEARNED = ("train", ALSO)
COLUMNS = ["path", "label", "group", "site", "pixels"]


def learned_by(base: str) -> pd.DataFrame:
    """What a base, as in model_name_or_path, has learned from: COLUMNS of its images, which are as `also` in split.csv.

    Empty unless it is a model folder, here or on the Hub. Raises InputError when its split.csv is no such table, or
    cannot be fetched though its config.json is one that train has written.
    """
    try:
        files = [] if base.startswith("scratch:") else [_fetch(base, name) for name in ("split.csv", "recipe.yaml")]
    except InputError as error:
        if "calibration" in PreTrainedConfig.get_config_dict(base)[0]:
            raise InputError(
                f"{error}; without it nobody knows which images it has learned from (hf download {base} fetches "
                "all of it, where the Hub answers)"
            ) from None
        files = []
    if not files or None in files:
        return pd.DataFrame(columns=[*COLUMNS, "split"], dtype=str)
    table = read_split(Path(files[0]).parent)
    return table[table["split"].isin(LEARNED)].assign(split=ALSO)


def has_seen_nobody(base: str) -> bool:
    """Whether a base, as in model_name_or_path, is known to have seen no person: a random start, or a model folder,
    here or on the Hub, whose eval/training.json says so."""
    if base.startswith("scratch:"):
        return True
    try:
        file = _fetch(base, "eval/training.json")
    except InputError:
        return False
    return file is not None and read_again(Path(file)).get("synthetic") is True


def _fetch(base: str, name: str) -> str | None:
    """The path of a file of a folder, or of a repository on the Hub; None where it has none. Raises InputError where
    that cannot be told."""
    if (folder := Path(base)).is_dir():
        return str(folder / name) if (folder / name).is_file() else None
    with plainly(f"{base}: {name}"):
        try:
            return hf_hub_download(base, name)
        except RemoteEntryNotFoundError:
            return None


def seen_before(learned: pd.DataFrame, base: str, parts: Mapping[str, Dataset]) -> list[str]:
    """Where the base has `learned` from images that are to choose or to measure the model, a line for each part."""
    lines = []
    for part in [name for name in ("validation", "test", "external") if name in parts]:
        seen = np.flatnonzero(np.isin(parts[part]["pixels"], learned["pixels"]))
        if len(seen):
            found, first = f"{len(seen)} of {len(parts[part])} images", parts[part]["path"][int(seen[0])]
            lines.append(f"{base} was trained on {found} of the {part} part, {first} for one")
    return lines


def split_table(parts: Mapping[str, Dataset], learned: pd.DataFrame) -> pd.DataFrame:
    """split.csv of a model: every image of its parts once, and what it or its base (`learned`) learned from besides."""
    rows = pd.concat(
        parts[part].select_columns(COLUMNS).to_pandas().assign(split=part) for part in (*PARTS, ALSO) if part in parts
    )
    rows["label"] = np.asarray(parts["train"].features["label"].names)[rows["label"]]
    rows = pd.concat([rows, learned]).fillna("").reindex(columns=[*COLUMNS, "split"])
    besides = rows["split"] == ALSO
    known = rows["pixels"].isin(rows["pixels"][rows["split"] == "train"]) | rows.duplicated(["pixels", "split"])
    own = rows[~besides].drop_duplicates("path")  # an oversampled image is listed once
    return pd.concat([own, rows[besides & ~known]]).sort_values("path", kind="stable")
