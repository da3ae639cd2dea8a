import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from space.errors import InputError
from space.predictor import Predictor
from tests.conftest import ROOT
from tests.images import strange_pictures
from training import evaluate, export, predict
from training.push import model_upload

pytestmark = pytest.mark.xdist_group("export")  # its fixture is slow
MODES = [("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32"), ("openvino", "bf16"), ("openvino", "int8")]


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory):
    """A model folder in which all that can be exported of it lies."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(small_model, folder)
    for runtime in ("onnx", "openvino"):
        export.main([str(folder), "--format", runtime])
        export.main([str(folder), "--format", runtime, "--int8"])
    return folder


@pytest.fixture(scope="module")
def images(small_phantom):
    return [Image.open(path).convert("RGB") for path in sorted((small_phantom / "images").iterdir())[:21]]


@pytest.mark.parametrize(("runtime", "precision", "bulk"), [(*mode, mode[1] == "int8") for mode in MODES])
def test_what_is_exported_answers_and_explains_as_the_weights_do(exported, images, runtime, precision, bulk):
    predictor = Predictor(exported)
    before = predictor.answer(images, "cam")
    after = Predictor(exported, runtime, precision, bulk).answer(images, "cam")
    near = 1e-4 if precision == "float32" else 0.05
    assert np.allclose(*([each.probabilities for each in answers] for answers in (before, after)), atol=near)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.saliency - other.saliency).max() <= 2 * near * np.ptp(one.saliency) + near
        if precision == "float32":
            assert other.distance == pytest.approx(one.distance, rel=1e-2)


@pytest.mark.parametrize(("runtime", "precision"), MODES)
def test_every_precision_abstains_from_what_it_does_not_know(exported, images, runtime, precision):
    predictor = Predictor(exported, runtime, precision)
    assert np.mean([answer.abstained for answer in predictor.answer(images)]) <= 0.1
    assert all(answer.abstained for answer in predictor.answer(strange_pictures()["noise"]))


def test_the_report_tells_how_near_it_is_and_stands_in_the_card(exported):
    told = json.loads((exported / "eval" / "export_openvino_model.json").read_text())
    assert list(told["modes"]) == ["float32", "bf16"]
    assert told["modes"]["float32"]["max_difference"] <= 1e-4
    assert told["modes"]["float32"]["roc_auc"] == pytest.approx(told["roc_auc"], abs=1e-6)
    told = json.loads((exported / "eval" / "export_model_int8.json").read_text())
    assert told["calibration_images"] > 10
    assert told["roc_auc"] - told["modes"]["int8"]["roc_auc"] <= 0.005
    card = (exported / "README.md").read_text()
    for name in ("model.onnx | float32", "model_int8.onnx | int8", "openvino_model.xml | bf16"):
        assert f"| {name} |" in card
    with pytest.raises(InputError, match=r"--name export_x: .* not audit, training or export_..."):
        evaluate.main([str(exported), "--data", "phantom", "--name", "export_x"])


def test_what_is_exported_names_no_folder_of_this_machine(exported):
    places = [b'File "', *map(os.fsencode, (ROOT, sys.prefix, exported))]
    files = {path.name: path.read_bytes() for pattern in ("model*", "openvino*") for path in exported.glob(pattern)}
    assert len(files) > 6
    assert not [name for name, content in files.items() if any(place in content for place in places)]


def test_whoever_may_read_the_model_may_read_what_is_exported(exported):
    modes = {path.name: path.stat().st_mode for path in exported.rglob("*") if path.is_file()}
    assert "abstention_onnx_int8.safetensors" in modes
    assert not [name for name, mode in modes.items() if mode != modes["config.json"]]


def test_predict_runs_it_and_push_takes_it_along(exported, small_phantom, tmp_path):
    file = str(next((small_phantom / "images").iterdir()))
    for runtime in ("onnx", "openvino"):
        output = str(tmp_path / f"{runtime}.jsonl")
        predict.main([str(exported), file, "--output", output, "--runtime", runtime, "--precision", "int8"])
        assert json.loads((tmp_path / f"{runtime}.jsonl").read_text())["error"] == ""
    files = model_upload(exported, "user/name", tmp_path).files
    assert {"model.onnx", "model_int8.onnx", "openvino_model.xml", "openvino_model.bin"} <= files.keys()
    assert {"openvino_model_int8.xml", "abstention_onnx_int8.safetensors", "eval/export_model.json"} <= files.keys()


def test_a_quantisation_that_costs_auc_is_refused_and_leaves_nothing(small_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    there = sorted(folder.rglob("*"))
    monkeypatch.setattr(export, "MOST_LOSS", -1.0)
    with pytest.raises(InputError, match="not exported: in int8 the AUC on the validation part falls from"):
        export.main([str(folder), "--format", "onnx", "--int8"])
    assert sorted(folder.rglob("*")) == there


def test_bad_input_is_refused_in_one_line(exported, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="model.onnx exists; replace it with --overwrite"):
        export.main([str(exported), "--format", "onnx"])
    with pytest.raises(InputError, match="found no model folder"):
        export.main([str(tmp_path), "--format", "onnx"])
    with pytest.raises(InputError, match="absent: no such folder"):
        export.main([str(exported), "--format", "onnx", "--overwrite", "--data", "absent"])
    for name, content, message in (
        ("recipe.yaml", "", "recipe.yaml: found no names and values"),
        ("recipe.yaml", "sites: [A]", "recipe.yaml: found no data in it"),
        ("split.csv", "", "split.csv: found no table of path, label, group, site, pixels and split"),
    ):
        broken = shutil.copytree(exported, tmp_path / name, dirs_exist_ok=True)
        (broken / name).write_text(content)
        with pytest.raises(InputError, match=message):
            export.main([str(broken), "--format", "onnx", "--overwrite"])
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--format onnx needs onnx, onnxscript, onnxruntime: pip install"):
        export.main([str(exported), "--format", "onnx", "--overwrite"])
    (tmp_path / "model.onnx").write_bytes(b"none")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(exported / name, tmp_path)
    with pytest.raises(InputError, match="cannot be loaded, export the model again"):
        Predictor(tmp_path, "onnx")
