"""Parts of a screen in its table."""

from __future__ import annotations

import logging

import numpy as np

from scgpt_tools import pp
from scgpt_tools.data.splits import condition_hash
from screens import screen


def test_cells_follow_their_condition():
    adata = screen(5)
    pp.perturbation_split(adata, seed=2)
    record = adata.uns["split"]
    for part in ("train", "val", "test"):
        own = adata.obs["condition"][adata.obs["split"] == part]
        assert set(own) == set(record["conditions"][part])
        assert record["hash"][part] == condition_hash(own)
    assert (adata.obs["split"][adata.obs["condition"] == "ctrl"] == "train").all()
    held = adata.obs["split"].isin(["val", "test"])
    assert adata.obs["split_subgroup"].notna().equals(held)


def test_dropped_conditions_are_in_no_part():
    adata = screen(5)
    pp.perturbation_split(adata, "single", draw="stable", test_genes=["G0"])
    dropped = adata.uns["split"]["conditions"]["dropped"]
    assert set(dropped) >= {"G0+G1", "G0+G6"}
    assert adata.obs["split"][adata.obs["condition"].isin(dropped)].isna().all()


def test_the_order_of_cells_decides_gears_draws_only():
    adata = screen(5)
    moved = adata[np.argsort(adata.obs["condition"].astype(str).to_numpy())].copy()
    for table in (adata, moved):
        pp.perturbation_split(table, "combo_seen2", draw="stable", test_fraction=0.4)
    assert adata.uns["split"]["hash"] == moved.uns["split"]["hash"]
    gears = []
    for seed in range(1, 6):
        for table in (adata, moved):
            pp.perturbation_split(table, "combo_seen2", test_fraction=0.4, seed=seed)
            gears.append(table.uns["split"]["hash"]["test"])
    assert any(a != b for a, b in zip(gears[::2], gears[1::2], strict=True))


def test_hash_and_sizes_are_logged(caplog):
    adata = screen(5)
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        pp.perturbation_split(adata)
    assert adata.uns["split"]["hash"]["test"][:16] in caplog.text


def test_replicates_are_held_out():
    adata = screen(5)
    pp.cell_split(adata, "batch", test=["b"])
    assert (adata.obs["split"] == "test").equals(adata.obs["batch"] == "b")


def test_a_share_of_cells_within_strata():
    adata = screen(10)
    pp.cell_split(adata, test=0.2, stratify=["condition", "batch"], key_added="part")
    share = (adata.obs["part"] == "test").groupby(adata.obs["condition"], observed=True).mean()
    np.testing.assert_allclose(share, 0.2)
