"""Genes in the order of their expression, highest first, as models read that know a gene's rank.

scModelForge ranks values as they are, Geneformer what is left after division by each gene's median over the cells of a
corpus, so that genes that are high everywhere do not come first everywhere.  Shape letters: B cells, L tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgpt_tools._validate import check_number

if TYPE_CHECKING:
    import scipy.sparse as sp
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable


def by_rank(batch: TokenBatch, *, length: int | None, keep_first: int, scores: Tensor | None = None) -> TokenBatch:
    """Order tokens by falling scores, equal ones as they were, and keep the first.

    Parameters
    ----------
    batch
        Cells.
    length
        Most tokens of a cell; ``None`` keeps all.
    keep_first
        Leading tokens that stay where they are, such as the cell token.
    scores
        (B, L) what is ordered by; ``None`` for the values.
    """
    scores = (batch.values if scores is None else scores).masked_fill(~batch.mask, -torch.inf)
    scores[:, :keep_first] = torch.inf
    ranked = batch.gathered(scores.argsort(dim=1, descending=True, stable=True))
    return ranked if length is None else ranked.shortened(length)


def gene_medians(
    X: sp.csr_matrix, features: FeatureTable, n_tokens: int, *, target_sum: float = 1e4
) -> tuple[float, ...]:
    """Compute the median of each gene over the cells that express it, after every cell was scaled to the same depth.

    Parameters
    ----------
    X
        Counts of the cells of a corpus.
    features
        Which columns are which tokens.
    n_tokens
        Size of the vocabulary.
    target_sum
        Depth that cells are scaled to, over genes with a token; that of the tokenizer.

    Returns
    -------
    One number for each token, 1 for those that no cell expresses; ``medians`` of
    :class:`~scgpt_tools.tokens.TokenizerConfig`.
    """
    medians = np.ones(n_tokens)
    medians[features.ids] = medians_of(X.tocsr()[:, features.columns], target_sum=target_sum)
    return tuple(medians.tolist())


def medians_of(X: sp.csr_matrix, *, target_sum: float = 1e4) -> tuple[float, ...]:
    """Median of each column over the rows that are above zero there, 1 where none is; see :func:`gene_medians`."""
    check_number("target_sum", target_sum, above=0)
    known = X.astype(np.float64)
    depth = np.asarray(known.sum(axis=1)).ravel()
    scaled = known.multiply((target_sum / np.where(depth > 0, depth, 1.0))[:, None]).tocsc()
    medians = np.ones(scaled.shape[1])
    for place in range(len(medians)):
        column = scaled.data[scaled.indptr[place] : scaled.indptr[place + 1]]
        positive = column[column > 0]
        if positive.size:
            medians[place] = np.median(positive)
    return tuple(medians.tolist())
