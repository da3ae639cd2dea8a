import json
import shutil
import tracemalloc
import weakref
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    EfficientNetImageProcessorPil,
    ResNetConfig,
    pipeline,
)

from space.clips import load_frames
from space.errors import InputError
from space.images import load_image
from space.predictor import Answer, Predictor
from tests.clips import write_clip


@pytest.fixture(scope="module")
def predictor(small_model):
    return Predictor(small_model)


def test_probabilities_are_those_of_pipeline(predictor, small_model, small_phantom):
    files = sorted((small_phantom / "images").iterdir())[:40]
    ours = [answer.probabilities for answer in predictor.stream(files)]
    classify = pipeline("image-classification", model=str(small_model))
    for file, probabilities in zip(files, ours, strict=True):
        theirs = {answer["label"]: answer["score"] for answer in classify(str(file))}
        assert np.allclose(probabilities, [theirs[label] for label in predictor.labels], atol=1e-4)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_answer_as_pipeline_does_in_float32(
    small_model, small_phantom, tmp_path, stored
):
    AutoModelForImageClassification.from_pretrained(small_model).to(stored).save_pretrained(tmp_path)
    shutil.copy(small_model / "preprocessor_config.json", tmp_path)
    file = min((small_phantom / "images").iterdir())
    (answer,) = (half := Predictor(tmp_path)).stream([file])
    theirs = {
        told["label"]: told["score"]
        for told in pipeline("image-classification", str(tmp_path), dtype="float32")(str(file))
    }
    assert np.allclose(answer.probabilities, [theirs[label] for label in half.labels], atol=1e-4)


def test_a_broken_file_in_between_moves_no_answer(predictor, small_phantom):
    files = sorted((small_phantom / "images").iterdir())[:5]
    whole = list(predictor.stream(files))
    mixed = list(predictor.stream([*files[:2], b"no image", *files[2:]]))
    assert isinstance(mixed.pop(2), InputError)
    assert np.allclose(*([each.probabilities for each in answers] for answers in (whole, mixed)), atol=1e-6)


def test_of_many_clips_the_frames_of_one_are_held_at_a_time(predictor, small_phantom, tmp_path, monkeypatch):
    clip, image = write_clip(tmp_path / "clip.mp4", 24), min((small_phantom / "images").iterdir())
    read, held, shown = [], [], []

    def counted(source):
        frames = load_frames(source)
        read.extend(map(weakref.ref, frames))
        held.append(sum(frame() is not None for frame in read))
        return frames

    monkeypatch.setattr("space.predictor.load_frames", counted)
    answers = list(predictor.stream([image, *[clip] * 7], None, lambda number, frame, _: shown.append(frame.size)))
    assert max(held) <= 24 + 8
    assert shown == [Image.open(image).size, *[(64, 48)] * 7]
    whole = predictor.pool(predictor.answer(load_frames(clip))).probabilities
    assert np.allclose([answer.probabilities for answer in answers[1:]], whole, atol=1e-6)


def test_explaining_changes_no_answer(predictor):
    images = [Image.new("RGB", (70, 50), colour) for colour in ("grey", "white")]
    plain = predictor.answer(images)
    for method in predictor.methods:
        for without, answer in zip(plain, predictor.answer(images, method), strict=True):
            assert np.allclose(without.probabilities, answer.probabilities, atol=1e-6)
            assert answer.distance == pytest.approx(without.distance)
            assert without.saliency is None
            assert answer.saliency.ndim == 2


def test_each_file_of_many_gets_its_own_map(predictor, small_phantom):
    files, found = sorted((small_phantom / "images").iterdir())[:60], {}
    for method in ("cam", "grad_cam"):
        answers = predictor.stream(files, method, lambda number, image, answer: found.update({number: answer}))
        assert len(list(answers)) == len(found) == len(files)
        for number in range(0, len(files), 7):
            alone = predictor.answer([load_image(files[number])], method)[0]
            assert np.allclose(found[number].saliency, alone.saliency, atol=1e-3 * np.abs(alone.saliency).max())


def test_the_map_is_of_the_class_that_is_asked_for(predictor):
    image = Image.radial_gradient("L").convert("RGB")
    for method in predictor.methods:
        both = [predictor.answer([image], method, label)[0].saliency for label in (0, 1)]
        called = predictor.answer([image], method)[0]
        assert np.allclose(called.saliency, both[predictor.decide(called.probabilities[None])[0]], atol=1e-5)
        assert not np.allclose(*both, atol=1e-5)


def test_a_clip_s_answer_has_the_mean_of_its_frames_logits(predictor):
    frames = [Answer(np.array([0.5, 0.5]), 0.2), Answer(np.array([0.1, 0.9]), 0.4), Answer(np.array([0.0, 1.0]), 2.0)]
    clip = predictor.pool(frames[:2])
    assert clip.probabilities == pytest.approx([0.25, 0.75])
    assert clip.distance == pytest.approx(0.3)
    assert predictor.pool(frames).distance == 0.4
    assert np.isfinite(predictor.pool(frames).probabilities).all()
    assert predictor.surest(frames) == 2


def test_a_model_without_abstention_abstains_never(small_model, tmp_path):
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(small_model / name, tmp_path / name)
    answer = Predictor(tmp_path).answer([Image.new("RGB", (70, 50))])[0]
    assert np.isnan(answer.distance)
    assert not answer.abstained


def test_the_threshold_decides_between_two_classes_and_the_greatest_among_more(predictor):
    predictor = object.__new__(Predictor)
    predictor.threshold = 0.3
    assert predictor.decide(np.array([[0.69, 0.31], [0.7, 0.3], [0.71, 0.29]])).tolist() == [1, 1, 0]
    assert predictor.decide(np.array([[0.2, 0.35, 0.45], [0.5, 0.3, 0.2]])).tolist() == [2, 0]


def test_the_map_lies_where_a_processor_that_cuts_the_border_off_let_the_network_look(small_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small_model / name, tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8).save_pretrained(tmp_path)
    predictor, image = Predictor(tmp_path), Image.radial_gradient("L").resize((300, 150)).convert("RGB")
    for method in ("cam", "occlusion"):
        saliency = predictor.answer([image], method)[0].saliency  # of the middle: 40 % of the width, 80 % of the height
        for axis, (first, last) in ((0, (0.3, 0.7)), (1, (0.1, 0.9))):
            inside = np.flatnonzero(saliency.any(axis=axis)) / saliency.shape[1 - axis]
            assert (inside[0], inside[-1]) == pytest.approx((first, last), abs=0.01)


def test_what_a_processor_cuts_off_is_found_in_little_more_memory_than_it_takes_for_the_image(tmp_path):
    config = ResNetConfig(layer_type="basic", depths=[1], hidden_sizes=[8], embedding_size=8)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8).save_pretrained(tmp_path)
    predictor, image = Predictor(tmp_path), Image.radial_gradient("L").resize((1024, 1024)).convert("RGB")
    tracemalloc.start()
    predictor.answer([image], "cam")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


@pytest.mark.parametrize("changed", [{"problem_type": "multi_label_classification"}, {"id2label": {0: "sick"}}])
def test_a_model_that_does_not_choose_one_of_several_classes_is_refused(tmp_path, changed):
    config = ResNetConfig(layer_type="basic", depths=[1], hidden_sizes=[8], embedding_size=8, **changed)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    ConvNextImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a model that chooses one of two or more classes"):
        Predictor(tmp_path)


@pytest.mark.parametrize("more", [{"include_top": True}, {"include_top": False, "rescale_offset": True}])
def test_a_model_whose_processor_goes_on_after_normalising_is_refused_in_one_line(small_model, tmp_path, more):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small_model / name, tmp_path)
    size = {"height": 64, "width": 64}
    EfficientNetImageProcessorPil(size=size, include_top=False).save_pretrained(tmp_path)
    Predictor(tmp_path)
    EfficientNetImageProcessorPil(size=size, **more).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its EfficientNetImageProcessorPil does more to .* than") as refusal:
        Predictor(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_model_of_grey_images_is_refused(tmp_path):
    config = ResNetConfig(layer_type="basic", depths=[1], hidden_sizes=[8], embedding_size=8, num_channels=1)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    ConvNextImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has num_channels 1; expected a model of images in colour"):
        Predictor(tmp_path)


def test_weights_without_a_head_are_refused_and_do_not_answer_by_chance(small_model, tmp_path):
    AutoModelForImageClassification.from_pretrained(small_model).base_model.save_pretrained(tmp_path)
    shutil.copy(small_model / "preprocessor_config.json", tmp_path)
    with pytest.raises(InputError, match="its weights lack classifier"):
        Predictor(tmp_path)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("FOLDER", "FOLDER --format onnx --int8"),
        ("user/name", "user/name --format onnx --int8, and give models/name then"),
    ],
)
def test_what_was_not_exported_is_named_with_the_command_that_makes_it(small_model, monkeypatch, model, advice):
    monkeypatch.setattr("space.predictor.snapshot_download", lambda *given, **settings: str(small_model))
    model, advice = (text.replace("FOLDER", str(small_model)) for text in (model, advice))
    with pytest.raises(InputError) as refusal:
        Predictor(model, "onnx", "int8")
    assert f"{model}: found no model_int8.onnx; make it with chest-opacity export {advice}" in str(refusal.value)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_network_whose_package_is_not_installed_is_refused_in_one_line(small_model, tmp_path):
    for name in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(small_model / name, tmp_path)
    config = {"model_type": "timm_wrapper", "num_classes": 2, "label_names": ["normal", "sick"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"not installed \(.* requires the timm library .*\); install it") as refusal:
        Predictor(tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_is_no_model_or_a_broken_one_is_refused_in_one_line(small_model, tmp_path):
    with pytest.raises(InputError, match="found no image classifier") as refusal:
        Predictor(tmp_path)
    assert "\n" not in str(refusal.value)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(small_model / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((small_model / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="found no image classifier"):
        Predictor(tmp_path)
    shutil.copy(small_model / "model.safetensors", tmp_path)
    config = json.loads((small_model / "config.json").read_text())
    for name, content in (
        ("config.json", json.dumps(config | {"threshold": None})),
        ("preprocessor_config.json", "[]"),
        ("abstention.safetensors", "cut"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match="found no image classifier"):
            Predictor(tmp_path)
        (tmp_path / name).unlink()
        if (small_model / name).exists():
            shutil.copy(small_model / name, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="found no image classifier"):
        Predictor(tmp_path)
