"""The order of cells in an epoch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from scgpt_tools.data import epochs


@pytest.fixture
def cells():
    return np.arange(0, 200, 2)


def test_shuffled_has_every_cell_once(cells, rng):
    order = epochs.shuffled(cells, rng)
    assert np.array_equal(np.sort(order), cells)
    assert not np.array_equal(order, cells)


def test_blocks_have_every_cell_once(cells, rng):
    order = epochs.block_shuffled(cells, rng, block=8, blocks=3)
    assert np.array_equal(np.sort(order), cells)
    assert not np.array_equal(order, cells)


def test_pools_read_few_runs_of_neighbours(rng):
    """Whoever reads a pool of 3 blocks of 8 cells finds 3 runs, each without a gap."""
    cells = np.arange(0, 192, 2)
    order = epochs.block_shuffled(cells, rng, block=8, blocks=3)
    for pool in (order[:24], order[24:48]):
        places = np.sort(np.searchsorted(cells, pool))
        assert np.count_nonzero(np.diff(places) > 1) <= 2
        assert not np.array_equal(np.searchsorted(cells, pool), places)


def test_blocks_do_not_cross_files(cells, rng):
    order = epochs.block_shuffled(cells, rng, block=60, blocks=1, bounds=[100])
    assert {cell < 100 for cell in order[:50]} in ({True}, {False})


def test_balanced_draws_every_class_as_often(rng):
    labels = np.repeat([0, 1, 2, -1], [9000, 900, 90, 500])
    drawn = epochs.balanced(np.arange(labels.size), labels, rng)
    counts = np.bincount(labels[drawn] + 1, minlength=4)
    assert counts[0] == 0
    assert np.allclose(counts[1:] / drawn.size, 1 / 3, atol=0.02)


def test_balanced_needs_labels(rng):
    with pytest.raises(ValueError, match="labelled"):
        epochs.balanced(np.arange(3), np.full(3, -1), rng)


def test_by_label_never_mixes(cells):
    labels = np.arange(cells.size) % 3
    batches = epochs.by_label(cells, labels, 16, seed=1, epoch=0)
    assert all(len(set(labels[np.searchsorted(cells, batch)])) == 1 for batch in batches)
    assert np.array_equal(np.sort(np.concatenate(batches)), cells)
    again, other = (epochs.by_label(cells, labels, 16, seed=1, epoch=epoch) for epoch in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_processes_share_a_minibatch_evenly():
    batches = [np.arange(10), np.arange(10, 17), np.arange(17, 18)]
    parts = [epochs.for_process(batches, rank, 2) for rank in (0, 1)]
    for (first, second), whole in zip(zip(*parts, strict=True), batches, strict=False):
        assert len(first) == len(second) == len(whole) // 2
        assert np.array_equal(np.concatenate([first, second]), whole[: 2 * (len(whole) // 2)])
    assert len(parts[0]) == 2  # one cell is too few for two processes
    assert all(np.array_equal(a, b) for a, b in zip(epochs.for_process(batches, 0, 1), batches, strict=True))


def test_sampling_names_are_checked():
    with pytest.raises(ValueError, match="one_batch"):
        epochs.check_sampling("one_bacth")


def test_batches_follow_the_order(cells):
    batches = epochs.in_batches(cells, 30)
    assert [len(batch) for batch in batches] == [30, 30, 30, 10]
    assert all(a[-1] < b[0] for a, b in pairwise(batches))
