"""Orthologues by a table."""

from __future__ import annotations

import pandas as pd
import pytest

from scgpt_tools.tokens import FeatureTable
from scgpt_tools.tokens.orthologs import ortholog_names
from scgpt_tools.vocabulary import Vocabulary

TABLE = pd.DataFrame(
    [("A", "a", "one2one"), ("B1", "b", "one2many"), ("B2", "b", "one2many"), (None, "c", "one2one")],
    columns=["human", "mouse", "kind"],
)


def test_one_to_one_unless_more_is_asked_for():
    assert ortholog_names(TABLE) == {"a": "A"}
    assert ortholog_names(TABLE, one_to_many=True) == {"a": "A", "b": "B1"}


def test_genes_are_matched_through_it():
    vocabulary = Vocabulary(["<pad>", "<cls>", "A", "B1"])
    names = ortholog_names(TABLE, one_to_many=True)
    table = FeatureTable.from_var(pd.DataFrame(index=["b", "z", "a"]), vocabulary, symbols=names, min_coverage=0)
    assert table.names.tolist() == ["B1", "A"]


def test_refusals():
    with pytest.raises(ValueError, match="a column 'rat'"):
        ortholog_names(TABLE, of="rat")
    with pytest.raises(ValueError, match="'one2one' or 'one2many'"):
        ortholog_names(TABLE.replace("one2many", "many2many"))
    with pytest.raises(ValueError, match="found 'a' again"):
        ortholog_names(pd.concat([TABLE, TABLE.iloc[:1]]))
