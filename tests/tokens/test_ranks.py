"""Orders, fixed bins and choices of genes, on a table that can be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.tokens import FeatureTable, Tokenizer, TokenizerConfig, select_genes
from scgpt_tools.tokens.edges import bins_of, quantile_edges, uniform_edges
from scgpt_tools.tokens.ranks import gene_medians
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<pad>", "<unk>", "<mask>", "<cls>", "A", "B", "C", "D"])
X = sp.csr_matrix(np.array([[1.0, 5, 0, 5], [2, 0, 0, 0], [4, 1, 3, 2]], dtype=np.float32))
FEATURES = FeatureTable.from_var(pd.DataFrame(index=list("ABCD")), VOCABULARY)


def config(**options) -> TokenizerConfig:
    plain = {"values": "raw", "bins": None, "length": None, "cls_value": 0.0, "pad_value": 0.0}
    return TokenizerConfig(**plain | options)


def names(**options) -> list[str]:
    batch = Tokenizer(config(**options), VOCABULARY)(X, FEATURES, np.arange(3))
    return [
        "".join(VOCABULARY.tokens[i] for i in row[mask][1:]) for row, mask in zip(batch.genes, batch.mask, strict=True)
    ]


def test_highest_first_and_equal_ones_as_they_were():
    assert names(order="rank") == ["BDA", "A", "ACDB"]
    assert names(order="rank", length=3) == ["BD", "A", "AC"]


def test_ranks_after_division_by_medians():
    medians = gene_medians(X, FEATURES, len(VOCABULARY), target_sum=10)
    scaled = X.toarray() * 10 / X.toarray().sum(1, keepdims=True)
    assert medians[VOCABULARY["B"]] == pytest.approx(np.median(scaled[[0, 2], 1]))
    assert medians[: len(VOCABULARY) - 4] == (1.0,) * 4
    found = names(order="rank", medians=medians, target_sum=10.0, values="log1p")
    score = scaled / np.array(medians[4:])
    for row, genes in enumerate(found):
        order = np.argsort(-score[row], kind="stable")
        assert genes == "".join("ABCD"[i] for i in order if X.toarray()[row, i])


def test_depth_is_that_of_known_genes():
    features = FeatureTable.from_var(pd.DataFrame(index=["A", "B", "x", "D"]), VOCABULARY, min_coverage=0)
    batch = Tokenizer(config(target_sum=100.0), VOCABULARY)(X, features, np.arange(3))
    assert batch.values.sum(1).tolist() == pytest.approx([100.0] * 3, abs=1e-3)
    assert X.data.sum() == 23


def test_places_and_bins():
    tokenizer = Tokenizer(config(order="rank", positions=True, edges=(0.0, 1.0, 2.0, 9.0)), VOCABULARY)
    batch = tokenizer(X, FEATURES, np.arange(3)).check()
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert batch.bins.tolist() == [[0, 2, 2, 0, 0], [0, 1, 0, 0, 0], [0, 2, 2, 1, 0]]


def test_a_value_on_an_edge_is_in_the_bin_on_its_left():
    edges = uniform_edges(5, 10.0)
    assert edges == (0, 2, 4, 6, 8, 10)
    assert bins_of(torch.tensor([0.0, 2.0, 2.1, 8.0, 99.0]), edges).tolist() == [0, 0, 1, 3, 4]


def test_edges_by_quantiles_are_fitted_to_positive_values():
    edges = quantile_edges([0, 0, 1, 1, 1, 2, 3, 4], 4)
    assert edges == (1.0, 1.5, 2.75, 4.0)
    with pytest.raises(ValueError, match="positive values"):
        quantile_edges([0.0, 0.0], 4)
    with pytest.raises(ValueError, match="different positive values"):
        quantile_edges([2.0, 2.0], 4)


def test_genes_of_a_minibatch():
    assert select_genes(X, FEATURES, 2).names.tolist() == ["A", "D"]
    drawn = [select_genes(X[:2], FEATURES, 2, how="random_expressed", rng=seed).names.tolist() for seed in range(9)]
    assert all(len(found) == 2 and "C" not in found for found in drawn)
    assert len({tuple(found) for found in drawn}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "rank", "genes": "all"}, "for order='rank'"),
        ({"medians": (1.0,)}, "`medians` go with"),
        ({"order": "rank", "medians": (0.0,)}, "`medians` to be larger than 0"),
        ({"edges": (1.0,)}, "at least two ascending"),
        ({"edges": (2.0, 1.0)}, "at least two ascending"),
        ({"edges": (1.0, 2.0), "linear_bins": 3}, "either `linear_bins` or `edges`"),
        ({"target_sum": 0.0}, "`target_sum` to be larger than 0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_medians_have_to_be_those_of_the_vocabulary():
    with pytest.raises(ValueError, match="`medians` for 8 tokens, found 2"):
        names(order="rank", medians=(1.0, 1.0))
