import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig

from training.calibration import Calibration, fit_calibration


def logits_and_truth(factor, n=4000, classes=2, seed=0):
    """Logits that are `factor` times what the truth was drawn by."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (n, classes))
    truth = (softmax(honest, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return honest * factor, truth


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_that_the_logits_were_multiplied_by(factor):
    logits, truth = logits_and_truth(factor)
    found = fit_calibration(logits, truth)
    assert found.method == "temperature"
    assert 1 / found.scale == pytest.approx(factor, rel=0.1)
    assert not found.shift.any()


def test_vector_scaling_finds_what_each_class_needs():
    logits, truth = logits_and_truth(1.0, n=20_000, classes=3)
    spoilt = logits * [3, 1, 1] + [0, 0, 2]
    found = fit_calibration(spoilt, truth, "vector")
    assert found.method == "vector"
    assert np.abs(softmax(found.apply(spoilt), axis=1) - softmax(logits, axis=1)).max() < 0.05
    assert np.allclose(found.undo(found.apply(spoilt)), spoilt)


def test_what_the_images_cannot_tell_is_refused_in_words():
    logits, truth = logits_and_truth(1.0)
    few = fit_calibration(logits[:30], truth[:30])
    assert "fewer than 20" in few.reason
    right = fit_calibration(np.eye(2)[truth] * 3, truth)
    assert "every image of the validation part is called right" in right.reason
    of_folds = fit_calibration(logits[:30], truth[:30], where="test parts of the 2 folds")
    assert "in the test parts of the 2 folds, which is fewer than 20" in of_folds.reason
    useless = fit_calibration(-logits, truth)
    assert "no temperature between 0.05 and 20 fits best" in useless.reason
    for refused in (few, right, useless):
        assert refused.method == "none"
        assert np.array_equal(refused.apply(logits), logits)


def test_one_narrowly_wrong_answer_among_many_right_ones_does_not_ask_for_boundless_confidence():
    truth = np.repeat([0, 1], 100)
    margin = np.where(np.arange(200) == 0, -0.01, 5.0)
    logits = margin[:, None] * (np.eye(2)[truth] - 0.5)
    found = fit_calibration(logits, truth)
    assert found.method == "temperature"
    surest = softmax(found.apply(logits), axis=1).max()
    assert 0.95 < surest <= 101 / 102  # after 100 images of a class, as Laplace's rule of succession has it


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(layer_type="basic", depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, num_labels=3),
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
                  patch_size=16, num_labels=3),
    ],
    ids=["resnet", "vit"],
)  # fmt: skip
def test_folded_in_the_network_gives_the_calibrated_logits(config):
    torch.manual_seed(0)
    model, pixels = AutoModelForImageClassification.from_config(config).eval(), torch.randn(2, 3, 32, 32)
    calibration = Calibration("vector", np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.0, -0.3]))
    with torch.no_grad():
        before = model(pixels).logits.numpy()
        Calibration.from_dict(calibration.to_dict()).fold_into(model)
        assert np.allclose(model(pixels).logits.numpy(), calibration.apply(before), atol=1e-5)
