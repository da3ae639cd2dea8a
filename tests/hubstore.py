"""Repositories on disk: content by its hash, commits that name every file, branches and tags that name commits."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

LARGE = 1_000_000  # bytes, from where a file is stored by its hash alone, as git LFS does
LARGE_SUFFIXES = frozenset({".safetensors", ".parquet", ".bin", ".pt", ".pth", ".png", ".onnx"})
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LARGE_SUFFIXES)).encode()


class Repository:
    """One repository below root/TYPEs/user/name; every change of its state is on disk when a method returns."""

    def __init__(self, store: Path, kind: str, name: str):
        self.store, self.kind, self.name = store, kind, name
        self.folder = store / f"{kind}s" / name
        self._file = self.folder / "repository.json"

    def __bool__(self) -> bool:
        return self._file.is_file()

    def create(self, private: bool = False, **state) -> None:
        self.folder.mkdir(parents=True)
        self._write({"private": private, "gated": False, "heads": {}, "tags": {}, "variables": {}} | state)
        self.commit("main", "initial commit", {".gitattributes": self.keep(ATTRIBUTES)}, [], "system")

    @property
    def state(self) -> dict:
        return json.loads(self._file.read_text())

    def update(self, **changes) -> None:
        self._write(self.state | changes)

    def keep(self, content: bytes, large: bool = False) -> dict:
        """Store content and return what a commit says of it."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.store / "blobs").mkdir(parents=True, exist_ok=True)
        (self.store / "blobs" / sha256).write_bytes(content)
        return {"size": len(content), "sha256": sha256, "large": large, "oid": _git_hash(content)}

    def keep_large(self, sha256: str, size: int) -> dict:
        """What a commit says of content that was sent before. Raises FileNotFoundError when it was not."""
        if (self.store / "blobs" / sha256).stat().st_size != size:
            raise FileNotFoundError(sha256)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return {"size": size, "sha256": sha256, "large": True, "oid": _git_hash(pointer.encode())}

    def commit(self, branch: str, title: str, added: dict[str, dict], deleted: list[str], author: str) -> str:
        """Commit onto a branch; a deleted name that ends in / is a folder."""
        parent = self.state["heads"].get(branch)
        files = {
            path: said
            for path, said in (self.files(parent) if parent else {}).items()
            if not any(path == name or (name.endswith("/") and path.startswith(name)) for name in deleted)
        }
        said = {
            "parent": parent,
            "title": title,
            "author": author,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        said["files"] = dict(sorted((files | added).items()))
        text = json.dumps(said, indent=1)
        oid = hashlib.sha1(text.encode()).hexdigest()
        (self.folder / "commits").mkdir(exist_ok=True)
        (self.folder / "commits" / f"{oid}.json").write_text(text)
        self.update(heads=self.state["heads"] | {branch: oid})
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own id names."""
        state = self.state
        named = state["heads"].get(revision) or state["tags"].get(revision)
        return named or (revision if (self.folder / "commits" / f"{revision}.json").is_file() else None)

    def log(self, oid: str | None) -> list[dict]:
        """The commits back from one, newest first, each with its id."""
        commits = []
        while oid:
            commits.append({"id": oid} | json.loads((self.folder / "commits" / f"{oid}.json").read_text()))
            oid = commits[-1]["parent"]
        return commits

    def files(self, revision: str = "main") -> dict[str, dict]:
        oid = self.find(revision)
        return json.loads((self.folder / "commits" / f"{oid}.json").read_text())["files"]

    def read(self, path: str, revision: str = "main") -> bytes:
        return (self.store / "blobs" / self.files(revision)[path]["sha256"]).read_bytes()

    def _write(self, state: dict) -> None:
        self._file.write_text(json.dumps(state, indent=1))


def is_large(path: str, size: int) -> bool:
    return size > LARGE or PurePosixPath(path).suffix in LARGE_SUFFIXES


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
