"""Small networks, and fits of them without the verb around."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, BitConfig, PreTrainedConfig, ViTImageProcessorPil, set_seed

from training.arguments import ModelArguments, TrainingArguments
from training.callbacks import LearningCurves
from training.model import load_base
from training.trainer import ClassifierTrainer, make_trainer
from training.unfinished import last_checkpoint

# Group norm: what one image gives does not depend on the others, so that fits can be compared however they are batched.
GROUP_NORM = BitConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=16, num_groups=4)


def save_base(folder: Path, config: PreTrainedConfig) -> Path:
    """A random network with its image processor, as a local folder."""
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def make(parts, base, folder, *, balance="none", size=32, freeze="none", augment="none", head="linear", **settings):
    """A trainer and its whole model: one epoch in float32 where nothing else is said."""
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "bf16": False,
        "learning_rate": 1e-2,
    } | settings
    args = TrainingArguments(output_dir=str(Path(folder) / "checkpoints"), disable_tqdm=True, **settings)
    model_args = ModelArguments(str(base), image_size=size, freeze=freeze, augment=augment, head=head)
    set_seed(args.seed)
    model, processor = load_base(model_args, ["normal", "sick"])
    trainer = make_trainer(model, processor, parts, balance, model_args, args)
    trainer.remove_callback(LearningCurves)  # whose picture takes as long as an epoch
    return trainer, model


def fit(parts, base, folder, **settings) -> tuple[ClassifierTrainer, dict[str, torch.Tensor]]:
    """Train, from the last checkpoint where there is one; the trainer and the weights of the whole model."""
    trainer, model = make(parts, base, folder, **settings)
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(folder) / "checkpoints"))
    return trainer, {name: value.clone() for name, value in model.state_dict().items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The greatest difference of any weight."""
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)


def copy_as_mean(model: Path, folder: Path) -> Path:
    """A copy of a model folder that says it is the mean of three, each of which judged its own test part."""
    shutil.copytree(model, folder)
    for name, more in (("training", {"averaged": 3}), ("test", {"folds": 3})):
        file = folder / "eval" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder
