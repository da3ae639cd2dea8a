"""Is an image like those that the model was trained on? If not, the model abstains.

Each stage of the network sees an image as channels; averaged over the picture they are one point, and the points of
the training images make a cloud. Its shape, probabilistic principal components (Tipping and Bishop, J. R. Stat. Soc. B
1999), gives the Mahalanobis distance of a new point (Lee et al., A simple unified framework for detecting
out-of-distribution samples, NeurIPS 2018). Distances of all stages are averaged, each in units of its usual size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

FILE = "abstention.safetensors"  # of the weights in float32
AXES = 32  # principal axes that are kept of each stage
LEAST = 0.05  # of the mean spread of a stage's channels: one that is hardly ever active is not to decide alone
LIMIT = 3.0  # usual distances from which on an image is unlike the training images
MOST = 6.0  # the same where the validation images lie further apart; what is beyond is unlike whatever they are


def stage_features(hidden_states: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Channels of each stage averaged over the picture, on a logarithmic scale: (images, channels) each.

    hidden_states: (images, channels, rows, columns) of convolutional networks, (images, tokens, channels) of others.
    """
    means = [state.float().mean(dim=(2, 3) if state.ndim == 4 else 1) for state in hidden_states]
    return [mean.sign() * mean.abs().log1p() for mean in means]


def file_of(mode: str) -> str:
    """The file for a way to compute that moves features by more than they differ among images, such as onnx_int8."""
    return f"abstention_{mode}.safetensors"


class Abstention:
    """The clouds of all stages: for each mean, scale (channels,), axes (AXES, channels), variance, rest, usual."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = dict(tensors)

    @classmethod
    def fit(cls, train: list[np.ndarray], validation: list[np.ndarray]) -> Abstention:
        """From the stage features of train and validation images, lists of (images, channels).

        The usual distance is the median of the validation images, which were not fitted to; the limit is LIMIT times
        that, and more where the furthest of them has more, up to MOST: one odd image is not to let everything pass.
        """
        tensors = {}
        for stage, points in enumerate(train):
            mean, scale = points.mean(axis=0), points.std(axis=0)
            scale = np.maximum(scale, LEAST * scale.mean() + 1e-6)
            _, values, axes = np.linalg.svd((points - mean) / scale, full_matrices=False)
            variance = values**2 / len(points)
            kept = max(1, min(AXES, len(points) // 4))
            rest = max(variance[kept:].sum() / max(points.shape[1] - kept, 1), 1e-3)
            cloud = {"mean": mean, "scale": scale, "axes": axes[:kept], "variance": np.maximum(variance[:kept], rest)}
            cloud |= {"rest": np.array([rest]), "usual": np.ones(1)}
            tensors |= {f"{stage}.{name}": value.astype(np.float32) for name, value in cloud.items()}
        found = cls(tensors | {"limit": np.ones(1, np.float32)})
        for stage, points in enumerate(validation):
            usual = max(np.median(found._distance(stage, points)), 1e-6)  # 0: a stage that is never active
            found.tensors[f"{stage}.usual"] = np.array([usual], np.float32)
        furthest = found.distances(validation).max()
        found.tensors["limit"] = np.array([np.clip(furthest, LIMIT, MOST)], np.float32)
        return found

    @classmethod
    def load(cls, folder: str | Path, mode: str = "") -> Abstention | None:
        """What lies in a model folder; None where nothing does. mode: of `space.runtimes`, that has perhaps its own."""
        files = (Path(folder) / name for name in (file_of(mode), FILE))
        return next((cls(load_file(path)) for path in files if path.is_file()), None)

    def distances(self, features: list[np.ndarray]) -> np.ndarray:
        """Of stage features: (images,), in units of the largest distance that is accepted."""
        units = [self._distance(stage, points) for stage, points in enumerate(features)]
        return np.mean(units, axis=0) / self.tensors["limit"][0]

    def _distance(self, stage: int, points: np.ndarray) -> np.ndarray:
        mean, scale, axes, variance, rest, usual = (
            self.tensors[f"{stage}.{name}"] for name in ("mean", "scale", "axes", "variance", "rest", "usual")
        )
        points = (points - mean) / scale
        along = points @ axes.T
        beside = np.maximum((points**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.sqrt((along**2 / variance).sum(axis=1) + beside / rest[0]) / usual[0]
