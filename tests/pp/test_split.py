"""Parts of a screen in its table."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from scgpt_tools import pp
from scgpt_tools.screens.splits import GEARS_METHODS, condition_hash
from scgpt_tools.screens.splits_stable import METHODS
from screen_tables import screen

# Other ways to write a condition: another order, the control first, a gene twice, white space, one gene alone.
SPELLINGS = {
    "order": ("G0+G1", "G1+G0"),
    "control first": ("G2+ctrl", "ctrl+G2"),
    "gene twice": ("G3+ctrl", "G3+G3"),
    "white space": ("G2+G3", " G2 + G3"),
    "no control": ("G4+ctrl", "G4"),
    "two controls": ("ctrl", "ctrl+ctrl"),
}


def respelled(adata, *ways):
    """Every second cell of some conditions with another spelling."""
    labels = adata.obs["condition"].astype(object).to_numpy(copy=True)
    for way in ways:
        written, other = SPELLINGS[way]
        labels[np.flatnonzero(labels == written)[::2]] = other
    adata.obs["condition"] = labels
    return adata


@pytest.mark.parametrize("way", SPELLINGS)
@pytest.mark.parametrize("draw", ["gears", "stable"])
@pytest.mark.filterwarnings("ignore:Expected conditions to:UserWarning")
def test_one_set_of_genes_is_in_one_part_however_it_is_spelled(way, draw):
    methods = [name for name in (GEARS_METHODS if draw == "gears" else METHODS) if name != "simulation_single"]
    for method in methods:
        plain, adata = screen(3), respelled(screen(3), way)
        labels = adata.obs["condition"].copy()
        pp.perturbation_split(plain, method, draw=draw, test_fraction=0.3, rng=2)
        with pytest.warns(UserWarning, match="several of 1: .* are taken for") as caught:
            pp.perturbation_split(adata, method, draw=draw, test_fraction=0.3, rng=2)
        assert caught[0].filename == __file__
        assert adata.obs["split"].equals(plain.obs["split"]), method
        assert adata.uns["split"]["hash"] == plain.uns["split"]["hash"]
        assert adata.obs["condition"].equals(labels)


def test_named_conditions_may_be_spelled_in_any_way():
    adata = screen(3)
    pp.perturbation_split(adata, "custom", parts={"train": ["G0"], "val": ["ctrl+G1"], "test": ["G1+G0"]})
    assert list(adata.uns["split"]["conditions"]["test"]) == ["G0+G1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.replace("+ctrl", "").replace("+", "_"), r"found 'G\d_G\d'|Run pp.parse_conditions"),
        (lambda name: name.replace("+", "_"), "Run pp.parse_conditions"),
        (lambda name: name if "ctrl" in name else f"{name.replace('+', '_')}+ctrl", "pass delimiter='_'"),
        (lambda name: name.replace("+ctrl", "+Ctrl"), r"pass control=\['ctrl', 'Ctrl'\]"),
        (lambda name: name.replace("+", ";"), "Run pp.parse_conditions"),
    ],
    ids=["pairs", "all", "pairs with a control", "case", "semicolon"],
)
def test_labels_that_are_not_parsed_yet_are_refused(change, message):
    adata = screen(3)
    adata.obs["condition"] = [change(name) for name in adata.obs["condition"].astype(str)]
    for step in (pp.perturbation_split, pp.pair_controls, pp.perturbation_de):
        with pytest.raises(ValueError, match=message):
            step(adata)
    assert list(adata.obs) == ["condition", "cell_type", "batch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_genes": 1.0, "train_seen2": 1.0, "val_fraction": 0.0}, "to test, found none"),
        ({"train_genes": 0.1, "val_fraction": 0.01}, "to validate on, found none"),
        ({"method": "custom", "parts": {"train": ["G0", "G1"]}}, "to test, found none"),
        ({"method": "combo_seen2", "test_fraction": 0.0, "val_fraction": 0.0}, "to test, found none"),
    ],
)
def test_a_split_that_holds_nothing_out_says_so(options, message):
    adata = screen(3)
    with pytest.warns(UserWarning, match=message):
        pp.perturbation_split(adata, **options)


def test_cells_follow_their_condition():
    adata = screen(5)
    pp.perturbation_split(adata, rng=2)
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
            pp.perturbation_split(table, "combo_seen2", test_fraction=0.4, val_fraction=0.0, rng=seed)
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


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"test": 0.0}, "Expected cells to hold out, found none"),
        ({"test": 0.001}, "cells of the part 'test' for test=0.001, found none"),
        ({"test": 0.2, "val": 0.001}, "cells of the part 'val' for val=0.001, found none"),
    ],
)
def test_a_share_too_small_for_a_cell_is_said(shares, message):
    adata = screen(3)
    with pytest.warns(UserWarning, match=message):
        pp.cell_split(adata, **shares)
