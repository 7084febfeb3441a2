from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct


@pytest.fixture
def table():
    names = ["A", "B", "R0", "R1"]
    obs = pd.DataFrame(
        {
            "gene": names,
            "group": pd.Categorical(["x"] * 4),
            "role": pd.Categorical(["asked", "asked", "random", "random"]),
            "n_cells": 10,
            "n_changed": [5, 8, 5, 0],
            "shift": [0.1, 0.02, 0.01, np.nan],
            "z_score": [4.0, 0.5, 0.1, np.nan],
            "q_value": [0.01, 0.6, np.nan, np.nan],
        },
        index=names,
    )
    found = ad.AnnData(np.array([[0.0, 2, -3], [1, 0, np.nan], [0, 0, 0], [0, 0, 0]]), obs=obs)
    found.var_names = ["A", "B", "C"]
    found.uns["knockout"] = {"params": {"how": "remove"}}
    return found


def both(table):
    second = table.copy()
    second.obs["group"] = "y"
    merged = ad.concat([table, second], index_unique="-")
    merged.obs["group"] = merged.obs["group"].astype("category")
    merged.uns = table.uns
    return merged


def test_what_is_above_random_genes_is_highlighted_and_named(table):
    ax = sct.pl.knockout(table, n_genes=1, show=False)
    drawn = {points.get_label(): points.get_offsets().tolist() for points in ax.collections}
    assert drawn == {"random genes": [[50, 0.01]], "asked for": [[80, 0.02]], "asked for, FDR 5%": [[50, 0.1]]}
    assert [text.get_text() for text in ax.texts] == ["A"]
    assert ax.get_title() == "Genes removed"
    assert sct.pl.knockout(both(table), group="y", show=False).get_title() == "Genes removed, y"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sct.pl.knockout(both(t)), ValueError, "`group` to be one of"),
        (lambda t: sct.pl.knockout(t, group="z"), KeyError, "group of cells named 'z'"),
        (lambda t: sct.pl.knockout(t[3:].copy()), ValueError, "found none"),
        (lambda t: sct.pl.knockout(ad.AnnData(np.ones((2, 2)))), KeyError, "knockout"),
        (lambda t: sct.pl.knockout(t, fdr=2), ValueError, "`fdr`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, call, error, message):
    with pytest.raises(error, match=message):
        call(table)
