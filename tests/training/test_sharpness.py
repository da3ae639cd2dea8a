import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from tests.fits import distance, fit
from training.sharpness import sharpness_aware
from training.stages import recompute_stages

RHO = 0.1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))


def backward_of(network, seed):
    rng = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(8, 1, 6, 6, generator=rng), torch.randint(0, 2, (8,), generator=rng)

    def backward():
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach()

    return backward


def gradients(network):
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_the_gradient_is_the_one_that_lies_rho_uphill(network):
    backward = backward_of(network, 1)
    at_the_weights = backward()
    uphill = gradients(network)
    length = torch.cat([each.flatten() for each in uphill]).norm()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), uphill, strict=True):
            parameter += RHO * gradient / length
    network.zero_grad()
    backward()
    wanted = gradients(network)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), before, strict=True):
            parameter.copy_(value)
    network.zero_grad()

    assert sharpness_aware(network, RHO, backward) == at_the_weights
    for found, expected in zip(gradients(network), wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(wanted[0], uphill[0], atol=1e-3)
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_what_was_accumulated_before_stays_and_turns_no_step(network):
    first, second = backward_of(network, 1), backward_of(network, 2)
    sharpness_aware(network, RHO, first)
    one = gradients(network)
    network.zero_grad()
    sharpness_aware(network, RHO, second)
    other = gradients(network)
    network.zero_grad()
    sharpness_aware(network, RHO, first)
    sharpness_aware(network, RHO, second)
    for found, a, b in zip(gradients(network), one, other, strict=True):
        assert torch.allclose(found, a + b, atol=1e-6)


def test_running_statistics_are_those_of_one_pass_at_the_weights_themselves(network):
    backward = backward_of(network, 1)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    backward()
    wanted = {name: value.clone() for name, value in network[1].state_dict().items()}
    network.load_state_dict(fresh)
    network.zero_grad()
    sharpness_aware(network, RHO, backward)
    assert all(torch.equal(value, wanted[name]) for name, value in network[1].state_dict().items())


def test_norms_and_layers_that_are_frozen_stay_as_they_are(network):
    network[0].requires_grad_(False)
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sharpness_aware(network, RHO, backward_of(network, 1))
    assert network[0].weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_pass_that_fails_leaves_weights_and_norms_as_they_were(network):
    """As when the memory is full, and Trainer goes on with smaller batches."""
    backward, passes = backward_of(network, 1), []
    before = {name: value.clone() for name, value in network.named_parameters()}

    def fails():
        passes.append(1)
        if len(passes) == 2:
            raise MemoryError
        return backward()

    with pytest.raises(MemoryError):
        sharpness_aware(network, RHO, fails)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_fit_takes_sharpness_aware_steps(parts, small_base, tmp_path):
    few = {"train": parts["train"].select(range(32)), "validation": parts["validation"]}
    plain, near, far = (fit(few, small_base, tmp_path / str(rho), sam_rho=rho)[1] for rho in (0.0, 1e-7, 0.5))
    assert distance(plain, near) < 1e-3  # Adam's first steps go by the sign of a gradient, so rounding may show
    assert distance(plain, far) > 5e-3


def test_batches_are_counted_once_where_stages_are_recomputed_too():
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8)
    model = ResNetForImageClassification(config).train()
    recompute_stages(model)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])

    def backward():
        loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        return loss.detach()

    sharpness_aware(model, RHO, backward)
    assert {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")} == {1}
