"""The Hub's repositories: what they hold, one commit of what changed, and one line for whatever goes wrong.

The token is the client's affair (HF_TOKEN, or `hf auth login`): it is no option, so it stands in no process list.
"""

from __future__ import annotations

import errno
import filecmp
import fnmatch
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from space.errors import InputError
from training.outputs import new_folder

Kind = Literal["model", "dataset", "space"]

# What push writes into a repository of each kind, and so may take out of it again; and what marks one as written by it.
OURS: dict[Kind, tuple[str, ...]] = {
    "model": ("*.json", "*.safetensors", "README.md", "recipe.yaml", "split.csv", "eval/*"),
    "dataset": ("README.md", "data/*-?????-of-?????.parquet"),
    "space": ("*.py", "README.md", "requirements.txt", "examples/*"),
}
MARK: dict[Kind, str] = {"model": "recipe.yaml", "dataset": "data/*-?????-of-?????.parquet", "space": "predictor.py"}
NEUTRAL = (".gitattributes", ".gitignore", "README.md", "LICENSE*")  # may stand in a repository made by hand

ANSWERS = {
    401: "the token is not accepted: it is unknown, expired or withdrawn; make a new one and give it as HF_TOKEN, or "
    "with hf auth login",
    402: "it has to be paid for; see the Hub's prices, or leave it out",
    403: "the token may not do this: it only reads, or the name belongs to others; give one that may write there, or "
    "choose another name",
    404: "it is not there, or the token may not see it",
    409: "somebody else is changing it at the same time; try again in a minute",
    412: "it has been changed meanwhile; try again, which starts from what it holds now",
    413: "it is too large for the Hub",
}


@dataclass(frozen=True, eq=False)
class Upload:
    """What a repository user/name is to hold: files by the name that each has in it."""

    kind: Kind
    repo: str
    files: dict[str, Path]

    def __str__(self) -> str:
        return f"{self.kind} {self.repo}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What one commit makes of a repository, from how it was found.

    head: the commit that it was found at, None when the repository does not exist. branch: whether the revision has to
    be made first. added, changed, deleted: names of files; the card is the last that is added or changed.
    """

    upload: Upload
    head: str | None
    branch: bool
    added: list[str]
    changed: list[str]
    deleted: list[str]

    @property
    def empty(self) -> bool:
        return not (self.added or self.changed or self.deleted)

    def __str__(self) -> str:
        sizes = {name: self.upload.files[name].stat().st_size for name in self.added + self.changed}
        same = len(self.upload.files) - len(sizes)
        lines = [
            f"{self.upload}{' (new)' if self.head is None else ''}: {len(sizes)} files, {_bytes(sum(sizes.values()))}"
        ]
        for sign, names in (("+", self.added), ("~", self.changed)):
            lines += [f"  {sign} {name}  {_bytes(sizes[name])}" for name in names]
        lines += [f"  - {name}" for name in self.deleted]
        return "\n".join(lines + ([f"  = {same} files are there already"] if same else []))


def survey(upload: Upload, revision: str | None = None, private: bool = False) -> Plan:
    """Compare a repository with what it is to hold, over the network, and change nothing.

    Raises InputError when the Hub cannot be asked, when the repository holds something else, and when it is public but
    private was asked for.
    """
    api, where = HfApi(), {"repo_id": upload.repo, "repo_type": upload.kind}
    with plainly(upload):
        try:
            head, branch = api.repo_info(**where), False
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):
                raise
            return Plan(upload, None, bool(revision), _card_last(upload.files), [], [])
        if private and not head.private:
            raise InputError(
                f"{upload}: it exists and is public; make it private on the Hub first, or choose another name"
            )
        if revision:
            try:
                head = api.repo_info(**where, revision=revision)
            except RevisionNotFoundError:
                branch = True  # made from main
        there = {
            entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in api.list_repo_tree(**where, revision=head.sha, recursive=True)
            if hasattr(entry, "blob_id")
        }
    strange = [name for name in there if not _matches(name, NEUTRAL)]
    if strange and not any(_matches(name, (MARK[upload.kind],)) for name in there):
        raise InputError(f"{upload}: it exists and holds something else, {strange[0]} for one; choose another name")
    names = _card_last(upload.files)
    return Plan(
        upload,
        head.sha,
        branch,
        added=[name for name in names if name not in there],
        changed=[name for name in names if name in there and not _is(upload.files[name], there[name])],
        deleted=[name for name in there if name not in upload.files and _matches(name, OURS[upload.kind])],
    )


def create(plan: Plan, revision: str | None = None, private: bool = False, **settings) -> None:
    """Make the repository, with a Space's settings, and the branch, where they are not there yet."""
    upload, api = plan.upload, HfApi()
    with plainly(upload):
        if plan.head is None:
            api.create_repo(upload.repo, repo_type=upload.kind, private=private or None, exist_ok=True, **settings)
        if plan.branch:
            api.create_branch(upload.repo, repo_type=upload.kind, branch=revision, exist_ok=True)


def commit(plan: Plan, message: str, revision: str | None = None) -> str:
    """Send what changed and commit it, all of it or nothing; the id of the commit.

    Large files that an earlier try has sent are not sent again. When nothing changed there is no commit.
    """
    upload = plan.upload
    if plan.empty:
        return plan.head
    operations = [CommitOperationDelete(path_in_repo=name) for name in plan.deleted]
    for name in _card_last(plan.added + plan.changed):
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=upload.files[name]))
    with plainly(upload):
        return (
            HfApi()
            .create_commit(
                upload.repo,
                operations,
                commit_message=message,
                repo_type=upload.kind,
                revision=revision,
                parent_commit=plan.head,  # nobody else's commit in between is overwritten
            )
            .oid
        )


def tags(upload: Upload) -> dict[str, str]:
    """The commit that each tag of an existing repository names."""
    with plainly(upload):
        refs = HfApi().list_repo_refs(upload.repo, repo_type=upload.kind)
    return {tag.name: tag.target_commit for tag in refs.tags}


def add_tag(upload: Upload, tag: str, oid: str) -> None:
    with plainly(upload):
        HfApi().create_tag(upload.repo, repo_type=upload.kind, tag=tag, revision=oid)


def set_variables(upload: Upload, variables: dict[str, str]) -> None:
    """Set public variables of an existing Space."""
    with plainly(upload):
        for key, value in variables.items():
            HfApi().add_space_variable(upload.repo, key, value)


def own_files(kind: Kind, folder: Path) -> dict[str, Path]:
    """The files of a local folder that belong into a repository of a kind, by their names in it."""
    return {name: path for name, path in _files(folder).items() if _matches(name, OURS[kind])}


def strange_files(kind: Kind, folder: Path) -> list[str]:
    """The names of the others, but for hidden ones."""
    return [name for name in _files(folder) if not _matches(name, OURS[kind]) and "/." not in f"/{name}"]


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
    if Path(model).is_dir() or not is_hub_id(model):
        return Path(model)
    with plainly(f"model {model}"):
        fetched = Path(snapshot_download(model, allow_patterns=list(OURS["model"])))
    missing = [name for name in ("config.json", "model.safetensors", "split.csv") if not (fetched / name).is_file()]
    if missing:
        raise InputError(f"{model}: found no model folder of this project on the Hub ({missing[0]} is missing)")
    folder = Path("models") / model.partition("/")[2]
    if folder.exists():
        same = (
            filecmp.cmp(fetched / name, folder / name, shallow=False) for name in ("config.json", "model.safetensors")
        )
        if not folder.is_dir() or not all((folder / name).is_file() for name in ("config.json",)) or not all(same):
            raise InputError(f"{folder} exists and is another model than {model}; move it away")
    else:
        with new_folder(folder) as work:
            shutil.copytree(fetched, work)
    return folder


def is_hub_id(model: str) -> bool:
    """Whether it reads as user/name and not as the path of something that is there, or was meant to be."""
    return model.count("/") == 1 and not Path(model).exists() and not Path(model).parent.is_dir()


@contextmanager
def plainly(what: object) -> Iterator[None]:
    """Turn what the Hub's client raises into one InputError line about `what`; and keep the client's own log quiet."""
    logging.set_verbosity_error()  # it would tell of every retry, with addresses that are signed
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, KeyError, RuntimeError) as error:
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # "Error while uploading ...", from what was the matter
        raise InputError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off here (HF_HUB_OFFLINE); unset it, or work with a folder"
    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page on the Hub, and give the token of who got it"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = " ".join((error.server_message or "").split())[:200].rstrip(".")
        if status == 429:
            wait = error.response.headers.get("Retry-After", "some")
            return f"the Hub gets too many requests; try again in {wait} seconds"
        answer = ANSWERS.get(status, "the Hub is at fault; try again later" if status >= 500 else "the Hub refuses")
        return f"{answer} ({status}{': ' + said if said else ''})"
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, LocalEntryNotFoundError):
            return _reason(cause)
        return f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"
    if isinstance(error, HTTPError):
        told = " ".join(str(error).split()) or type(error).__name__
        return f"the connection to {constants.ENDPOINT} failed ({told}); the same command goes on from what has arrived"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space is left on this machine's disk; make room and try again"
    told = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the Hub's answer cannot be used ({told}); try again later"


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _card_last(names) -> list[str]:
    return sorted(names, key=lambda name: (name == "README.md", name))


def _is(file: Path, digest: str) -> bool:
    """Whether a file has the content that the Hub names by its SHA-256 (large files) or its git hash."""
    if len(digest) == 64:
        with open(file, "rb") as content:
            return sha_fileobj(content).hex() == digest
    return git_hash(file.read_bytes()) == digest


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """As fnmatch, but * stands for no slash, and a hidden file is matched by its own name alone."""
    depth = name.count("/")
    return any(
        fnmatch.fnmatchcase(name, pattern)
        and pattern.count("/") == depth
        and (pattern[0] == "." or "/." not in f"/{name}")
        for pattern in patterns
    )


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
