"""Genes of a minibatch, of one table and of several."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgpt_tools.tokens import FeatureTable, select_genes
from scgpt_tools.tokens.selection import MinibatchGenes, tokens_of_minibatch
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<pad>", "<cls>", *"ABCDE"])


def table(genes: str, X: list[list[float]]):
    return sp.csr_matrix(np.array(X, dtype=np.float32)), FeatureTable.from_var(
        pd.DataFrame(index=list(genes)), VOCABULARY
    )


def test_highest_sums_of_one_table():
    X, features = table("EDCBA", [[1, 0, 3, 0, 2], [1, 0, 0, 0, 2]])
    chosen = select_genes(X, features, 2)
    assert chosen.names.tolist() == ["C", "A"]
    everything = select_genes(X, features, 9)
    assert everything.names.tolist() == ["E", "C", "A"]


def test_sums_go_through_all_tables():
    parts = [table("AB", [[3, 2]]), table("BC", [[2, 1], [0, 2]])]
    chosen = tokens_of_minibatch(parts, len(VOCABULARY), MinibatchGenes(n_genes=2), 0)
    assert np.flatnonzero(chosen).tolist() == [2, 3]


def test_random_ones_are_expressed_and_follow_the_seed():
    parts = [table("ABCDE", [[1, 1, 0, 1, 1]])]
    choice = MinibatchGenes(n_genes=2, how="random_expressed")
    drawn = {tuple(np.flatnonzero(tokens_of_minibatch(parts, 7, choice, seed))) for seed in range(30)}
    assert len(drawn) > 3
    assert all(4 not in tokens and len(tokens) == 2 for tokens in drawn)
    first, again = (tokens_of_minibatch(parts, 7, choice, 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_refusals():
    with pytest.raises(ValueError, match="n_genes"):
        MinibatchGenes(n_genes=0)
    with pytest.raises(ValueError, match="most_expressed"):
        MinibatchGenes(n_genes=2, how="highest")
