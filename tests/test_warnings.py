"""Warnings name the line of the user's code."""

from __future__ import annotations

import pytest

import scgpt_tools as sct


def test_the_line_is_that_of_the_call(adata, vocabulary):
    adata.var["name"] = ["GENE1", *adata.var_names[1:]]
    with pytest.warns(UserWarning, match="another column has") as said:
        sct.pp.match_genes(adata, vocabulary, genes="name")
    assert {warning.filename for warning in said} == {__file__}
