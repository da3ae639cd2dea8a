"""How the page is served: what browsers are told to allow, and where uploads lie for a while."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    import gradio as gr

KEPT = 600  # seconds, the most that an upload lies on the disk unused; it is deleted by then, or as the server ends
SWEPT = 60  # seconds between two looks for what would be older at the next
UPLOADING: list[float] = []  # when each upload that is still coming began, in seconds of time.time

HEADERS = {
    # gradio's own page has scripts and styles in it and makes functions from text; everything comes from this server.
    # A Space is shown in a frame of huggingface.co.
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'self' https://huggingface.co https://*.hf.space",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
}


class Headers:
    """Adds HEADERS to every answer, and keeps UPLOADING."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"].endswith("/gradio_api/upload"):
            began = time.time() - 1  # the clock of files may be a little behind
            UPLOADING.append(began)
            try:
                await self.app(scope, receive, told)
            finally:
                UPLOADING.remove(began)
        else:
            await self.app(scope, receive, told)


def keep_uploads_private() -> None:
    """Have gradio, which is still to be imported, put uploads into a new folder that nobody else can read.

    It is removed when the server ends. Where GRADIO_TEMP_DIR names a folder, it is made in there.
    """
    above = os.environ.get("GRADIO_TEMP_DIR") or None
    if above:
        os.makedirs(above, exist_ok=True)
    folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="chest-opacity-", dir=above)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def fetch_nothing() -> None:
    """Have gradio refuse addresses in place of files; it would fetch what is there from other servers. That of a file
    that was uploaded here is taken, for so agents give files."""
    import gradio as gr
    from gradio import processing_utils, routes

    async def refuse(url: str):
        raise gr.Error("nothing is fetched from other servers: give the file itself", print_exception=False)

    async def take(url: str, cache_dir: str) -> str:
        path = unquote(url.partition("/gradio_api/file=")[2])
        return path if path and is_upload(path) else await refuse(url)

    async def forbid(url: str, request: Request):
        raise HTTPException(403)

    processing_utils.async_ssrf_protected_get = refuse
    processing_utils.async_ssrf_protected_download = take
    routes.secure_url_stream_response = forbid


def keep_from_agents(blocks: gr.Blocks, *endpoints: str) -> None:
    """Have a launched page offer agents none of these: gradio offers all, and cannot take lists of files from them."""
    tools = blocks.mcp_server_obj
    tools.tool_to_endpoint = {name: to for name, to in tools.tool_to_endpoint.items() if to not in endpoints}


def is_upload(path: str) -> bool:
    """Whether a path that a browser names is that of an upload, or an example, that is still there."""
    try:
        file = Path(path).resolve()
    except ValueError:  # of a NUL, which no name can hold
        return False
    return file.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()) and file.is_file()


def renew(uploads: Iterable[str]) -> None:
    """Have the paths that are still there lie for up to KEPT seconds from now on."""
    for path in uploads:
        with contextlib.suppress(OSError):
            os.utime(path)


def keep_no_pictures() -> None:
    """Have gradio keep nothing of what the page shows; it would, and write it to the disk for anybody who asks for a
    link to it."""
    from gradio.state_holder import SessionState

    SessionState._update_value_in_config = lambda *value: None


def sweep(blocks: gr.Blocks) -> None:
    """From a thread of its own, look every SWEPT seconds for what is to be deleted.

    gradio's delete_cache would do part of it, but ends for good when an upload comes while it looks through its list.
    """
    folder = os.environ["GRADIO_TEMP_DIR"]

    def forever() -> None:
        while True:
            time.sleep(SWEPT)
            look(blocks, folder, time.time())

    threading.Thread(target=forever, daemon=True, name="sweep").start()


def look(blocks: gr.Blocks, folder: str, now: float) -> None:
    """Delete from a folder the uploads that would be too old by the next look, unless they are still coming, what is
    made of them, and empty folders; and have gradio keep the image of a closed page no longer than that of an open one.
    """
    for session in list(blocks.state_holder.session_data.values()):
        session.STATE_TTL_WHEN_CLOSED = KEPT
    for listed in blocks.temp_file_sets:
        listed.clear()  # only delete_cache reads it, and it would grow
    kept = set().union(*(block.keep_in_cache for block in blocks.blocks.values()))
    for above, folders, files in os.walk(folder, topdown=False):
        last = now + SWEPT - KEPT
        if above == folder:  # the first files of an upload lie there until its last has come
            last = min([last, *UPLOADING])
        for path in (os.path.join(above, name) for name in files + folders):
            with contextlib.suppress(OSError):  # a folder is not empty
                if path not in kept and os.lstat(path).st_ctime < last:
                    os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def settings() -> dict:
    """For gradio.Blocks.launch, which changes what it is given."""
    return {
        "app_kwargs": {"middleware": [Middleware(Headers)]},
        "max_file_size": "200mb",
        "ssr_mode": False,
        "strict_cors": True,
        "run_history": False,  # it would keep what was uploaded in the browser
        "enable_monitoring": False,
        "pwa": False,
        "state_session_capacity": 100,
    }
