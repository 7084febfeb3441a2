"""What the runners for tokens share: features and vocabularies from ids, and the comparison of tokens."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def numbered(X) -> ad.AnnData:
    return ad.AnnData(
        X=X,
        obs=pd.DataFrame(index=[str(i) for i in range(X.shape[0])]),
        var=pd.DataFrame(index=[str(i) for i in range(X.shape[1])]),
    )


def vocabulary_of(case: dict[str, Any]) -> Vocabulary:
    tokens = [f"gene{i}" for i in range(case["vocab"]["n_tokens"])]
    for name, place in case["vocab"].items():
        if name.startswith("<"):
            tokens[place] = name
    return Vocabulary(tokens)


def features_of(ids, vocabulary: Vocabulary) -> FeatureTable:
    var = pd.DataFrame(index=[vocabulary.tokens[int(i)] for i in ids])
    return FeatureTable.from_var(var, vocabulary, min_coverage=0, duplicates="all")


def tokenized(tokenizer: Tokenizer, X, features: FeatureTable, seed: int = 0, **arguments) -> TokenBatch:
    source = RowSource(numbered(X))
    return tokenizer(source.take(np.arange(len(source))), features, source.keys, rng=seed, **arguments)


def check_refusal(call: dict[str, Any], answer: Callable[[], object]) -> None:
    """What the original refuses with reason, we refuse too; where it fails by a defect there is nothing to compare."""
    if call.get("copy_the_error", True):
        with pytest.raises((ValueError, TypeError, KeyError)):
            answer()


def check_tokens(
    ours: Tensors, expected: Tensors, whole: TokenBatch, names: tuple[str, str], vocabulary: Vocabulary, first: int
) -> None:
    """Exact where a cell fits; else ours and theirs are subsets of its tokens, as many as fit, with their values."""
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
    genes, values = names
    width = expected[genes].shape[1]
    for cell, length in enumerate(whole.mask.sum(dim=1)):
        if length <= width:
            for name, tensor in expected.items():
                assert torch.equal(ours[name][cell], tensor[cell]), (name, cell)
            continue
        tokens = pairs(whole.genes[cell, :length], whole.values[cell, :length])
        for result in (ours, expected):
            found = pairs(result[genes][cell], result[values][cell])
            assert found.total() == width
            assert found <= tokens
            assert torch.equal(result[genes][cell, :first], whole.genes[cell, :first])


def pairs(genes: torch.Tensor, values: torch.Tensor) -> Counter:
    return Counter(zip(genes.tolist(), values.tolist(), strict=True))
