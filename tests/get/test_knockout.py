from __future__ import annotations

import anndata as ad
import pytest

import knockout_tables
import scgpt_tools as sct


@pytest.fixture
def table():
    return knockout_tables.table()


def test_tables_of_knockouts(table):
    found = sct.get.knockout(knockout_tables.both(table), "y")
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
        (lambda t: sct.get.knockout_effects(knockout_tables.both(t), "A"), ValueError, "`group` to be one of"),
        (lambda t: sct.get.knockout_effects(t, "Z"), KeyError, "changed gene named 'Z'"),
        (lambda t: sct.get.knockout_effects(ad.AnnData(obs=t.obs, uns=t.uns), "A"), KeyError, "Pass `expression=`"),
    ],
)
def test_tables_that_are_not_there(table, call, error, message):
    with pytest.raises(error, match=message):
        call(table)
