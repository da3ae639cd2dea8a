"""What is behind the page's parts: from what a person gives to what is shown, and from a program's files to answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
import pandas as pd
from PIL import Image

from space import clips, many, server, stage
from space.batches import Batches
from space.card import Card
from space.errors import InputError
from space.images import frames_in, load_image
from space.predictor import Predictor
from space.rows import rounded
from space.saliency import overlay
from space.texts import Texts
from space.words import describe

PROGRESS = gr.Progress()


class Model(NamedTuple):
    """What the page needs of a model, once it is loaded."""

    name: str
    batches: Batches
    card: Card

    @property
    def predictor(self) -> Predictor:
        return self.batches.predictor

    @classmethod
    def load(cls, model_id: str, runtime: str = "torch", precision: str = "float32") -> Model:
        """From a folder or the Hub, in a mode of `space.runtimes`, and ready to answer at once. Raises InputError."""
        predictor = Predictor(model_id, runtime, precision)
        predictor.answer([Image.new("RGB", (64, 64))], predictor.methods[0])  # the first pass is slow
        return cls(Path(os.path.abspath(model_id)).name, Batches(predictor), Card(model_id))


class Given(NamedTuple):
    """A file that was given, and when: it is seen again where it was given again. A hundred visitors' images would fill
    the memory."""

    file: str
    when: float


class Opened(NamedTuple):
    """The image of a file, in RGB, and what to say of more frames than this first one, where the file holds more."""

    image: Image.Image
    more: str


class Page:
    """What is behind the page's components. A request that comes before the model is loaded waits for it."""

    def __init__(self, loading: Future[Model], texts: Texts):
        self._loading, self.texts = loading, texts

    @property
    def model(self) -> Model:
        return self._loading.result()

    def head(self) -> tuple[str, dict, dict]:
        """The line about the model, and the choices of class and method that it allows."""
        predictor, texts = self.model.predictor, self.texts
        figures = [
            texts(
                "page.figure",
                where=texts("page.home" if each.at_home else "page.elsewhere", name=each.name),
                accuracy=each.accuracy,
                auc=each.auc,
            )
            for each in self.model.card.figures()
        ]
        lines = [texts("page.model", name=self.model.name), *(figures or [texts("page.no_figures")])]
        told = "".join(f"<li>{escape(line)}</li>" for line in lines)
        classes = [(texts("image.called"), -1), *((label, index) for index, label in enumerate(predictor.labels))]
        methods = [(texts(f"methods.{method}"), method) for method in predictor.methods]
        return (
            f"<ul>{told}</ul>",
            gr.Radio(choices=classes, value=-1),
            gr.Radio(choices=methods, value=predictor.methods[0]),
        )

    def read(self, file: str) -> Opened:
        """The image of a file, of several frames the first. Raises InputError."""
        image, more = load_image(file), ""
        if clips.is_clip(Path(file)):
            more = self.texts("image.first")
        elif frames_in(Path(file)) > 1:
            more = self.texts("image.page")
        return Opened(image, more)

    def open(self, file: str | None) -> tuple[Given | str, str]:
        """What the server and the browser hold of a file that was given; empty texts where there is none."""
        return (Given(file, time.monotonic()), file) if file else ("", "")

    def see(self, held: Given | str | None, shown: int | None, method: str | None, given: str | None) -> str:
        """The stage with the image that was given and its answer, and the map of a class by a method; the map of the
        answer, or by the best method, where the model has no such class or method.

        held, given: as of `open`; where held is None, for the server has forgotten it, given is taken.
        """
        file = given if held is None else held and held.file
        if not file:
            return stage.empty(self.texts("image.empty"))
        if not server.is_upload(file):
            return stage.refusal(self.texts("image.gone"))
        try:
            opened = self.read(file)
        except InputError as reason:
            return stage.refusal(str(reason))
        predictor = self.model.predictor
        label = shown if shown in range(len(predictor.labels)) else None
        method = method if method in predictor.methods else predictor.methods[0]
        answer = self.model.batches.answer(opened.image, method, label)
        more = f"<p>{escape(opened.more)}</p>" if opened.more else ""
        return stage.image_stage(predictor, opened.image, answer, self.texts, label) + more

    def see_clip(self, file: str | None, progress=PROGRESS) -> str:
        """A clip: its answer, and that for each of its frames on a time line."""
        if file is None:
            return stage.empty(self.texts("clip.empty"))
        with clips.AT_ONCE:
            return self._see_frames(Path(file), progress)

    def _see_frames(self, file: Path, progress) -> str:
        try:
            frames = clips.read_frames(file, clips.FRAMES)
        except InputError as reason:
            return stage.refusal(str(reason))
        method = self.model.predictor.methods[0]
        with ThreadPoolExecutor() as pool:
            answers = pool.map(lambda frame: self.model.batches.answer(frame[1], method), frames)
            answers = list(progress.tqdm(answers, total=len(frames)))
        return stage.clip_stage(self.model.predictor, frames, answers, self.texts)

    def see_many(
        self, files: list[tuple[str, str]], folder: list[tuple[str, str]], labels: str | None, progress=PROGRESS
    ) -> tuple[str, str, pd.DataFrame | None]:
        """Many files (path, name): what there is to say of them together, pictures of the first, and a row for each."""
        files = files + folder
        if not files:
            return stage.refusal(self.texts("many.none")), "", None
        try:
            truth = many.read_labels(labels, self.model.predictor.labels) if labels else None
        except InputError as reason:
            return stage.refusal(str(reason)), "", None
        found = list(progress.tqdm(self._examine(files), unit="image"))
        rows, read = [each.row for each in found], [each.row for each in found if not each.rest]
        agreed, refused = None, ""
        try:
            agreed = many.agreement(read, self.model.predictor.labels, truth) if truth is not None else None
        except InputError as reason:  # the answers are worth having without it
            refused = stage.refusal(str(reason))
        summary = stage.summary(found, self.model.predictor.labels, agreed, many.to_csv(rows), self.texts)
        return (
            refused + summary,
            stage.gallery(found, self.texts),
            _table(map(rounded, rows)).drop(columns=["group", "threshold"]),
        )

    def _examine(self, uploads: list[tuple[str, str]], pictures: int = many.PICTURES) -> Iterator[many.Found]:
        """`many.examine` of uploads (path, name), none of which is deleted before its turn."""
        paths = [path for path, _ in uploads]
        server.renew(paths)
        renewed = time.monotonic()
        for found in many.examine(self.model.batches, many.named_files(uploads), pictures):
            if time.monotonic() - renewed > server.SWEPT:
                server.renew(paths)
                renewed = time.monotonic()
            yield found

    def about(self) -> str:
        """What the page does, and the model's card."""
        text = self.texts("about.text", minutes=server.KEPT // 60)
        return text + (self.model.card.text() or self.texts("about.no_card"))

    def predict(self, image: str, shown: str = "", method: str = "") -> tuple[dict, Image.Image, str, dict]:
        """Classify a chest image and show which part of it speaks for the answer. Not for medical use.

        Args:
            image: an image file (JPEG, PNG, TIFF, BMP, WebP) or a DICOM file; agents upload it to /gradio_api/upload
                and give its address here, or give data:image/png;base64,...
            shown: the class that the overlay speaks for; empty: the one that the image is called
            method: how the overlay is made: cam, grad_cam, integrated_gradients or occlusion; empty: the best one

        Returns:
            label: the prediction as in answer, and the probability of each class, the highest first
            overlay: the image with what speaks for the class
            said: the answer in words, and of a file of several frames or pages that it is that for the first
            answer: prediction (empty where it abstains), probabilities, threshold, abstained
            distance in answer: above 1 where the image is unlike the training images
        """
        predictor = self.model.predictor
        if shown and shown not in predictor.labels:
            raise gr.Error(f"shown is {shown!r}; expected one of {', '.join(predictor.labels)}", print_exception=False)
        if method and method not in predictor.methods:
            raise gr.Error(
                f"method is {method!r}; expected one of {', '.join(predictor.methods)}", print_exception=False
            )
        if not image:
            raise gr.Error(self.texts("many.none"), print_exception=False)
        try:
            picture, more = self.read(image)
        except InputError as reason:
            raise gr.Error(str(reason), print_exception=False) from None
        label = predictor.labels.index(shown) if shown else None
        found = self.model.batches.answer(picture, method or predictor.methods[0], label)
        probabilities = dict(zip(predictor.labels, found.probabilities.tolist(), strict=True))
        ranked = sorted(probabilities.items(), key=lambda pair: pair[1], reverse=True)
        called = predictor.labels[predictor.decide(found.probabilities[None])[0]]
        answer = {
            "prediction": "" if found.abstained else called,
            "probabilities": probabilities,
            "threshold": predictor.threshold,
            "abstained": found.abstained,
            "distance": None if np.isnan(found.distance) else found.distance,
        }
        decided = {
            "label": answer["prediction"],
            "confidences": [{"label": name, "confidence": probability} for name, probability in ranked],
        }
        said = f"{describe(predictor, found, self.texts, label)} {more}".rstrip()
        return decided, overlay(picture, found.saliency), said, answer

    def predict_batch(self, files: list[tuple[str, str]]) -> tuple[pd.DataFrame, str]:
        """Classify many chest images, DICOM files, clips, or zip files of them. Not for medical use.

        Args:
            files: the files; of a clip the mean of its frames counts, of pages the first, of a zip or tar every file

        Returns:
            rows: for each file in order path, group, prediction, probability_LABEL, threshold, abstained and error
            csv: the same as the text of a CSV file
        """
        if not files:
            raise gr.Error(self.texts("many.none"), print_exception=False)
        rows = [each.row for each in self._examine(files, pictures=0)]
        return _table(rows), many.to_csv(rows)


def _table(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows with None where there is nothing; pandas would make NaN of it beside numbers, which JSON does not know."""
    return pd.DataFrame(rows, dtype=object)
