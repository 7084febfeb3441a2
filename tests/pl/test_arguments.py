"""What every plot refuses before it draws."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct


@pytest.fixture
def cells() -> ad.AnnData:
    obs = pd.DataFrame({"kind": ["a", "b", "a"]}, index=["c0", "c1", "c2"])
    table = ad.AnnData(np.ones((3, 2), dtype=np.float32), obs=obs)
    table.obsm["X_two"] = np.arange(6, dtype=np.float32).reshape(3, 2)
    return table


PLOTS = {
    "embedding": lambda cells, **options: sct.pl.embedding(cells, "kind", use_rep="X_two", **options),
    "confusion_matrix": lambda cells, **options: sct.pl.confusion_matrix(
        cells, truth="kind", predicted="kind", **options
    ),
    "scores": lambda cells, **options: sct.pl.scores(pd.DataFrame({"a": [0.1, 0.9]}), **options),
}
REFUSALS = {
    "a text as flag": ({"return_fig": "False"}, TypeError, "`return_fig` to be True or False"),
    "a number as size": ({"figsize": 5}, TypeError, "`figsize`"),
    "a figure below nothing": ({"figsize": (-1.0, 2.0)}, ValueError, "`figsize`"),
    "a blank path": ({"save": ""}, ValueError, "`save` to be the path"),
    "a number as path": ({"save": 5}, TypeError, "`save` to be a path"),
}


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("name", REFUSALS)
def test_no_plot_takes_it(cells, plot, name):
    options, error, message = REFUSALS[name]
    with pytest.raises(error, match=message):
        PLOTS[plot](cells, **options)
    assert not plt.get_fignums()


@pytest.mark.parametrize("plot", ["confusion_matrix", "scores"])
def test_colour_maps_have_to_exist(cells, plot):
    with pytest.raises(ValueError, match="`cmap` to be one of"):
        PLOTS[plot](cells, cmap="no such")


@pytest.mark.parametrize(
    ("palette", "error"), [("red", TypeError), (5, TypeError), (["red", "no such"], ValueError), (["red"], ValueError)]
)
def test_palettes_are_colours_for_all_labels(cells, palette, error):
    with pytest.raises(error, match="`palette`"):
        PLOTS["embedding"](cells, palette=palette)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: np.where(array > 3, np.nan, array),
        lambda array: array.astype(str),
        lambda array: array[:, :0],
        lambda array: array[:, :, None],
        lambda array: np.ma.masked_greater(array, 3.0),
    ],
    ids=["NaN", "text", "empty", "three dimensions", "masked"],
)
def test_embeddings_are_finite_numbers(cells, change):
    cells.obsm["X_two"] = change(cells.obsm["X_two"])
    with pytest.raises(ValueError, match="X_two"):
        PLOTS["embedding"](cells)
