"""The network to train and the image processor that goes with it: stock classes only, so that pipeline() loads them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViTImageProcessorPil,
)
from transformers.utils import logging

from space.errors import InputError
from training.arguments import ModelArguments

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BASIC, DEEP = [64, 128, 256, 512], [256, 512, 1024, 2048]

# He et al., Deep residual learning for image recognition, CVPR 2016, table 1; BiT: Kolesnikov et al., ECCV 2020.
SCRATCH: dict[str, PreTrainedConfig] = {
    "resnet-10-thin": ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 128, 256], embedding_size=32
    ),
    "resnet-18": ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=BASIC),
    "resnet-34": ResNetConfig(layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=BASIC),
    "resnet-50": ResNetConfig(depths=[3, 4, 6, 3], hidden_sizes=DEEP),
    "resnet-101": ResNetConfig(depths=[3, 4, 23, 3], hidden_sizes=DEEP),
    "resnet-152": ResNetConfig(depths=[3, 8, 36, 3], hidden_sizes=DEEP),
    "bit-50": BitConfig(depths=[3, 4, 6, 3], hidden_sizes=DEEP, global_padding="same"),
    "bit-101": BitConfig(depths=[3, 4, 23, 3], hidden_sizes=DEEP, global_padding="same"),
}


def load_base(args: ModelArguments, labels: list[str]) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
    """The base with a head for these labels, frozen as asked, and its image processor.

    The processor scales the whole image to image_size x image_size: aspect ratios are not kept, but nothing at the
    border, where effusions and consolidations lie, is cut off, as a centre crop would do. Mean, deviation and
    resampling are the base's. Raises InputError when the base cannot be had.
    """
    name = args.model_name_or_path
    head = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    processor = ViTImageProcessorPil(
        size={"height": args.image_size, "width": args.image_size}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    if name.startswith("scratch:"):
        model = AutoModelForImageClassification.from_config(_scratch_config(name.removeprefix("scratch:"), head))
    else:
        model = _pretrained(name, head)
        for setting in ("image_mean", "image_std", "resample"):
            if (value := _processor_settings(name).get(setting)) is not None:
                setattr(processor, setting, value)
    if args.freeze == "all":
        freeze(model)
    return model.to(memory_format=torch.channels_last), processor  # faster convolutions


def freeze(model: PreTrainedModel) -> None:
    """Train the head only: the body gets no gradient, and its batch norm keeps the statistics it came with."""
    body = model.base_model
    body.requires_grad_(False)

    def put_back(module: nn.Module, _inputs) -> None:  # for Trainer calls model.train() before every step
        module.eval()

    body.register_forward_pre_hook(put_back)


def _scratch_config(name: str, head: dict) -> PreTrainedConfig:
    if name not in SCRATCH:
        raise InputError(f"scratch:{name}: no such random start; expected scratch: and one of {', '.join(SCRATCH)}")
    return type(SCRATCH[name])(**SCRATCH[name].to_diff_dict() | head)


def _pretrained(name: str, head: dict) -> PreTrainedModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        config = AutoConfig.from_pretrained(name, **head)
        model, loaded = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        where = "that folder" if Path(name).is_dir() else "the Hub (or its cache) under that name"
        raise InputError(
            f"base {name}: found no image classifier in {where}; give a Hub id that can be reached, a local folder, "
            f"or scratch:NAME ({str(error).strip().splitlines()[0]})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    absent = sorted(key for key in loaded["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    misfits = sorted(key for key, *_ in loaded["mismatched_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if absent or misfits:
        raise InputError(
            f"base {name}: it lacks weights of the body, {(absent + misfits)[0]} for one; only the head may be new"
        )
    return model


def _processor_settings(name: str) -> dict:
    try:
        return AutoImageProcessor.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        raise InputError(
            f"base {name}: it has no image processor (preprocessor_config.json), so its mean and deviation are unknown "
            f"({str(error).strip().splitlines()[0]})"
        ) from None
