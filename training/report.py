"""The trust report: report.html of a model folder, one self-contained page to read or to print."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from training import plots
from training.card import gather
from training.outputs import new_file

TEMPLATES = Path(__file__).parent


def write_report(folder: Path) -> None:
    """Render report.html from the files of a model folder, its pictures inside, and eval/comparison.png.

    Of a model that comes from the Hub those pictures may not be there that show images of its data.
    A page without real images says so, by <meta name="synthetic" content="yes">.
    """
    told = gather(folder)
    plots.save(folder / "eval" / "comparison.png", plots.comparison(told["evaluations"], told["labels"]))

    def picture(name: str) -> str | None:
        file = folder / "eval" / f"{name}.png"
        return base64.b64encode(file.read_bytes()).decode() if file.is_file() else None

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(picture=picture, of_a_hundred=of_a_hundred, **told)
    with new_file(folder / "report.html") as file:
        file.write_text(page)


def of_a_hundred(evaluation: dict, metric: str) -> str:
    """A share with its interval in words, such as "93 (85 to 98) of 100"."""
    if evaluation[metric] is None:
        return "an unknown number of 100"
    low, high = evaluation["ci95"][metric]
    return f"{100 * evaluation[metric]:.0f} ({100 * low:.0f} to {100 * high:.0f}) of 100"
