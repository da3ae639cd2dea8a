"""From which images a model abstains: other data sets, and pictures that show no chest.

python tests/benchmarks/abstention.py models/lus --like ../shared/data/lus --unlike ../shared/data/cxr

Of --like, other sites say how much of a different hospital is accepted; images that were trained on are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from space.predictor import Predictor
from tests.images import strange_pictures
from training.measure import predict_rows
from training.sources import load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--like", required=True, help="DATA of the same kind")
parser.add_argument("--unlike", nargs="*", default=[], help="DATA of another kind")
args = parser.parse_args()

predictor = Predictor(args.model)
split = pd.read_csv(args.model / "split.csv", dtype=str)
rows = load_data(args.like, predictor.labels)
trained = set(split["path"][split["split"] == "train"])
rows = rows.select([n for n, path in enumerate(rows["path"]) if path not in trained and rows["label"][n] >= 0])
table = predict_rows(predictor, rows)
like = {f"{args.like}, {site}": part["distance"].to_numpy() for site, part in table.groupby("site")}
unlike = {data: predict_rows(predictor, load_data(data, predictor.labels))["distance"] for data in args.unlike}
for name, pictures in strange_pictures().items():
    unlike[name] = np.array([predictor.answer([picture])[0].distance for picture in pictures])
for kind, found in (("like", like), ("unlike", unlike)):
    for name, distances in found.items():
        print(f"{kind:7} {name:45} {len(distances):5} images, abstains from {100 * (distances > 1).mean():5.1f} %")
both = [np.concatenate(list(found.values())) for found in (like, unlike)]
auc = roc_auc_score(np.repeat([0, 1], [len(each) for each in both]), np.concatenate(both))
print(f"AUC of telling them apart: {auc:.4f}")
