import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from transformers import AutoModelForImageClassification, BitConfig, ConvNextConfig, ResNetConfig

from space.saliency import class_activation_maps, linear_head, overlay

CONFIGS = {
    "resnet": ResNetConfig(layer_type="basic", depths=[1, 1], hidden_sizes=[16, 32], embedding_size=16, num_labels=3),
    "bottleneck": ResNetConfig(depths=[1, 2], hidden_sizes=[16, 32], embedding_size=16, num_labels=2),
    "bit": BitConfig(depths=[1, 1], hidden_sizes=[32, 64], embedding_size=32, num_groups=8, num_labels=2),
}


def random_model(config):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_add_up_to_the_logits(name):
    model, pixels = random_model(CONFIGS[name]), torch.randn(2, 3, 64, 48)
    logits, maps = class_activation_maps(model, pixels)
    assert torch.allclose(maps.mean((2, 3)) + linear_head(model).bias, logits, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, logits, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("label", [0, 1])
def test_maps_equal_grad_cam_at_the_last_feature_map(name, label):
    model, pixels = random_model(CONFIGS[name]), torch.randn(2, 3, 64, 64)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values).logits

    last = model.bit.norm if name == "bit" else model.resnet.encoder.stages[-1]
    grad_cam = LayerGradCam(Logits(), last).attribute(pixels, target=label)[:, 0]
    maps = class_activation_maps(model, pixels)[1][:, label]
    assert torch.allclose(maps / maps[0].numel(), grad_cam, atol=1e-4)


def test_another_kind_of_head_is_refused():
    model = random_model(ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2))
    assert linear_head(model) is None
    with pytest.raises(ValueError, match="average pooling"):
        class_activation_maps(model, torch.zeros(1, 3, 32, 32))


def test_the_overlay_has_the_image_s_size_and_leaves_what_does_not_count():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    saliency = np.full((4, 4), -1.0)
    saliency[0, 0] = 2.0
    seen = np.asarray(overlay(image, saliency))
    assert seen.shape == (90, 120, 3)
    assert np.array_equal(seen[50:, 70:], np.asarray(image)[50:, 70:])
    assert not np.array_equal(seen[:20, :20], np.asarray(image)[:20, :20])
    assert np.array_equal(overlay(image, -np.ones((4, 4))), image)
