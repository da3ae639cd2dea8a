"""The verb data: any DATA as a folder.

chest-opacity data phantom --output data/phantom
chest-opacity data "FOLDER?frames=16" --output data/mine
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from datasets import Dataset, Image

from space.errors import InputError
from space.images import SUFFIXES
from space.remote import read_content
from training.cli import Parser, run
from training.fingerprint import require_readable, take_fingerprints
from training.groups import with_groups
from training.outputs import new_folder, refuse_existing
from training.sources import UNLABELLED, load_data
from training.tables import class_counts


def write_data(rows: Dataset, folder: Path) -> None:
    """Write rows as images/, masks/ where there are any, and metadata.csv.

    Files are copied as they are; frames of clips and DICOM files become PNG files. Groups that are proposed from the
    names of files are written, too, for the names change.
    """
    rows = with_groups(rows)
    names = rows.features["label"].names
    table = rows.remove_columns("image").to_pandas()
    masks = table.pop("mask") if "mask" in table else [""] * len(table)
    table["label"] = [names[label] if label != UNLABELLED else "" for label in table["label"]]
    table.loc[table["group"] == table["path"], "group"] = ""  # none is known
    file_name = "path" if "file_name" in table else "file_name"  # where that is a column of theirs
    paths = {}
    for path in table.pop("path"):
        if (other := paths.setdefault(_file_name(path), path)) != path:
            raise InputError(f"{other} and {path} would both be {_file_name(path)}; rename one of them")
    table.insert(0, file_name, list(paths))
    images = rows.cast_column("image", Image(decode=False))["image"]
    for image, mask, name in zip(images, masks, paths, strict=True):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_content(image))
        if mask:
            copy = folder / "masks" / name.removeprefix("images/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mask, copy)
    table.to_csv(folder / "metadata.csv", index=False, lineterminator="\n")


def _file_name(path: str) -> str:
    """The name of an image in the folder: clip.mp4#12 becomes images/clip.mp4-12.png."""
    path, _, frame = path.partition("#")
    name = "/".join(part for part in path.removeprefix("images/").split("/") if part not in {"", ".", ".."})
    suffix = "" if Path(name).suffix.lower() in SUFFIXES else ".png"
    return f"images/{name}{'-' + frame if frame else ''}{suffix}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity data", description="Write DATA as a folder: images/, metadata.csv, masks/.")
    parser.add_argument("data", metavar="DATA", help="a folder, a table, user/name on the Hub, or phantom")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    args = parser.parse_args(argv)
    refuse_existing(args.output, "choose another --output, or remove it")
    with new_folder(args.output) as work:
        rows = load_data(args.data)
        require_readable(rows, take_fingerprints(rows).facts["broken"].tolist())
        write_data(rows, work)
    rows = load_data(args.output.absolute())  # whatever its name means as DATA
    sites = np.asarray(rows["site"])
    parts = {site or "all": rows.select(np.flatnonzero(sites == site)) for site in sorted(set(sites))}
    print(f"{class_counts(parts)}\nwritten: {args.output}")


if __name__ == "__main__":
    run(main)
