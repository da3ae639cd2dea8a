"""An audit as one printed page, and as one self-contained HTML page with pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from space.errors import InputError

SHOWN = 24  # pictures of a kind at the most
SIDE = 200  # pixels of a picture on the page

LookUp = Callable[[str, str], Image.Image]  # data, path -> the image; raises InputError when it cannot be read


def summary(report: dict) -> str:
    """The audit in words and tables."""
    lines = []
    for name, data in report["data"].items():
        joined = data["groups_with_copies_joined"]
        largest = ", ".join(f"{group} ({count})" for group, count in data["largest_groups"].items())
        lines += [f"{name}: {data['images']} images in {data['groups']} groups ({data['groups_are']})"]
        lines += [f"largest groups: {largest}", ""]
        lines += [pd.DataFrame(data["sites"]).T.fillna(0).astype(int).rename_axis("site").to_string(), ""]
        if joined < data["groups"]:
            lines += [f"copies join them to {joined} groups", ""]
    counts = pd.DataFrame({kind: report["duplicates"][kind] for kind in ("exact", "near")}).T
    lines += ["copies (pairs)", counts.rename(columns=lambda name: name.replace("_", " ")).to_string(), ""]
    for name, confounds in report["confounds"].items():
        if confounds:
            lines += [f"{name}: can the label be told without looking at the anatomy?", _confounds(confounds), ""]
    lines += [f"leak: {leak}" for leak in report["leaks"]] or ["no leak between parts or data sets"]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)


def brief(report: dict, leaks: list[str]) -> str:
    """What a training run says of its data: copies, leaks between its parts, warnings."""
    counts = report["duplicates"]
    lines = [
        f"audit: {counts['exact']['pairs']} pairs of exact and {counts['near']['pairs']} of near copies, "
        f"{counts['exact']['across_groups'] + counts['near']['across_groups']} of them across groups"
    ]
    lines += [f"leak: {leak}" for leak in leaks] or ["no leak between parts"]
    return "\n".join(lines + [f"warning: {warning}" for warning in report["warnings"]])


def _confounds(confounds: list[dict]) -> str:
    table = pd.DataFrame(
        [
            {
                **({"class": found["label"]} if found["label"] else {}),
                "told by": found["feature"],
                "AUC": f"{found['auc']:.3f}",
                "95 % interval": f"{found['ci95'][0]:.3f} - {found['ci95'][1]:.3f}" if found["ci95"] else "-",
                "strongest": found["strongest"],
                "": "suspicious" if found["suspicious"] else "",
            }
            for found in confounds
        ]
    )
    return table.to_string(index=False)


def write_page(file: Path, report: dict, look_up: LookUp) -> None:
    """Write audit.html: what `summary` says, with pictures of copies, odd files and doubtful labels."""

    def picture(image: dict) -> str | None:
        try:
            shown = look_up(image["data"], image["path"]).copy()
        except InputError:
            return None
        shown.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=85)
        return base64.b64encode(buffer.getvalue()).decode()

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["sum_of_values"] = lambda counts: sum(counts.values())
    page = environment.get_template("audit.html").render(report=report, picture=picture, shown=SHOWN)
    file.write_text(page)
