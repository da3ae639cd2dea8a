"""The Hub's client: one line for whatever goes wrong, names, the token, and a Hub model as a folder.

The token is the client's affair (HF_TOKEN, or `hf auth login`): it is no option, so it stands in no process list.
"""

from __future__ import annotations

import errno
import filecmp
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from space.errors import InputError
from training.outputs import copy_files, new_folder
from training.sources import is_hub_id

# What a model folder holds; code where its head is none of transformers' own, and what was exported.
FILES = ["*.json", "*.safetensors", "*.py", "README.md", "recipe.yaml", "split.csv", "report.html"]
FILES += ["eval/*.json", "eval/*.csv", "eval/*.png", "model*.onnx", "openvino_model*.xml", "openvino_model*.bin"]
ANSWERS = {
    401: "the token is not accepted: it is unknown, expired or withdrawn; make a new one and give it as HF_TOKEN, or "
    "with hf auth login",
    402: "it has to be paid for; see the Hub's prices, or leave it out",
    403: "the token may not do this: it only reads, or the name belongs to others; give one that may write there, or "
    "choose another name",
    404: "it is not there, or it is private and there is no token that may see it",
    409: "somebody else is changing it at the same time; try again in a minute",
    412: "it has been changed meanwhile; try again, which starts from what it holds now",
    413: "it is too large for the Hub",
}


class Unreachable(InputError):
    """The Hub did not answer."""


def check_name(name: str) -> None:
    """Raise InputError unless it is user/name as the Hub allows it."""
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("there has to be one slash")
    except HFValidationError as error:
        reason = " ".join(str(error).split()).replace(f": '{name}'", "").rstrip(".")
        raise InputError(f"{name}: no name of a repository, expected user/name ({reason})") from None


def require_token() -> None:
    if get_token() is None:
        raise InputError(
            "found no token for the Hub; make one that may write, and give it as HF_TOKEN or with hf auth login"
        )


def model_folder(model: str) -> Path:
    """MODEL as a folder that can be written to: a folder as it is; a Hub id as models/NAME, fetched once.

    Raises InputError when the Hub's repository is no model folder, or models/NAME is another model.
    """
    if not is_hub_id(model):
        return Path(model)
    with plainly(f"model {model}"):
        fetched = Path(snapshot_download(model, allow_patterns=FILES, ignore_patterns="*-checkpoint/*"))
    missing = [name for name in ("config.json", "model.safetensors", "split.csv") if not (fetched / name).is_file()]
    if missing:
        raise InputError(f"{model}: found no model folder of this project on the Hub ({missing[0]} is missing)")
    folder = Path("models") / model.partition("/")[2]
    if not folder.exists():
        with new_folder(folder) as work:
            copy_files(fetched, work)
    elif not all(_same(fetched / name, folder / name) for name in ("config.json", "model.safetensors")):
        raise InputError(f"{folder} exists and is another model than {model}; move it away")
    return folder


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


@contextmanager
def plainly(what: object) -> Iterator[None]:
    """Turn what the Hub's client raises into one line about `what`: InputError, Unreachable without an answer."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, KeyError, RuntimeError) as error:
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # "Error while uploading ...", from what was the matter
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HTTPError | OfflineModeIsEnabled):
            error = error.__cause__  # "cannot find the files in the cache", for want of an answer
        answered = isinstance(error, HfHubHTTPError) or not isinstance(error, HTTPError | OfflineModeIsEnabled)
        line = f"{what}: {_reason(error)}".replace(get_token() or "\n", "HF_TOKEN")  # no server is to print it either
        raise (InputError if answered else Unreachable)(line) from None


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off here (HF_HUB_OFFLINE); unset it, or work with a folder"
    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page on the Hub, and give the token of who got it"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = " ".join((error.server_message or "").split())[:200].rstrip(".")
        if isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None):
            status = 404  # what a stranger is told of what is private, too
        if status == 429:
            wait = error.response.headers.get("Retry-After", "some")
            return f"the Hub gets too many requests; try again in {wait} seconds"
        answer = ANSWERS.get(status, "the Hub is at fault; try again later" if status >= 500 else "the Hub refuses")
        return f"{answer} ({error.response.status_code}{': ' + said if said else ''})"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"
    if isinstance(error, HTTPError):
        told = " ".join(str(error).split()) or type(error).__name__
        return f"the connection to {constants.ENDPOINT} failed ({told}); the same command goes on from what has arrived"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left on this machine's disk; make room and try again"
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the Hub's answer cannot be used ({told}); try again later"
