"""A process of its own whose Hub is a given one, for huggingface_hub knows its Hub from its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.hub import OWNER

LOOP = """
import contextlib, importlib, io, json, os, sys, traceback
from training import cli

for line in iter(sys.stdin.readline, "\\n"):
    asked, out, err, code = json.loads(line), io.StringIO(), io.StringIO(), 0
    os.chdir(asked["cwd"])
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": asked["token"]} if asked["token"] else {})
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "code" in asked:
                exec(asked["code"], {})
            else:
                verb, *rest = asked["argv"]
                cli.run(importlib.import_module(f"training.{verb}").main, rest)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
            print("" if isinstance(left.code, int) else left.code, file=err)
        except Exception:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass
class Told:
    """How a verb ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What was said at the end of standard error, which is to be one line."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


class Client:
    """Runs verbs and code one after the other in one process, in the folder `here`."""

    def __init__(self, address: str, here: Path):
        self.here = here
        self.env = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(here / "home"),
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *argv: str | Path, token: str = OWNER, cwd: Path | None = None) -> Told:
        """chest-opacity with these words."""
        return self._ask({"argv": list(map(str, argv))}, token, cwd)

    def read(self, code: str, token: str = OWNER) -> str:
        """What code prints."""
        told = self._ask({"code": code}, token, None)
        assert told.code == 0, told.err
        return told.out

    def stop(self) -> None:
        self._process.stdin.write("\n")  # closed alone, it may stay open in a data loader's worker, a fork of this one
        self._process.stdin.close()
        self._process.wait(20)

    def _ask(self, asked: dict, token: str, cwd: Path | None) -> Told:
        self._process.stdin.write(json.dumps(asked | {"token": token, "cwd": str(cwd or self.here)}) + "\n")
        self._process.stdin.flush()
        return Told(*json.loads(self._process.stdout.readline()))
