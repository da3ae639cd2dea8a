"""Prediction from JPEG files of 640 x 480 with a ResNet-50 at 224 px, in every mode, against transformers' pipeline."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from timing import compare, print_ratio, rounds
from transformers import pipeline

from space.images import load_image
from space.predictor import BATCH, Predictor
from space.runtimes import PRECISIONS, cores
from space.saliency import overlay
from training.arguments import ModelArguments
from training.export import write_network
from training.model import load_base
from training.phantom import write_phantom
from training.sources import load_data

IMAGES, SIZES = 32, (1, 4, 8, 16, 32)


def bare(predictor: Predictor, batches: list[np.ndarray]) -> None:
    """The forward passes alone, of pixels that are in memory."""
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(predictor.run, batches))


def label_scores(answers: list[dict], labels: list[str]) -> list[float]:
    scores = {answer["label"]: answer["score"] for answer in answers}
    return [scores[label] for label in labels]


with tempfile.TemporaryDirectory() as scratch:
    model, processor = load_base(ModelArguments("scratch:resnet-50"), ["normal", "sick"])
    folder, files = Path(scratch) / "model", []
    for part in (model, processor):
        part.save_pretrained(folder)
    write_phantom(Path(scratch) / "phantom", scale=0.065)
    for path in sorted(Path(scratch).glob("phantom/images/*"))[:IMAGES]:
        files.append(f"{scratch}/{path.stem}.jpg")
        Image.open(path).convert("RGB").resize((640, 480)).save(files[-1], quality=90)
    plain, rows = Predictor(folder), load_data(f"{scratch}/phantom")
    for runtime in ("onnx", "openvino"):
        write_network(plain, folder, runtime)
        write_network(plain, folder, runtime, rows)

    classify = pipeline("image-classification", model=str(folder))
    sizes = rounds({str(size): partial(classify, files, batch_size=size) for size in SIZES}, 1)
    best = int(min(sizes, key=lambda size: sizes[size][0]))
    print(f"{len(files)} images, {cores()} cores; the best batch size of the pipeline is {best}")
    expected = np.array([label_scores(answers, plain.labels) for answers in classify(files)])

    modes = {f"{runtime} {precision}": (runtime, precision) for runtime, all in PRECISIONS.items() for precision in all}
    predictors = {name: Predictor(folder, *mode, bulk=True) for name, mode in modes.items()}
    images = [load_image(file) for file in files]
    batches = [plain.pixels(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    works = {"one": lambda: [classify(file) for file in files], "best": partial(classify, files, batch_size=best)}
    for name, predictor in predictors.items():
        works[name] = lambda predictor=predictor: list(predictor.stream(files))
        works[f"bare {name}"] = partial(bare, predictor, batches)
    times = rounds(works)
    for name, predictor in predictors.items():
        found = np.array([answer.probabilities for answer in predictor.stream(files)])
        print(f"{name}: probabilities differ from the pipeline's by {np.abs(found - expected).max():.2g} at the most")
        print_ratio(f"  pipeline(batch_size=1) / predict, {name}", times["one"], times[name])
        print_ratio(f"  pipeline(batch_size={best}) / predict, {name}", times["best"], times[name])
        print_ratio(f"  bare batched forward / predict, {name}", times[f"bare {name}"], times[name])

    compare(
        "one image with overlay / without",
        lambda: [overlay(image, plain.answer([image], "cam")[0].saliency) for image in images],
        lambda: [plain.answer([image]) for image in images],
    )
