"""Mean profiles and halves of cells."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.data.rows import RowSource
from scgpt_tools.screens.profiles import mean_profiles, split_halves
from screen_tables import screen


def test_means_are_those_of_the_cells():
    adata = screen()
    labels = adata.obs["condition"].astype(str).to_numpy()
    profiles = mean_profiles(RowSource(adata), labels)
    dense = adata.X.toarray()
    for name, mean, n in zip(profiles.names, profiles.means, profiles.n_cells, strict=True):
        np.testing.assert_allclose(mean, dense[labels == name].mean(axis=0), rtol=1e-5)
        assert n == (labels == name).sum()
    np.testing.assert_allclose(profiles.of(["ctrl"])[0], dense[labels == "ctrl"].mean(axis=0), rtol=1e-5)


def test_every_form_of_a_table_gives_the_same_means(twin, adata):
    labels = ["x", "y"] * (adata.n_obs // 2)
    expected = mean_profiles(adata.X, labels)
    found = mean_profiles(RowSource(twin), labels)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-6)


def test_named_groups_come_in_their_order():
    matrix = np.array([[1.0], [2.0], [4.0], [8.0]])
    profiles = mean_profiles(matrix, ["b", "a", "c", "a"], names=["c", "a"])
    assert profiles.means[:, 0].tolist() == [4.0, 5.0]
    with pytest.raises(ValueError, match="none of 'z'"):
        mean_profiles(matrix, ["b", "a", "c", "a"], names=["z"])


def test_halves_are_even_and_do_not_depend_on_order():
    labels, names = np.repeat(["a", "b", "c"], [10, 7, 1]), np.array([f"cell{i}" for i in range(18)])
    first = split_halves(labels, names)
    assert [first[labels == name].sum() for name in "abc"] == [5, 4, 1]
    order = np.random.default_rng(0).permutation(18)
    np.testing.assert_array_equal(first[order], split_halves(labels[order], names[order]))
    assert (first != split_halves(labels, names, seed=1)).any()
