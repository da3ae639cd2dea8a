"""The network to train and the image processor that goes with it: stock classes where pipeline() must load it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitConfig,
    ConvNextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)
from transformers.utils import logging

from space.errors import InputError, reason_of
from space.mlp_head import MlpHeadConfig, MlpHeadForImageClassification
from training.arguments import ModelArguments
from training.stages import body_of, freeze

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BASIC, DEEP = [64, 128, 256, 512], [256, 512, 1024, 2048]

# He et al., Deep residual learning for image recognition, CVPR 2016, table 1; BiT: Kolesnikov et al., ECCV 2020;
# ConvNeXT: Liu et al., CVPR 2022; ViT: Touvron et al., DeiT, ICML 2021, table 1; Swin: Liu et al., ICCV 2021.
SCRATCH: dict[str, PreTrainedConfig] = {
    "resnet-8-thin": ResNetConfig(layer_type="basic", depths=[1, 1, 1], hidden_sizes=[32, 64, 128], embedding_size=32),
    "resnet-18": ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=BASIC),
    "resnet-34": ResNetConfig(layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=BASIC),
    "resnet-50": ResNetConfig(depths=[3, 4, 6, 3], hidden_sizes=DEEP),
    "resnet-101": ResNetConfig(depths=[3, 4, 23, 3], hidden_sizes=DEEP),
    "resnet-152": ResNetConfig(depths=[3, 8, 36, 3], hidden_sizes=DEEP),
    "bit-50": BitConfig(depths=[3, 4, 6, 3], hidden_sizes=DEEP, global_padding="same"),
    "bit-101": BitConfig(depths=[3, 4, 23, 3], hidden_sizes=DEEP, global_padding="same"),
    "convnext-tiny": ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768]),
    "vit-tiny": ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768),
    "vit-base": ViTConfig(),
    "swin-tiny": SwinConfig(),
}


def load_base(args: ModelArguments, labels: list[str]) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
    """The base with a head for these labels, frozen as asked, and its image processor.

    The processor scales the whole image to image_size x image_size: aspect ratios are not kept, but nothing at the
    border, where effusions and consolidations lie, is cut off, as a centre crop would do. Mean, deviation and
    resampling are the base's. Raises InputError when the base cannot be had, or no such processor gives it its pixels.
    """
    name, size = args.model_name_or_path, args.image_size
    head = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    processor = ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    if name.startswith("scratch:"):
        config = _scratch_config(name.removeprefix("scratch:"), head)
        if hasattr(config, "image_size"):
            config.image_size = size
        _require_stride(name, config, size)
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = _pretrained(name, head)
        if args.head != "mlp" and isinstance(model, MlpHeadForImageClassification):
            raise InputError(f"--head {args.head}: {name} has a perceptron as its head; take --head mlp")
        for setting, value in _processor_settings(name, model.config).items():
            setattr(processor, setting, value)
        _require_stride(name, model.config, size)
        if getattr(model.config, "image_size", size) != size:
            model = _resized(name, model, size)
        if hasattr(model.config, "pretrained_cfg"):
            _tell_timm(model.config, processor, labels)
    if args.head == "mlp":
        model = _with_mlp_head(name, model, head)
    _require_size(name, model, size)
    freeze(model, args.freeze)
    return model.to(memory_format=torch.channels_last), processor  # faster convolutions


def tells_these(name: str, model: PreTrainedModel) -> bool:
    """Whether the base has a head of the same kind for the same classes in their order, which `load_base` took over."""
    stored = AutoConfig.from_pretrained(name)
    return stored.id2label == model.config.id2label and stored.model_type == model.config.model_type


def _with_mlp_head(name: str, stock: PreTrainedModel, head: dict) -> PreTrainedModel:
    if isinstance(stock, MlpHeadForImageClassification):
        return stock
    try:
        model = MlpHeadForImageClassification(MlpHeadConfig(body=stock.config.to_dict(), **head))
    except AttributeError:
        raise InputError(f"--head mlp: {name} does not tell how many channels it has; take --head linear") from None
    model.body.load_state_dict(stock.base_model.state_dict(), strict=False)  # ViT's has a pooler that is not used here
    return model


def _resized(name: str, model: PreTrainedModel, size: int) -> PreTrainedModel:
    """The same weights for images of another size; position embeddings of a grid are interpolated."""
    weights = model.state_dict()
    key = f"{model.base_model_prefix}.embeddings.position_embeddings"
    if key in weights:
        embeddings = model.base_model.embeddings
        tokens = torch.empty(1, 1 + (size // embeddings.patch_size) ** 2, weights[key].shape[2])
        with torch.inference_mode():
            weights[key] = embeddings.interpolate_pos_encoding(tokens, size, size)
    before, model.config.image_size = model.config.image_size, size
    resized = type(model)(model.config)
    try:
        resized.load_state_dict(weights)
    except RuntimeError:
        raise InputError(f"--image_size {size}: the weights of {name} are for images of {before} alone") from None
    return resized


def _tell_timm(config: PreTrainedConfig, processor: ViTImageProcessorPil, labels: list[str]) -> None:
    """Write the image processor and the labels where transformers looks for those of an architecture of timm."""
    config.label_names = list(labels)
    config.pretrained_cfg |= {
        "input_size": [3, processor.size["height"], processor.size["width"]],
        "mean": processor.image_mean,
        "std": processor.image_std,
        "interpolation": "bilinear",
        "crop_mode": "squash",  # to a square, whatever the shape
        "crop_pct": 1.0,
    }


def _require_stride(name: str, config: PreTrainedConfig, size: int) -> None:
    stages = len(getattr(config, "depths", None) or [None])
    stride = (getattr(config, "patch_size", None) or 4) * 2 ** (stages - 1)  # 4: the stem of ResNet and BiT
    if stages == 1 and not hasattr(config, "patch_size"):
        return  # an architecture of timm, which says nothing of its stride
    least, what = stride, "the stride"
    if config.model_type == "swin" and config.window_size > 1:  # the last stage, rounded up, has to hold a window
        least, what = stride * (config.window_size - 1) + 1, f"by the stride and the windows of {config.window_size}"
    if size < least:
        raise InputError(f"--image_size {size}: expected at least {least}, {what} of {name}")


def _require_size(name: str, model: PreTrainedModel, size: int) -> None:
    """One look at a blank image tells whether the network takes images of this size."""
    try:
        with torch.no_grad():  # in inference mode, BEiT would keep tensors that cannot be trained with
            model.eval()(pixel_values=torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"--image_size {size}: {name} takes no images of that size ({reason_of(error)})") from None


def _scratch_config(name: str, head: dict) -> PreTrainedConfig:
    if name not in SCRATCH:
        raise InputError(f"scratch:{name}: no such random start; expected scratch: and one of {', '.join(SCRATCH)}")
    return type(SCRATCH[name])(**SCRATCH[name].to_diff_dict() | head)


def _pretrained(name: str, head: dict) -> PreTrainedModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        config = AutoConfig.from_pretrained(name, **head)
        for key in ("calibration", "threshold", "threshold_origin"):  # of its head, where the tool has made it
            config.__dict__.pop(key, None)
        config.problem_type = "single_label_classification"  # whatever the base told
        config.output_hidden_states = config.output_attentions = False
        model, loaded = AutoModelForImageClassification.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        where = "that folder" if Path(name).is_dir() else "the Hub (or its cache) under that name"
        raise InputError(
            f"base {name}: found no image classifier in {where}; give a Hub id that can be reached, a local folder, "
            f"or scratch:NAME ({reason_of(error)})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    if not hasattr(model, "classifier") and not hasattr(model, "timm_model"):
        raise InputError(f"base {name}: a {type(model).__name__} has no single head that could be made anew")
    new = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    if absent := sorted(new & body_of(model).keys()):
        raise InputError(f"base {name}: it lacks weights of the body, {absent[0]} for one; only the head may be new")
    return model


def _processor_settings(name: str, config: PreTrainedConfig) -> dict:
    """Mean, deviation and resampling that the base was trained with; the first two by what its image processor does to
    black and white, where it does not do what they say. Raises InputError where it does what no mean and deviation can.
    """
    timm = getattr(config, "pretrained_cfg", None)
    if timm:
        return {"image_mean": timm["mean"], "image_std": timm["std"]}
    try:
        theirs = AutoImageProcessor.from_pretrained(name)
        black, white, other = (_seen_as(theirs, shade) for shade in ((0, 0, 0), (255, 255, 255), (51, 102, 204)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"base {name}: it has no image processor (preprocessor_config.json), so its mean and deviation are unknown "
            f"({reason_of(error)})"
        ) from None
    found = {"image_mean": (0 - black) / (white - black), "image_std": 1 / (white - black)}
    back = other * found["image_std"] + found["image_mean"]
    if len(back) != 3 or not torch.allclose(back, torch.tensor([0.2, 0.4, 0.8]), atol=1e-4):
        raise InputError(
            f"base {name}: its {type(theirs).__name__} does more to a colour than subtract a mean and divide by a "
            "deviation; take another base"
        )
    settings = theirs.to_dict()
    told = {key: settings[key] for key in ("image_mean", "image_std", "resample") if settings.get(key) is not None}
    untrue = (key for key in found if key not in told or not np.allclose(told[key], found[key], atol=1e-5))
    return told | {key: found[key].tolist() for key in untrue}


def _seen_as(processor, colour: tuple[int, int, int]) -> torch.Tensor:
    """What an image processor makes of a colour (red, green, blue; 0 to 255), wherever it pads: (channels,)."""
    pixels = processor(Image.new("RGB", (64, 64), colour), return_tensors="pt")["pixel_values"][0]
    return pixels.flatten(1).median(dim=1).values
