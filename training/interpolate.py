"""Weights between those of a fitted network and those that it started from.

What a start knows of other places, training at one place makes it forget; a network between the two has much of both
(Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from space.predictor import Predictor
from training.calibration import Calibration, fit_shift
from training.settle import evenly, look_at, save_model
from training.split import draw_shares
from training.stages import body_of


def interpolate(folder: Path, start: PreTrainedModel, knows: bool, train: Dataset, share: float) -> str:
    """Give the model in `folder` this share of the weights of `start`; return what was done, a line.

    knows: whether the head of `start` tells these classes; if not, the head stays as it was fitted. What is usual where
    start learned need not be so here, so before that its logits are shifted as fits `train` best, all that was trained
    on, where every class of every site weighs the same. Raises InputError when the folder holds no model.
    """
    predictor = Predictor(folder)
    model = predictor.model
    fitted = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start.state_dict())
    line = f"{share:.0%} of the weights are those of the start"
    if knows:
        train = train.select(evenly(len(train)))
        shift = fit_shift(look_at(predictor, train)[0], np.asarray(train["label"]), draw_shares(train, "sites"))
        Calibration("vector", np.ones_like(shift), shift).fold_into(model)
        moved = ", ".join(f"{label} {by:+.2f}" for label, by in zip(predictor.labels, shift, strict=True))
        line += f", whose logits the train part shifts by {moved}"
    mixed = fitted.keys() if knows else body_of(model).keys()
    for name, value in model.state_dict().items():
        if name in mixed and value.is_floating_point():
            value.lerp_(fitted[name], 1 - share)
        else:  # as the number of batches that batch norm has seen
            value.copy_(fitted[name])
    save_model(predictor, folder)
    return line
