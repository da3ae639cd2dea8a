"""Where the model looked: class activation maps and their overlay.

For a network that ends in average pooling and one linear layer (ResNet, BiT) the class activation map (Zhou et al.,
Learning deep features for discriminative localization, CVPR 2016) is Grad-CAM at the last stage (Selvaraju et al.,
ICCV 2017) up to a constant factor, and comes out of the forward pass that predicts: no backward pass is needed.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

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


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The linear layer of a head that is average pooling + one linear layer; None for any other head."""
    layers = [layer for layer in getattr(model, "classifier", nn.Identity()).modules() if isinstance(layer, nn.Linear)]
    pooler = getattr(model.base_model, "pooler", None)
    return layers[0] if len(layers) == 1 and isinstance(pooler, nn.AdaptiveAvgPool2d) else None


def class_activation_maps(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict and explain in one forward pass.

    pixel_values has the shape (images, 3, height, width). Returns the logits (images, classes) and, for every class,
    the map before its rectification (images, classes, rows, columns): its mean over rows and columns, plus the bias,
    is the logit. Raises ValueError when `linear_head` finds none.
    """
    head = linear_head(model)
    if head is None:
        raise ValueError(f"{type(model).__name__} does not end in average pooling and one linear layer")
    features = []
    hook = model.base_model.pooler.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        with torch.inference_mode():
            logits = model(pixel_values=pixel_values).logits
            maps = torch.einsum("nchw,kc->nkhw", features[0], head.weight)
    finally:
        hook.remove()
    return logits, maps


def overlay(image: Image.Image, saliency: np.ndarray, strength: float = 0.7) -> Image.Image:
    """Lay a map (rows x columns, any range; only what is positive shows) over an RGB image at the image's own size.

    The map is scaled to its maximum; colour and opacity both grow with it, and strength (0-1) is the greatest opacity.
    """
    positive = np.maximum(saliency, 0).astype(np.float32)
    positive /= max(float(positive.max()), 1e-12)
    weight = np.asarray(Image.fromarray(positive).resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    stops = np.linspace(0, 1, len(INFERNO))
    colour = np.concatenate([np.interp(weight, stops, INFERNO[:, channel]) for channel in range(3)], axis=-1)
    alpha = strength * weight
    mixed = (1 - alpha) * np.asarray(image.convert("RGB"), np.float32) + alpha * colour
    return Image.fromarray(mixed.round().astype(np.uint8))
