"""The page: an image, a clip or many of them in; the answer, its reason and its doubts out.

MODEL_ID=user/name python app.py        # or the path of a model folder
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
# Neither gradio nor the Hub's client is to tell anybody that somebody looks at an image here.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if "space" not in sys.modules:  # a Space lies in a folder of any name; its modules know it as the package `space`
    spec = importlib.util.spec_from_file_location("space", HERE / "__init__.py", submodule_search_locations=[str(HERE)])
    sys.modules["space"] = importlib.util.module_from_spec(spec)

from space import server

server.keep_uploads_private()

import gradio as gr
import pandas as pd
from PIL import Image

from space import clips, dicom, many, stage
from space.batches import Batches
from space.card import Card
from space.errors import InputError
from space.images import load_image
from space.predictor import Predictor
from space.saliency import overlay
from space.texts import Texts
from space.words import describe

EXAMPLES = sorted((HERE / "examples").glob("*.png"))
FRAMES = 24  # of a clip
ANSWERED = 4  # requests at a time that decode and draw; the network takes what waits in batches
WAITING = 128  # requests in the queue; more are asked to come again
PROGRESS = gr.Progress()
BUTTON = "button_primary_background_fill"
THEME = gr.themes.Base(  # its fonts are the system's: none is fetched from elsewhere
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
).set(**{f"{BUTTON}{state}{mode}": "*primary_700" for state in ("", "_hover") for mode in ("", "_dark")})


class Model(NamedTuple):
    """What the page needs of a model, once it is loaded."""

    name: str
    batches: Batches
    card: Card

    @property
    def predictor(self) -> Predictor:
        return self.batches.predictor

    @classmethod
    def load(cls, model_id: str) -> Model:
        """From a folder or the Hub, and ready to answer at once. Raises InputError."""
        predictor = Predictor(model_id)
        predictor.answer([Image.new("RGB", (64, 64))], predictor.methods[0])  # the first pass is slow
        return cls(Path(model_id).name, Batches(predictor), Card(model_id))


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

    def see(self, file: str | None, shown: int | None, method: str | None) -> tuple[str, Image.Image | None]:
        """A new image: the stage with the answer, and the image for whoever wants another class or method."""
        if file is None:
            return stage.empty(self.texts("image.empty")), None
        try:
            image = load_image(file)
        except InputError as reason:
            return stage.refusal(str(reason)), None
        return self.see_again(image, shown, method), image

    def see_again(self, image: Image.Image | None, shown: int | None, method: str | None) -> str:
        """The same image with the map of another class or by another method."""
        if image is None:
            return stage.empty(self.texts("image.empty"))
        label = shown if shown in range(len(self.model.predictor.labels)) else None
        answer = self.model.batches.answer(image, method or self.model.predictor.methods[0], label)
        return stage.image_stage(self.model.predictor, image, answer, self.texts, label)

    def see_clip(self, file: str | None, progress=PROGRESS) -> str:
        """A clip: its answer, and that for each of its frames on a time line."""
        if file is None:
            return stage.empty(self.texts("clip.empty"))
        try:
            frames = clips.read_frames(Path(file), FRAMES)
        except InputError as reason:
            return stage.refusal(str(reason))
        method = self.model.predictor.methods[0]
        with ThreadPoolExecutor() as pool:
            answers = pool.map(lambda frame: self.model.batches.answer(frame[1], method), frames)
            answers = list(progress.tqdm(answers, total=len(frames)))
        return stage.clip_stage(self.model.predictor, frames, answers, self.texts)

    def see_many(
        self, files: list[str] | None, folder: list[str] | None, labels: str | None, progress=PROGRESS
    ) -> tuple[str, str, pd.DataFrame | None]:
        """Many files: what there is to say of them together, pictures of the first, and a row for each."""
        files = [*(files or []), *(folder or [])]
        if not files:
            return stage.refusal(self.texts("many.none")), "", None
        try:
            truth = many.read_labels(labels) if labels else None
            found = list(progress.tqdm(many.examine(self.model.batches, many.named_files(files)), unit="image"))
            rows = [each.row for each in found]
            agreed = many.agreement(rows, self.model.predictor.labels, truth) if truth is not None else None
        except InputError as reason:
            return stage.refusal(str(reason)), "", None
        summary = stage.summary(rows, self.model.predictor.labels, agreed, many.to_csv(rows), self.texts)
        return summary, stage.gallery(found, self.texts), pd.DataFrame(rows).drop(columns=["group", "threshold"])

    def about(self) -> str:
        """What the page does, and the model's card."""
        text = self.texts("about.text", minutes=server.KEPT // 60)
        return text + (self.model.card.text() or self.texts("about.no_card"))

    def predict(self, image: str, shown: str = "", method: str = "") -> tuple[dict, Image.Image, str, dict]:
        """Classify a chest image and show which part of it speaks for the answer. Not for medical use.

        Args:
            image: an image file (JPEG, PNG, TIFF, BMP, WebP) or a DICOM file
            shown: the class that the overlay speaks for; empty: the one that the image is called
            method: how the overlay is made: cam, grad_cam, integrated_gradients or occlusion; empty: the best one

        Returns:
            label: the class with the highest probability, and the calibrated probability of each; overlay: the image
            with what speaks for the class; said: the answer in words; answer: prediction (empty where the model
            abstains), probabilities, threshold, abstained, distance (above 1: unlike the training images)
        """
        predictor = self.model.predictor
        if shown and shown not in predictor.labels:
            raise gr.Error(f"shown is {shown!r}; expected one of {', '.join(predictor.labels)}", print_exception=False)
        if method and method not in predictor.methods:
            raise gr.Error(
                f"method is {method!r}; expected one of {', '.join(predictor.methods)}", print_exception=False
            )
        try:
            picture = load_image(image)
        except InputError as reason:
            raise gr.Error(str(reason), print_exception=False) from None
        label = predictor.labels.index(shown) if shown else None
        found = self.model.batches.answer(picture, method or predictor.methods[0], label)
        probabilities = dict(zip(predictor.labels, found.probabilities.tolist(), strict=True))
        called = predictor.labels[predictor.decide(found.probabilities[None])[0]]
        answer = {
            "prediction": "" if found.abstained else called,
            "probabilities": probabilities,
            "threshold": predictor.threshold,
            "abstained": found.abstained,
            "distance": found.distance,
        }
        said = str(describe(predictor, found, self.texts, label))
        return probabilities, overlay(picture, found.saliency), said, answer

    def predict_batch(self, files: list[str]) -> tuple[pd.DataFrame, str]:
        """Classify many chest images, DICOM files, clips, or zip files of them. Not for medical use.

        Args:
            files: the files; of a clip the mean of its frames is answered, a zip or tar counts as what it holds

        Returns:
            rows: for each file in order path, group, prediction, probability_LABEL of each class, threshold, abstained
            and error; csv: the same as the text of a CSV file
        """
        if not files:
            raise gr.Error(self.texts("many.none"), print_exception=False)
        rows = [each.row for each in many.examine(self.model.batches, many.named_files(files))]
        return pd.DataFrame(rows), many.to_csv(rows)


def build_page(loading: Future[Model], texts: Texts) -> gr.Blocks:
    """The page for a model that may still be loading; /predict and /predict_batch are its API."""
    page = Page(loading, texts)
    quiet = {"api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(
        title=texts("page.title"), analytics_enabled=False, delete_cache=(server.SWEPT, server.KEPT)
    ) as blocks:
        gr.HTML(f"<h1>{escape(texts('page.title'))}</h1><p>{escape(texts('page.notice'))}</p>", elem_id="notice")
        head = gr.HTML(f"<p>{escape(texts('page.loading'))}</p>", elem_id="head")
        with gr.Tab(texts("tabs.image")), gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label=texts("image.upload"),
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    height=240,
                    elem_id="image",
                )
                image.preprocess = _path  # space.images alone decodes
                dicom_file = gr.UploadButton(
                    texts("image.dicom"), file_types=sorted(dicom.SUFFIXES), size="sm", elem_id="dicom"
                )
                if EXAMPLES:
                    gr.Examples(
                        [[str(file)] for file in EXAMPLES],
                        inputs=image,
                        example_labels=[file.stem.replace("-", " ") for file in EXAMPLES],
                        label=texts("image.examples"),
                        api_visibility="private",
                    )
            with gr.Column(scale=3, min_width=320):
                seen = gr.HTML(stage.empty(texts("image.empty")), js_on_load=stage.SCRIPT, elem_id="seen")
                with gr.Row():
                    explain = gr.Radio([], label=texts("image.explain"), elem_id="explain")
                    method = gr.Radio([], label=texts("image.method"), elem_id="method")
        with gr.Tab(texts("tabs.clip")), gr.Row():
            with gr.Column(scale=1, min_width=280):
                clip = gr.File(
                    label=texts("clip.upload"), file_types=sorted(clips.SUFFIXES | dicom.SUFFIXES), elem_id="clip"
                )
            with gr.Column(scale=3, min_width=320):
                clip_seen = gr.HTML(stage.empty(texts("clip.empty")), js_on_load=stage.SCRIPT, elem_id="clip-seen")
        with gr.Tab(texts("tabs.many")):
            with gr.Row():
                files = gr.File(label=texts("many.files"), file_count="multiple", elem_id="files")
                folder = gr.File(label=texts("many.folder"), file_count="directory", elem_id="folder")
                labels = gr.File(label=texts("many.labels"), file_types=[".csv"], elem_id="labels")
            start = gr.Button(texts("many.start"), variant="primary", elem_id="start")
            summary = gr.HTML(elem_id="summary")
            gallery = gr.HTML(elem_id="gallery", js_on_load=stage.GALLERY_SCRIPT)
            table = gr.Dataframe(label=texts("many.table"), interactive=False, elem_id="table", max_height=600)
        with gr.Tab(texts("tabs.about")) as about_tab:
            about = gr.Markdown(texts("page.loading"), latex_delimiters=[], elem_id="about")

        state = gr.State(time_to_live=server.KEPT)
        blocks.load(page.head, outputs=[head, explain, method], **quiet)
        image.change(page.see, [image, explain, method], [seen, state], **quiet)
        dicom_file.upload(page.see, [dicom_file, explain, method], [seen, state], **quiet)
        gr.on([explain.input, method.input], page.see_again, [state, explain, method], seen, **quiet)
        clip.change(page.see_clip, clip, clip_seen, api_visibility="private")
        start.click(page.see_many, [files, folder, labels], [summary, gallery, table], api_visibility="private")
        about_tab.select(page.about, outputs=about, **quiet)
        _add_api(page)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=ANSWERED)


def _add_api(page: Page) -> None:
    """The two functions for programs, on components that nobody sees; these name and document what goes in and out."""
    hidden = {"visible": False}
    picture = gr.File(label="image", **hidden)
    shown, method = (gr.Textbox(label=name, value="", **hidden) for name in ("shown", "method"))
    outputs = [
        gr.Label(label="label", **hidden),
        gr.Image(label="overlay", format="png", **hidden),
        gr.Textbox(label="said", **hidden),
        gr.JSON(label="answer", **hidden),
    ]
    gr.Button(**hidden).click(page.predict, [picture, shown, method], outputs, api_name="predict")
    files = gr.File(label="files", file_count="multiple", **hidden)
    outputs = [gr.Dataframe(label="rows", **hidden), gr.Textbox(label="csv", **hidden)]
    gr.Button(**hidden).click(page.predict_batch, files, outputs, api_name="predict_batch")


def _path(upload) -> str | None:
    return upload.path if upload else None


def serve(loading: Future[Model], texts: Texts, **settings) -> gr.Blocks:
    """Serve the page of `build_page` from a thread of its own."""
    blocks = build_page(loading, texts)
    settings = {"theme": THEME, "css_paths": HERE / "page.css", "footer_links": ["api"], "mcp_server": True} | settings
    with contextlib.redirect_stdout(io.StringIO()):  # it would announce the MCP server before there is a page
        blocks.launch(quiet=True, prevent_thread_lock=True, **server.settings(), **settings)
    server.sweep()
    return blocks


def main() -> None:
    """Load MODEL_ID and serve."""
    model_id = os.environ.get("MODEL_ID")
    if not model_id:
        sys.exit("error: MODEL_ID is not set; give it a model folder or a Hub id")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end is that of Ctrl-C: what was uploaded is deleted
    try:
        texts = Texts(os.environ.get("PAGE_LANGUAGE", "en"))
        loading = ThreadPoolExecutor(1).submit(Model.load, model_id)
        blocks = serve(loading, texts, share=os.environ.get("GRADIO_SHARE") == "True")
        loading.result()
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"\npage: {blocks.share_url or blocks.local_url}", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
