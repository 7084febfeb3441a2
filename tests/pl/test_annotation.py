from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.pl._style import PALETTE


@pytest.fixture(autouse=True)
def no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def adata() -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "known": pd.Categorical(["B", "B", "B", "B", "T", "T", None]),
            "scgpt_cell_type": pd.Categorical(["B", "B", "B", "T", "T", "DC", "T"]),
            "scgpt_cell_type_confidence": np.array([0.9, 0.8, 0.7, 0.4, 1.0, 0.6, 0.5], dtype=np.float32),
        },
        index=[f"cell{i}" for i in range(7)],
    )
    adata = ad.AnnData(np.zeros((7, 1), dtype=np.float32), obs=obs)
    adata.uns["scgpt_cell_type"] = {"params": {"threshold": 0.45}}
    return adata


def test_confusion_matrix_shows_shares_of_the_truth(adata):
    ax = sct.pl.confusion_matrix(adata, truth="known", show=False)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["B (4)", "T (2)"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["B", "T", "DC"]
    assert [text.get_text() for text in ax.texts] == ["0.75", "0.25", "", "", "0.50", "0.50"]
    assert ax.images[0].get_clim() == (0, 1)


def test_confusion_matrix_shows_numbers_of_cells(adata):
    ax = sct.pl.confusion_matrix(adata, truth="known", normalize="none", show=False)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[3, 1, 0], [0, 1, 1]])
    assert [text.get_text() for text in ax.texts] == ["3", "1", "", "", "1", "1"]
    assert ax.images[0].get_clim() == (0, 3)


def test_ink_can_be_read_on_its_ground(adata):
    ax = sct.pl.confusion_matrix(adata, truth="known", show=False)
    inks = {text.get_text(): text.get_color() for text in ax.texts if text.get_text()}
    assert inks == {"0.75": "black", "0.25": "white", "0.50": "white"}


def test_large_tables_have_no_numbers():
    kinds = [f"kind{i}" for i in range(21)]
    obs = pd.DataFrame({"known": kinds, "guess": kinds}, index=kinds)
    adata = ad.AnnData(np.zeros((21, 1)), obs=obs)
    ax = sct.pl.confusion_matrix(adata, truth="known", predicted="guess", show=False)
    assert not ax.texts


def lines(ax: plt.Axes, width: float) -> dict[str, int]:
    """Number of horizontal lines of a width, by colour."""
    counts: dict[str, int] = {}
    for collection in ax.collections:
        if collection.get_linewidth()[0] == width:
            colour = to_hex(collection.get_color()[0])
            counts[colour] = counts.get(colour, 0) + 1
    return counts


def test_confidence_has_one_line_per_predicted_type(adata):
    ax = sct.pl.confidence(adata, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["B (3)", "DC (1)", "T (3)"]
    assert lines(ax, 6) == {PALETTE["sky"].lower(): 3}
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert medians == pytest.approx([0.8, 0.6, 0.5])


def test_confidence_tells_right_from_wrong(adata):
    ax = sct.pl.confidence(adata, truth="known", show=False)
    assert lines(ax, 6) == {PALETTE["blue"].lower(): 2, PALETTE["orange"].lower(): 2}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["right (4)", "wrong (2)", "threshold"]


def test_threshold_is_drawn_where_it_was(adata):
    ax = sct.pl.confidence(adata, show=False)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [0.45]
    adata.uns.clear()
    ax = sct.pl.confidence(adata, show=False)
    assert [line for line in ax.lines if line.get_linestyle() == "--"] == []


@pytest.mark.parametrize("draw", [lambda a, **k: sct.pl.confusion_matrix(a, truth="known", **k), sct.pl.confidence])
def test_figures_end_as_in_scanpy(adata, draw, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    _, ax = plt.subplots()
    assert draw(adata, ax=ax, show=False) is ax
    assert isinstance(draw(adata, return_fig=True), plt.Figure)
    assert not shown
    assert draw(adata, show=True) is None
    assert shown == [True]


def test_absent_columns_are_named(adata):
    with pytest.raises(KeyError, match="Did you mean 'known'"):
        sct.pl.confusion_matrix(adata, truth="knwon")
    with pytest.raises(KeyError, match="'mapped_cell_type'"):
        sct.pl.confidence(adata, key="mapped_cell_type")
