"""The page's API over plain HTTP, as any program would use it."""

from __future__ import annotations

import json

import httpx


def ask(address: str, name: str, data: bytes, api: str = "predict", **more) -> list:
    """Upload a file and ask /predict or /predict_batch over plain HTTP; raises ValueError with what is refused."""
    with httpx.Client(base_url=f"{address}/gradio_api", timeout=60, verify=False) as http:  # or it reads certificates
        path = http.post("/upload", files={"files": (name, data)}).raise_for_status().json()[0]
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        given = [file, "", ""] if api == "predict" else [[file]]
        event = http.post(f"/call/{api}", json={"data": given}).raise_for_status().json()["event_id"]
        kind, answer = http.get(f"/call/{api}/{event}").text.strip().split("\n")[-2:]
    if kind != "event: complete":
        raise ValueError(answer)
    return json.loads(answer.removeprefix("data: "))
