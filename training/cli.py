"""chest-opacity VERB ...: the same as python -m training.VERB ..."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from space.errors import InputError

VERBS = {
    "data": "write the phantom, or any DATA, as a folder: images/, metadata.csv, masks/",
    "audit": "look for duplicates, leaks, confounds, wrong labels and broken files",
    "train": "make a model folder from a recipe",
    "evaluate": "measure a model folder on DATA, with intervals; the card anew",
    "average": "make one model folder of those of a cross-validation",
    "predict": "classify images, clips, folders and archives into a table",
    "export": "write a model folder's network for onnxruntime or OpenVINO",
    "push": "publish a model folder on the Hub, with its data set and its page",
    "demo": "serve the page for a model folder on this machine",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others, and whose --help shows the defaults."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **settings)

    def add_mode(self) -> None:
        """Add --runtime and --precision, a mode of `space.runtimes`."""
        from space.runtimes import PRECISIONS  # slow to import, and most verbs do not need it

        precisions = dict.fromkeys(name for names in PRECISIONS.values() for name in names)
        self.add_argument("--runtime", choices=PRECISIONS, default="torch", help="what computes; others need an export")
        self.add_argument("--precision", choices=precisions, default="float32", help="int8 needs an export")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> NoReturn:
    """Run a verb's main and leave: 0, or 1 after one line on standard error when the input was bad."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # as Ctrl-C, which lets verbs clear up behind them
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()  # what was imported stays until the end, and is not looked through again and again, nor then
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every retry, with signed addresses
    try:
        main(argv)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    sys.exit(0)


def main() -> NoReturn:
    """The console script."""
    usage = "chest-opacity VERB ...\n\n" + "\n".join(f"  {verb:10}{line}" for verb, line in VERBS.items())
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in {"-h", "--help"}:
        print(f"usage: {usage}\n\nchest-opacity VERB --help tells more.")
        sys.exit(0)
    if verb not in VERBS:
        sys.exit(f"error: unknown verb {verb!r}; expected one of {', '.join(VERBS)}")
    run(importlib.import_module(f"training.{verb}").main, rest)
