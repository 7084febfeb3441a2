from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct


@pytest.fixture(autouse=True)
def no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    columns = ["cLISI", "KMeans NMI", "iLISI", "KBET", "Bio conservation", "Batch correction", "Total"]
    rows = [[0.9, 0.5, 0.1, np.nan, 0.7, 0.1, 0.46], [0.8, 0.7, 0.3, np.nan, 0.75, 0.3, 0.57]]
    return pd.DataFrame(rows, index=pd.Index(["X_pca", "X_scGPT"], name="embedding"), columns=columns)


def test_the_best_total_comes_first_unless_the_order_is_kept(table):
    ax = sct.pl.scores(table, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["X_scGPT", "X_pca"]
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), table.drop(columns="KBET").iloc[::-1])
    ax = sct.pl.scores(table, sort=False, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["X_pca", "X_scGPT"]


def test_the_best_of_each_column_is_bold(table):
    ax = sct.pl.scores(table, sort=False, show=False)
    cells = [text for text in ax.texts if text.get_transform() == ax.transData]
    bold = [text.get_position()[1] for text in cells if text.get_weight() == "bold"]
    columns = [text.get_position()[0] for text in cells if text.get_weight() == "bold"]
    assert dict(zip(columns, bold, strict=True)) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}


def test_a_score_that_was_not_computed_has_no_column(table):
    ax = sct.pl.scores(table, show=False, title="Blood")
    assert "KBET" not in [text.get_text() for text in ax.get_xticklabels()]
    assert ax.get_title(loc="left") == "Blood"
    table.loc["X_pca", "KBET"] = 0.2
    ax = sct.pl.scores(table, show=False)
    assert [text.get_text() for text in ax.texts].count("–") == 1
    with pytest.raises(ValueError, match="Expected scores, found none"):
        sct.pl.scores(table[["KBET"]].iloc[1:])


def test_groups_stand_above_their_columns(table):
    ax = sct.pl.scores(table, show=False)
    names = {text.get_text(): text.get_position()[0] for text in ax.texts if text.get_position()[1] == 1.02}
    assert names == {"Bio conservation": 0.5, "Batch correction": 2, "Means": 4}


def test_figures_end_as_in_scanpy(table, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    _, ax = plt.subplots()
    assert sct.pl.scores(table, ax=ax, show=False) is ax
    assert isinstance(sct.pl.scores(table, return_fig=True), plt.Figure)
    assert sct.pl.scores(table, show=True) is None
    assert shown == [True]


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match=r"found shape \(0, 0\)"):
        sct.pl.scores(pd.DataFrame())


@pytest.mark.parametrize("wrong", ["cells.h5ad", None, [1, 2]])
def test_what_is_no_table_is_refused_with_where_one_comes_from(wrong):
    with pytest.raises(TypeError, match=r"table of scores, found \w+. Pass what `tl.score_embedding` returns"):
        sct.pl.scores(wrong)


def test_columns_that_are_no_scores_are_named(table):
    with pytest.raises(TypeError, match=r"found \['cell_type'\], which hold no numbers"):
        sct.pl.scores(table.assign(cell_type="T"))
