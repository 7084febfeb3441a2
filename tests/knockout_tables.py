"""Results of `tl.knockout` on paper."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd


def table() -> ad.AnnData:
    """Two genes that were asked for and two random ones, in one group."""
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


def both(table: ad.AnnData) -> ad.AnnData:
    """The same in two groups."""
    second = table.copy()
    second.obs["group"] = "y"
    merged = ad.concat([table, second], index_unique="-")
    merged.obs["group"] = merged.obs["group"].astype("category")
    merged.uns = table.uns
    return merged
