"""An archive that is too large for the verb predict on one machine: the same model on Ray Data, on any number of them.

pip install "ray[data]"
python training/recipes/ray_predict.py models/phantom /archive predictions/ --workers 16

Each worker holds one model and classifies the files of a block; the rows become Parquet files in the folder. Files must
lie where every machine sees them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray

from space.predictor import Predictor
from training.inputs import Input, find_inputs
from training.predict import predict


class Classifier:
    """What a worker holds: the rows for a batch of inputs."""

    def __init__(self, model: str, runtime: str, precision: str):
        self.predictor = Predictor(model, runtime, precision, bulk=True)

    def __call__(self, batch: dict) -> dict:
        inputs = (Input(path, Path(path), group) for path, group in zip(batch["path"], batch["group"], strict=True))
        rows = list(predict(self.predictor, inputs))
        return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("path", help="a folder, pattern or table of files; no archive")
    parser.add_argument("output")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2, help="of each worker")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args()
    found = [{"path": str(Path(each.path).resolve()), "group": each.group} for each in find_inputs([args.path])]
    rows = ray.data.from_items(found).map_batches(
        Classifier,
        fn_constructor_args=(args.model, args.runtime, args.precision),
        batch_size=256,
        concurrency=args.workers,
        num_cpus=args.cores,
    )
    rows.write_parquet(args.output)
    print(ray.data.read_parquet(args.output).groupby("prediction").count().to_pandas().to_string(index=False))


if __name__ == "__main__":
    main()
