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


def test_tables_of_knockouts(table):
    found = sct.get.knockout(both(table), "y")
    assert list(found["gene"]) == ["A", "B"]
    assert set(found["group"]) == {"y"}
    assert len(sct.get.knockout(table, random=True)) == 4
    effects = sct.get.knockout_effects(table, "A")
    assert list(effects["gene"]) == ["C", "B"]
    assert list(effects["change"]) == [-3, 2]
    assert list(sct.get.knockout_effects(table, "B", group="x")["gene"]) == ["A"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sct.get.knockout(t, "z"), KeyError, "group of cells named 'z'"),
        (lambda t: sct.get.knockout_effects(both(t), "A"), ValueError, "`group` to be one of"),
        (lambda t: sct.get.knockout_effects(t, "Z"), KeyError, "changed gene named 'Z'"),
        (lambda t: sct.get.knockout_effects(ad.AnnData(obs=t.obs, uns=t.uns), "A"), KeyError, "Pass `expression=`"),
    ],
)
def test_tables_that_are_not_there(table, call, error, message):
    with pytest.raises(error, match=message):
        call(table)
