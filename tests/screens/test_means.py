"""Means of cells in place of single ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.data.rows import row_keys
from scgpt_tools.screens.means import Partners, in_groups, mean_rows

GROUPS = np.array([0, 1, 0, 1, 1, 0, -1, 2])
KEYS = row_keys([f"cell{number}" for number in range(8)])


def test_partners_are_of_the_same_group_and_begin_with_the_cell():
    cells = np.array([4, 0, 7, 1])
    found = Partners(GROUPS, KEYS).of(cells, 6, seed=3)
    assert found.shape == (4, 6)
    np.testing.assert_array_equal(found[:, 0], cells)
    assert (GROUPS[found] == GROUPS[cells][:, None]).all()
    assert (found[2] == 7).all()
    assert len(np.unique(found[[0, 3]])) == 3


def test_partners_depend_on_seed_and_names_alone():
    cells, order = np.arange(6), np.random.default_rng(0).permutation(8)
    found = Partners(GROUPS, KEYS).of(cells, 5, seed=0)
    turned = Partners(GROUPS[order], KEYS[order]).of(np.argsort(order)[cells], 5, seed=0)
    np.testing.assert_array_equal(order[turned], found)
    assert not np.array_equal(Partners(GROUPS, KEYS).of(cells, 5, seed=1), found)
    np.testing.assert_array_equal(Partners(GROUPS, KEYS).of(cells[3:], 5, seed=0), found[3:])


@pytest.mark.parametrize(
    ("rows", "n", "shape"),
    [(10, 4, (3, 4)), (6, 4, (2, 4)), (9, 8, (2, 8)), (3, 16, (1, 3)), (8, 4, (2, 4)), (5, 1, (5, 1))],
)
def test_groups_hold_every_row_and_none_twice(rows, n, shape):
    found = in_groups(np.arange(rows) + 50, n)
    assert found.shape == shape
    np.testing.assert_array_equal(np.unique(found), np.arange(rows) + 50)
    assert np.unique(found, return_counts=True)[1].max() <= 2
    assert all(len(np.unique(group)) == len(group) for group in found)


def test_means_of_rows():
    dense = np.random.default_rng(0).poisson(0.7, (6, 9)).astype(np.float32)
    places = np.array([[0, 1, 1, 5], [2, 3, 4, 0]])
    found = mean_rows(sp.csr_matrix(dense), places)
    np.testing.assert_allclose(found.toarray(), dense[places].mean(axis=1), rtol=1e-6)
    assert found.has_sorted_indices
    assert found.dtype == np.float32
    np.testing.assert_array_equal(mean_rows(sp.csr_matrix(dense), places[:, :1]).toarray(), dense[places[:, 0]])
