"""Samplers that move to rare classes, and that deal whole shards."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.data.curriculum import ShardedCells, WeightedCells

LABELS = ["T"] * 90 + ["B"] * 9 + ["HSC"]


def test_rare_classes_come_little_by_little():
    sampler = WeightedCells(LABELS, warmup_epochs=4, seed=1)
    chances = [sampler.weights(epoch)[-1] for epoch in range(6)]
    assert chances[0] == pytest.approx(0.01)
    assert chances[4] == chances[5] == pytest.approx(1 / 3)
    assert all(np.diff(chances[:5]) > 0)
    assert sampler.weights(2).sum() == pytest.approx(1)
    passes = [list(sampler) for _ in range(5)]
    assert sampler.epoch == 5
    assert passes[0] != passes[1]
    assert passes[4].count(99) > 15
    sampler.set_epoch(1)
    assert list(sampler) == passes[1]


def test_without_replacement_every_cell_is_there():
    assert sorted(WeightedCells(LABELS, replacement=False)) == list(range(100))


def test_cells_without_a_label_are_refused():
    with pytest.raises(ValueError, match="found none for 1 cells"):
        WeightedCells(["a", None])
    with pytest.raises(ValueError, match="found none"):
        WeightedCells([])


def test_processes_share_no_cell():
    sizes = [5, 3, 7, 4]
    dealt = [ShardedCells(sizes, rank=rank, processes=2, seed=3) for rank in range(2)]
    for epoch in range(3):
        for sampler in dealt:
            sampler.set_epoch(epoch)
        both = [list(sampler) for sampler in dealt]
        assert sorted(both[0] + both[1]) == list(range(19))
        assert [len(sampler) for sampler in dealt] == [len(cells) for cells in both]


def test_equal_shares_and_the_order_of_the_files():
    shorter = [len(list(ShardedCells([5, 3, 7], rank=rank, processes=2, drop_last=True))) for rank in range(2)]
    assert shorter[0] == shorter[1]
    assert list(ShardedCells([2, 3], shuffle=False)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="shard for each of 3"):
        ShardedCells([2, 3], processes=3)
    with pytest.raises(ValueError, match="`rank` below 2"):
        ShardedCells([2, 3], rank=2, processes=2)
