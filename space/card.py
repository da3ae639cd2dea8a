"""The model's card, as the page shows it: its figures in a line, its text with its pictures."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from space.errors import InputError, reason_of

HOME = ("test", "folds")  # the evaluations on the test part of the model's own data, and on those of all folds


class Figures(NamedTuple):
    """Accuracy and AUC of one evaluation, each with its 95 % interval as text."""

    name: str
    accuracy: str
    auc: str
    at_home: bool


class Card:
    """README.md of a model; one without it has an empty card."""

    def __init__(self, model_id: str | Path):
        """Read it from a model folder, or from the Hub by its id, with the pictures that it shows. Raises InputError
        when the Hub does not give it."""
        self._folder = Path(model_id)
        if not self._folder.is_dir():
            try:
                self._folder = Path(snapshot_download(str(model_id), allow_patterns=["README.md", "eval/*.png"]))
            except (HTTPError, OSError, ValueError) as error:
                reason = reason_of(error)
                raise InputError(f"{model_id}: its card cannot be fetched ({reason}); try again later") from None
        path = self._folder / "README.md"
        text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
        self._results, self._text = [], REGEX_YAML_BLOCK.sub("", text)
        if self._text != text:
            with contextlib.suppress(Exception):  # metadata made by others may be anything
                self._results = list(ModelCard(text, ignore_metadata_errors=True).data.eval_results or ())

    def figures(self) -> list[Figures]:
        """Of each evaluation that the card's metadata (model-index) tells of, home first."""
        found: dict[str, dict] = {}
        for result in self._results:
            if not isinstance(result.metric_value, (int, float)):
                continue  # a card made by others may say anything
            args = result.metric_args if isinstance(result.metric_args, dict) else {}
            name = str(result.dataset_split or result.dataset_name)
            told = f"{result.metric_value:.2f}"
            match args.get("ci95"):
                case [int() | float() as low, int() | float() as high]:
                    told += f" [{low:.2f}, {high:.2f}]"
            of = found.setdefault(name, {"at_home": not args.get("elsewhere", name not in HOME)})
            of[str(result.metric_type)] = told
        both = [
            Figures(name, told["accuracy"], told["roc_auc"], told["at_home"])
            for name, told in found.items()
            if {"accuracy", "roc_auc"} <= set(told)
        ]
        return sorted(both, key=lambda each: not each.at_home)

    def text(self) -> str:
        """The card without its metadata, as Markdown; its pictures are in it, those that are not there are left out."""
        return re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", self._picture, self._text)

    def _picture(self, link: re.Match) -> str:
        with contextlib.suppress(OSError, ValueError):  # a link may hold a whole picture, which is no name of a file
            folder = os.path.abspath(self._folder)
            path = Path(os.path.normpath(os.path.join(folder, link[2])))  # in the Hub's cache, files are links
            if path.is_file() and path.suffix == ".png" and path.is_relative_to(folder):
                return f"![{link[1]}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
        return ""
