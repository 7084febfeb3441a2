"""Which cells share a minibatch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.data.samplers import SubsetBatches, length_buckets


@pytest.mark.parametrize("max_tokens", [None, 40, 10, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_cell_is_in_one_bucket_of_the_right_size(batch_size, max_tokens, rng):
    lengths = rng.integers(1, 30, size=50)
    groups = length_buckets(lengths, batch_size=batch_size, max_tokens=max_tokens)
    assert sorted(np.concatenate(groups)) == list(range(50))
    for group in groups:
        assert len(group) <= batch_size
        if max_tokens is not None and len(group) > 1:
            assert len(group) * lengths[group].max() <= max_tokens
    assert np.all(np.diff(lengths[np.concatenate(groups)]) <= 0)


def test_buckets_waste_less_than_the_given_order(rng):
    lengths = rng.integers(1, 1000, size=640)

    def padded(groups):
        return sum(len(group) * lengths[group].max() for group in groups)

    assert padded(length_buckets(lengths, batch_size=64)) < 0.7 * padded(np.arange(640).reshape(10, 64))


def test_no_cells():
    assert length_buckets([], batch_size=4) == []
    assert list(SubsetBatches([], 4)) == []


SUBSETS = [list(range(11)), [20, 21], [30, 31, 32, 33]]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("shuffle_batches", [False, True])
def test_batches_never_mix_subsets(shuffle, shuffle_batches, drop_last):
    sampler = SubsetBatches(SUBSETS, 4, shuffle=shuffle, shuffle_batches=shuffle_batches, drop_last=drop_last, seed=1)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(any(set(batch) <= set(subset) for subset in SUBSETS) for batch in batches)
        cells = [cell for batch in batches for cell in batch]
        assert len(cells) == len(set(cells)) == (12 if drop_last else 17)
        assert all(len(batch) == 4 for batch in batches) or not drop_last


def test_passes_differ_and_can_be_repeated():
    sampler = SubsetBatches(SUBSETS, 2, seed=3)
    passes = [list(sampler) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    assert [list(again) for again in [SubsetBatches(SUBSETS, 2, seed=3)] * 3] == passes
    sampler.set_epoch(1)
    assert list(sampler) == passes[1]
    assert list(SubsetBatches(SUBSETS, 2, seed=4)) != passes[0]


@pytest.mark.parametrize("kind", [np.asarray, pd.Series, pd.Categorical])
def test_one_subset_per_label(kind):
    labels = ["b", "a", "b", "c", "a", "b"]
    sampler = SubsetBatches.from_labels(kind(labels), 2, shuffle=False, shuffle_batches=False)
    assert list(sampler) == [[1, 4], [0, 2], [5], [3]]


def test_refusals():
    with pytest.raises(ValueError, match="Expected a label for every cell, found none for 1 cells"):
        SubsetBatches.from_labels(["a", None], 2)
    with pytest.raises(ValueError, match="Expected a label for every cell, found none for 1 cells"):
        SubsetBatches.from_labels(["a", "  "], 2)
    for flag in ("shuffle", "shuffle_batches", "drop_last"):
        with pytest.raises(TypeError, match=f"Expected `{flag}` to be True or False, found 'False'"):
            SubsetBatches(SUBSETS, 2, **{flag: "False"})
    with pytest.raises(ValueError, match="Expected `batch_size` to be at least 1"):
        SubsetBatches(SUBSETS, 0)
    with pytest.raises(ValueError, match="Expected `batch_size` to be at least 1"):
        length_buckets([1], batch_size=0)
    with pytest.raises(ValueError, match="Expected `max_tokens` to be at least 1"):
        length_buckets([1], batch_size=1, max_tokens=0)
