"""Prediction from files with a ResNet-50 at 224 px in float32: against transformers' pipeline, and with overlays."""

from __future__ import annotations

import tempfile
from pathlib import Path

from timing import compare
from transformers import pipeline

from space.images import load_image
from space.predictor import Predictor
from space.saliency import overlay
from training.arguments import ModelArguments
from training.model import load_base
from training.phantom import write_phantom

with tempfile.TemporaryDirectory() as scratch:
    model, processor = load_base(ModelArguments("scratch:resnet-50"), ["normal", "sick"])
    for part in (model, processor):
        part.save_pretrained(f"{scratch}/model")
    write_phantom(Path(scratch) / "phantom", scale=0.065)
    files = [str(path) for path in sorted(Path(scratch).glob("phantom/images/*"))]
    predictor, classify = Predictor(f"{scratch}/model"), pipeline("image-classification", model=f"{scratch}/model")
    images = [load_image(file) for file in files]

    def predict_with_overlays() -> None:
        for image in images:
            overlay(image, predictor.answer([image], "cam")[0].saliency)

    print(f"{len(files)} images")
    compare(
        "pipeline(batch_size=1) / predict",
        lambda: [classify(file) for file in files],
        lambda: list(predictor.stream(files)),
    )
    compare(
        "one image with overlay / without",
        predict_with_overlays,
        lambda: [predictor.answer([image]) for image in images],
    )
