import pytest
import torch
from transformers import BitForImageClassification, ResNetForImageClassification

from space.errors import InputError
from training.arguments import ModelArguments
from training.model import SCRATCH, load_base


def base(name, **settings):
    return load_base(ModelArguments(model_name_or_path=name, **settings), ["normal", "sick"])


@pytest.mark.parametrize("name", SCRATCH)
def test_every_random_start_is_a_stock_class_with_the_labels(name):
    model, _ = base(f"scratch:{name}")
    assert type(model) is (BitForImageClassification if name.startswith("bit") else ResNetForImageClassification)
    assert model.config.id2label == {0: "normal", 1: "sick"}
    assert model.config.label2id == {"normal": 0, "sick": 1}


def test_sizes_are_those_of_the_papers():
    def millions(name):
        return sum(p.numel() for p in base(f"scratch:{name}")[0].base_model.parameters()) / 1e6

    assert millions("resnet-18") == pytest.approx(11.18, abs=0.01)
    assert millions("resnet-50") == pytest.approx(23.51, abs=0.01)
    assert millions("bit-50") == pytest.approx(23.50, abs=0.01)


def test_the_processor_keeps_the_whole_image(tmp_path):
    from PIL import Image

    _, processor = base("scratch:resnet-18", image_size=32)
    image = Image.new("RGB", (90, 60))
    image.putpixel((0, 0), (255, 255, 255))
    image.paste((255, 255, 255), (85, 55, 90, 60))
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, -1, -1].min() > pixels[:, 16, 16].max()


def test_a_local_folder_gives_body_mean_and_deviation_but_a_head_of_its_own(tmp_path):
    model, processor = load_base(ModelArguments("scratch:resnet-10-thin"), ["a", "b", "c"])
    processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, taken = base(str(tmp_path), image_size=48)
    assert list(taken.image_mean) == [0.1, 0.2, 0.3]
    assert again.config.num_labels == 2
    for one, two in zip(model.base_model.parameters(), again.base_model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_frozen_body_keeps_weights_and_statistics():
    model, _ = base("scratch:resnet-10-thin", freeze="all")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(4, 3, 64, 64), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


@pytest.mark.parametrize("name", ["scratch:resnet-19", "microsoft/resnet-50", "no/such/folder/at/all"])
def test_a_base_that_cannot_be_had_is_refused_and_never_replaced(name):
    with pytest.raises(InputError, match=name) as refusal:
        base(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_whose_weights_are_not_all_there_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = base("scratch:resnet-10-thin")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "stages.2" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks weights"):
        base(str(tmp_path))
