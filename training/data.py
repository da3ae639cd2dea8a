"""The verb data, and how DATA becomes a data set.

chest-opacity data phantom --output data/phantom
chest-opacity data FOLDER --output data/mine
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Image, Value
from filelock import FileLock
from tqdm.auto import tqdm

from space.errors import InputError
from space.images import SUFFIXES, load_image
from training import phantom, ultrasound
from training.cli import Parser, run
from training.outputs import new_folder, refuse_existing
from training.tables import class_counts

PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
UNLABELLED = -1  # the convention of `datasets` for a ClassLabel that is not known


def load_data(source: str | Path, labels: list[str] | None = None) -> Dataset:
    """Read DATA: an image folder (class folders, or metadata.csv), or "phantom".

    labels: the class names in the order wanted; by default normal first, then the others by name. The rows have the
    columns image, label (ClassLabel; UNLABELLED where the table leaves it empty), group, site, path (relative to the
    folder), and as text whatever else metadata.csv holds. Where no group is known each image is its own.
    Raises InputError when DATA cannot be taken as it is.
    """
    folder = phantom_folder() if str(source) == "phantom" else Path(source)
    if not folder.is_dir():
        raise InputError(f"{source}: no such folder; expected an image folder, or phantom")
    listed = folder / "metadata.csv"
    table = _read_metadata(listed) if listed.is_file() else _read_class_folders(folder)
    names = _class_names(table["label"], labels, source)
    columns = {name: table[name].tolist() for name in table.columns}
    columns["image"] = [str(folder / path) for path in columns["path"]]
    columns["label"] = [names.index(name) if name else UNLABELLED for name in columns["label"]]
    columns["group"] = [group or path for group, path in zip(columns["group"], columns["path"], strict=True)]
    features = {name: Value("string") for name in columns} | {"image": Image(), "label": ClassLabel(names=names)}
    first = ["image", "label", "group", "site", "path"]
    order = first + [name for name in columns if name not in first]
    return Dataset.from_dict(
        {name: columns[name] for name in order}, features=Features({name: features[name] for name in order})
    )


def phantom_folder() -> Path:
    """The folder of the phantom in the cache of `datasets`; made when it is not there yet."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (phantom, ultrasound))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / f"chest-opacity-phantom-{hashlib.sha256(code).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with new_folder(folder) as work:
                phantom.write_phantom(work)
    return folder


def check_images(rows: Dataset) -> Dataset:
    """Decode every image once; returns the rows with a column sha256, the hash of each file's bytes.

    Raises InputError, with the number and the first few names, when some cannot be read.
    """

    def check(row: dict) -> tuple[str, str]:
        try:
            content = Path(row["image"]["path"]).read_bytes()
            load_image(content)
        except (InputError, OSError) as error:
            return "", f"{row['path']} ({error})"
        return hashlib.sha256(content).hexdigest(), ""

    with ThreadPoolExecutor() as pool:
        undecoded = rows.cast_column("image", Image(decode=False))
        checked = list(tqdm(pool.map(check, undecoded), total=len(rows), desc="checking", unit="image", leave=False))
    broken = [problem for _, problem in checked if problem]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(f"found {len(broken)} of {len(rows)} images broken: {'; '.join(broken[:3])}{more}")
    return rows.add_column("sha256", [digest for digest, _ in checked])


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path; hidden ones are passed over."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read_metadata(file: Path) -> pd.DataFrame:
    table = _read_table(file)
    if "file_name" not in table or "label" not in table:
        raise InputError(f"{file}: found the columns {', '.join(table.columns)}; expected file_name and label")
    table = table.rename(columns={"file_name": "path"})
    for absent in {"group", "site"} - set(table.columns):
        table[absent] = ""
    table = table.drop(columns={"image", "sha256"} & set(table.columns))
    if table.empty:
        raise InputError(f"{file}: found no rows; expected one for each image")
    doubled = table["path"][table["path"].duplicated()]
    if len(doubled):
        raise InputError(f"{file}: found {len(doubled)} file names twice, {doubled.iloc[0]} for one; name each once")
    missing = [path for path in table["path"] if not (file.parent / path).is_file()]
    if missing:
        raise InputError(f"{file}: {len(missing)} of {len(table)} files do not exist, {missing[0]} for one")
    return table


def _read_table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{file}: no table that can be read: {' '.join(str(error).split())}") from None


def _read_class_folders(folder: Path) -> pd.DataFrame:
    paths = [path.relative_to(folder) for path in image_files(folder)]
    if not paths:
        raise InputError(f"{folder}: found no images; expected a folder for each class, or metadata.csv")
    loose = [path for path in paths if len(path.parts) == 1]
    if loose:
        raise InputError(
            f"{folder}: found {len(loose)} images outside class folders, {loose[0]} for one; "
            "put each into a folder named after its class, or list them in metadata.csv (file_name, label)"
        )
    classes = {path.parts[0] for path in paths}
    if {name.lower() for name in classes} <= PART_NAMES:
        raise InputError(
            f"{folder}: found the folders {', '.join(sorted(classes))}, which are parts and no classes; "
            "give one of them, or list the images in metadata.csv (file_name, label, group)"
        )
    return pd.DataFrame(
        {
            "path": [path.as_posix() for path in paths],
            "label": [path.parts[0] for path in paths],
            "group": ["/".join(path.parts[:2]) if len(path.parts) > 2 else "" for path in paths],
            "site": "",
        }
    )


def _class_names(found: pd.Series, wanted: list[str] | None, source: str | Path) -> list[str]:
    names = sorted(set(found) - {""}, key=lambda name: (name != "normal", name))
    if wanted is None:
        return names
    strange = [name for name in names if name not in wanted]
    if strange:
        raise InputError(f"{source}: found the classes {', '.join(names)}; expected only {', '.join(wanted)}")
    return list(wanted)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity data", description="Write DATA as a folder: images/, metadata.csv, masks/.")
    parser.add_argument("data", metavar="DATA", help="an image folder (class folders, or metadata.csv), or phantom")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="phantom: decides every frame")
    parser.add_argument("--scale", type=float, default=1.0, help="phantom: share of the full number of frames")
    args = parser.parse_args(argv)
    refuse_existing(args.output, "choose another --output, or remove it")
    with new_folder(args.output) as work:
        if args.data == "phantom":
            phantom.write_phantom(work, args.seed, args.scale)
        else:
            _copy(check_images(load_data(args.data)), Path(args.data), work)
    rows = load_data(args.output)
    sites = np.asarray(rows["site"])
    parts = {site or "all": rows.select(np.flatnonzero(sites == site)) for site in sorted(set(sites))}
    print(f"{class_counts(parts)}\nwritten: {args.output}")


def _copy(rows: Dataset, source: Path, work: Path) -> None:
    names = rows.features["label"].names
    table = rows.remove_columns(["image", "sha256"]).to_pandas()
    table["label"] = [names[label] if label != UNLABELLED else "" for label in table["label"]]
    table.insert(0, "file_name", [f"images/{path.removeprefix('images/')}" for path in table.pop("path")])
    for row, name in zip(rows.cast_column("image", Image(decode=False)), table["file_name"], strict=True):
        mask = source / row["path"].replace("images/", "masks/", 1)
        copies = {work / name: Path(row["image"]["path"])}
        if mask.is_file() and "masks" in mask.parts:
            copies[work / name.replace("images/", "masks/", 1)] = mask
        for target, origin in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, target)
    table.to_csv(work / "metadata.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    run(main)
