"""The page: an image, a clip or many of them in; the answer, its reason and its doubts out.

MODEL_ID=user/name python app.py        # or the path of a model folder
MODEL_ID=user/name RUNTIME=openvino PRECISION=int8 python app.py        # what was exported into it
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path

gc.set_threshold(10_000, 20, 20)  # importing makes half a million objects, and no garbage to look for

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
from gradio.components.label import LabelData

from space import archives, clips, dicom, stage
from space.errors import InputError
from space.page import Model, Page
from space.texts import Texts

EXAMPLES = sorted((HERE / "examples").glob("*.png"))
ANSWERED = 4  # requests at a time that decode and draw; the network takes what waits in batches
WAITING = 128  # requests in the queue; more are asked to come again
BUTTON = "button_primary_background_fill"
THEME = gr.themes.Base(  # its fonts are the system's: none is fetched from elsewhere
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
).set(**{f"{BUTTON}{state}{mode}": "*primary_700" for state in ("", "_hover") for mode in ("", "_dark")})


def build_page(loading: Future[Model], texts: Texts) -> gr.Blocks:
    """The page for a model that may still be loading; /predict and /predict_batch are its API."""
    page = Page(loading, texts)
    quiet = {"api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(title=texts("page.title"), analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{escape(texts('page.title'))}</h1><p>{escape(texts('page.notice'))}</p>", elem_id="notice")
        head = gr.HTML(f"<p>{escape(texts('page.loading'))}</p>", elem_id="head")
        with gr.Tab(texts("tabs.image")), gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label=texts("image.upload"),
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    webcam_options=gr.WebcamOptions(mirror=False),  # it would mirror the picture, not only its preview
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
                    explain.preprocess = method.preprocess = _chosen
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
                files.preprocess, folder.preprocess = _named, _of_folder
                labels = gr.File(label=texts("many.labels"), file_types=[".csv"], elem_id="labels")
            start = gr.Button(texts("many.start"), variant="primary", elem_id="start")
            summary = gr.HTML(elem_id="summary")
            gallery = gr.HTML(elem_id="gallery", js_on_load=stage.GALLERY_SCRIPT)
            table = gr.Dataframe(label=texts("many.table"), interactive=False, elem_id="table", max_height=600)
        with gr.Tab(texts("tabs.about")) as about_tab:
            about = gr.Markdown(texts("page.loading"), latex_delimiters=[], elem_id="about")

        state = gr.State(time_to_live=server.KEPT)
        given = gr.Textbox(visible=False)  # of which file that is; the browser knows it longer than the server holds it
        blocks.load(page.head, outputs=[head, explain, method], **quiet)
        image.change(page.open, image, [state, given], **quiet)
        dicom_file.upload(page.open, dicom_file, [state, given], trigger_mode="always_last", **quiet)
        # All that is drawn comes from one event, which runs again when something changed meanwhile: no older answer
        # can come after a newer one.
        changes = [state.change, explain.input, method.input]
        gr.on(changes, page.see, [state, explain, method, given], seen, trigger_mode="always_last", **quiet)
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
    decided = gr.Label(label="label", **hidden)
    decided.postprocess = LabelData.model_validate  # of probabilities it would take the highest for the answer
    outputs = [
        decided,
        gr.Image(label="overlay", format="png", **hidden),
        gr.Textbox(label="said", **hidden),
        gr.JSON(label="answer", **hidden),
    ]
    gr.Button(**hidden).click(page.predict, [picture, shown, method], outputs, api_name="predict")
    files = gr.File(label="files", file_count="multiple", **hidden)
    files.preprocess = _named
    outputs = [gr.Dataframe(label="rows", **hidden), gr.Textbox(label="csv", **hidden)]
    gr.Button(**hidden).click(page.predict_batch, files, outputs, api_name="predict_batch")


def _path(upload) -> str | None:
    return upload.path if upload else None


def _chosen(value: int | str | None) -> int | str | None:
    """What was chosen, for `Page.see` to check: gradio forgets the choices of a page that was not used for a while, and
    would refuse them all."""
    return value


def _named(uploads) -> list[tuple[str, str]]:
    """The path and the own name of each, of which gradio leaves out letters that a path may not have everywhere."""
    return [(upload.path, upload.orig_name or Path(upload.path).name) for upload in uploads or ()]


def _of_folder(uploads) -> list[tuple[str, str]]:
    """`_named` without hidden files, tables and whatever else is neither a picture nor an archive."""
    return [
        (path, name)
        for path, name in _named(uploads)
        if not name.startswith(".")
        and (archives.is_archive(name) or Path(name).suffix.lower() in archives.KNOWN or dicom.is_dicom(Path(path)))
    ]


def serve(loading: Future[Model], texts: Texts, share: bool = False) -> gr.Blocks:
    """Serve the page of `build_page` from a thread of its own; share: at a public address too."""
    blocks = build_page(loading, texts)
    server.fetch_nothing()
    server.keep_no_pictures()
    with contextlib.redirect_stdout(io.StringIO()):  # it would announce the MCP server before there is a page
        blocks.launch(
            share=share,
            theme=THEME,
            css_paths=HERE / "page.css",
            footer_links=["api"],
            mcp_server=True,
            quiet=True,
            prevent_thread_lock=True,
            **server.settings(),
        )
    server.keep_from_agents(blocks, "/predict_batch")
    server.sweep(blocks)
    return blocks


def _end_as_by_ctrl_c() -> None:
    """Have what was uploaded deleted too when the process is told to end, or its terminal is closed."""

    def end(number: int, frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # a terminal says so twice
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup ignores it
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def main() -> None:
    """Load MODEL_ID and serve."""
    model_id = os.environ.get("MODEL_ID")
    if not model_id:
        sys.exit("error: MODEL_ID is not set; give it a model folder or a Hub id")
    _end_as_by_ctrl_c()
    blocks = None
    try:
        texts = Texts(os.environ.get("PAGE_LANGUAGE", "en"))
        mode = os.environ.get("RUNTIME", "torch"), os.environ.get("PRECISION", "float32")
        loading = ThreadPoolExecutor(1).submit(Model.load, model_id, *mode)
        blocks = serve(loading, texts, share=os.environ.get("GRADIO_SHARE") == "True")
        loading.result()
        gc.freeze()  # what is there now stays, and no answer waits until it has been looked through
    except InputError as error:
        if blocks:
            blocks.close(verbose=False)
        sys.exit(f"error: {error}")
    print(f"\npage: {blocks.share_url or blocks.local_url}", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        blocks.close(verbose=False)  # lets go of open pages, for which gradio's block_thread would wait


if __name__ == "__main__":
    main()
