"""Bins of equal width, and the genes of highest bins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.models.families.deepsc import cell_tokenizer, screen_tokenizer
from scgpt_tools.tokens.corruptions import MaskBins, MaskValues, chances_of
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.linear_bins import linear_bins
from scgpt_tools.tokens.screen import PerturbedGenes, screen_batch
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

GENES = [f"GENE{number}" for number in range(12)]
VOCABULARY = Vocabulary(["<pad>", *GENES, "<cls>"])
FEATURES = FeatureTable.from_var(pd.DataFrame(index=GENES), VOCABULARY)
X = sp.csr_matrix(np.array([[0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0], [2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9.0]], np.float32))
KEYS = np.arange(2, dtype=np.uint64)


def batch_of(**changes):
    return Tokenizer(replace(cell_tokenizer(5), **changes), VOCABULARY)(X, FEATURES, KEYS)


def test_bins_are_between_the_least_and_the_largest_value_of_a_cell():
    batch = batch_of()
    assert batch.values.tolist() == [[6, 1, 2, 3, 4, 5], [6, 2, 2, 9, 0, 0]]
    assert batch.bins.tolist() == [[6, 1, 2, 3, 4, 5], [6, 1, 1, 5, 0, 0]]


def test_longer_cells_keep_their_highest_bins():
    batch = batch_of(length=4)
    assert batch.genes.tolist() == [[13, 4, 5, 6], [13, 1, 4, 12]]
    assert batch.bins.tolist() == [[6, 3, 4, 5], [6, 1, 1, 5]]
    # Equal bins: the smaller token stays.
    assert batch_of(length=3).genes.tolist()[1] == [13, 1, 12]
    assert batch_of(length=3, linear_bins=None).bins is None


def test_lengths_are_what_a_call_gives():
    tokenizer = Tokenizer(replace(cell_tokenizer(5), length=4), VOCABULARY)
    assert tokenizer.lengths(X, FEATURES).tolist() == [4, 4]


@pytest.mark.parametrize(("zeros", "expected"), [(False, [0, 1, 2, 3, 4, 5]), (True, [1, 1, 2, 3, 4, 5])])
def test_cells_of_a_screen_bin_zeros_or_leave_them(zeros, expected):
    tokenizer = Tokenizer(replace(screen_tokenizer(5), bin_zeros=zeros), VOCABULARY)
    batch, _ = screen_batch(tokenizer, X, FEATURES, KEYS, [PerturbedGenes((1,)), PerturbedGenes()], flag=1, seed=0)
    assert batch.bins[0, :6].tolist() == expected
    assert batch.perturbed[0, 1] == 1


def test_half_of_the_precision_of_the_original_is_kept():
    """In float32 the largest value has the last bin; in float64 it falls one bin lower."""
    values, counted = torch.tensor([[0.5, 3.7, 1.1]]), torch.ones(1, 3, dtype=torch.bool)
    assert linear_bins(values, counted, 5).max() == 5
    assert linear_bins(values.double(), counted, 5).max() == 4
    assert linear_bins(torch.full((1, 3), 2.0), counted, 5).tolist() == [[1, 1, 1]]


def test_hidden_values_are_hidden_in_both_channels():
    batch = batch_of()
    hidden = MaskBins(chances=(0, 0, 0, 0, 1.0)).marked(7.0, 7)(batch, rng=0)
    assert hidden.hidden.tolist() == (batch.bins == 5).tolist()
    assert hidden.bins[0, 5] == 7
    assert hidden.values[0, 5] == 7
    assert hidden.target_bins.equal(batch.bins)
    assert MaskValues().marked(-9.0, None) == MaskValues()
    assert MaskValues(mask_value=3.0).marked(7.0, 7) == MaskValues(mask_value=3.0, mask_bin=7)


def test_rare_bins_are_hidden_more_often():
    assert chances_of([900, 100, 40, 9, 2]) == (0.1, 0.3, 0.5, 0.7, 0.7)
    for counts in ([0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="counts of bins"):
            chances_of(counts)
    with pytest.raises(ValueError, match="one above 0"):
        MaskBins(chances=(0.0, 0.0))
    with pytest.raises(ValueError, match="linear_bins"):
        TokenizerConfig(linear_bins=0)
