"""The page: an image in; the label, the probabilities and a saliency overlay out.

MODEL_ID=user/name python app.py        # or the path of a model folder
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Neither gradio nor the Hub's client is to tell anybody that somebody looks at an image here.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if "space" not in sys.modules:  # a Space lies in a folder of any name; its modules know it as the package `space`
    spec = importlib.util.spec_from_file_location("space", HERE / "__init__.py", submodule_search_locations=[str(HERE)])
    sys.modules["space"] = importlib.util.module_from_spec(spec)

import gradio as gr
from PIL import Image

from space.errors import InputError
from space.images import load_image
from space.predictor import Predictor
from space.saliency import overlay

NOTICE = (
    "**This is not a medical device.** It is a demonstration: its answers must not decide about anybody's care. "
    "Images are used to answer and are not kept."
)
EXAMPLES = sorted((HERE / "examples").glob("*.png"))
CSS = """
.gradio-container {max-width: 1100px !important; margin: auto}
.stage img {background: #000; object-fit: contain}
"""
FONTS = ["system-ui", "sans-serif"]  # none is fetched from elsewhere


def answer(predictor: Predictor, file: str | None) -> tuple[dict[str, float] | None, Image.Image | None, str]:
    """Classify one image file: {label: probability}, the overlay, a sentence."""
    if file is None:
        return None, None, ""
    try:
        image = load_image(file)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None
    found = predictor.answer([image], predictor.methods[0])[0]
    label = predictor.labels[predictor.decide(found.probabilities[None])[0]]
    said = f"The model calls this image **{label}**."
    if len(predictor.labels) == 2:
        positive, probability = predictor.labels[1], found.probabilities[1]
        said += f" Its probability of {positive} is {probability:.3f}; {predictor.threshold:.3g} or more is {positive}."
    if found.abstained:
        said = f"**This image is not like those that the model was trained on: its answer means nothing.** {said}"
    told = dict(zip(predictor.labels, found.probabilities.tolist(), strict=True))
    return told, overlay(image, found.saliency), said


def build_page(predictor: Predictor, name: str) -> gr.Blocks:
    """The page for a loaded model; /predict is its API."""

    def predict(image):
        return answer(predictor, image)

    with gr.Blocks(title=f"{name}: chest opacity", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"# Chest opacity\nModel: {name}\n\n{NOTICE}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    height=420,
                    elem_classes="stage",
                    elem_id="image",
                )
            with gr.Column():
                seen = gr.Image(
                    label="Where the model looked",
                    format="png",
                    height=420,
                    elem_classes="stage",
                    elem_id="overlay",
                    buttons=["download", "fullscreen"],
                )
        said = gr.Markdown(elem_id="said")
        label = gr.Label(label="Probabilities", elem_id="label")
        if EXAMPLES:
            gr.Examples(
                [[str(file)] for file in EXAMPLES],
                inputs=image,
                example_labels=[file.stem.replace("-", " ") for file in EXAMPLES],
                label="Synthetic examples: simulated frames, nobody was examined",
            )
        image.preprocess = lambda upload: upload.path if upload else None  # space.images alone decodes
        image.change(predict, image, [label, seen, said], api_name="predict")
    return page


def main() -> None:
    """Load MODEL_ID and serve."""
    model_id = os.environ.get("MODEL_ID")
    if not model_id:
        sys.exit("error: MODEL_ID is not set; give it a model folder or a Hub id")
    try:
        predictor = Predictor(model_id)
    except InputError as error:
        sys.exit(f"error: {error}")
    page = build_page(predictor, name=Path(model_id).name)
    page.queue(max_size=64).launch(
        share=os.environ.get("GRADIO_SHARE") == "True",
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["monospace"]),
        css=CSS,
        max_file_size="50mb",
        ssr_mode=False,
        footer_links=["api"],
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"\npage: {page.share_url or page.local_url}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
