import pytest
import torch
from transformers import AutoModelForImageClassification

from space.errors import InputError
from tests.training.test_model import FAMILIES
from training.stages import depths, freeze, parameter_groups


def network(family):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(FAMILIES[family])


STAGES = {"resnet": 4, "bit": 2, "convnext": 4, "vit": 2, "swin": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_stem_stages_and_head_are_told_apart(family):
    model = network(family)
    found = depths(model)
    by_depth = {depth: [n for n, _ in model.named_parameters() if found[n] == depth] for depth in found.values()}
    assert sorted(by_depth) == list(range(STAGES[family] + 2))
    assert all("embed" in name for name in by_depth[0])
    assert all(name.startswith("classifier") for name in by_depth[STAGES[family] + 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_up_to_a_stage_stops_its_gradients_and_keeps_it_in_eval_mode(family):
    model = network(family)
    freeze(model, "1")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(4, 3, 64, 64), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    found = depths(model)
    for name, value in model.state_dict().items():
        depth = found.get(name, found[name.rpartition(".")[0]])
        if depth <= 1:
            assert torch.equal(value, before[name]), name
        elif name.endswith("weight") and value.ndim > 1 and family != "swin":
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("upto", ["5", "half", "-1"])
def test_stages_that_are_not_there_are_refused(upto):
    with pytest.raises(InputError, match=f"--freeze {upto}: expected none, all, or a number of stages; .* has 4"):
        freeze(network("resnet"), upto)


def test_rates_fall_with_depth_and_the_head_has_its_own():
    model = network("resnet")
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups = parameter_groups(model, decayed, (1.0, 8.0), 0.5, 0.1)
    assert groups[0]["lr"] == 8.0
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    assert len(rates) == len(named)
    for part, rate in (("embedder.embedder", 0.5**5), ("stages.0", 0.5**4), ("stages.3", 0.5), ("classifier", 8.0)):
        assert {rates[id(parameter)] for name, parameter in named.items() if part in name} == {rate}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
