"""What runs the network: torch, or what `chest-opacity export` wrote into the model folder, by onnxruntime or OpenVINO.

All take pixels (images, 3, height, width) as uint8, and give the outputs of `Network` in the same order as float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import nn

from space.abstention import stage_features
from space.errors import InputError, reason_of
from space.saliency import look

PRECISIONS = {"torch": ("float32", "bf16"), "onnx": ("float32", "int8"), "openvino": ("float32", "bf16", "int8")}
Run = Callable[[np.ndarray], list[np.ndarray]]


class Network(nn.Module):
    """An image classifier with the scaling of its pixels before it, and all that one pass can tell after it.

    Of pixels (images, 3, height, width), 0 to 255, it gives a tuple: logits (images, classes), the `stage_features`
    (images, channels) of each stage, and the class activation maps where the head has them.
    """

    def __init__(self, model: nn.Module, processor):
        super().__init__()
        self.model = model
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, deviation = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0], [1.0])
        self.register_buffer("scale", factor / torch.tensor(deviation).reshape(1, -1, 1, 1))
        self.register_buffer("shift", (torch.tensor(mean) / torch.tensor(deviation)).reshape(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, hidden_states, maps = look(self.model, pixels.float() * self.scale - self.shift)
        return logits, *stage_features(hidden_states), *(() if maps is None else (maps,))


def exported_name(runtime: str, precision: str) -> str:
    """The file in a model folder that a runtime reads; OpenVINO has a .bin beside it."""
    stem, suffix = {"onnx": ("model", ".onnx"), "openvino": ("openvino_model", ".xml")}[runtime]
    return f"{stem}{'_int8' if precision == 'int8' else ''}{suffix}"


def exported_files(runtime: str, precision: str) -> list[str]:
    """Patterns of the files in a model folder that a runtime reads beside the network's own."""
    return [] if runtime == "torch" else [f"{Path(exported_name(runtime, precision)).stem}.*"]


def check_mode(runtime: str, precision: str) -> None:
    """Raise InputError when there is no such runtime, or it does not compute in this precision."""
    if precision not in PRECISIONS.get(runtime, ()):
        known = "; ".join(f"{name}: {', '.join(modes)}" for name, modes in PRECISIONS.items())
        raise InputError(f"{runtime} in {precision}: there is no such mode; expected one of {known}")


def require_exported(runtime: str, precision: str, folder: Path, model_id: str | Path) -> None:
    """Raise InputError when nothing was exported for a mode into a folder, which holds the model of that name."""
    if runtime == "torch" or (folder / (name := exported_name(runtime, precision))).is_file():
        return
    line = f"{model_id}: found no {name}; make it with chest-opacity export {model_id} --format {runtime}"
    line += " --int8" if precision == "int8" else ""
    if not Path(model_id).is_dir():  # the Hub's
        line += f", and give models/{str(model_id).rpartition('/')[2]} then, where that puts it"
    raise InputError(line)


def load_runtime(runtime: str, precision: str, folder: Path, network: Network | None, bulk: bool) -> Run:
    """What runs pixels in a mode of PRECISIONS; network is what torch runs.

    bulk: it is called from as many threads as there are cores, and each call is to take one of them; otherwise one
    call takes all cores. Raises InputError when the runtime is not installed or cannot load what was exported for it.
    """
    if runtime == "torch":
        return _torch(network, precision)
    file = folder / exported_name(runtime, precision)
    try:
        return _onnx(file, bulk) if runtime == "onnx" else _openvino(file, precision, bulk)
    except ImportError:
        package = "onnxruntime" if runtime == "onnx" else "openvino"
        raise InputError(f"--runtime {runtime} needs {package}: pip install {package}") from None
    except Exception as error:  # the runtimes' own have no class in common
        raise InputError(f"{file}: cannot be loaded, export the model again ({reason_of(error)})") from None


def cores() -> int:
    """How many cores this process may use: its share of those of the machine, where several were launched there."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def threads_for(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Several threads that run networks, each on one core, or a single one on all; what waits is dropped at the end."""
    cores_of_torch = torch.get_num_threads()
    each = cores_of_torch if workers == 1 else 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores_of_torch)


def _torch(network: Network, precision: str) -> Run:
    device = network.scale.device

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        given = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)  # faster, the same sums
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return [output.float().cpu().numpy() for output in network(given)]

    return run


def _onnx(file: Path, bulk: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if bulk else cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})


def _openvino(file: Path, precision: str, bulk: bool) -> Run:
    import openvino

    _ = openvino.Tensor(np.zeros(1, np.uint8)).data  # two threads that are the first to do so wait for ever
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": 1 if bulk else cores(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": "NO",  # each of several networks would be bound to the first core
    }
    # A copy of the network for each core. Several streams of a single one are worse: two calls may be given the same
    # stream while another is idle.
    core, idle = openvino.Core(), SimpleQueue()
    for _ in range(cores() if bulk else 1):
        idle.put(core.compile_model(file, "CPU", settings).create_infer_request())

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        request = idle.get()
        try:
            return list(request.infer([pixels]).values())
        finally:
            idle.put(request)

    return run
