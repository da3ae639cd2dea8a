"""The verb predict: one row of a table for each image or clip, however many there are.

chest-opacity predict models/phantom scan.png more_scans/ --output predictions.csv
find /archive -name "*.dcm" | chest-opacity predict models/phantom - --output predictions.parquet --resume
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import has_magic
from hashlib import file_digest, sha256
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd
import torch
from datasets import Dataset, Features, Image
from tqdm.auto import tqdm

from space import clips
from space.dicom import DicomFile, is_dicom
from space.errors import InputError, some_of
from space.predictor import FILES, Predictor
from space.remote import read_content
from space.rows import columns_of, row
from space.runtimes import exported_files
from space.saliency import METHODS, overlay
from training.cli import Parser, run
from training.duplicates import find_copies
from training.fingerprint import take_fingerprints
from training.groups import groups_from_names, merge
from training.inputs import Input, find_inputs, may_read
from training.listings import is_told, read_table
from training.outputs import new_file, read_again
from training.predictions import Predictions, is_complete
from training.processes import require_several
from training.sources import as_png

SHOWN = 10  # rows that are printed


def predict(
    predictor: Predictor,
    inputs: Iterable[Input],
    overlays: Path | None = None,
    method: str | None = None,
    first: int = 1,
    step: int = 1,
) -> Iterator[dict]:
    """A row for each input, in order, as it is known.

    overlays: the folder for a picture of each image by `method`, named by its file and by the number of its row: that
    of the first is `first`, that of the next is greater by `step`.
    """
    under_way: dict[int, tuple[str, str]] = {}  # paths and groups; of an archive, what is to be read may be large

    def sources():
        for number, given in enumerate(inputs):
            under_way[number] = given.path, given.group
            yield given.source

    def show(number: int, image, answer) -> None:
        with new_file(overlays / _overlay_name(first + number * step, under_way[number][0])) as file:
            overlay(image, answer.saliency).save(file, "PNG", compress_level=1)

    answers = predictor.stream(sources(), *((method or predictor.methods[0], show) if overlays else ()))
    for number, answer in enumerate(answers):
        path, group = under_way.pop(number)
        yield row(predictor, path, answer, group)


def write_predictions(rows: Predictions, inputs: Iterator[Input], predicted) -> Counter:
    """Predict what is not in `rows` yet; how many rows there are of each prediction, and how many with an error.

    predicted: gives the rows for inputs. Raises InputError when the inputs are not those that the first rows are of.
    """
    counts = Counter()
    with tqdm(desc="predicting", unit="image", initial=rows.done, leave=False) as progress:
        for number, told in enumerate(rows, 1):
            given = next(inputs, None)
            if given is None or given.path != told["path"]:
                found = given.path if given else "nothing"
                raise InputError(
                    f"{rows.output}: row {number} of the stopped run is {told['path']} where the inputs now have "
                    f"{found}; give the same inputs, or give the run up with --overwrite"
                )
            counts.update(_kind(told))
        for told in predicted(inputs):
            rows.add(told)
            counts.update(_kind(told))
            progress.update()
    return counts


class Truth(NamedTuple):
    """What a table says of an image or clip: its label, its group or "", and the group that its name proposes."""

    label: str
    group: str
    proposed: str


def report(rows: Iterable[dict], labels: list[str], truth: dict[str, Truth]) -> dict | None:
    """The numbers of `assess` for the rows whose path is in `truth`; the others are counted. A group that `truth` does
    not know is that of the row; where neither knows any, groups are the proposed ones. Images that are copies are of
    one group. None where there is no such row."""
    from training.measure import assess  # slow to import, and without labels nothing is measured

    table = pd.DataFrame(list(rows), columns=columns_of(labels))
    known = table["path"].map(os.path.abspath).map(truth)
    kept = known.notna() & (table["error"] == "")
    if not kept.any():
        return None
    told, found = table[kept], pd.DataFrame(known[kept].tolist(), columns=Truth._fields)
    groups = [given or own for given, own in zip(found["group"], told["group"], strict=True)]
    others = told["path"] if any(groups) else found["proposed"]
    groups = [group or other for group, other in zip(groups, others, strict=True)]
    told = told.assign(label=found["label"].tolist(), group=_joined(groups, told["path"].tolist()))
    return assess(told, labels) | {"without_label_or_unreadable": int((~kept).sum())}


def _joined(groups: list[str], paths: list[str]) -> list[str]:
    """Groups joined where images are copies, as evaluate joins them; none of clips, or of what is no file by itself."""
    images = [{"path": path, "bytes": None} for path in paths]
    prints = take_fingerprints(Dataset.from_dict({"image": images}, Features({"image": Image()})), _read)
    return merge(groups, find_copies(prints)[["one", "other"]].to_numpy(int))


def _read(image: dict) -> bytes:
    """The bytes of an image's file, of a DICOM file those of its picture; b"" of a clip, and of one of many frames."""
    path = Path(image["path"])
    if path.suffix.lower() in clips.SUFFIXES:
        return b""
    if not is_dicom(path):
        return read_content(image)
    dicom = DicomFile(path)
    return as_png(dicom.frame()) if dicom.frames == 1 else b""


def read_truth(file: Path, labels: list[str]) -> dict[str, Truth]:
    """What a table with path (or file_name), label and perhaps group says, by absolute path. Raises InputError when
    there are labels that the model does not know, or two for one path."""
    rows = list(read_table(file))
    if strange := sorted({told["label"] for told in rows} - {*labels, ""}):
        raise InputError(f"{file}: found the labels {some_of(strange)}; expected {', '.join(labels)}")
    proposed = paths = [told["path"] for told in rows]
    if not any(told["group"] for told in rows):
        proposed, _ = groups_from_names(paths)
    truth = {}
    for told, name in zip(rows, proposed, strict=True):
        if told["label"]:
            path = os.path.abspath(file.parent / told["path"])
            if truth.setdefault(path, Truth(told["label"], told["group"], name)).label != told["label"]:
                raise InputError(f"{file}: has two labels for {told['path']}; leave one of them")
    return truth


def shard_of(text: str | None) -> tuple[int, int]:
    """Which part of how many, from "i/n", or from what accelerate and torchrun tell their processes; (1, 1) for all."""
    if text is None:
        require_several()
        return int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1"))
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text}: expected i/n with i from 1 to n, such as 1/4")
    return int(found[1]), int(found[2])


def _files(folder: Path, runtime: str, precision: str) -> list[Path]:
    """The files of a model that its answers depend on, without abstentions that an export adds beside what it exports:
    they change with that."""
    patterns = FILES + exported_files(runtime, precision)
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in found if not file.name.startswith("abstention_"))


def _digest(files: Iterable[Path]) -> str:
    """What changes with the files."""
    found = sha256()
    for file in files:
        with open(file, "rb") as content:
            found.update(file_digest(content, "sha256").digest())
    return found.hexdigest()[:12]


def _overlay_name(number: int, path: str) -> str:
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(path).stem)
    return f"{number:06d}_{stem.encode()[:80].decode(errors='ignore')}.png"  # the length of names is limited in bytes


def _require_folder_apart(overlays: Path, paths: list[str], first: str) -> None:
    """Raise InputError when overlays would be taken for images by a run that goes on, or the next one.

    first: the path of the first input, for which an overlay is named.
    """
    if os.path.exists(overlays) and not os.path.isdir(overlays):
        raise InputError(f"--saliency {overlays}: is no folder; choose another")
    for path in filter(os.path.isdir, paths):
        if not is_told(Path(path)) and Path(os.path.realpath(overlays)).is_relative_to(os.path.realpath(path)):
            raise InputError(f"--saliency {overlays}: lies in {path}, all of which is predicted; choose another")
    for path in filter(has_magic, paths):
        if not os.path.exists(path) and may_read(path, overlays / _overlay_name(1, first)):
            raise InputError(f"--saliency {overlays}: what lies there is predicted by {path}; choose another")


def _require_no_overlays(overlays: Path, shard: int, shards: int) -> None:
    """Raise InputError when the folder has an overlay of a row that has the number of one of this run."""
    for file in sorted(overlays.glob("*_*.png")):
        number = re.match(r"\d{6,}(?=_)", file.name)
        if number and (int(number[0]) - shard) % shards == 0:
            raise InputError(
                f"--saliency {overlays}: {file.name} of an earlier run is there; go on with that by --resume, replace "
                "what has the same name with --overwrite, or choose another"
            )


def _is_report(figures: Path) -> bool:
    with suppress(InputError):
        return "without_label_or_unreadable" in read_again(figures)
    return False


def _forget_report(figures: Path) -> None:
    """Remove the report of an output that is given up; another file of its name stays."""
    if _is_report(figures):
        figures.unlink()


def _require_older(files: Iterable[Path], output: Path) -> None:
    """Raise InputError when a file of the model has changed since a whole output was written, perhaps by another."""
    written = output.stat().st_mtime
    if changed := [file for file in files if file.stat().st_mtime > written]:
        raise InputError(
            f"{output} was written before {changed[0]} last changed; choose another --output, or predict it anew with "
            "--overwrite"
        )


def _tell_report(result: dict | None, file: Path, output: Path, shards: int) -> None:
    if result is None and shards == 1:
        raise InputError(
            "--labels: it names none of the images that were predicted; its paths are relative to itself. "
            f"{output} is written; the same command with --resume and another table adds the report"
        )
    if result is None:
        print("\n--labels names none of the images of this part")
        return
    from training.tables import classification_tables

    with new_file(file) as work:
        work.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{result['n']} images in {result['groups']} groups\n\n{classification_tables(result)}\n")
    print(f"unlike the training images: {result['abstained']['images']} of {result['n']}")
    print(f"left out, without a label or unreadable: {result['without_label_or_unreadable']}")


def _kind(row: dict) -> list[str]:
    return [row["prediction"] or "without a prediction", *["with an error"] * bool(row["error"])]


def summary(rows: Predictions, counts: Counter) -> str:
    """The first rows, and how many there are of each prediction."""
    if not rows.done:
        return "0 images: this part has none"
    shown = pd.DataFrame(list(islice(rows, SHOWN))).drop(columns=["threshold", "abstained"])
    shown = shown.astype(object).where(shown.notna() & (shown != ""), "-")
    if (shown["error"] == "-").all():
        shown = shown.drop(columns="error")
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common() if name != "with an error")
    return f"{shown.to_string(index=False)}\n{'...' if rows.done > SHOWN else ''}\n{rows.done} images: {told}"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="chest-opacity predict", description="Classify images and clips into a table, one row each.")
    parser.add_argument("model", metavar="MODEL", help="a model folder or Hub id")
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="files, folders, patterns, .csv, .zip, .tar, user/name on the Hub, phantom; - reads paths, a line each",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .csv, .parquet or .jsonl file to write")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on where the same command was stopped")
    there.add_argument("--overwrite", action="store_true", help="replace what a former run wrote or left")
    parser.add_argument("--saliency", metavar="DIR", type=Path, help="the folder for an overlay of each image")
    parser.add_argument("--method", choices=METHODS, help="of the overlays; by default the network's best")
    parser.add_argument(
        "--labels", metavar="TABLE", type=Path, help="path and label of each: adds a report, printed and as .json"
    )
    parser.add_mode()
    parser.add_argument("--shard", metavar="i/n", help="only every n-th input from the i-th on, into a part of its own")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    shard, shards = shard_of(args.shard)
    if shards > 1:
        args.output = args.output.parent / f"{args.output.stem}-{shard:05d}-of-{shards:05d}{args.output.suffix}"
        if args.shard is None and "-" in args.paths:
            raise InputError("- is one list of which each process would read a part; give it as a .csv with path")
    if devices := torch.accelerator.device_count():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % devices)  # several may share one
    figures = args.output.parent / f"{args.output.stem}.json"
    if args.resume and is_complete(args.output):
        _require_older(_files(Path(args.model), args.runtime, args.precision), args.output)
        lacking = args.labels and not figures.exists()
        print(f"{args.output} is complete{', so no report is made; --overwrite predicts it anew' if lacking else ''}")
        return
    inputs = find_inputs(args.paths)
    if (first := next(inputs, None)) is None:
        raise InputError(f"{', '.join(args.paths)}: found no images")
    if args.saliency:
        _require_folder_apart(args.saliency, args.paths, first.path)
        if not (args.resume or args.overwrite):
            _require_no_overlays(args.saliency, shard, shards)
    predictor = Predictor(args.model, args.runtime, args.precision, bulk=True)
    if args.method and args.method not in predictor.methods:
        raise InputError(f"--method {args.method}: this network allows {', '.join(predictor.methods)}")
    truth = read_truth(args.labels, predictor.labels) if args.labels else None
    if truth is not None and figures.exists() and not (args.overwrite or (args.resume and _is_report(figures))):
        raise InputError(f"{figures} exists; choose another --output, or replace it with --overwrite")
    told = {"model": args.model, "runtime": args.runtime, "precision": args.precision, "shard": f"{shard}/{shards}"}
    told["files of the model"] = _digest(_files(predictor.folder, args.runtime, args.precision))
    told |= {"saliency": str(args.saliency) if args.saliency else None, "method": args.method}
    with Predictions(args.output, told, columns_of(predictor.labels), args.resume, args.overwrite) as rows:
        if args.overwrite:
            _forget_report(figures)
        try:
            counts = write_predictions(
                rows,
                islice(chain([first], inputs), shard - 1, None, shards),
                lambda rest: predict(predictor, rest, args.saliency, args.method, shard + rows.done * shards, shards),
            )
        except KeyboardInterrupt:
            rows.finish(head=shard == 1)
            print(f"\n{rows.done} rows so far are in {args.output}; the same command with --resume goes on")
            raise
        rows.finish(head=shard == 1)
        print(summary(rows, counts))
        if truth is not None:
            _tell_report(report(rows, predictor.labels, truth), figures, args.output, shards)
        print(f"written: {args.output}")
        rows.forget()
    if counts["with an error"] == rows.done > 0:
        raise InputError("none of the images could be read; see the column error")


if __name__ == "__main__":
    run(main)
