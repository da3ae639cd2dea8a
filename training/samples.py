"""A page of what the network sees: some images of the train part, each as it is and in augmented views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training import plots
from training.examples import Examples

IMAGES, VIEWS, GAP, LINE = 6, 4, 4, 16  # VIEWS beside the image as it is; GAP and LINE in pixels


def save_samples(path: Path, examples: Examples) -> None:
    """Write the page as PNG: a row for each image, taken evenly from the part; what is shown are the network's inputs,
    scaled back to grey values."""
    plain = Examples(examples.rows, examples.processor)
    views = VIEWS if examples.augmentation != "none" else 0
    chosen = np.linspace(0, len(examples) - 1, min(IMAGES, len(examples))).round().astype(int).tolist()
    rows = [[plain[index], *(examples[view * len(examples) + index] for view in range(views))] for index in chosen]
    height, width = rows[0][0]["pixel_values"].shape[1:]
    labels = examples.rows.features["label"].names
    page = Image.new("RGB", ((width + GAP) * (1 + views), (height + GAP + LINE) * len(rows)), "white")
    for number, row in enumerate(rows):
        top = number * (height + GAP + LINE)
        caption = labels[row[0]["labels"]] + (f", then {views} views ({examples.augmentation})" if views else "")
        plots.write(ImageDraw.Draw(page), (2, top + 2), caption, LINE - 6, page.width - 2)
        for column, example in enumerate(row):
            page.paste(_seen(example["pixel_values"].numpy(), examples.processor), (column * (width + GAP), top + LINE))
    plots.save(path, page)


def _seen(pixels: np.ndarray, processor) -> Image.Image:
    mean, deviation = (np.array(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return Image.fromarray(((pixels * deviation + mean) * 255).clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))
