"""Where the model looked: saliency maps and their overlay.

For a network that ends in average pooling and one linear layer (ResNet, BiT) the class activation map (Zhou et al.,
Learning deep features for discriminative localization, CVPR 2016) is Grad-CAM at the last stage (Selvaraju et al.,
ICCV 2017) up to a constant factor, and comes out of the forward pass that predicts: no backward pass is needed. Other
networks, and other methods, are left to captum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d

METHODS = {
    "cam": "class activation map, from the forward pass",
    "grad_cam": "Grad-CAM at the last stage",
    "integrated_gradients": "integrated gradients from a grey image (Sundararajan et al., ICML 2017)",
    "occlusion": "fall of the logit when a patch is greyed out (Zeiler and Fergus, ECCV 2014)",
}
PATCHES = 7  # a side: occluded patches, and the pixels that a gradient is averaged over
OPACITY = 0.7  # of an overlay, where a map is greatest
WHOLE = 224  # rows and columns of the map of an image of which the network saw a part
# Nine stops of matplotlib's inferno: even steps for the eye, told apart by colour-blind people too.
INFERNO = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float32,
)
COLOURS = (
    np.stack(  # of the weights 0-255: red, green, blue, opacity
        [
            *(np.interp(np.linspace(0, len(INFERNO) - 1, 256), range(len(INFERNO)), channel) for channel in INFERNO.T),
            np.arange(256),
        ],
        axis=1,
    )
    .round()
    .astype(np.uint8)
)


class Logits(nn.Module):
    """An image classifier that returns its logits alone, as captum wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The linear layer of a head that is average pooling + one linear layer; None for any other head."""
    layers = [layer for layer in getattr(model, "classifier", nn.Identity()).modules() if isinstance(layer, nn.Linear)]
    pooler = getattr(model.base_model, "pooler", None)
    return layers[0] if len(layers) == 1 and isinstance(pooler, nn.AdaptiveAvgPool2d) else None


def last_stage(model: nn.Module) -> nn.Module | None:
    """The module that gives a convolutional network's last feature map; None for transformers."""
    stages = getattr(getattr(model.base_model, "encoder", None), "stages", None)
    if stages is None:
        return None
    return getattr(model.base_model, "norm", stages[-1])  # BiT normalises after its last stage


def methods_for(model: nn.Module) -> list[str]:
    """The methods of METHODS that this network allows, the best one first."""
    fitting, stage = ["cam"] if linear_head(model) is not None else [], last_stage(model)
    fitting += ["grad_cam"] if stage is not None and (fitting or _gives_a_map(model, stage)) else []
    return [*fitting, "integrated_gradients", "occlusion"]


def _gives_a_map(model: nn.Module, stage: nn.Module) -> bool:
    """Whether a stage gives (images, channels, rows, columns) alone, which FocalNet's does not: by a blank image."""
    given, size = [], getattr(model.base_model.config, "image_size", 224)
    hook = stage.register_forward_hook(lambda _stage, _seen, output: given.append(output))
    with hook, torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, *np.broadcast_to(size, 2).tolist(), device=model.device))
    return getattr(given[0], "ndim", 0) == 4


def look(
    model: nn.Module, pixel_values: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor | None]:
    """Predict and explain in one forward pass, from any number of threads at once.

    pixel_values has the shape (images, 3, height, width). Gives the logits (images, classes), the hidden states, and
    where the model has a `linear_head` the class activation map of every class, before its rectification (images,
    classes, rows, columns): a map's mean, plus the bias, is the logit.
    """
    head = linear_head(model)
    if head is None:
        seen = model(pixel_values=pixel_values, output_hidden_states=True)
        return seen.logits, seen.hidden_states, None
    seen = model.base_model(pixel_values, output_hidden_states=True)
    maps = torch.einsum("nchw,kc->nkhw", seen.last_hidden_state, head.weight)
    return model.classifier(seen.pooler_output), seen.hidden_states, maps


def saliency_maps(model: nn.Module, pixel_values: torch.Tensor, classes: torch.Tensor, method: str) -> torch.Tensor:
    """What speaks for a class of each image (positive) and against it (negative): (images, rows, columns).

    pixel_values (images, 3, height, width), classes (images,) their indices, method one of `methods_for(model)`. Maps
    have whatever size the method gives; `overlay` scales them to the image.
    """
    if method == "cam":
        with torch.inference_mode():
            return look(model, pixel_values)[2][torch.arange(len(classes)), classes]
    from captum.attr import IntegratedGradients, LayerGradCam, Occlusion  # slow to import, and cam does without

    logits, (height, width) = Logits(model), pixel_values.shape[2:]
    if method == "grad_cam":
        return LayerGradCam(logits, last_stage(model)).attribute(pixel_values, target=classes)[:, 0].detach()
    if method == "integrated_gradients":
        found = IntegratedGradients(logits).attribute(pixel_values, target=classes, n_steps=32, internal_batch_size=8)
        return avg_pool2d(found.sum(dim=1).detach(), PATCHES, stride=1, padding=PATCHES // 2)
    sides = (max(1, height // PATCHES), max(1, width // PATCHES))
    steps = (3, max(1, sides[0] // 2), max(1, sides[1] // 2))
    with torch.no_grad():
        found = Occlusion(logits).attribute(
            pixel_values, target=classes, sliding_window_shapes=(3, *sides), strides=steps, perturbations_per_eval=4
        )
    return found.sum(dim=1)


def placed(saliency: np.ndarray, part: Sequence[float]) -> np.ndarray:
    """The map of a part of an image as one of the whole, zero outside: (WHOLE, WHOLE).

    part: its left, top, right and bottom in shares of the image, 0 to 1.
    """
    left, top, right, bottom = (round(WHOLE * share) for share in part)
    left, top = min(left, WHOLE - 1), min(top, WHOLE - 1)
    size = max(1, right - left), max(1, bottom - top)
    whole = np.zeros((WHOLE, WHOLE), np.float32)
    inside = Image.fromarray(saliency.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    whole[top : top + size[1], left : left + size[0]] = inside
    return whole


def overlay(image: Image.Image, saliency: np.ndarray) -> Image.Image:
    """Lay a map (rows x columns, any range; only what is positive shows) over an RGB image at the image's own size.

    The map is scaled to its maximum; colour and opacity both grow with it, the latter to OPACITY.
    """
    seen = layer(saliency, image.size)
    seen.putalpha(seen.getchannel("A").point(lambda alpha: round(OPACITY * alpha)))
    return Image.alpha_composite(image.convert("RGBA"), seen).convert("RGB")


def layer(saliency: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The positive part of a map as an RGBA image of `size` (width, height): colour and opacity both grow with it."""
    weight = (scaled_map(saliency, size) * 255).round().astype(np.uint8)
    return Image.fromarray(COLOURS[weight])


def scaled_map(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The positive part of a map as an image of `size` (width, height): (height, width), 0 to 1."""
    positive = np.maximum(saliency, 0).astype(np.float32)
    positive /= max(float(positive.max()), 1e-12)
    return np.asarray(Image.fromarray(positive).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def region(saliency: np.ndarray) -> tuple[int, int, float, float] | None:
    """Which ninth of the image holds most of a map's positive part: its third from the top and from the left (0-2) and
    what it holds of it (0-1), and the share of the image (0-1) in which the map reaches half of its maximum. None where
    nothing is positive."""
    if not (saliency > 0).any():
        return None
    ninths = scaled_map(saliency, (96, 96)).reshape(3, 32, 3, 32).sum(axis=(1, 3))
    row, column = divmod(int(ninths.argmax()), 3)
    return row, column, float(ninths.max() / ninths.sum()), float((scaled_map(saliency, (64, 64)) >= 0.5).mean())
