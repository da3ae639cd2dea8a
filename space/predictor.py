"""A model folder or Hub model, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from space import mlp_head  # noqa: F401  so that a model with that head loads without its own copy of the code
from space.errors import InputError
from space.images import load_image
from space.saliency import class_activation_maps, linear_head

BATCH = 8  # images that go through the network together; larger ones outgrow a processor's caches


class Predictor:
    """Classifies images exactly as `pipeline("image-classification")` does, and decides by the stored threshold.

    labels: the names of the classes by index; the last one is the positive one.
    threshold: with two classes, the least probability of the positive one that is called positive (config.json).
    """

    def __init__(self, model_id: str | Path):
        """Load from a folder, or from the Hub by its id. Raises InputError when neither gives an image classifier."""
        logging.disable_progress_bar()
        try:
            self.processor = AutoImageProcessor.from_pretrained(model_id)
            self.model = AutoModelForImageClassification.from_pretrained(model_id).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"{model_id}: found no image classifier there (config.json, model.safetensors, "
                f"preprocessor_config.json); give a model folder or a Hub id ({reason})"
            ) from None
        finally:
            logging.enable_progress_bar()
        self.model.to(_device(), memory_format=torch.channels_last)  # faster convolutions, the same sums
        config = self.model.config
        self.labels = [config.id2label[index] for index in range(config.num_labels)]
        self.threshold = float(getattr(config, "threshold", 0.5))

    @property
    def explains(self) -> bool:
        """Whether the model's head allows class activation maps."""
        return linear_head(self.model) is not None

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess RGB images: float32, (images, 3, height, width), where the model is."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.model.device)

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Predict RGB images: (images, classes), float64, each row sums to 1."""
        with torch.inference_mode():
            logits = self.model(pixel_values=self.pixel_values(images)).logits
        return _softmax(logits)

    def explain(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        """Predict RGB images and show where: probabilities and, per class, a map (images, classes, rows, columns)."""
        logits, maps = class_activation_maps(self.model, self.pixel_values(images))
        return _softmax(logits), maps.cpu().numpy()

    def stream(self, sources: Iterable[str | Path | bytes | dict]) -> Iterator[np.ndarray | InputError]:
        """Predict files of any number in order: the probabilities (classes,) of each, or why it cannot be read."""
        sources = iter(sources)
        with ThreadPoolExecutor() as pool:
            while batch := list(islice(sources, BATCH)):
                decoded = list(pool.map(_load_or_reason, batch))
                images = [image for image in decoded if isinstance(image, Image.Image)]
                rows = iter(self.probabilities(images) if images else ())
                yield from (next(rows) if isinstance(image, Image.Image) else image for image in decoded)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Class indices of (images, classes): by the threshold with two classes, else by the greatest probability."""
        if probabilities.shape[1] == 2:
            return (probabilities[:, 1] >= self.threshold).astype(int)
        return probabilities.argmax(axis=1)


def _load_or_reason(source) -> Image.Image | InputError:
    try:
        return load_image(source)
    except InputError as reason:
        return reason


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.cpu().double().softmax(dim=-1).numpy()
