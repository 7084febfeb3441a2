from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgpt_tools as sct


@pytest.fixture
def table():
    names = ["A", "B", "C", "D"]
    weights = np.array([[0, 0.9, 0.6, 0], [0.9, 0, 0, 0], [0.6, 0, 0, 0], [0, 0, 0, 0]])
    cells = ad.AnnData(np.ones((6, 4)), obs=pd.DataFrame({"type": list("xxyyzz")}, index=[f"c{i}" for i in range(6)]))
    cells.var_names = names
    cells.varp["gene_network"] = sparse.csr_matrix(weights)
    cells.uns["gene_program"] = {"programs": {"0": np.array(["A", "B", "C"], dtype=object)}}
    cells.obsm["program_scores"] = pd.DataFrame({"0": [0, 0, 1, 1, 2, 2], "1": [1.0] * 6}, index=cells.obs_names)
    return cells


def test_a_network_draws_its_edges_and_names(table):
    ax = sct.pl.gene_network(table, program="0", show=False)
    assert {text.get_text() for text in ax.texts} == {"A", "B", "C"}
    widths = sorted(line.get_linewidth() for line in ax.lines if len(line.get_xdata()) == 2)
    assert widths == pytest.approx([0.3 + 2.2 * 0.36, 0.3 + 2.2 * 0.81])
    named = sct.pl.gene_network(table, genes=["A", "B"], show=False)
    assert {text.get_text() for text in named.texts} == {"A", "B"}


def test_a_heat_map_shows_standardized_means(table):
    ax = sct.pl.program_heatmap(table, "type", show=False)
    shown = ax.collections[0].get_array().reshape(2, 3)
    np.testing.assert_allclose(shown[0], np.array([-1, 0, 1]) * np.sqrt(1.5))
    np.testing.assert_allclose(shown[1], 0)
    plain = sct.pl.program_heatmap(table, "type", standardize=False, programs=["0"], show=False)
    np.testing.assert_allclose(plain.collections[0].get_array().ravel(), [0, 1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sct.pl.gene_network(t), ValueError, "either `genes` or `program`, found genes=None"),
        (lambda t: sct.pl.gene_network(t, program="7"), KeyError, "program named '7'"),
        (lambda t: sct.pl.gene_network(t, genes=["A", "Z"]), KeyError, "gene in `var_names`: 'Z'"),
        (lambda t: sct.pl.gene_network(t, genes=["B", "C"]), ValueError, "connected in varp"),
        (lambda t: sct.pl.program_heatmap(t, "types"), KeyError, "Did you mean 'type'"),
        (lambda t: sct.pl.program_heatmap(t, "type", programs=["9"]), KeyError, "program in obsm"),
        (lambda t: sct.pl.program_heatmap(t[:2], "type"), ValueError, "cells of two groups or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, call, error, message):
    with pytest.raises(error, match=message):
        call(table)
