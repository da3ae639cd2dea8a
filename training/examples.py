"""What the network is fed: images decoded, augmented and scaled on access, in an order that only seed and epoch decide.
(For Parquet files that stay on the Hub, the number of processes and workers decides too.)

An example is asked for by its key, view * (number of rows) + index. All chances of an augmented view come from the seed
and the key, so the same epoch shows the same pictures whatever the number of processes, workers or accumulated steps,
and also after a run was stopped. A negative key ~key is filling: that example with the label -100, which no loss
counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Image
from torch.utils.data import Sampler

from space.images import load_image
from space.remote import ROW_GROUPS, row_group_of
from training.augment import augment
from training.loss import IGNORED


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


@dataclass(frozen=True)
class RowGroups:
    """Orders of images that are fetched by the row group, as those of Parquet files that stay on the Hub are.

    of: (rows,) ints, the row group of each image, -1 where it lies or is fetched alone. turns: how many processes,
    times their workers, take batches of so many images in turn.
    """

    of: np.ndarray
    turns: int
    batch: int

    @classmethod
    def of_rows(cls, rows: Dataset, turns: int, batch: int) -> RowGroups | None:
        """None when nothing is fetched so."""
        images = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
        if not any(row_group_of(images[index]["image"]) for index in (0, -1)):
            return None
        of, _ = pd.factorize(np.array([row_group_of(row["image"]) for row in images], object))
        return cls(of, turns, batch)

    def draw_near(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows of a random order, at random among ROW_GROUPS row groups at a time."""
        places = rng.permutation(self.of.max() + 1) // ROW_GROUPS
        alone = rng.integers(places.max() + 1, size=len(order))
        groups = self.of[order]
        return order[np.argsort(np.where(groups < 0, alone, places[groups]), kind="stable")]

    def in_turn(self, order: np.ndarray) -> np.ndarray:
        """The same rows so that who takes every so-manieth batch of them has a stretch of the order for itself."""
        stretches = np.array_split(order, self.turns)
        starts = range(0, len(stretches[0]), self.batch)
        return np.concatenate([stretch[start : start + self.batch] for start in starts for stretch in stretches])


def pass_seed() -> None:
    """Draw from torch's generator, and drop, the seed that a data loader without workers draws whenever it is read.

    One whose workers stay draws it once a process, so what is drawn afterwards would depend on the number of workers,
    and on whether the fit was stopped.
    """
    torch.empty((), dtype=torch.int64).random_()


class EpochSampler(Sampler):
    """The keys of one epoch in their order.

    shares: (rows,), how likely each row is whenever one is drawn; None for each once. views: how many augmented views
    of an image there are, one after the other; 0 for a new one in every epoch. multiple: fill up to a multiple of this
    number of keys, so that several processes have as many each and still count every image once. row_groups: by which
    images are fetched.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        shares: np.ndarray | None = None,
        views: int = 0,
        multiple: int = 1,
        row_groups: RowGroups | None = None,
    ):
        self.rows, self.seed, self.shares, self.views, self.multiple = rows, seed, shares, views, multiple
        self.row_groups, self.epoch = row_groups, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loaders and by Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        pass_seed()
        rng, rows = np.random.default_rng([self.seed, self.epoch]), self.rows
        order = rng.permutation(rows) if self.shares is None else rng.choice(rows, rows, p=self.shares)
        if self.row_groups:
            order = self.row_groups.in_turn(self.row_groups.draw_near(order, rng))
        view = self.epoch % self.views if self.views else self.epoch
        keys = view * rows + order
        filling = ~np.resize(keys, len(self) - rows)
        return iter(np.concatenate([keys, filling]).tolist())
