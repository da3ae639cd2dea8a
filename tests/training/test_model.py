import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BertConfig,
    BertModel,
    ConvNextConfig,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    EfficientNetImageProcessorPil,
    MobileNetV2Config,
    MobileViTImageProcessorPil,
    ResNetConfig,
    Siglip2ImageProcessorPil,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from space.errors import InputError
from space.predictor import Predictor
from tests.fits import GROUP_NORM, save_base
from training.arguments import ModelArguments
from training.model import SCRATCH, load_base
from training.outputs import labels_of


def base(name, **settings):
    return load_base(ModelArguments(model_name_or_path=name, **settings), ["normal", "sick"])


def without_weights(name):
    """A random start whose weights have a shape and are not drawn, which takes seconds for the large ones."""
    with torch.device("meta"):
        return base(f"scratch:{name}")[0]


@pytest.mark.parametrize("name", SCRATCH)
def test_every_random_start_is_a_stock_class_with_the_labels(name):
    model = without_weights(name)
    families = {"resnet": "ResNet", "bit": "Bit", "convnext": "ConvNext", "vit": "ViT", "swin": "Swin"}
    assert type(model).__name__ == f"{families[name.split('-')[0]]}ForImageClassification"
    assert model.config.id2label == {0: "normal", 1: "sick"}
    assert model.config.label2id == {"normal": 0, "sick": 1}


def test_sizes_are_those_of_the_papers():
    def millions(name):
        return sum(p.numel() for p in without_weights(name).base_model.parameters()) / 1e6

    assert millions("resnet-18") == pytest.approx(11.18, abs=0.01)
    assert millions("resnet-50") == pytest.approx(23.51, abs=0.01)
    assert millions("bit-50") == pytest.approx(23.50, abs=0.01)


def test_the_processor_keeps_the_whole_image(tmp_path):
    _, processor = base("scratch:resnet-18", image_size=32)
    image = Image.new("RGB", (90, 60))
    image.putpixel((0, 0), (255, 255, 255))
    image.paste((255, 255, 255), (85, 55, 90, 60))
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, -1, -1].min() > pixels[:, 16, 16].max()


def test_a_local_folder_gives_body_mean_and_deviation_but_a_head_of_its_own(tmp_path):
    model, processor = load_base(ModelArguments("scratch:resnet-8-thin"), ["a", "b", "c"])
    processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, taken = base(str(tmp_path), image_size=48)
    assert list(taken.image_mean) == [0.1, 0.2, 0.3]
    assert again.config.num_labels == 2
    for one, two in zip(model.base_model.parameters(), again.base_model.parameters(), strict=True):
        assert torch.equal(one, two)


TINY = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
FAMILIES = {
    "resnet": ResNetConfig(**TINY, embedding_size=8, layer_type="basic"),
    "bit": GROUP_NORM,
    "convnext": ConvNextConfig(**TINY),
    "vit": ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
    ),
    "swin": SwinConfig(image_size=64, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4),
}


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_size_of_the_recipe_and_serves_as_a_pipeline(tmp_path, family, head):
    folder = save_base(tmp_path / "base", FAMILIES[family])
    model, processor = base(str(folder), image_size=96, freeze="all", head=head)
    assert processor.size == {"height": 96, "width": 96}
    assert tuple(processor.image_mean) == (0.5, 0.5, 0.5)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("classifier.")}
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    classify = pipeline("image-classification", model=str(tmp_path / "model"), trust_remote_code=head == "mlp")
    image = Image.new("RGB", (50, 40), (200, 100, 50))
    with torch.inference_mode():
        logits = model.eval()(pixel_values=processor(image, return_tensors="pt")["pixel_values"]).logits
    expected = dict(zip(["normal", "sick"], logits.softmax(-1)[0].tolist(), strict=True))
    assert {answer["label"]: answer["score"] for answer in classify(image)} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_base_that_is_stored_in_half_precision_is_trained_in_float32(tmp_path, family, head):
    folder = save_base(tmp_path, FAMILIES[family])
    AutoModelForImageClassification.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    model, _ = base(str(folder), image_size=64, head=head)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_model_with_a_perceptron_is_a_base_for_another_but_no_linear_one(tmp_path):
    for part in base(str(save_base(tmp_path / "base", GROUP_NORM)), image_size=64, head="mlp"):
        part.save_pretrained(tmp_path / "model")
    settings = ModelArguments(str(tmp_path / "model"), image_size=64, head="mlp")
    before, after = load_base(settings, ["normal", "sick"])[0], load_base(settings, ["normal", "a", "b"])[0]
    assert after.config.num_labels == 3
    assert torch.equal(before.classifier[0].weight, after.classifier[0].weight)
    with pytest.raises(InputError, match="--head linear: .*model has a perceptron as its head; take --head mlp"):
        base(str(tmp_path / "model"), image_size=64)


def test_a_model_with_a_perceptron_does_not_tell_where_its_base_lay(tmp_path):
    for part in base(str(save_base(tmp_path / "Doe_John", GROUP_NORM)), image_size=64, head="mlp"):
        part.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "Doe_John" not in json.dumps(config)
    config["body"]["_name_or_path"] = "/scans/Doe_John"  # as earlier ones have it
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    base(str(tmp_path / "model"), image_size=64, head="mlp")[0].save_pretrained(tmp_path / "again")
    assert "Doe_John" not in (tmp_path / "again" / "config.json").read_text()


VIT = FAMILIES["vit"].to_diff_dict() | {"image_size": 64}
VIT = {key: value for key, value in VIT.items() if key not in {"model_type", "transformers_version"}}


@pytest.mark.parametrize("size", [64, 96])
def test_other_families_are_trained_at_any_size_or_refused_in_one_line(tmp_path, size):
    save_base(tmp_path / "mobile", MobileNetV2Config(depth_multiplier=0.25, image_size=64))
    save_base(tmp_path / "beit", BeitConfig(**VIT, use_relative_position_bias=True, vocab_size=10, out_indices=[1]))
    save_base(tmp_path / "base", FAMILIES["vit"])
    shutil.copytree(tmp_path / "base", tmp_path / "teacher")
    DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT)).save_pretrained(tmp_path / "teacher")
    for name in ("mobile", "beit"):
        if (name, size) == ("beit", 96):
            with pytest.raises(InputError, match="--image_size 96: the weights of .*beit are for images of 64 alone"):
                base(str(tmp_path / name), image_size=size)
        else:
            model, _ = base(str(tmp_path / name), image_size=size)
            model.train()(pixel_values=torch.randn(2, 3, size, size)).logits.sum().backward()
            assert model.config.image_size == size
    with pytest.raises(InputError, match="--head mlp: .*mobile does not tell how many channels it has"):
        base(str(tmp_path / "mobile"), image_size=size, head="mlp")
    with pytest.raises(InputError, match="base .*teacher: a DeiTForImageClassificationWithTeacher has no single head"):
        base(str(tmp_path / "teacher"), image_size=size)


def test_the_code_in_the_folder_is_all_that_the_perceptron_needs(tmp_path):
    """As where this project is not installed, and pipeline() is told trust_remote_code=True."""
    model, _ = base(str(save_base(tmp_path / "base", FAMILIES["resnet"])), image_size=64, head="mlp")
    model.eval().save_pretrained(tmp_path / "model")
    name = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]["AutoModelForImageClassification"]
    copied = get_class_from_dynamic_module(name, str(tmp_path / "model"))
    assert copied.__module__.startswith("transformers_modules.")
    again = copied.from_pretrained(tmp_path / "model").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(again(pixel_values=images).logits, model(pixel_values=images).logits, atol=1e-6)


def test_positions_of_a_grid_are_kept_where_the_size_is_and_interpolated_where_not(tmp_path):
    folder = save_base(tmp_path, FAMILIES["vit"])
    grids = [base(str(folder), image_size=size)[0].vit.embeddings.position_embeddings for size in (64, 96)]
    assert [grid.shape[1] for grid in grids] == [1 + 16, 1 + 36]
    assert torch.equal(grids[0][0, 0], grids[1][0, 0])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("scratch:resnet-18", 31, "--image_size 31: expected at least 32, the stride of scratch:resnet-18"),
        ("scratch:vit-tiny", 15, "expected at least 16"),
        ("scratch:swin-tiny", 192, "expected at least 193, by the stride and the windows of 7 of scratch:swin-tiny"),
    ],
)
def test_a_size_below_the_stride_or_the_windows_is_refused_and_the_next_is_taken(name, size, message):
    with pytest.raises(InputError, match=message):
        base(name, image_size=size)
    assert base(name, image_size=size + 1)[1].size["width"] == size + 1


def test_a_base_that_is_no_image_classifier_is_refused_in_one_line(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "words")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 2, "model_type": "timm_wrapper"}'
    )
    for name in ("words", "timm"):
        with pytest.raises(InputError, match=f"base .*{name}: found no image classifier in that folder") as refusal:
            base(str(tmp_path / name))
        assert "\n" not in str(refusal.value)


def test_a_frozen_body_keeps_weights_and_statistics():
    model, _ = base("scratch:resnet-8-thin", freeze="all")
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

    model, processor = base("scratch:resnet-8-thin")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "stages.2" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="lacks weights"):
        base(str(tmp_path))


def test_an_architecture_of_timm_serves_as_a_pipeline_with_the_images_and_labels_of_the_recipe(tmp_path):
    timm = pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    cut = timm.create_model("resnet18", pretrained=False, num_classes=10).pretrained_cfg
    config = TimmWrapperConfig.from_dict({"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": cut})
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "base")
    model, processor = load_base(ModelArguments(str(tmp_path / "base"), image_size=64), ["normal", "sick"])
    model.eval().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert labels_of(tmp_path / "model") == ["normal", "sick"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    answers = pipeline("image-classification", model=str(tmp_path / "model"))(image)
    probabilities = Predictor(tmp_path / "model").answer([image])[0].probabilities
    assert {answer["label"] for answer in answers} == {"normal", "sick"}
    assert max(answer["score"] for answer in answers) == pytest.approx(probabilities.max(), abs=1e-4)


def test_what_a_base_decided_by_is_not_what_the_new_head_decides_by(tmp_path):
    save_base(tmp_path, GROUP_NORM)
    told = {"threshold": 0.3, "threshold_origin": {"rule": "youden"}, "calibration": {"method": "temperature"}}
    config = json.loads((tmp_path / "config.json").read_text()) | told
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load_base(ModelArguments(str(tmp_path), image_size=32), ["normal", "pneumonia", "effusion"])
    assert not told.keys() & model.config.to_dict().keys()


def test_a_base_that_told_several_findings_of_one_image_chooses_one_class_now(tmp_path):
    folder = save_base(tmp_path / "base", GROUP_NORM)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    for part in base(str(folder), image_size=32):
        part.save_pretrained(tmp_path / "model")
    assert Predictor(tmp_path / "model").labels == ["normal", "sick"]


@pytest.mark.parametrize("told", ["output_hidden_states", "output_attentions"])
def test_a_base_that_was_asked_for_all_it_computes_gives_logits_alone(tmp_path, told):
    folder = save_base(tmp_path, FAMILIES["vit"])
    config = json.loads((folder / "config.json").read_text()) | {told: True}
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = base(str(folder), image_size=64)
    assert list(model(pixel_values=torch.zeros(1, 3, 64, 64))) == ["logits"]


@pytest.mark.parametrize(
    "theirs",
    [
        ViTImageProcessorPil(do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        ViTImageProcessorPil(do_rescale=False, image_mean=[123.0, 116.0, 103.0], image_std=[58.0] * 3),
        EfficientNetImageProcessorPil(),
        EfficientNetImageProcessorPil(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False),
    ],
    ids=["no normalization", "no rescaling", "deviation twice", "offset"],
)
def test_a_base_is_given_the_pixels_that_it_was_trained_on(tmp_path, theirs):
    theirs.size = {"height": 64, "width": 64}
    theirs.save_pretrained(save_base(tmp_path, GROUP_NORM))
    _, ours = base(str(tmp_path), image_size=64)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    given, wanted = (each(image, return_tensors="pt")["pixel_values"] for each in (ours, theirs))
    assert torch.allclose(given, wanted, atol=1e-4)


@pytest.mark.parametrize("theirs", [MobileViTImageProcessorPil, Siglip2ImageProcessorPil])
def test_a_base_that_was_trained_on_swapped_colours_or_on_patches_is_refused(tmp_path, theirs):
    theirs().save_pretrained(save_base(tmp_path, GROUP_NORM))
    with pytest.raises(InputError, match=r"its \w+ImageProcessor\w* does more to a colour than subtract") as refusal:
        base(str(tmp_path), image_size=64)
    assert "\n" not in str(refusal.value)
