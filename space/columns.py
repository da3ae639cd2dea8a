"""Tables of images as people write them: what their columns are called, and what stands between their cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from itertools import chain
from typing import TextIO

COLUMNS = {  # by our name what a table may call them, in whatever capitals, and with blanks or hyphens for _
    "path": ("path", "file_name", "image", "filename"),
    "label": ("label", "labels"),
    "group": ("group", "patient", "patient_id", "patientid", "subject", "subject_id", "participant_id"),
    "site": ("site",),
    "split": ("split",),
}


def known_columns(names: Sequence[str]) -> dict[str, str]:
    """Those of COLUMNS that are among a table's names, each with its name there. Names that are written as in COLUMNS
    come before all others, and Group, which may be the arm of a study, after these."""
    plain = {re.sub("[ -]", "_", name.strip().lower()): name for name in reversed(names)}
    known = {}
    for ours, wanted in COLUMNS.items():
        others = [plain[name] for name in sorted(wanted, key="group".__eq__) if name in plain]
        if found := [name for name in wanted if name in names] + others:
            known[ours] = found[0]
    return known


def csv_rows(lines: TextIO, **settings: bool) -> csv.DictReader:
    """The rows of an open CSV file, whose cells stand apart by that of , ; and tabulators by which its first line has
    most of COLUMNS: where commas stand in numbers, spreadsheets write semicolons. settings: of the csv module."""
    first = next((line for line in lines if line.strip()), "")
    signs = {sign: next(csv.reader([first], delimiter=sign, **settings), []) for sign in ",;\t"}
    between = max(signs, key=lambda sign: len(known_columns(signs[sign])))
    return csv.DictReader(chain([first], lines), restval="", delimiter=between, **settings)
