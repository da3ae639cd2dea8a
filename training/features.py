"""A frozen base is run once: what it gives for each image is kept, and the head is trained on that.

The cache is a folder of Arrow files, one for each piece of a part and each augmented view, under datasets' own cache.
The name of a file is a hash of all that decides its content, so nothing stale is ever read, and a pass that was stopped
goes on with the next piece.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import local

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from pyarrow import feather
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from space.runtimes import threads_for
from training import augment
from training.arguments import TrainingArguments
from training.examples import Examples
from training.loss import IGNORED
from training.outputs import new_file
from training.stages import digest_of_body, head_of

PIECE = 256  # images


class Features(torch.utils.data.Dataset):
    """What the base gives for the examples of a part, by the same keys as Examples: {"features", "labels"}."""

    def __init__(self, pieces: list[list[np.ndarray]], labels: np.ndarray):
        """pieces: of each view, the features (PIECE or fewer, ...) of one piece after the other."""
        self.pieces, self.labels = pieces, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> dict:
        view, index = divmod(~key if key < 0 else key, len(self.labels))
        features = self.pieces[view][index // PIECE][index % PIECE]
        return {"features": features, "labels": IGNORED if key < 0 else self.labels[index]}


class HeadOnly(nn.Module):
    """The head of a classifier as a model of its own; its parameters are the classifier's."""

    main_input_name = "features"

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.config, self.classifier = model.config, head_of(model)

    def forward(self, features: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.classifier(features))


def extract(model: PreTrainedModel, rows: Dataset, examples: Examples, args: TrainingArguments, views: int) -> Features:
    """Run the frozen base over the examples made of rows, or read what it gave before.

    rows needs the column pixels. Several processes share the work; one that does not find what another one made (they
    may have no disk in common) makes it too.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "chest-opacity-features"
    base = _base_key(model, examples, args)
    starts = range(0, len(rows), PIECE)
    wanted = [(view, start) for view in range(views) for start in starts]
    files = {(view, start): folder / f"{_key(base, rows, examples, view, start)}.arrow" for view, start in wanted}
    model.to(args.device).eval()
    for mine in (wanted[args.process_index :: args.world_size], wanted):
        missing = [piece for piece in mine if not files[piece].is_file()]
        number = sum(min(PIECE, len(rows) - start) for _, start in missing)
        with tqdm(total=number, desc="running the base", unit="image", leave=False, disable=not missing) as progress:
            for view, start in missing:
                keys = range(view * len(rows) + start, view * len(rows) + min(start + PIECE, len(rows)))
                _write(files[view, start], _run(model, Subset(examples, keys), args, progress))
        if args.world_size > 1:
            torch.distributed.barrier()
    pieces = [[_read(files[view, start]) for start in starts] for view in range(views)]
    return Features(pieces, np.asarray(rows["label"]))


def _run(model: PreTrainedModel, examples: Subset, args: TrainingArguments, progress: tqdm) -> np.ndarray:
    """What goes into the head, (examples, ...) float32."""
    given, dtype, size = local(), torch.float16 if args.fp16 else torch.bfloat16, args.per_device_eval_batch_size

    @torch.inference_mode()
    def features(batch: dict) -> torch.Tensor:
        with torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16):
            model(pixel_values=batch["pixel_values"].to(args.device))
        progress.update(len(batch["labels"]))
        return given.to_head

    hook = head_of(model).register_forward_pre_hook(
        lambda _, inputs: setattr(given, "to_head", inputs[0].float().cpu())
    )
    try:
        if args.device.type == "cpu":
            size = min(size, -(-len(examples) // torch.get_num_threads()))
            batches = [range(first, min(first + size, len(examples))) for first in range(0, len(examples), size)]
            with threads_for(torch.get_num_threads()) as pool:
                found = list(pool.map(lambda keys: features(default_collate(examples.__getitems__(keys))), batches))
        else:
            found = map(features, DataLoader(examples, size, num_workers=args.dataloader_num_workers))
        return torch.cat(list(found)).numpy()
    finally:
        hook.remove()


def _base_key(model: PreTrainedModel, examples: Examples, args: TrainingArguments) -> dict:
    chances = {}
    if examples.augmentation != "none":
        code = hashlib.sha256(Path(augment.__file__).read_bytes()).hexdigest()
        chances = {"augment": examples.augmentation, "seed": examples.seed, "code": code, "rows": len(examples)}
    return chances | {
        "weights": digest_of_body(model),
        "body": [type(model).__name__, model.config.to_dict()],
        "processor": examples.processor.to_dict(),
        "precision": args.precision,
        "device": args.device.type,
        "torch": torch.__version__,
    }


def _key(base: dict, rows: Dataset, examples: Examples, view: int, start: int) -> str:
    images = list(rows["pixels"][start : start + PIECE])
    place = [view, start] if examples.augmentation != "none" else None  # they decide the chances of a view
    return hashlib.sha256(json.dumps([base, images, place], sort_keys=True, default=str).encode()).hexdigest()


def _write(file: Path, features: np.ndarray) -> None:
    flat = pa.FixedSizeListArray.from_arrays(features.ravel(), features[0].size)
    table = pa.table({"features": flat}).replace_schema_metadata({"shape": json.dumps(features.shape)})
    with new_file(file) as work:
        feather.write_feather(table, str(work), compression="uncompressed")


def _read(file: Path) -> np.ndarray:
    """From the disk as it is looked at: there may be more than memory holds."""
    table = feather.read_table(file, memory_map=True)
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return values.reshape(json.loads(table.schema.metadata[b"shape"]))
