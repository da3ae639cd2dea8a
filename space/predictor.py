"""A model folder or Hub model, ready to predict."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from space import mlp_head  # noqa: F401  so that a model with that head loads without its own copy of the code
from space.abstention import Abstention
from space.clips import load_frames
from space.errors import InputError, reason_of
from space.runtimes import (
    Network,
    check_mode,
    cores,
    exported_files,
    load_runtime,
    require_exported,
    threads_for,
)
from space.saliency import methods_for, placed, saliency_maps

FILES = ["*.json", "*.safetensors"]  # of a Hub model
LEAST = 1e-12  # probability whose logarithm is taken
BATCH = 8  # images that go through the network together; larger ones outgrow a processor's caches
GPU_BATCH, GPU_FEEDERS = 32, 4  # on an accelerator; more threads that decode for it hold each other up
Source = str | Path | bytes | dict


class Answer(NamedTuple):
    """What the model says of one image.

    probabilities: (classes,), float64, they sum to 1. distance: how unlike the training images it is, in units of the
    largest distance that is accepted; NaN when the model does not know. saliency: (rows, columns) over the whole image,
    what speaks for a class; None unless asked for.
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
    folder: where it was loaded from.
    methods: of `space.saliency`, those that the network allows, the best one first.
    run: the network, as one of `space.runtimes`.
    """

    def __init__(self, model_id: str | Path, runtime: str = "torch", precision: str = "float32", bulk: bool = False):
        """Load from a folder, or from the Hub by its id. Raises InputError when neither gives an image classifier, or
        when one needs a package that is not installed.

        runtime, precision: a mode of `space.runtimes.PRECISIONS`; others than torch run what was exported into the
        folder. bulk: they are for `stream`, where every core takes images of its own, and not for single ones.
        """
        check_mode(runtime, precision)
        logging.disable_progress_bar()
        try:
            folder = model_id
            if not Path(model_id).is_dir():  # one commit's files, and those of the cache when the Hub does not answer
                patterns = FILES + exported_files(runtime, precision)
                folder = snapshot_download(str(model_id), allow_patterns=patterns, ignore_patterns="*/*")
            file = {"image_processor_filename": IMAGE_PROCESSOR_NAME}  # for timm's, it would make one of config.json
            self.processor = AutoImageProcessor.from_pretrained(folder, **file)
            model, loaded = AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            self.model, self.folder = model.eval(), Path(folder)
            self.abstention = Abstention.load(folder, f"{runtime}_{precision}")
            self.threshold = float(getattr(model.config, "threshold", 0.5))
            if lacking := sorted(loaded["missing_keys"]):
                raise ValueError(f"its weights lack {lacking[0]}, for which chance would stand in")
        except ImportError as error:
            reason = reason_of(error).partition(". ")[0]
            raise InputError(
                f"{model_id}: its network needs a package that is not installed ({reason}); install it with pip"
            ) from None
        except (HTTPError, OSError, ValueError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
            reason = (getattr(error, "server_message", None) or str(error)).strip().split("\n")[0]
            raise InputError(
                f"{model_id}: found no image classifier there (config.json, model.safetensors, "
                f"preprocessor_config.json); give a model folder or a Hub id ({reason})"
            ) from None
        finally:
            logging.enable_progress_bar()
        require_exported(runtime, precision, self.folder, model_id)
        config = self.model.config
        if config.num_labels < 2 or config.problem_type not in {None, "single_label_classification"}:
            raise InputError(
                f"{model_id}: has num_labels {config.num_labels} and problem_type {config.problem_type}; "
                "expected a model that chooses one of two or more classes"
            )
        if (channels := getattr(config, "num_channels", 3)) != 3:
            raise InputError(f"{model_id}: has num_channels {channels}; expected a model of images in colour")
        device = _device()
        self.model.to(device, memory_format=torch.channels_last)
        network = Network(self.model, self.processor).eval().to(device)
        probe = [Image.radial_gradient("L").convert("RGB")]
        scaled = torch.from_numpy(self.pixels(probe)).to(device) * network.scale - network.shift
        if not np.allclose(scaled.cpu(), self.pixel_values(probe).cpu(), atol=1e-3):
            raise InputError(
                f"{model_id}: its {type(self.processor).__name__} does more to the pixels than rescale_factor, "
                "image_mean and image_std say; expected a model whose image processor does that alone"
            )
        self.run = load_runtime(runtime, precision, self.folder, network, bulk)
        on_processor = device.type == "cpu" or runtime != "torch"  # as all runs that was exported
        self._turn = nullcontext() if on_processor else threading.Lock()  # an accelerator does one at a time
        self._batch, self._feeders = (BATCH, cores()) if on_processor else (GPU_BATCH, min(GPU_FEEDERS, cores()))
        self.labels = [config.id2label[index] for index in range(config.num_labels)]
        self.methods = methods_for(self.model)
        self._cuts = not np.allclose(self._seen((600, 400)), (0, 0, 1, 1), atol=0.01)

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Preprocess RGB images: float32, (images, 3, height, width), where the model is."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.model.device)

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB images at the size of the network's input, as `run` takes them: uint8, (images, 3, height, width)."""
        return self.processor(list(images), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]

    def _seen(self, size: tuple[int, int]) -> np.ndarray:
        """Which part of an image of `size` (width, height) the processor gives to the network, for some cut off what is
        at the border: left, top, right and bottom in shares of the image, found from where two ramps end."""
        across, down = (((np.arange(side) + 0.5) / side * 255).round() for side in size)
        ramps = np.zeros((len(down), len(across), 3), np.uint8)
        ramps[..., 0], ramps[..., 1] = across, down[:, None]
        columns, rows, _ = self.pixels([Image.fromarray(ramps)])[0] / 255
        ends = []
        for line in (columns.mean(axis=0), rows.mean(axis=1)):
            place = (np.arange(len(line)) + 0.5) / len(line)
            inner = abs(place - 0.5) <= 0.3  # scaling bends the ends of a ramp
            ends.append(np.polyval(np.polyfit(place[inner], line[inner], 1), (0, 1)).clip(0, 1))
        return np.transpose(ends).ravel()

    def answer(
        self, images: Sequence[Image.Image], method: str | None = None, label: int | None = None
    ) -> list[Answer]:
        """Classify RGB images and, by one of `methods` when it is given, show what speaks for a class.

        label: the class's index; by default that which the image is called.
        """
        logits, features, maps = self.look(images)
        probabilities = torch.from_numpy(logits).double().softmax(dim=-1).numpy()
        distances = self.abstention.distances(features) if self.abstention else np.full(len(images), np.nan)
        shown = [None] * len(images)
        if method is not None:
            called = self.decide(probabilities) if label is None else np.full(len(images), label)
            if method == "cam":
                shown = maps[np.arange(len(images)), called]
            else:
                pixels, classes = self.pixel_values(images), torch.from_numpy(called)
                with self._turn:
                    found = saliency_maps(self.model, pixels, classes.to(pixels.device), method)
                shown = found.float().cpu().numpy()
            if self._cuts:
                shown = [placed(each, self._seen(image.size)) for each, image in zip(shown, images, strict=True)]
        return [Answer(*row) for row in zip(probabilities, distances.tolist(), shown, strict=True)]

    def look(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
        """One forward pass: logits (images, classes), stage features, and class activation maps where there are any."""
        pixels = self.pixels(images)
        with self._turn:
            logits, *rest = self.run(pixels)
        return (logits, rest[:-1], rest[-1]) if "cam" in self.methods else (logits, rest, None)

    def stream(
        self,
        sources: Iterable[Source | InputError],
        method: str | None = None,
        show: Callable[[int, Image.Image, Answer], None] | None = None,
    ) -> Iterator[Answer | InputError]:
        """Predict files of any number in order: what the model says of each, or why it cannot be read.

        A clip, or a DICOM file of many frames, gets one answer for its evenly spaced frames. A reason among the sources
        comes back in its place. Every core decodes, scales and computes for itself, or a few feed an accelerator; no
        more than a few batches are ahead of the answers that were taken. show: called from several threads with each
        file's number from 0, its image, or the frame that is most surely what the clip is called, and what the model
        says of that by `method`.
        """
        workers = self._feeders if method in {None, "cam"} else 1  # the others listen to the passes of one thread
        sources, ahead = enumerate(sources), deque()
        with threads_for(workers) as pool:
            while True:
                while len(ahead) < 2 * workers and (batch := list(islice(sources, self._batch))):
                    ahead.append(pool.submit(self._answer_files, batch, method, show))
                if not ahead:
                    return
                yield from ahead.popleft().result()

    def _answer_files(
        self, sources: Sequence[tuple[int, Source | InputError]], method, show
    ) -> list[Answer | InputError]:
        """Answer files in order, whenever those that were read have a batch of frames: clips hold too many to wait."""
        told, files = [], []
        for number, source in sources:
            files.append((number, _frames_or_reason(source)))
            if sum(len(frames) for _, frames in files if isinstance(frames, list)) >= self._batch:
                told += self._answer_frames(files, method, show)
                files = []
        return told + self._answer_frames(files, method, show)

    def _answer_frames(
        self, files: Sequence[tuple[int, list[Image.Image] | InputError]], method, show
    ) -> list[Answer | InputError]:
        images = [image for _, frames in files if isinstance(frames, list) for image in frames]
        batches = (images[first : first + self._batch] for first in range(0, len(images), self._batch))
        answers = iter([answer for batch in batches for answer in self.answer(batch, method)])
        told = []
        for number, frames in files:
            if isinstance(frames, InputError):
                told.append(frames)
                continue
            each = list(islice(answers, len(frames)))
            told.append(each[0] if len(each) == 1 else self.pool(each))
            if show:
                surest = self.surest(each)
                show(number, frames[surest], each[surest])
        return told

    def pool(self, answers: Sequence[Answer]) -> Answer:
        """The answer for a clip or patient from those for its frames: the mean of their logits, the median distance."""
        logits = np.log(np.maximum([answer.probabilities for answer in answers], LEAST)).mean(axis=0)
        probabilities = np.exp(logits - logits.max())
        return Answer(probabilities / probabilities.sum(), float(np.median([answer.distance for answer in answers])))

    def surest(self, answers: Sequence[Answer]) -> int:
        """Which frame of a clip is most surely what the clip is called."""
        called = self.decide(self.pool(answers).probabilities[None])[0]
        return max(range(len(answers)), key=lambda n: answers[n].probabilities[called])

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Class indices of (images, classes): by the threshold with two classes, else by the greatest probability."""
        if probabilities.shape[1] == 2:
            return (probabilities[:, 1] >= self.threshold).astype(int)
        return probabilities.argmax(axis=1)


def _frames_or_reason(source: Source | InputError) -> list[Image.Image] | InputError:
    try:
        return source if isinstance(source, InputError) else load_frames(source)
    except InputError as reason:
        return reason


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
