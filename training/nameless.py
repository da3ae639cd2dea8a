"""A model folder of real images as it may leave this machine: no image, patient, clip or folder is named in it.

Images and groups have numbers for names, which come of their pixels: so they are the same in every file and every push,
and tell of no name. Folders of images are DATA, EXTERNAL and ALSO; of other places the last part stays. Of the audit
the counts stay, and no examples. Sites, labels, pixels and parts are as they were, and so is the folder itself.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd
import yaml

from space.errors import InputError
from training.card import write_card
from training.outputs import read_again, read_columns
from training.report import write_report
from training.sources import is_phantom

DIGITS = 16  # of a number
# The second as audits told once of folders of two classes.
EXAMPLE = re.compile(r", (such as .*|.* for one)$|, .*(?=, and are taken for two patients)", re.DOTALL)
AUDIT = "eval/audit.json"
WRITTEN = {"README.md": lambda folder: write_card(folder, Path("MODEL")), "report.html": write_report}


def without_names(files: Mapping[str, Path], work: Path) -> dict[str, Path]:
    """The files of a model folder; those that name images, groups or folders are others, written into `work`.

    Raises InputError when a table does not tell the pixels of its rows, or when a line of the card or the report that
    names something is not as it was written.
    """
    recipe, training = read_again(files["recipe.yaml"]), read_again(files["eval/training.json"])
    renamed = without_places(recipe, training.get("from_hub", {}))
    places = {value: renamed[key] for key, value in recipe.items() if value != renamed[key]}
    told = {"recipe.yaml": yaml.safe_dump(renamed, sort_keys=False)} | _numbered(files)
    config = read_again(files["config.json"])
    if config.get("body", {}).pop("_name_or_path", None):  # of the base, which a perceptron's config told once
        told["config.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if AUDIT in files:
        told[AUDIT] = json.dumps(_without_examples(read_again(files[AUDIT]), places), indent=2) + "\n"
    for name in (name for name in files if name.endswith((".json", ".yaml", ".csv"))):
        (work / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files[name], work / name)
    before = _rendered(files, work)
    for name, text in told.items():
        (work / name).write_text(text)
    for name, lines in _rendered(files, work).items():
        (work / name).write_text(_replaced(files[name], before[name], lines))
    return dict(files) | {name: work / name for name in (*told, *before)}


def without_places(recipe: dict, from_hub: Mapping[str, str | None]) -> dict:
    """A recipe that names no folder of this machine; from_hub: its base and its images where they are the Hub's."""

    def renamed(key: str, value):
        if not isinstance(value, str) or key in ("hub_model_id", "resume_from_checkpoint"):
            return value
        if value.partition("?")[0] in from_hub.values():
            return value
        if key not in ("data", "external", "also"):
            return Path(value).name
        if is_phantom(value):
            return value
        return key.upper() + re.search(r"(\?frames=\d+)?$", value)[0]

    return {key: renamed(key, value) for key, value in recipe.items()}


def _numbered(files: Mapping[str, Path]) -> dict[str, str]:
    """The text of each table, its rows in the order of their numbers."""
    remedy = "evaluate again, or move it away"
    files = {name: path for name, path in files.items() if path.suffix == ".csv"}
    tables = {name: read_columns(path, ("path", "group", "pixels"), remedy) for name, path in files.items()}
    least = [some.groupby("group")["pixels"].min() for some in (tables["split.csv"], pd.concat(tables.values()))]
    first = least[0].combine_first(least[1])  # split.csv stays as it is when evaluations are added
    number = {group: f"group-{pixels[:DIGITS]}" for group, pixels in first.items()} | {"": ""}
    for name, table in tables.items():
        table = table.assign(path="image-" + table["pixels"].str[:DIGITS], group=table["group"].map(number))
        tables[name] = table.sort_values("path", kind="stable").to_csv(index=False, lineterminator="\n")
    return tables


def _without_examples(audit: dict, places: Mapping[str, str]) -> dict:
    for told in audit["data"].values():
        told |= {"largest_groups": {}, "groups_are": EXAMPLE.sub("", told["groups_are"]), "unlisted": [], "unread": []}
        told |= {"groups_at_several_sites": [], "groups_of_one_name": [], "groups_named_as_in": {}}
    for told in audit["labels"].values():
        told |= {"contradicting_names": [], "doubtful": []}
    for key in ("data", "confounds", "labels"):
        audit[key] = {places.get(name, name): told for name, told in audit[key].items()}
    for key in ("leaks", "warnings"):
        audit[key] = [_without_example(text, places) for text in audit[key]]
    return audit | {"files": [], "duplicates": audit["duplicates"] | {"crossing": []}}


def _without_example(text: str, places: Mapping[str, str]) -> str:
    for old, new in places.items():
        if text.startswith((f"{old}: ", f"{old} was trained on ")):
            text = new + text.removeprefix(old)
    return EXAMPLE.sub("", text)


def _rendered(files: Mapping[str, Path], work: Path) -> dict[str, list[str]]:
    """The lines of those of card and report that are among the files, as the other files in `work` have them."""
    lines = {}
    for name in WRITTEN.keys() & files.keys():
        WRITTEN[name](work)
        lines[name] = (work / name).read_text().splitlines()
    return lines


def _replaced(file: Path, before: list[str], after: list[str]) -> str:
    """The text of a file with those of its lines changed that differ between the two."""
    text = f"\n{file.read_text()}\n"
    for kind, start, end, other, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            old, new = ("\n".join(["", *lines, ""]) for lines in (before[start:end], after[other:last]))
            if old not in text:
                raise InputError(
                    f"{file}: a line of it that names data of this machine is not as it was written, so it cannot be "
                    "sent without the names; have it written anew by chest-opacity evaluate"
                )
            text = text.replace(old, new)
    return text[1:-1]
