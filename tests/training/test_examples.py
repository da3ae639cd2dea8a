import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import ViTImageProcessorPil

from space.remote import ROW_GROUPS
from training.examples import EpochSampler, Examples, RowGroups
from training.loss import IGNORED

PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@given(rows=st.integers(1, 50), multiple=st.integers(1, 8), epoch=st.integers(0, 3), views=st.integers(0, 2))
def test_an_epoch_holds_every_row_once_and_fills_up_with_what_is_not_counted(rows, multiple, epoch, views):
    sampler = EpochSampler(rows, 7, views=views, multiple=multiple)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    assert len(keys) % multiple == 0
    counted = [key for key in keys if key >= 0]
    view = epoch % views if views else epoch
    assert sorted(counted) == list(range(view * rows, (view + 1) * rows))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(30, seed, views=1)
        torch.manual_seed(np.random.randint(100))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_rows_are_drawn_as_often_as_their_shares_say():
    labels = np.array([0] * 900 + [1] * 100)
    drawn = labels[list(EpochSampler(1000, 0, np.where(labels, 0.5 / 100, 0.5 / 900), views=1))]
    assert drawn.mean() == pytest.approx(0.5, abs=0.06)


@given(
    groups=st.integers(1, 40),
    turns=st.integers(1, 4),
    batch=st.integers(1, 16),
    alone=st.integers(0, 30),
    drawn=st.booleans(),
)
def test_images_that_are_fetched_by_the_row_group_are_drawn_near_each_other(groups, turns, batch, alone, drawn):
    of = np.concatenate([np.repeat(np.arange(groups), 20), np.full(alone, -1)])
    shares = np.full(len(of), 1 / len(of)) if drawn else None
    sampler = EpochSampler(len(of), 3, shares, row_groups=RowGroups(of, turns, batch))
    plain = EpochSampler(len(of), 3, shares)
    keys = np.array(list(sampler))
    assert sorted(keys) == sorted(plain)
    fetched = 0
    for turn in range(turns):  # each a process, or a worker of one, that takes every so-manieth batch
        kept = []
        for start in range(turn * batch, len(keys), turns * batch):
            for group in of[keys[start : start + batch]]:
                if group >= 0 and group not in kept:
                    fetched, kept = fetched + 1, kept[-ROW_GROUPS + 1 :]
                    kept.append(group)
    ends = turns * batch  # the last round of batches need not come out even
    assert fetched <= groups + 2 * ROW_GROUPS * turns + ends
    if groups <= ROW_GROUPS and turns == 1:
        assert keys.tolist() == list(plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_key_gives_one_picture_however_it_is_asked_for(parts, workers):
    rows = parts["validation"].select(range(6))
    examples = Examples(rows, PROCESSOR, "ultrasound", seed=3)
    batch = next(iter(DataLoader(examples, sampler=[0, 6, 12, ~1], batch_size=4, num_workers=workers)))
    assert batch["labels"].tolist() == [rows["label"][0]] * 3 + [IGNORED]
    assert torch.equal(batch["pixel_values"][1], examples[6]["pixel_values"])
    assert torch.equal(batch["pixel_values"][3], examples[1]["pixel_values"])
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])  # another view of the same row
    other = Examples(rows, PROCESSOR, "ultrasound", seed=4)
    assert not torch.equal(batch["pixel_values"][0], other[0]["pixel_values"])
