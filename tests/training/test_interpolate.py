import shutil

import numpy as np
import pytest
import torch
from scipy.special import softmax

from space.predictor import Predictor
from tests.fits import weights
from training.arguments import ModelArguments
from training.calibration import fit_shift
from training.interpolate import interpolate
from training.model import load_base, tells_these
from training.settle import look_at
from training.stages import head_of


@pytest.fixture
def start(small_model):
    """A network whose weights lie near those of the model folder and which takes nearly everything for sick."""
    model, _ = load_base(ModelArguments(str(small_model), image_size=128), ["normal", "sick"])
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.mul_(1.01)
        head_of(model)[-1].bias.add_(torch.tensor([-4.0, 4.0]))
    return model


@pytest.fixture
def folder(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "m")


def test_weights_lie_between_those_of_both(start, folder, parts):
    fitted, begun = weights(folder), start.state_dict()
    line = interpolate(folder, start, True, parts["train"], 0.25)
    assert line.startswith("25% of the weights are those of the start, whose logits the train part shifts by normal +")
    for name, value in weights(folder).items():
        if not value.is_floating_point():
            assert torch.equal(value, fitted[name])  # how many batches were seen
        elif name != "classifier.1.bias":
            assert torch.allclose(value, 0.75 * fitted[name] + 0.25 * begun[name], atol=1e-6), name


def test_a_start_that_takes_healthy_for_sick_is_shifted_by_what_the_train_part_holds(start, folder, parts):
    fitted, begun = weights(folder)["classifier.1.bias"], start.state_dict()["classifier.1.bias"]
    interpolate(folder, start, True, parts["train"], 0.5)
    shift = 2 * weights(folder)["classifier.1.bias"] - fitted - begun
    assert shift[0] == pytest.approx(-shift[1], abs=1e-4)
    assert shift[0] > 2

    healthy = np.asarray(parts["train"]["label"]) == 0
    predictor = Predictor(folder)
    predictor.model.load_state_dict(start.state_dict())
    logits = look_at(predictor, parts["train"])[0]
    before, after = (softmax(each, axis=1)[:, 1] for each in (logits, logits + shift.numpy()))
    told = [scores[healthy].mean() + scores[~healthy].mean() for scores in (before, after)]
    assert told[0] > 1.3
    assert told[1] == pytest.approx(1, abs=0.05)  # but for frames of one patient, which weigh less


def test_a_head_that_the_start_does_not_know_stays_as_it_was_fitted(start, folder, parts):
    fitted, begun = weights(folder), start.state_dict()
    line = interpolate(folder, start, False, parts["train"], 0.5)
    assert line == "50% of the weights are those of the start"
    for name, value in weights(folder).items():
        if name.startswith("classifier") or not value.is_floating_point():
            assert torch.equal(value, fitted[name])
        else:
            assert torch.allclose(value, (fitted[name] + begun[name]) / 2, atol=1e-6), name


def test_a_base_knows_the_classes_of_its_head_in_their_order(small_model):
    """As many others, or the same turned round, are told by another head."""
    for labels in (["normal", "sick"], ["sick", "normal"], ["normal", "covid"], ["normal", "covid", "pneumonia"]):
        model, _ = load_base(ModelArguments(str(small_model), image_size=64), labels)
        assert tells_these(str(small_model), model) == (labels == ["normal", "sick"])
    model, _ = load_base(ModelArguments(str(small_model), image_size=64, head="mlp"), ["normal", "sick"])
    assert not tells_these(str(small_model), model)


def test_a_base_without_a_head_knows_no_classes(small_model, tmp_path):
    """Its configuration is one for two classes, since it names none."""
    model, processor = load_base(ModelArguments(str(small_model), image_size=64), ["normal", "sick"])
    model.base_model.config.update({"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "architectures": None})
    for part in (model.base_model, processor):
        part.save_pretrained(tmp_path)
    model, _ = load_base(ModelArguments(str(tmp_path), image_size=64), ["normal", "sick"])
    assert not tells_these(str(tmp_path), model)


def test_the_shift_is_what_was_taken_away_and_images_that_weigh_nothing_say_nothing():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5000, 3))
    truth = np.array([rng.choice(3, p=each) for each in softmax(logits, axis=1)])
    weights = np.r_[np.ones(4000), np.zeros(1000)] / 4000
    spoilt = np.where(weights[:, None] > 0, logits - [1, -2, 4], 7.0)
    assert fit_shift(spoilt, truth, weights) == pytest.approx([0, -3, 3], abs=0.2)
