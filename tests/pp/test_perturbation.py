"""Labels, pairs and rankings of a screen."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

from scgpt_tools import pp
from scgpt_tools.screens.annotations import read_pairs
from screen_tables import CONDITIONS, screen

STEPS = {
    "parse": lambda adata, **options: pp.parse_conditions(adata, **options),
    "pair": lambda adata, **options: pp.pair_controls(adata, within="batch", n=2, **options),
    "transport": lambda adata, **options: pp.pair_controls(adata, method="transport", within="batch", n=2, **options),
    "de": lambda adata, **options: pp.perturbation_de(adata, within="cell_type", gears=True, **options),
    "split": lambda adata, **options: pp.perturbation_split(adata, **options),
    "cells": lambda adata, **options: pp.cell_split(adata, **options),
}


def content(adata) -> dict:
    return {
        "obs": adata.obs.copy(),
        "var": adata.var.copy(),
        "obsm": set(adata.obsm),
        "uns": set(adata.uns),
        "X": adata.X.copy(),
    }


def assert_same(before, after) -> None:
    for name in ("obs", "var"):
        assert before[name].equals(after[name])
    assert before["obsm"] == after["obsm"]
    assert before["uns"] == after["uns"]
    assert (before["X"] != after["X"]).nnz == 0


@pytest.mark.parametrize("step", STEPS)
def test_copies_leave_the_input_alone(step):
    adata = screen(6)
    before = content(adata)
    changed = STEPS[step](adata, copy=True)
    assert_same(before, content(adata))
    assert STEPS[step](adata) is None
    assert content(adata)["obs"].equals(changed.obs)
    assert set(adata.uns) == set(changed.uns)


@pytest.mark.parametrize("step", STEPS)
def test_results_survive_a_file(step, tmp_path):
    adata = screen(6)
    STEPS[step](adata)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    again = ad.read_h5ad(tmp_path / "screen.h5ad")
    assert set(again.uns) == set(adata.uns)
    assert list(again.obs.columns) == list(adata.obs.columns)


FAILURES = {
    "absent column": (lambda a: pp.parse_conditions(a, "guide"), KeyError, "Found no key in `obs`"),
    "no control": (lambda a: pp.parse_conditions(a, control="NT"), ValueError, "Pass control='ctrl'"),
    "unmeasured gene": (
        lambda a: pp.parse_conditions(a, missing="error", genes="short"), ValueError, "none for G7",
    ),
    "absent context": (lambda a: pp.pair_controls(a, within="donor"), KeyError, "Found no key in `obs`"),
    "context and gears": (lambda a: pp.pair_controls(a, within="batch", draw="gears"), ValueError, "no `within`"),
    "transport and gears": (
        lambda a: pp.pair_controls(a, method="transport", draw="gears"), ValueError, "method='random', with draw='gears'",
    ),
    "no way to pair": (lambda a: pp.pair_controls(a, method="nearest"), ValueError, "one of 'random', 'transport'"),
    "absent representation": (
        lambda a: pp.pair_controls(a, method="transport", use_rep="X_pca"), KeyError, "Found no key in `obsm`",
    ),
    "representation with holes": (
        lambda a: pp.pair_controls(a, method="transport", use_rep="holes"), ValueError, r"obsm\['holes'\] to be finite",
    ),
    "representation of texts": (
        lambda a: pp.pair_controls(a, method="transport", use_rep="texts"), TypeError, r"Expected numbers.*obsm\['texts'\]",
    ),
    "representation and layer": (
        lambda a: pp.pair_controls(a, method="transport", use_rep="holes", layer="counts"), ValueError, "found both",
    ),
    "representation for nothing": (
        lambda a: pp.pair_controls(a, use_rep="holes"), ValueError, "method='transport' only",
    ),
    "transport of counts": (
        lambda a: pp.pair_controls(a, method="transport", layer="counts"), ValueError, "raw counts",
    ),
    "no sample": (lambda a: pp.pair_controls(a, n=0), ValueError, "at least 1"),
    "counts": (lambda a: pp.perturbation_de(a, layer="counts"), ValueError, "raw counts"),
    "one cell": (lambda a: pp.perturbation_de(a[_one_cell(a)].copy()), ValueError, r"one for 1 of them \(G0\+ctrl\)"),
    "no cell types": (lambda a: pp.perturbation_de(a, gears=True), ValueError, "Expected `within`"),
    "unlabelled": (lambda a: pp.perturbation_split(a, condition_key="holes"), ValueError, "none for 1 of"),
    "no method": (lambda a: pp.perturbation_split(a, "simulated"), ValueError, "Expected `method`"),
    "no parts": (lambda a: pp.perturbation_split(a, "custom"), ValueError, "Expected `parts`"),
    "wrong parts": (
        lambda a: pp.perturbation_split(a, "custom", parts={"holdout": ["G0"]}), ValueError, "found \\['holdout'\\]",
    ),
    "names as text": (lambda a: pp.perturbation_split(a, test_genes="G0"), TypeError, "list of texts"),
    "no group": (lambda a: pp.cell_split(a, "batch", test=["z"]), ValueError, "no group 'z'"),
    "share as group": (lambda a: pp.cell_split(a, "batch", test=0.2), TypeError, "list of texts"),
    "group as share": (lambda a: pp.cell_split(a, test=["a"]), TypeError, "Expected shares"),
}  # fmt: skip


def _one_cell(adata):
    own = np.flatnonzero(adata.obs["condition"] == "G0+ctrl")
    return np.setdiff1d(np.arange(adata.n_obs), own[1:])


@pytest.mark.parametrize("case", FAILURES)
def test_a_call_that_fails_changes_nothing(case):
    call, error, message = FAILURES[case]
    adata = screen(6)
    adata.layers["counts"] = np.expm1(adata.X.toarray()).round()
    adata.var["short"] = [name if name != "G7" else "X" for name in adata.var_names]
    adata.obs["holes"] = adata.obs["condition"].astype(object)
    adata.obs.iloc[0, adata.obs.columns.get_loc("holes")] = np.nan
    adata.obsm["holes"] = np.where(np.arange(adata.n_obs)[:, None] == 3, np.nan, np.ones((adata.n_obs, 2)))
    adata.obsm["texts"] = np.full((adata.n_obs, 2), "a")
    before = content(adata)
    with pytest.raises(error, match=message):
        call(adata)
    assert_same(before, content(adata))


def test_conditions_and_their_record():
    adata = screen(4)
    adata.var_names = [name if name != "G7" else "other" for name in adata.var_names]
    with pytest.warns(UserWarning, match="none for G7"):
        pp.parse_conditions(adata)
    record = adata.uns["condition_perturbed"]
    assert record["missing_genes"].tolist() == ["G7"]
    assert record["genes"].tolist() == [f"G{i}" for i in range(8)]
    assert record["flags"] == {"untouched": 0, "perturbed": 1}
    assert set(adata.obs["condition"]) == set(CONDITIONS)


def test_a_warning_names_the_line_of_the_caller():
    adata = screen(4)
    adata.var_names = [name if name != "G7" else "other" for name in adata.var_names]
    with pytest.warns(UserWarning) as caught:
        pp.parse_conditions(adata)
    assert caught[0].filename == __file__


def test_distances_are_taken_where_the_user_says():
    """With the values themselves as the representation: as far apart as in all of their principal components."""
    adata = screen(6)
    pp.pair_controls(adata, method="transport")
    own = adata.obsm["ctrl_indices"].copy()
    assert adata.uns["ctrl_indices"]["params"]["method"] == "transport"
    adata.obsm["values"] = adata.X.toarray()
    adata.layers["same"], adata.X = adata.X, adata.X * 0
    pp.pair_controls(adata, method="transport", use_rep="values")
    np.testing.assert_array_equal(adata.obsm["ctrl_indices"], own)
    pp.pair_controls(adata, method="transport", layer="same")
    np.testing.assert_array_equal(adata.obsm["ctrl_indices"], own)
    pp.pair_controls(adata, rng=0)
    assert (adata.obsm["ctrl_indices"] != own).any()


def test_pairs_are_refused_once_the_cells_have_changed():
    adata = screen(6)
    pp.pair_controls(adata)
    assert read_pairs(adata).shape == (adata.n_obs, 1)
    for changed in (adata[:50].copy(), adata[::-1].copy()):
        with pytest.raises(ValueError, match="Run pp.pair_controls again"):
            read_pairs(changed)
    outside = adata.copy()
    outside.obsm["ctrl_indices"][0] = adata.n_obs
    with pytest.raises(ValueError, match="outside of the table"):
        read_pairs(outside)
    with pytest.raises(KeyError, match="Run pp.pair_controls first"):
        read_pairs(screen(4))


def test_gears_entries():
    adata = screen(12)
    pp.perturbation_de(adata, within="cell_type", gears=True)
    names = {f"K562_{condition}_1+1" for condition in CONDITIONS if condition != "ctrl"}
    lists = ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "non_zeros_gene_idx", "non_dropout_gene_idx")
    for what in lists:
        assert set(adata.uns[what]) == names
    ranked = adata.uns["rank_genes_groups_cov_all"]["K562_G0+G1_1+1"]
    assert sorted(ranked) == sorted(adata.var_names)
    frame = sc.get.rank_genes_groups_df(adata, "K562_G0+G1", key="perturbation_de")
    assert frame["names"].tolist() == list(ranked)
    assert set(adata.uns["top_non_dropout_de_20"]["K562_G0+G1_1+1"]) <= set(adata.var_names)
    assert adata.obs.loc[adata.obs["condition"] == "ctrl", "condition_name"].unique().tolist() == ["K562_ctrl_1"]
    assert adata.var["gene_name"].tolist() == adata.var_names.tolist()


@pytest.mark.parametrize("step", ["parse", "pair", "transport", "split"])
def test_backed_tables(step, tmp_path):
    adata = screen(6)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    STEPS[step](backed)
    STEPS[step](adata)
    assert backed.obs.equals(adata.obs)
    backed.file.close()


def test_pairs_of_joined_tables_are_refused():
    """Joining drops `uns`, so that rows of the second table would name cells of the first."""
    parts = [screen(3, seed=seed) for seed in (0, 1)]
    for number, part in enumerate(parts):
        part.obs_names = [f"{number}-{name}" for name in part.obs_names]
        pp.pair_controls(part)
    joined = ad.concat(parts)
    assert "ctrl_indices" in joined.obsm
    with pytest.raises(ValueError, match="Expected a record.*Run pp.pair_controls again"):
        read_pairs(joined)


def test_rankings_have_one_group_for_a_set_of_genes():
    adata = screen(6)
    labels = adata.obs["condition"].astype(object).to_numpy(copy=True)
    labels[np.flatnonzero(labels == "G0+G1")[::2]] = "G1+G0"
    adata.obs["condition"] = labels
    with pytest.warns(UserWarning, match=r"'G1\+G0'.*are taken for 'G0\+G1'"):
        pp.perturbation_de(adata)
    groups = adata.uns["perturbation_de"]["names"].dtype.names
    assert len(groups) == len(CONDITIONS) - 1
    assert "G1+G0" not in groups


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"within": "batch"}, r"Expected no obs\['cell_type'\]"),
        ({"control": "mine"}, {"within": "cell_type"}, r"Expected no obs\['control'\]"),
        ({"cell_type": "T/NK cell"}, {"within": "cell_type"}, "without '/'"),
        ({}, {"within": "cell_type", "key_added": "a/b"}, "without '/'"),
        ({}, {"within": "cell_type", "key_added": 5}, "Expected `key_added` to be a text"),
    ],
    ids=["other context", "own column", "slash", "slash in key", "number as key"],
)
def test_entries_of_gears_take_no_other_place(change, options, message):
    adata = screen(4)
    for name, value in change.items():
        adata.obs[name] = value
    before = content(adata)
    with pytest.raises((ValueError, TypeError), match=message):
        pp.perturbation_de(adata, gears=True, **options)
    assert_same(before, content(adata))


def test_entries_of_gears_can_be_written_again():
    adata = screen(4)
    for _ in range(2):
        pp.perturbation_de(adata, within="cell_type", gears=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda adata: pp.parse_conditions(adata, key_added="cell_type"),
        lambda adata: pp.parse_conditions(adata, "label"),
        lambda adata: pp.pair_controls(adata, key_added="mine"),
        lambda adata: pp.perturbation_de(adata, key_added="mine"),
        lambda adata: pp.perturbation_split(adata, key_added="batch"),
        lambda adata: pp.cell_split(adata, key_added="batch"),
    ],
    ids=["parse", "parse another column", "pair", "de", "split", "cells"],
)
def test_what_others_have_written_is_not_replaced(call):
    adata = screen(4)
    adata.obs["label"] = adata.obs["condition"].astype(str)
    adata.obsm["mine"], adata.uns["mine"] = np.zeros((adata.n_obs, 2)), "notes"
    before = content(adata)
    with pytest.raises(ValueError, match="Expected `key_added` to be a name that is free"):
        call(adata)
    assert_same(before, content(adata))


def test_own_results_are_replaced_under_any_name():
    adata = screen(4)
    for _ in range(2):
        pp.parse_conditions(adata, key_added="parsed")
        pp.pair_controls(adata, key_added="pairs")
        pp.perturbation_de(adata, key_added="ranking")
        pp.perturbation_split(adata, key_added="parts")
        pp.cell_split(adata, key_added="halves")
