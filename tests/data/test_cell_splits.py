"""Splits of cells by group and within strata."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.data.cell_splits import split_cells, split_groups

NAMES = [f"cell{i}" for i in range(200)]


def test_groups_are_held_out_whole():
    labels = ["a", "b", "c", "a", "b"]
    assert split_groups(labels, test=["b"], val=["c"]).tolist() == ["train", "test", "val", "train", "test"]


@pytest.mark.parametrize(
    ("parts", "message"), [({"test": ["z"]}, "no group 'z'"), ({"test": ["a"], "val": ["a"]}, "one")]
)
def test_groups_are_checked(parts, message):
    with pytest.raises(ValueError, match=message):
        split_groups(["a", "b"], **parts)


def test_cells_do_not_depend_on_order():
    order = np.random.default_rng(0).permutation(len(NAMES))
    parts = split_cells(NAMES, test=0.2, val=0.1)
    np.testing.assert_array_equal(parts[order], split_cells(np.array(NAMES)[order], test=0.2, val=0.1))
    assert (np.sum(parts == "test"), np.sum(parts == "val")) == (40, 20)
    assert (parts != split_cells(NAMES, test=0.2, val=0.1, seed=1)).any()


def test_shares_hold_within_strata():
    strata = np.repeat(["x", "y"], [50, 150])
    parts = split_cells(NAMES, test=0.2, val=0.0, strata=strata)
    assert [np.sum((parts == "test") & (strata == name)) for name in ("x", "y")] == [10, 30]


def test_cells_are_checked():
    with pytest.raises(ValueError, match="unique names"):
        split_cells(["a", "a"])
    with pytest.raises(ValueError, match="lie in"):
        split_cells(NAMES, test=0.6, val=0.6)
