"""Shared docstring paragraphs."""

from __future__ import annotations

import pytest

from scgpt_tools._docs import PARAGRAPHS, shared_docs


def test_paragraphs_take_the_indentation_of_their_place():
    @shared_docs
    def task(adata, *, layer=None):
        """Do something.

        Parameters
        ----------
        adata
            Cells in a dict such as {layer}.
        {layer}
        """

    first, *rest = PARAGRAPHS["layer"].splitlines()
    assert f"        {first}\n        {rest[0]}\n" in task.__doc__
    assert "such as {layer}." in task.__doc__


def test_an_unknown_paragraph_is_an_error():
    def task():
        """Do something.

        {lair}
        """

    with pytest.raises(ValueError, match="Did you mean 'layer'"):
        shared_docs(task)
