"""What the network is fed: images decoded, augmented and scaled on access, in an order that only seed and epoch decide.

An example is asked for by its key, view * (number of rows) + index. All chances of an augmented view come from the seed
and the key, so the same epoch shows the same pictures whatever the number of processes, workers or accumulated steps,
and also after a run was stopped. A negative key ~key is filling: that example with the label -100, which no loss
counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from datasets import Dataset, Image
from torch.utils.data import Sampler

from space.images import load_image
from training.augment import augment

IGNORED = -100  # the label that cross-entropy and Trainer pass over


class Examples(torch.utils.data.Dataset):
    """Rows as {"pixel_values": (3, height, width) float32, "labels": int}."""

    def __init__(self, rows: Dataset, processor, augmentation: str = "none", seed: int = 0):
        self.rows = rows.select_columns(["image", "label"]).cast_column("image", Image(decode=False))
        self.processor, self.augmentation, self.seed = processor, augmentation, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict:
        key, filling = (~key, True) if key < 0 else (key, False)
        row = self.rows[int(key) % len(self.rows)]
        image = load_image(row["image"])
        if self.augmentation != "none":
            image = augment(image, self.augmentation, np.random.default_rng([self.seed, key]))
        pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": IGNORED if filling else row["label"]}

    def __getitems__(self, keys: list[int]) -> list[dict]:
        """A batch, decoded by as many threads as there are for torch's own work, which waits meanwhile."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # one in a worker of a data loader
            return list(pool.map(self.__getitem__, keys))


class EpochSampler(Sampler):
    """The keys of one epoch in their order.

    labels: (rows,) ints. balanced: draw the classes equally often, with repetition. views: how many augmented views of
    an image there are, one after the other; 0 for a new one in every epoch. multiple: fill up to a multiple of this
    number of keys, so that several processes have as many each and still count every image once.
    """

    def __init__(self, labels: np.ndarray, seed: int, balanced: bool = False, views: int = 0, multiple: int = 1):
        self.labels, self.seed, self.balanced, self.views, self.multiple = labels, seed, balanced, views, multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loaders and by Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.labels) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        rng, rows = np.random.default_rng([self.seed, self.epoch]), len(self.labels)
        if self.balanced:
            shares = 1 / np.bincount(self.labels)[self.labels]
            order = rng.choice(rows, rows, p=shares / shares.sum())
        else:
            order = rng.permutation(rows)
        view = self.epoch % self.views if self.views else self.epoch
        keys = view * rows + order
        filling = ~np.resize(keys, len(self) - rows)
        return iter(np.concatenate([keys, filling]).tolist())
