"""Plots of several modalities show what was measured where, and hide nothing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scgpt_tools as sct
from mudatas import make_mudata


@pytest.fixture
def mdata():
    made = make_mudata(mosaic=True)
    made.obsm["X_scGPT"] = np.random.default_rng(0).normal(size=(made.n_obs, 2))
    yield made
    plt.close("all")


def drawn(panel) -> int:
    """Number of dots in a panel."""
    return sum(len(dots.get_offsets()) for dots in panel.collections if len(dots.get_offsets()) > 1)


def test_every_cell_is_in_every_panel(mdata):
    panels = sct.pl.joint_embedding(mdata, ["modalities", "rna:kind", "prot:CD4", "rna:GENE1"], show=False)
    assert [panel.get_title() for panel in panels] == ["modalities", "rna:kind", "prot:CD4", "rna:GENE1"]
    assert [drawn(panel) for panel in panels] == [mdata.n_obs] * 4
    labels = {text.get_text() for text in panels[0].get_legend().get_texts()}
    assert labels == {"rna + prot", "rna", "prot"}
    assert sct.pl.joint_embedding(mdata, return_fig=True).axes


def test_missing_values_are_grey_and_numbers_are_numbers(mdata):
    mdata.obs["weight"] = np.arange(mdata.n_obs, dtype=float)
    numbers, protein = sct.pl.joint_embedding(mdata, ["weight", "prot:IgG"], show=False)
    assert len(numbers.collections) == 1
    assert [len(dots.get_offsets()) for dots in protein.collections] == [3, mdata.n_obs - 3]
    highest = numbers.collections[0].get_array()
    assert np.all(np.diff(highest) >= 0)


def test_weights_by_group(mdata):
    for name, weight in (("rna", 0.25), ("prot", 0.75)):
        mdata.obs[f"{name}:mod_weight"] = weight
    panel = sct.pl.modality_weights(mdata, groupby="batch", show=False)
    assert [text.get_text() for text in panel.get_yticklabels()] == ["a", "b"]
    assert sorted({round(bar.get_width(), 3) for bar in panel.patches if bar.get_width() < 1}) == [0.25, 0.75]
    _, own = plt.subplots()
    assert sct.pl.modality_weights(mdata, ax=own, show=False) is own


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda m: sct.pl.joint_embedding(m["rna"]), TypeError, "to be a MuData, found AnnData"),
        (lambda m: sct.pl.joint_embedding(m, use_rep="X_umap"), KeyError, "X_umap"),
        (lambda m: sct.pl.joint_embedding(m, "prot:CD8"), KeyError, "no label or feature 'prot:CD8'"),
        (lambda m: sct.pl.joint_embedding(m, "prot:CD4", layer="counts"), KeyError, "counts"),
        (lambda m: sct.pl.modality_weights(m), KeyError, "modality_weights"),
        (lambda m: sct.pl.modality_weights(weighted(m), groupby="donor"), KeyError, "donor"),
    ],
)
def test_refusals(mdata, draw, error, message):
    with pytest.raises(error, match=message):
        draw(mdata)


def weighted(mdata):
    mdata.obs["rna:mod_weight"] = 1.0
    return mdata
