"""The verb demo: the page on this machine; with no model, the whole way on the phantom first.

chest-opacity demo
chest-opacity demo models/default
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import numpy as np

import space
from training.cli import Parser, run

PHANTOM_MODEL = Path("models/phantom")
UNKNOWN = Path("eval/unknown.csv")  # the last that is made of it


def make_phantom_model(folder: Path) -> None:
    """Train on the phantom, evaluate at home and away, predict the unknown images: the study from end to end."""
    # Slow to import, and not needed when the model is there.
    from space.predictor import Predictor
    from space.rows import columns_of
    from training import predict, train
    from training.arguments import RECIPES
    from training.inputs import Input
    from training.predictions import Predictions
    from training.sources import UNLABELLED, load_data, phantom_folder

    if not folder.exists():
        train.main([str(RECIPES / "phantom.yaml"), "--output_dir", str(folder)])
    rows = load_data("phantom")
    rows = rows.select(np.flatnonzero(np.asarray(rows["label"]) == UNLABELLED))
    inputs = (
        Input(path, phantom_folder() / path, group) for path, group in zip(rows["path"], rows["group"], strict=True)
    )
    predictor = Predictor(folder, bulk=True)
    with Predictions(folder / UNKNOWN, {}, columns_of(predictor.labels), overwrite=True) as table:
        counts = predict.write_predictions(table, inputs, lambda rest: predict.predict(predictor, rest))
        table.finish()
        print(f"\nunknown images\n{predict.summary(table, counts)}")
        table.forget()


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity demo", description="Serve the page on this machine.")
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"a model folder or Hub id; without one {PHANTOM_MODEL}, which is made first when it is not there",
    )
    parser.add_mode()
    parser.add_argument(
        "--share",
        action="store_true",
        help="give the page a public address too, for some days; its card may name some of your images and folders",
    )
    args = parser.parse_args(argv)
    if args.model is None and not (PHANTOM_MODEL / UNKNOWN).exists():
        make_phantom_model(PHANTOM_MODEL)
    os.environ["MODEL_ID"] = str(args.model or PHANTOM_MODEL)
    os.environ |= {"RUNTIME": args.runtime, "PRECISION": args.precision}
    if args.share:
        os.environ["GRADIO_SHARE"] = "True"
    runpy.run_path(str(Path(space.__file__).parent / "app.py"), run_name="__main__")


if __name__ == "__main__":
    run(main)
