"""A model folder or Hub model, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from space import mlp_head  # noqa: F401  so that a model with that head loads without its own copy of the code
from space.abstention import Abstention, stage_features
from space.errors import InputError
from space.images import load_image
from space.saliency import class_maps, methods_for, pooled_features, saliency_maps

FILES = ["*.json", "*.safetensors"]  # of a Hub model
LEAST = 1e-12  # probability whose logarithm is taken
BATCH = 8  # images that go through the network together; larger ones outgrow a processor's caches


class Answer(NamedTuple):
    """What the model says of one image.

    probabilities: (classes,), float64, they sum to 1. distance: how unlike the training images it is, in units of the
    largest distance that is accepted; NaN when the model does not know. saliency: (rows, columns), what speaks for a
    class; None unless asked for.
    """

    probabilities: np.ndarray
    distance: float
    saliency: np.ndarray | None = None

    @property
    def abstained(self) -> bool:
        """Whether the image is too unlike the training images for an answer that can be relied on."""
        return self.distance > 1


class Predictor:
    """Classifies images exactly as `pipeline("image-classification")` does, and decides by the stored threshold.

    labels: the names of the classes by index; the last one is the positive one.
    threshold: with two classes, the least probability of the positive one that is called positive (config.json).
    methods: of `space.saliency`, those that the network allows, the best one first.
    """

    def __init__(self, model_id: str | Path):
        """Load from a folder, or from the Hub by its id. Raises InputError when neither gives an image classifier."""
        logging.disable_progress_bar()
        try:
            folder = model_id
            if not Path(model_id).is_dir():  # one commit's files, and those of the cache when the Hub does not answer
                folder = snapshot_download(str(model_id), allow_patterns=FILES, ignore_patterns="*/*")
            self.processor = AutoImageProcessor.from_pretrained(folder)
            self.model = AutoModelForImageClassification.from_pretrained(folder).eval()
        except (HTTPError, OSError, ValueError) as error:
            reason = (getattr(error, "server_message", None) or str(error)).strip().split("\n")[0]
            raise InputError(
                f"{model_id}: found no image classifier there (config.json, model.safetensors, "
                f"preprocessor_config.json); give a model folder or a Hub id ({reason})"
            ) from None
        finally:
            logging.enable_progress_bar()
        self.abstention = Abstention.load(folder)
        self.model.to(_device(), memory_format=torch.channels_last)  # faster convolutions, the same sums
        config = self.model.config
        self.labels = [config.id2label[index] for index in range(config.num_labels)]
        self.threshold = float(getattr(config, "threshold", 0.5))
        self.methods = methods_for(self.model)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess RGB images: float32, (images, 3, height, width), where the model is."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.model.device)

    def answer(
        self, images: Sequence[Image.Image], method: str | None = None, label: int | None = None
    ) -> list[Answer]:
        """Classify RGB images and, by one of `methods` when it is given, show what speaks for a class.

        label: the class's index; by default that which the image is called.
        """
        pixels = self.pixel_values(images)
        logits, features, maps = self.look(pixels)
        probabilities = logits.cpu().double().softmax(dim=-1).numpy()
        distances = self.abstention.distances(features) if self.abstention else np.full(len(images), np.nan)
        shown = [None] * len(images)
        if method is not None:
            called = self.decide(probabilities) if label is None else np.full(len(images), label)
            classes = torch.from_numpy(called).to(pixels.device)
            chosen = torch.arange(len(images))
            maps = maps[chosen, classes] if method == "cam" else saliency_maps(self.model, pixels, classes, method)
            shown = maps.float().cpu().numpy()
        return [Answer(*row) for row in zip(probabilities, distances.tolist(), shown, strict=True)]

    def look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[np.ndarray], torch.Tensor | None]:
        """One forward pass: logits (images, classes), stage features, and class activation maps where there are any."""
        with torch.inference_mode(), pooled_features(self.model) as pooled:
            seen = self.model(pixel_values=pixels, output_hidden_states=True)
            maps = class_maps(self.model, pooled[0]) if "cam" in self.methods else None
        return seen.logits, stage_features(seen.hidden_states), maps

    def stream(self, sources: Iterable[str | Path | bytes | dict]) -> Iterator[Answer | InputError]:
        """Predict files of any number in order: what the model says of each, or why it cannot be read."""
        sources = iter(sources)
        with ThreadPoolExecutor() as pool:
            while batch := list(islice(sources, BATCH)):
                decoded = list(pool.map(_load_or_reason, batch))
                images = [image for image in decoded if isinstance(image, Image.Image)]
                rows = iter(self.answer(images) if images else ())
                yield from (next(rows) if isinstance(image, Image.Image) else image for image in decoded)

    def pool(self, answers: Sequence[Answer]) -> Answer:
        """The answer for a clip or patient from those for its frames: the mean of their logits, the median distance."""
        logits = np.log(np.maximum([answer.probabilities for answer in answers], LEAST)).mean(axis=0)
        probabilities = np.exp(logits - logits.max())
        return Answer(probabilities / probabilities.sum(), float(np.median([answer.distance for answer in answers])))

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
