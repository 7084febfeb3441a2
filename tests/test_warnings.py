"""Warnings name the line of the user's code."""

from __future__ import annotations

import pytest

import scgpt_tools as sct
from scgpt_tools._warnings import warn_user


def test_the_line_is_that_of_the_call(adata, vocabulary):
    adata.var["name"] = ["GENE1", *adata.var_names[1:]]
    with pytest.warns(UserWarning, match="another column has") as said:
        sct.pp.match_genes(adata, vocabulary, genes="name")
    assert {warning.filename for warning in said} == {__file__}


def test_a_table_and_a_model_are_warned_of_once(adata, vocabulary):
    adata.var_names = [f"{'' if place < 10 else 'X'}{name}" for place, name in enumerate(adata.var_names)]
    with pytest.warns(UserWarning, match="Only 6 of 30 features"):
        sct.pp.match_genes(adata, vocabulary)
    # Another warning would be an error here.
    sct.pp.match_genes(adata, vocabulary)
    sct.pp.tokenize(adata, vocabulary)
    other = adata[:, 1:].copy()
    with pytest.warns(UserWarning, match="Only 6 of 29 features"):
        sct.pp.match_genes(other, vocabulary)


def test_a_warning_that_was_an_error_comes_again():
    for _ in range(2):
        with pytest.raises(UserWarning, match="said"):
            warn_user("said", once_about=["genes"])
