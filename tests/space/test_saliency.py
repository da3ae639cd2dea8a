import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    BitConfig,
    ConvNextConfig,
    FocalNetConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from space.saliency import METHODS, linear_head, look, methods_for, overlay, region, saliency_maps

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
    logits, _, maps = look(model, pixels)
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
    maps = look(model, pixels)[2][:, label]
    assert torch.allclose(maps / maps[0].numel(), grad_cam, atol=1e-4)


OTHERS = {
    "convnext": ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2, num_labels=2),
    "vit": ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64,
                     patch_size=16, num_labels=2),
    "swin": SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[2, 2], num_labels=2),
    "focalnet": FocalNetConfig(image_size=64, embed_dim=8, depths=[1, 1], hidden_sizes=[8, 16], focal_levels=[1, 1],
                               focal_windows=[3, 3], num_labels=2),
}  # fmt: skip


def test_every_network_has_the_methods_that_it_allows():
    fitting = {name: methods_for(random_model(config)) for name, config in (CONFIGS | OTHERS).items()}
    assert fitting["resnet"] == fitting["bit"] == list(METHODS)
    assert fitting["convnext"] == ["grad_cam", "integrated_gradients", "occlusion"]
    assert fitting["vit"] == fitting["swin"] == fitting["focalnet"] == ["integrated_gradients", "occlusion"]
    assert look(random_model(OTHERS["convnext"]), torch.zeros(1, 3, 32, 32))[2] is None


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_every_method_gives_a_map_for_the_class_of_each_image(name):
    model, pixels = random_model((CONFIGS | OTHERS)[name]), torch.randn(2, 3, 64, 64)
    for method in methods_for(model):
        one, other = (saliency_maps(model, pixels, torch.tensor(classes), method) for classes in ([0, 1], [1, 1]))
        assert one.ndim == 3
        assert torch.isfinite(one).all()
        assert torch.allclose(one[1], other[1], atol=1e-5)
        assert not torch.allclose(one[0], other[0], atol=1e-5)


def test_the_saliency_of_a_bright_spot_is_where_the_spot_is():
    """A network that only sums up the brightness of the picture: every method points to the only bright place."""
    model = random_model(CONFIGS["resnet"])
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    torch.nn.init.constant_(model.classifier[1].weight, 1.0)
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, :, 40:56, 8:24] = 1.0
    for method in methods_for(model):
        found = saliency_maps(model, pixels, torch.tensor([0]), method)[0]
        row, column = np.unravel_index(int(found.argmax()), found.shape)
        scale = 64 / found.shape[0]
        assert 32 <= (row + 0.5) * scale <= 64, method
        assert 0 <= (column + 0.5) * scale <= 32, method


def test_the_overlay_has_the_image_s_size_and_leaves_what_does_not_count():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    saliency = np.full((4, 4), -1.0)
    saliency[0, 0] = 2.0
    seen = np.asarray(overlay(image, saliency))
    assert seen.shape == (90, 120, 3)
    assert np.array_equal(seen[50:, 70:], np.asarray(image)[50:, 70:])
    assert not np.array_equal(seen[:20, :20], np.asarray(image)[:20, :20])
    assert np.array_equal(overlay(image, -np.ones((4, 4))), image)


def blob(row, column, radius=0.09, size=56):
    """A round map of `size` pixels a side; its centre and radius in shares of the image."""
    down, across = (np.mgrid[:size, :size] + 0.5) / size
    return np.exp(-((down - row) ** 2 + (across - column) ** 2) / radius**2)


def test_a_region_is_told_by_its_place_and_share():
    saliency = np.full((9, 12), -1.0)
    assert region(saliency) is None
    saliency[7:, 1] = 3.0
    saliency[0, 11] = 0.1
    row, column, held, share = region(saliency)
    assert (row, column) == (2, 0)
    assert held > 0.9
    assert share == pytest.approx(2 / 108, abs=0.02)
    assert region(np.ones((4, 4)))[2:] == (pytest.approx(1 / 9), 1.0)


@pytest.mark.parametrize("size", [7, 8, 56, 224])
@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_a_spot_lies_mostly_in_its_ninth_of_the_image(row, column, size):
    found = region(blob((row + 0.5) / 3, (column + 0.5) / 3, max(0.09, 0.6 / size), size))
    assert found[:2] == (row, column)
    assert found[2] > 0.5


def test_no_ninth_has_most_of_what_lies_apart_or_on_a_border():
    bases = blob(5 / 6, 1 / 6) + blob(5 / 6, 5 / 6)  # their centre of mass lies between them
    for saliency, places in (
        (bases, {(2, 0), (2, 2)}),
        (blob(0.32, 0.35), {(0, 1)}),
        (blob(0.35, 0.64), {(1, 1)}),
        (blob(2 / 3, 1 / 6), {(1, 0), (2, 0)}),
    ):
        *place, held, _ = region(saliency)
        assert tuple(place) in places
        assert held < 0.5
