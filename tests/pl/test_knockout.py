from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import knockout_tables
import scgpt_tools as sct


@pytest.fixture
def table():
    return knockout_tables.table()


def test_what_is_above_random_genes_is_highlighted_and_named(table):
    ax = sct.pl.knockout(table, n_genes=1, show=False)
    drawn = {points.get_label(): points.get_offsets().tolist() for points in ax.collections}
    assert drawn == {"random genes": [[50, 0.01]], "asked for": [[80, 0.02]], "asked for, FDR 5%": [[50, 0.1]]}
    assert [text.get_text() for text in ax.texts] == ["A"]
    assert ax.get_title() == "Genes removed"
    assert sct.pl.knockout(knockout_tables.both(table), group="y", show=False).get_title() == "Genes removed, y"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sct.pl.knockout(knockout_tables.both(t)), ValueError, "`group` to be one of"),
        (lambda t: sct.pl.knockout(t, group="z"), KeyError, "group of cells named 'z'"),
        (lambda t: sct.pl.knockout(t[3:].copy()), ValueError, "found none"),
        (lambda t: sct.pl.knockout(ad.AnnData(np.ones((2, 2)))), KeyError, "knockout"),
        (lambda t: sct.pl.knockout(t, fdr=2), ValueError, "`fdr`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, call, error, message):
    with pytest.raises(error, match=message):
        call(table)
