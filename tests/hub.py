"""A read-only Hub of data sets over HTTP, for the unmodified client: folders served as repositories."""

from __future__ import annotations

import hashlib
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SHA = "0123456789abcdef0123456789abcdef01234567"  # the one commit of every repository; main is its other name


class Hub:
    """Serves the folders below `root`, root/user/name as the data set user/name; `asked` lists the requests."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[str] = []
        info, files = "/api/datasets/{user}/{name}", "/datasets/{user}/{name}/resolve/{revision}/{path:path}"
        self.app = Starlette(
            routes=[
                Route(info, self._info),
                Route(info + "/revision/{revision}", self._info),
                Route(info + "/tree/{revision}", self._tree),
                Route(info + "/tree/{revision}/{path:path}", self._tree),
                Route(files, self._file, methods=["GET", "HEAD"]),
            ]
        )

    @contextmanager
    def serve(self):
        """Yield the address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(self.app, log_level="error"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
            thread.start()
            yield f"http://127.0.0.1:{free.getsockname()[1]}"
            server.should_exit = True
            thread.join()

    def _folder(self, request: Request) -> Path | Response:
        self.asked.append(f"{request.method} {request.url.path}")
        at = request.path_params
        folder = self.root / at["user"] / at["name"]
        if not folder.is_dir():
            return _missing("RepoNotFound", "Repository not found")
        if at.get("revision", "main") not in {"main", SHA}:
            return _missing("RevisionNotFound", "Invalid rev id")
        return folder

    def _info(self, request: Request) -> Response:
        folder = self._folder(request)
        if isinstance(folder, Response):
            return folder
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        at = request.path_params
        described = {"id": f"{at['user']}/{at['name']}", "sha": SHA, "private": False, "gated": False, "tags": []}
        return JSONResponse(described | {"downloads": 0, "siblings": [{"rfilename": name} for name in names]})

    def _tree(self, request: Request) -> Response:
        folder = self._folder(request)
        if isinstance(folder, Response):
            return folder
        start = folder / request.path_params.get("path", "")
        if not start.exists():
            return _missing("EntryNotFound", "Entry not found")
        deep = request.query_params.get("recursive", "").lower() == "true"
        return JSONResponse([_entry(folder, path) for path in sorted(start.rglob("*") if deep else start.iterdir())])

    def _file(self, request: Request) -> Response:
        folder = self._folder(request)
        if isinstance(folder, Response):
            return folder
        path = folder / request.path_params["path"]
        if not path.is_file():
            return _missing("EntryNotFound", "Entry not found")
        content = path.read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes"}
        if "range" not in request.headers:
            return Response(content, headers=headers, media_type="application/octet-stream")
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Response(content[start : end + 1], 206, headers, "application/octet-stream")


def _missing(code: str, message: str) -> Response:
    return JSONResponse({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message})


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _entry(folder: Path, path: Path) -> dict:
    named = {"path": path.relative_to(folder).as_posix()}
    if path.is_dir():
        return {"type": "directory", "oid": SHA, "size": 0} | named
    return {"type": "file", "oid": _oid(path), "size": path.stat().st_size} | named
