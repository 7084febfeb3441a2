"""Ranking of genes by condition, and the lists of GEARS."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scgpt_tools.screens.ranking import gears_lists, gears_names, rank_genes
from screen_tables import CONDITIONS, screen


@pytest.fixture
def cells():
    adata = screen()
    return adata.X, adata.obs["condition"].astype(str).to_numpy(), adata.obs["batch"].to_numpy()


def test_one_ranking_a_condition(cells):
    matrix, conditions, _ = cells
    ranking = rank_genes(matrix, conditions)
    assert sorted(ranking.names) == sorted(set(CONDITIONS) - {"ctrl"})
    size = np.abs(ranking.statistics["scores"])
    assert (np.diff(size, axis=1) <= 1e-6).all()
    assert (np.sort(ranking.order, axis=1) == np.arange(matrix.shape[1])).all()
    np.testing.assert_allclose(
        np.take_along_axis(ranking.scores(), ranking.order.astype(int), 1), ranking.statistics["scores"]
    )


def test_ranking_within_a_context_is_the_ranking_of_that_context(cells):
    matrix, conditions, batches = cells
    ranking = rank_genes(matrix, conditions, contexts=batches)
    own = batches == "a"
    alone = rank_genes(matrix[np.flatnonzero(own)], conditions[own])
    row, other = ranking.names.index("a_G1+ctrl"), alone.names.index("G1+ctrl")
    np.testing.assert_allclose(ranking.scores()[row], alone.scores()[other])


def test_against_the_rest_ignores_the_controls(cells):
    matrix, conditions, _ = cells
    ranking = rank_genes(matrix, conditions, against="rest")
    perturbed = conditions != "ctrl"
    changed = matrix.copy().tolil()
    changed[np.flatnonzero(~perturbed)] = 0
    np.testing.assert_allclose(rank_genes(changed.tocsr(), conditions, against="rest").scores(), ranking.scores())


def test_scanpy_reads_the_result(cells):
    matrix, conditions, _ = cells
    ranking = rank_genes(matrix, conditions)
    genes = [f"G{i}" for i in range(matrix.shape[1])]
    shell = ad.AnnData(var=pd.DataFrame(index=genes))
    shell.uns["found"] = ranking.as_scanpy(genes, {"reference": "ctrl", "method": "t-test", "groupby": "condition"})
    frame = sc.get.rank_genes_groups_df(shell, "G0+G1", key="found")
    row = ranking.names.index("G0+G1")
    assert frame["names"].tolist() == [genes[i] for i in ranking.order[row]]
    np.testing.assert_allclose(frame["scores"], ranking.statistics["scores"][row])


def test_labels_of_gears():
    names = gears_names(["ctrl", "A+ctrl", "A+B", "A+B+C"], ["K", "K", "L", "L"])
    assert names["condition_name"].tolist() == ["K_ctrl_1", "K_A+ctrl_1+1", "L_A+B_1+1", "L_A+B+C_1+1+1"]
    assert names["control"].tolist() == [1, 0, 0, 0]


def test_lists_of_gears_pool_cell_types():
    matrix = np.array(
        [
            [0, 1, 0, 0],  # control
            [0, 1, 0, 0],
            [0, 2, 0, 0],
            [0, 1, 0, 0],
            [3, 1, 0, 0],  # A in K
            [4, 2, 0, 0],
            [0, 1, 5, 0],  # A in L
            [0, 2, 6, 0],
        ],
        dtype=np.float32,
    )
    conditions, kinds = ["ctrl"] * 4 + ["A+ctrl"] * 4, ["K", "K", "L", "L", "K", "K", "L", "L"]
    names = gears_names(conditions, kinds)
    lists = gears_lists(matrix, conditions, rank_genes(matrix, conditions, contexts=kinds), names)
    assert set(lists["non_zeros_gene_idx"]) == {"K_A+ctrl_1+1", "L_A+ctrl_1+1"}
    for name in lists["non_zeros_gene_idx"]:
        np.testing.assert_array_equal(lists["non_zeros_gene_idx"][name], [0, 1, 2])
        np.testing.assert_array_equal(lists["non_dropout_gene_idx"][name], [0, 1, 2, 3])
    assert lists["rank_genes_groups_cov_all"]["K_A+ctrl_1+1"][0] == 0
    assert lists["rank_genes_groups_cov_all"]["L_A+ctrl_1+1"][0] == 2


@pytest.mark.parametrize(
    ("conditions", "contexts", "message"),
    [
        (["ctrl"] * 4, None, "found controls only"),
        (["ctrl", "ctrl", "A+ctrl", "B+ctrl"], None, r"one for 2 of them \(A\+ctrl, B\+ctrl\)"),
        (["ctrl", "A+ctrl", "A+ctrl", "A+ctrl"], None, "two control cells to compare with, found 1"),
        (["ctrl", "ctrl", "A+ctrl", "A+ctrl"], ["K", "K", "L", "L"], "control cells in 'L'"),
        (["ctrl", "B_C+ctrl", "ctrl", "C+ctrl"], ["A", "A", "A_B", "A_B"], r"found 'A_B_C\+ctrl' for both"),
    ],
)
def test_groups_that_cannot_be_ranked_are_named(conditions, contexts, message):
    with pytest.raises(ValueError, match=message):
        rank_genes(np.ones((4, 3), dtype=np.float32), conditions, contexts=contexts)


def test_a_table_without_genes_is_refused():
    with pytest.raises(ValueError, match="Expected genes to rank"):
        rank_genes(np.ones((4, 0), dtype=np.float32), ["ctrl", "ctrl", "A+ctrl", "A+ctrl"])
