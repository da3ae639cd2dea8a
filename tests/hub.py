"""A small Hub over HTTP for the unmodified client: repositories on disk, tokens, refs, large files, faults on demand.

It follows what huggingface_hub 2.4 asks with HF_ENDPOINT set to its address and HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.hubstore import Repository, is_large

KINDS = ("model", "dataset", "space")
OWNER, READER, OTHER = "hf_owner0000write", "hf_owner0000read", "hf_other0000write"
# https://huggingface.co/docs/hub/repositories-licenses; a card with another name is refused
LICENCES = frozenset(
    re.findall(
        r"\S+",
        """
        apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
        bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
        cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
        cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
        cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
        agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++
        osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
        """,
    )
)
TOKENS = {OWNER: ("clinic", "write"), READER: ("clinic", "read"), OTHER: ("other", "write")}


@dataclass
class Asked:
    """A request: method, path, whether with a token, bytes of its body that arrived, and the status of the answer."""

    method: str
    path: str
    token: bool = False
    sent: int = 0
    status: int = 0


@dataclass
class Fault:
    """What befalls the next `times` requests whose "METHOD path" matches: an answer, or a connection that is cut.

    cut_upload and cut_download: after so many bytes of the body.
    """

    asked: str
    status: int = 0
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    cut_upload: int | None = None
    cut_download: int | None = None


class Hub:
    """Serves the repositories below `root`; `asked` lists the requests, `faults` are what is to go wrong."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        api, at = "/api/{kind}s/{user}/{name}", "/{user}/{name}"
        self._app = Starlette(
            routes=[
                Route("/api/whoami-v2", self._whoami),
                Route("/api/validate-yaml", self._validate, methods=["POST"]),
                Route("/api/repos/create", self._create, methods=["POST"]),
                Route(f"{api}/preupload/{{revision}}", self._preupload, methods=["POST"]),
                Route(f"{api}/commit/{{revision}}", self._commit, methods=["POST"]),
                Route(f"{api}/tree/{{revision}}", self._tree),
                Route(f"{api}/tree/{{revision}}/{{path:path}}", self._tree),
                Route(f"{api}/paths-info/{{revision}}", self._paths, methods=["POST"]),
                Route(f"{api}/refs", self._refs),
                Route(f"{api}/{{ref:str}}/{{revision}}", self._add_ref, methods=["POST"]),
                Route(f"{api}/variables", self._variables, methods=["GET", "POST"]),
                Route(f"{api}/revision/{{revision}}", self._info),
                Route(api, self._info),
                Route("/lfs/{sha256}", self._large, methods=["PUT", "GET", "HEAD"]),
                Route("/lfs/{sha256}/verify", self._verify, methods=["POST"]),
                *(
                    Route(f"{kinds}{at}{end}", answer, methods=methods)
                    for kinds in ("/{kind}s", "")
                    for end, answer, methods in (
                        (".git/info/lfs/objects/batch", self._batch, ["POST"]),
                        ("/resolve/{revision}/{path:path}", self._file, ["GET", "HEAD"]),
                    )
                ),
            ]
        )

    def repository(self, kind: str, name: str) -> Repository:
        return Repository(self.root, kind, name)

    def add(self, kind: str, name: str, folder: Path, **state) -> Repository:
        """Make a repository of a folder's files, past HTTP."""
        repository = self.repository(kind, name)
        repository.create(**state)
        files = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
        added = {name: repository.keep(path.read_bytes(), is_large(name, path.stat().st_size)) for name, path in files}
        repository.commit("main", "add", added, [], "clinic")
        return repository

    def sent(self, asked: str = "PUT /lfs/") -> int:
        """Bytes that arrived in the bodies of the requests whose "METHOD path" matches."""
        return sum(request.sent for request in self.asked if re.search(asked, f"{request.method} {request.path}"))

    @contextmanager
    def serve(self):
        """Yield the address."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(self, log_level="critical", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
            thread.start()
            yield f"http://127.0.0.1:{free.getsockname()[1]}"
            server.should_exit = server.force_exit = True
            thread.join()

    async def __call__(self, scope, receive, send) -> None:
        """Note the request, and let befall it what is to go wrong."""
        token = any(name == b"authorization" for name, _ in scope["headers"])
        asked = Asked(scope["method"], unquote(scope["raw_path"].decode()), token)
        self.asked.append(asked)
        fault = next((f for f in self.faults if f.times and re.search(f.asked, f"{asked.method} {asked.path}")), None)
        if fault:
            fault.times -= 1
        transport = receive.__self__.transport  # uvicorn's, for there is no other way to hang up
        left = fault.cut_download if fault else None

        async def counted_receive():
            message = await receive()
            asked.sent += len(message.get("body", b""))
            if fault and fault.cut_upload is not None and asked.sent >= fault.cut_upload:
                transport.abort()
                raise ConnectionResetError
            return message

        async def noted_send(message):
            nonlocal left
            asked.status = message.get("status", asked.status)
            if left is not None and "body" in message:
                message["body"], left = message["body"][:left], left - len(message["body"])
                await send(message | {"more_body": True})
                if left <= 0:
                    transport.close()
                return
            await send(message)

        try:
            if fault and fault.status:
                while (await counted_receive()).get("more_body"):
                    pass
                answer = JSONResponse({"error": fault.message}, fault.status, {"X-Error-Message": fault.message})
                answer.headers.update(fault.headers)
                await answer(scope, counted_receive, noted_send)
            else:
                await self._app(scope, counted_receive, noted_send)
        except ConnectionResetError:
            pass

    # Who asks, and for what

    def _user(self, request: Request, writes: str | None = None) -> str:
        """Who asks, "" for nobody; refused when the token is unknown, or may not write below a user's name."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _refusal(401, "Invalid credentials in Authorization header")
        user, role = TOKENS.get(token, ("", ""))
        if writes is not None:
            if not user:
                raise _refusal(401, "Invalid username or password.")
            if role != "write" or user != writes:
                raise _refusal(403, f'You don\'t have the rights to write under the namespace "{writes}"')
        return user

    def _repository(self, request: Request, writes: bool = False) -> Repository:
        at = request.path_params
        kind = at.get("kind", "model")
        repository = self.repository(kind, f"{at['user']}/{at['name']}")
        user = self._user(request)
        hidden = bool(repository) and repository.state["private"] and user != at["user"]
        if kind not in KINDS or not repository or hidden:
            raise _refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if writes:
            self._user(request, at["user"])
        elif repository.state["gated"] and user != at["user"] and "resolve" in request.url.path:
            raise _refusal(403 if user else 401, f"Access to model {repository.name} is restricted", "GatedRepo")
        return repository

    def _commit_of(self, request: Request, repository: Repository) -> str:
        oid = repository.find(unquote(request.path_params.get("revision", "main")))
        if oid is None:
            raise _refusal(404, "Invalid rev id", "RevisionNotFound")
        return oid

    # Repositories

    def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if not user:
            raise _refusal(401, "Invalid username or password.")
        role = TOKENS[request.headers["authorization"].removeprefix("Bearer ")][1]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return JSONResponse({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})

    async def _validate(self, request: Request) -> Response:
        wrong = ""
        try:
            card = _front_matter((await request.json())["content"])
            if card.get("license", "other") not in LICENCES:
                wrong = f'"license" must be one of {", ".join(sorted(LICENCES))}'
        except yaml.YAMLError as error:
            wrong = str(error)
        return JSONResponse({"errors": [{"message": wrong}] * bool(wrong), "warnings": []}, 400 if wrong else 200)

    async def _create(self, request: Request) -> Response:
        asked = await request.json()
        user = asked.get("organization") or self._user(request)
        self._user(request, user)
        kind, name = asked.get("type") or "model", f"{user}/{asked['name']}"
        repository = self.repository(kind, name)
        said = {"url": _page(request, repository), "name": name}
        if repository:
            return JSONResponse(said | {"error": "You already created this repo"}, 409)
        variables = {each["key"]: each["value"] for each in asked.get("variables", [])}
        private = asked.get("visibility") == "private" or asked.get("private", False)
        repository.create(private, variables=variables, sdk=asked.get("sdk"))
        return JSONResponse(said)

    async def _variables(self, request: Request) -> Response:
        repository = self._repository(request, writes=True)
        if request.method == "POST":
            asked = await request.json()
            repository.update(variables=repository.state["variables"] | {asked["key"]: asked["value"]})
        return JSONResponse({key: {"value": value} for key, value in repository.state["variables"].items()})

    def _info(self, request: Request) -> Response:
        repository = self._repository(request)
        oid = self._commit_of(request, repository)
        files, commits = repository.files(oid), repository.log(oid)
        card = _front_matter(repository.read("README.md", oid).decode()) if "README.md" in files else {}
        said = {
            "id": repository.name,
            "author": repository.name.partition("/")[0],
            "sha": oid,
            "lastModified": commits[0]["date"],
            "createdAt": commits[-1]["date"],
            "private": repository.state["private"],
            "gated": repository.state["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "cardData": card,
            "siblings": [
                {"rfilename": path}
                | ({"size": file["size"], "blobId": file["oid"]} if request.query_params.get("blobs") else {})
                for path, file in files.items()
            ],
        }
        if repository.kind == "model":
            said |= {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
        if repository.kind == "space":
            said["sdk"] = repository.state["sdk"]
        return JSONResponse(said)

    # Refs and commits

    def _refs(self, request: Request) -> Response:
        state = self._repository(request).state
        named = {
            kind: [
                {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in state[where].items()
            ]
            for kind, where in (("branches", "heads"), ("tags", "tags"))
        }
        return JSONResponse(named | {"converts": []})

    async def _add_ref(self, request: Request) -> Response:
        repository, asked = self._repository(request, writes=True), await request.json()
        revision = unquote(request.path_params["revision"])
        if request.path_params["ref"] == "branch":
            where, name, start = "heads", revision, asked.get("startingPoint") or "main"
        elif request.path_params["ref"] == "tag":
            where, name, start = "tags", asked["tag"], revision
        else:
            raise _refusal(404, "no such route")
        if name in repository.state[where]:
            raise _refusal(409, f"Reference {name} already exists")
        oid = repository.find(start)
        if oid is None:
            raise _refusal(404, "Invalid rev id", "RevisionNotFound")
        repository.update(**{where: repository.state[where] | {name: oid}})
        return JSONResponse({})

    async def _preupload(self, request: Request) -> Response:
        repository, asked = self._repository(request, writes=True), await request.json()
        there = repository.files(self._commit_of(request, repository))
        files = []
        for file in asked["files"]:
            large, known = is_large(file["path"], file["size"]), there.get(file["path"])
            said = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append(said | ({"oid": known["sha256" if known["large"] else "oid"]} if known else {}))
        return JSONResponse({"files": files})

    async def _commit(self, request: Request) -> Response:
        repository = self._repository(request, writes=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        branch = unquote(request.path_params["revision"])
        head = self._commit_of(request, repository)
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", head) != head:
            raise _refusal(412, "A commit has happened since. Please refresh and try again.")
        added, deleted = {}, []
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                added[value["path"]] = repository.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                try:
                    added[value["path"]] = repository.keep_large(value["oid"], value["size"])
                except FileNotFoundError:
                    raise _refusal(400, f"LFS object {value['oid']} was not sent") from None
            elif key in {"deletedFile", "deletedFolder"}:
                deleted.append(value["path"].rstrip("/") + ("/" if key == "deletedFolder" else ""))
        oid = repository.commit(branch, header["summary"], added, deleted, self._user(request))
        return JSONResponse(
            {"success": True, "commitOid": oid, "commitUrl": f"{_page(request, repository)}/commit/{oid}"}
        )

    # Files

    def _tree(self, request: Request) -> Response:
        repository = self._repository(request)
        files = repository.files(self._commit_of(request, repository))
        start = request.path_params.get("path", "")
        start = f"{start}/" if start else ""
        inside = {path: file for path, file in files.items() if path.startswith(start)}
        if not inside:
            raise _refusal(404, "Entry not found", "EntryNotFound")
        entries = {}
        deep = request.query_params.get("recursive", "").lower() == "true"
        for path, file in inside.items():
            folders = path[len(start) :].split("/")[:-1]
            for depth in range(1, (len(folders) if deep else min(1, len(folders))) + 1):
                folder = start + "/".join(folders[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": file["oid"], "size": 0}
            if deep or not folders:
                entries[path] = _entry(path, file)
        return JSONResponse([entries[path] for path in sorted(entries)])

    async def _paths(self, request: Request) -> Response:
        repository = self._repository(request)
        files = repository.files(self._commit_of(request, repository))
        kind = request.headers.get("content-type", "")
        asked = await request.json() if "json" in kind else {"paths": (await request.form()).getlist("paths")}
        said = []
        for path in asked["paths"]:
            if path in files:
                said.append(_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                said.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return JSONResponse(said)

    def _file(self, request: Request) -> Response:
        repository = self._repository(request)
        oid = self._commit_of(request, repository)
        file = repository.files(oid).get(request.path_params["path"])
        headers = {"X-Repo-Commit": oid}
        if file is None:
            raise _refusal(404, "Entry not found", "EntryNotFound", headers)
        if file["large"]:
            linked = {"X-Linked-ETag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
            location = {"Location": f"{_storage(request)}/lfs/{file['sha256']}?signature=secret"}
            return Response(status_code=302, headers=headers | linked | location)
        return self._content(request, file["sha256"], headers | {"ETag": f'"{file["oid"]}"'})

    async def _large(self, request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        if request.method != "PUT":
            return self._content(request, sha256, {"ETag": f'"{sha256}"'})
        content = await request.body()
        kept = Repository(self.root, "model", "").keep(content)
        if kept["sha256"] != sha256:
            raise _refusal(400, "The content is not what its hash says")
        return Response()

    def _content(self, request: Request, sha256: str, headers: dict) -> Response:
        file = self.root / "blobs" / sha256
        if not file.is_file():
            raise _refusal(404, "Entry not found", "EntryNotFound")
        content, kind = file.read_bytes(), "application/octet-stream"
        headers = headers | {"Accept-Ranges": "bytes"}
        if "range" not in request.headers:
            return Response(content, headers=headers, media_type=kind)
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Response(content[start : end + 1], 206, headers, kind)

    async def _batch(self, request: Request) -> Response:
        self._repository(request, writes=True)
        objects = []
        for each in (await request.json())["objects"]:
            verify = f"{request.base_url}lfs/{each['oid']}/verify"
            actions = {"upload": {"href": f"{_storage(request)}/lfs/{each['oid']}"}, "verify": {"href": verify}}
            there = (self.root / "blobs" / each["oid"]).is_file()
            objects.append(each | ({} if there else {"actions": actions}))
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _verify(self, request: Request) -> Response:
        asked, file = await request.json(), self.root / "blobs" / request.path_params["sha256"]
        whole = file.is_file() and file.stat().st_size == asked["size"]
        return JSONResponse({}, 200 if whole else 404)


def _refusal(status: int, message: str, code: str = "", headers: dict | None = None) -> HTTPException:
    told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return HTTPException(status, message, told | (headers or {}))


def _page(request: Request, repository: Repository) -> str:
    return f"{request.base_url}{'' if repository.kind == 'model' else repository.kind + 's/'}{repository.name}"


def _storage(request: Request) -> str:
    """The address of what keeps large files: another host, which is to get no token."""
    return f"http://localhost:{request.url.port}"


def _front_matter(text: str) -> dict:
    found = re.match(r"\s*---\n(.*?)\n---", text, re.DOTALL)
    return (yaml.safe_load(found[1]) if found else None) or {}


def _entry(path: str, file: dict) -> dict:
    said = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
    large = {"oid": file["sha256"], "size": file["size"], "pointerSize": 130}
    return said | ({"lfs": large} if file["large"] else {})
