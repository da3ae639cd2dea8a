"""A repository of the Hub: what it holds, what it is to hold, and one commit of the difference."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard_data import CardData
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from space.errors import InputError
from training.hub import plainly
from training.listings import walk
from training.outputs import EXPORTS, MADE, read_evaluations

Kind = Literal["model", "dataset", "space"]

# What of a local folder belongs into a repository of each kind; of a model also its evaluations.
OURS: dict[Kind, tuple[str, ...]] = {
    "model": (
        *("config.json", "preprocessor_config.json", "trainer_state.json", "*.safetensors", "*.py"),
        *("README.md", "recipe.yaml", "split.csv", "report.html"),
        *("model*.onnx", "openvino_model*.xml", "openvino_model*.bin"),
        *(f"eval/{name}.json" for name in (*MADE, *EXPORTS)),
        *("eval/comparison.png", "eval/learning_curves.png", "eval/samples.png"),
    ),
    "dataset": ("README.md", "data/*-?????-of-?????.parquet"),
    "space": ("*.py", "README.md", "requirements.txt", "page.css", "examples/*", "languages/*.toml"),
}
EVALUATION = (".json", ".csv", "_performance.png", "_trust.png", "_gallery.png")  # eval/NAME with each of these
# What push may take out of one again, for this project alone writes files of these names there.
REMOVABLE: dict[Kind, tuple[str, ...]] = {
    "model": (
        *("config.json", "preprocessor_config.json", "trainer_state.json", "model.safetensors", "mlp_head.py"),
        *("abstention*.safetensors", "README.md", "recipe.yaml", "split.csv", "report.html"),
        *("eval/*.json", "eval/*.csv", "eval/*.png"),
        *("model.onnx", "model_int8.onnx", "openvino_model.xml", "openvino_model.bin"),
        *("openvino_model_int8.xml", "openvino_model_int8.bin"),
        *("last-checkpoint/*", "best-checkpoint/*"),  # of a run that is under way; a whole model needs none
    ),
    "dataset": OURS["dataset"],
    "space": (),  # all of the page's own files are always sent
}
OF_A_PAGE = {"predictor.py", "saliency.py", "abstention.py", "mlp_head.py"}  # no other Space has all of these
TAG = "chest-opacity"  # in the card of each data set, whose files are named as those of anybody else
NEUTRAL = (".gitattributes", ".gitignore", "README.md", "LICENSE*")  # may stand in a repository made by hand


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
        new = " (new)" if self.head is None else ""
        lines = [f"{self.upload}{new}: {len(sizes)} files, {_bytes(sum(sizes.values()))}"]
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
        except HfHubHTTPError as error:
            absent = {404} if get_token() else {401, 404}  # a stranger is not told which
            if isinstance(error, GatedRepoError) or (
                error.response.status_code not in absent and not isinstance(error, RepositoryNotFoundError)
            ):
                raise
            return fresh(upload, revision)
        if private and head.private is False:
            raise InputError(
                f"{upload}: it exists and is public; make it private on the Hub first, or choose another name"
            )
        if revision:
            try:
                head = api.repo_info(**where, revision=revision)
            except RevisionNotFoundError:
                branch = True  # made from main
        try:
            entries = list(api.list_repo_tree(**where, revision=head.sha, recursive=True))
        except EntryNotFoundError:
            entries = []  # it has no file yet
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        there = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    strange = [name for name in there if not matches(name, NEUTRAL)]
    if strange and not _is_ours(upload.kind, there, head.card_data):
        raise InputError(f"{upload}: it exists and holds something else, {strange[0]} for one; choose another name")
    names = _card_last(upload.files)
    return Plan(
        upload,
        head.sha,
        branch,
        added=[name for name in names if name not in there],
        changed=[name for name in names if name in there and not _is(upload.files[name], there[name])],
        deleted=[name for name in there if name not in upload.files and matches(name, REMOVABLE[upload.kind])],
    )


def _is_ours(kind: Kind, names: Collection[str], card: CardData | None) -> bool:
    """Whether a repository with these files and this card's data was written by push."""
    if kind == "dataset":
        return bool(card) and TAG in (card.get("tags") or [])
    return {"model": {"recipe.yaml"}, "space": OF_A_PAGE}[kind] <= set(names)


def fresh(upload: Upload, revision: str | None = None) -> Plan:
    """What makes a repository that does not exist yet."""
    return Plan(upload, None, bool(revision), _card_last(upload.files), [], [])


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
        done = HfApi().create_commit(
            upload.repo,
            operations,
            commit_message=message,
            repo_type=upload.kind,
            revision=revision,
            parent_commit=plan.head,  # nobody else's commit in between is overwritten
        )
    return done.oid


def fetch(plan: Plan, name: str) -> Path:
    """A file of the repository as the plan found it."""
    upload = plan.upload
    with plainly(upload):
        return Path(hf_hub_download(upload.repo, name, repo_type=upload.kind, revision=plan.head))


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
    ours = _ours(kind, folder)
    return {name: path for name, path in _files(folder).items() if matches(name, ours)}


def strange_files(kind: Kind, folder: Path) -> list[str]:
    """The names of the others, but for hidden ones."""
    ours = _ours(kind, folder)
    return [name for name in _files(folder) if not matches(name, ours) and "/." not in f"/{name}"]


def _ours(kind: Kind, folder: Path) -> tuple[str, ...]:
    """Patterns of what of a local folder belongs into a repository; of a model not what predict wrote into eval/."""
    evaluations = read_evaluations(folder) if kind == "model" else ()
    return OURS[kind] + tuple(f"eval/{name}{end}" for name in evaluations for end in EVALUATION)


def _files(folder: Path) -> dict[str, Path]:
    """All files by their names, also those in folders that are links, but for hidden folders."""
    paths = sorted(Path(here, name) for here, names in walk(folder, lambda error: None) for name in names)
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def _card_last(names) -> list[str]:
    return sorted(names, key=lambda name: (name == "README.md", name))


def _is(file: Path, digest: str) -> bool:
    """Whether a file has the content that the Hub names by its SHA-256 (large files) or its git hash."""
    if len(digest) == 64:
        with open(file, "rb") as content:
            return sha_fileobj(content).hex() == digest
    return git_hash(file.read_bytes()) == digest


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name in a repository fits a pattern; * stands for no slash, and for no hidden file."""
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
