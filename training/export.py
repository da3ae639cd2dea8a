"""The verb export: a model folder's network for onnxruntime or OpenVINO, beside its weights.

chest-opacity export models/phantom --format openvino
chest-opacity export models/phantom --format onnx --int8

What is written gives all that predict and page need of the network, and takes pixels as they are, 0 to 255. It stays
only when it does as well as the weights on the validation part; eval/export_*.json tells how well.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as Picture
from safetensors.numpy import save_file

from space.abstention import file_of
from space.errors import InputError
from space.images import load_image
from space.predictor import Predictor
from space.runtimes import Network, exported_name, load_runtime
from space.saliency import last_stage
from training.card import write_card
from training.cli import Parser, run
from training.evaluate import own_rows
from training.hub import model_folder
from training.measure import arrays, load_metric, predict_rows
from training.outputs import new_file, read_again, require_model_folder, writing
from training.settle import evenly, fit_abstention, look_at
from training.sources import load_data

CALIBRATION = 300  # training images that ranges of int8 are taken from
MOST_DIFFERENCE = 1e-4  # of a probability in float32
MOST_LOSS = 0.005  # of AUC in int8
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino", "nncf")}


def export(folder: Path, data: str, runtime: str, int8: bool) -> dict:
    """Write the exported network and eval/export_NAME.json into a model folder, the card anew, and return the report.

    data: what the model was trained with. Raises InputError, and writes nothing, when a package is missing, when data
    has other images under the same names, or when the validation part shows that the exported network is not as good:
    in float32 a probability may differ by MOST_DIFFERENCE, in int8 the AUC may fall by MOST_LOSS.
    """
    if missing := [name for name in NEEDS[runtime] if importlib.util.find_spec(name) is None]:
        raise InputError(f"--format {runtime} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    predictor = Predictor(folder, bulk=True)
    rows = load_data(data, predictor.labels)
    train, validation = (own_rows(rows, folder, part, None) for part in ("train", "validation"))
    precision = "int8" if int8 else "float32"
    with writing(folder), tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
        work = Path(scratch)
        write_network(predictor, work, runtime, train if int8 else None)
        told = {
            "format": runtime,
            "precision": precision,
            "calibration_images": min(CALIBRATION, len(train)) if int8 else 0,
        }
        told |= _compare(predictor, validation, train, work, runtime, precision)
        _require_as_good(told)
        name = exported_name(runtime, precision)
        for file in sorted(work.glob(f"{Path(name).stem}.*")):  # .xml after .bin
            if file.suffix in {".onnx", ".xml", ".bin"}:
                shutil.move(file, folder / file.name)
        for file in work.glob(file_of("*")):
            shutil.move(file, folder / file.name)
        with new_file(folder / "eval" / f"export_{Path(name).stem}.json") as file:
            file.write_text(json.dumps({"file": name} | told, indent=2) + "\n")
    write_card(folder, folder)
    return {"file": name} | told


def write_network(predictor: Predictor, work: Path, runtime: str, calibration: Dataset | None = None) -> None:
    """Write what `load_runtime` reads into a folder; in int8 when there are rows to take its ranges from."""
    _write_onnx(predictor, work / "model.onnx")
    if calibration is not None:
        quantise = _quantise_onnx if runtime == "onnx" else _quantise_openvino
        quantise(predictor, work, _pixels(predictor, calibration))
    elif runtime == "openvino":
        _write_openvino(work)


def _write_onnx(predictor: Predictor, file: Path) -> None:
    import onnx

    model = copy.deepcopy(predictor.model).to("cpu", memory_format=torch.contiguous_format)
    network = Network(model, predictor.processor).eval()
    pixels = torch.from_numpy(predictor.pixels([Picture.new("RGB", (64, 64))] * 2))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        count = len(network(pixels))
        program = torch.onnx.export(
            network,
            (pixels,),
            input_names=["pixels"],
            output_names=["logits", *(f"output_{number}" for number in range(1, count))],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    graph = program.model_proto
    _forget_code(graph)
    onnx.save(graph, file)


def _forget_code(message) -> None:
    """Clear what tells which lines of code the parts of an ONNX message came of, and where they lie on this machine."""
    for field, value in message.ListFields():
        if field.name in {"metadata_props", "doc_string"}:
            message.ClearField(field.name)
        elif field.message_type:
            for part in value if isinstance(value, Sequence) else [value]:
                _forget_code(part)


def _write_openvino(work: Path) -> None:
    import openvino

    network = openvino.convert_model(work / "model.onnx")
    openvino.save_model(network, work / "openvino_model.xml", compress_to_fp16=False)


def _quantise_onnx(predictor: Predictor, work: Path, batches: list[np.ndarray]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(batches)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    logging.getLogger().setLevel(logging.ERROR)
    prepared = work / "prepared.onnx"
    quant_pre_process(work / "model.onnx", prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        work / "model_int8.onnx",
        Reader(),
        op_types_to_quantize=["Conv"] if last_stage(predictor.model) is not None else ["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # of weights, to 7 bits: on processors without VNNI sums of products of 8 bits overflow
        extra_options={"CalibMovingAverage": True},  # the range of most images, not that of the one furthest out
    )
    prepared.unlink()


def _quantise_openvino(_: Predictor, work: Path, batches: list[np.ndarray]) -> None:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    network = openvino.convert_model(work / "model.onnx")
    dataset = nncf.Dataset(batches)
    quantised = nncf.quantize(network, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(batches))
    openvino.save_model(quantised, work / "openvino_model_int8.xml", compress_to_fp16=False)


def _pixels(predictor: Predictor, train: Dataset) -> list[np.ndarray]:
    """Pixels of evenly spaced training images, one by one."""
    images = (
        train.select(evenly(len(train), CALIBRATION))
        .select_columns(["image"])
        .cast_column("image", Image(decode=False))
    )
    return [predictor.pixels([load_image(row["image"])]) for row in images]


def _compare(predictor: Predictor, rows: Dataset, train: Dataset, work: Path, runtime: str, precision: str) -> dict:
    """Of the weights and of the exported file in each precision that it can be run in, on the validation rows.

    What is not float32 moves the stage features, and so gets an abstention of its own, in `work`.
    """
    before = predict_rows(predictor, rows)
    one, truth, _ = arrays(before, predictor.labels)
    told = {"images": len(rows), "roc_auc": _roc_auc(truth, one), "modes": {}}
    for mode in (precision, "bf16") if (runtime, precision) == ("openvino", "float32") else (precision,):
        exported = copy.copy(predictor)
        exported.run = load_runtime(runtime, mode, work, None, bulk=True)
        if predictor.abstention and mode != "float32":
            exported.abstention = fit_abstention(exported, train, look_at(exported, rows)[1])
            save_file(exported.abstention.tensors, file := work / file_of(f"{runtime}_{mode}"))
            shutil.copymode(predictor.folder / "config.json", file)  # which only the owner could read otherwise
        after = predict_rows(exported, rows)
        other, *_ = arrays(after, predictor.labels)
        told["modes"][mode] = {
            "max_difference": float(np.abs(one - other).max()),
            "other_decisions": int((before["prediction"] != after["prediction"]).sum()),
            "roc_auc": _roc_auc(truth, other),
            "other_abstentions": int((before["abstained"] != after["abstained"]).sum()),
        }
    return told


def _roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """As evaluations have it, without an interval."""
    return load_metric().compute(predictions=probabilities, references=truth, draws=0)["roc_auc"]


def _require_as_good(told: dict) -> None:
    found = told["modes"][told["precision"]]
    if told["precision"] == "float32" and found["max_difference"] > MOST_DIFFERENCE:
        raise InputError(
            f"not exported: a probability differs by {found['max_difference']:.2g} from that of the weights, expected "
            f"{MOST_DIFFERENCE:g} at the most"
        )
    if told["precision"] == "int8" and told["roc_auc"] is not None and told["roc_auc"] - found["roc_auc"] > MOST_LOSS:
        raise InputError(
            f"not exported: in int8 the AUC on the validation part falls from {told['roc_auc']:.4f} to "
            f"{found['roc_auc']:.4f}, expected no more than {MOST_LOSS}; leave out --int8"
        )


def lines(told: dict) -> Iterator[str]:
    """The report in words, a line for each precision."""
    for mode, found in told["modes"].items():
        auc = f", AUC {told['roc_auc']:.4f} -> {found['roc_auc']:.4f}" if told["roc_auc"] is not None else ""
        yield (
            f"{mode}: probabilities differ by {found['max_difference']:.2g} at the most, {found['other_decisions']} of "
            f"{told['images']} validation images are called otherwise{auc}"
        )


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="chest-opacity export", description="Write a model folder's network for another runtime.")
    parser.add_argument("model", metavar="MODEL", help="a model folder, or user/name on the Hub")
    parser.add_argument("--format", choices=tuple(NEEDS), required=True, help="onnx: onnxruntime; openvino: OpenVINO")
    parser.add_argument("--int8", action="store_true", help="quantise with ranges taken from the training images")
    parser.add_argument("--data", help="what the model was trained with; by default what its recipe names")
    parser.add_argument("--overwrite", action="store_true", help="replace what was exported before")
    args = parser.parse_args(argv)
    folder = model_folder(args.model)
    require_model_folder(folder, "recipe.yaml", "split.csv", "eval/training.json", "eval/audit.json")
    there = folder / exported_name(args.format, "int8" if args.int8 else "float32")
    if there.exists() and not args.overwrite:
        raise InputError(f"{there} exists; replace it with --overwrite")
    data = args.data or read_again(folder / "recipe.yaml").get("data")
    if not data:
        raise InputError(f"{folder / 'recipe.yaml'}: found no data in it; name what it was trained with by --data")
    told = export(folder, data, args.format, args.int8)
    print("\n".join(lines(told)))
    print(f"written: {folder / told['file']}; eval/export_{Path(told['file']).stem}.json and README.md")


if __name__ == "__main__":
    run(main)
