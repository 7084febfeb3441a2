"""Control cells with flags of perturbed genes: the tokens of a minibatch that share one choice of genes.

Cells of a minibatch are seen together here, for the choice of genes may depend on all of them and a perturbed gene is
never lost.  B cells, T genes to choose from, L tokens a cell, E tokens of perturbed genes that are not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.orders import draws
from scgpt_tools.tokens.perturbations import UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig


class PerturbedGenes(NamedTuple):
    """What is perturbed in a cell."""

    columns: Sequence[int] = ()
    """Columns of the matrix that have a token."""
    ids: Sequence[int] = ()
    """Tokens of genes without a column; they follow those of the cell, with a value of 0 before and after."""


def screen_batch(
    tokenizer: Tokenizer,
    X: sp.csr_matrix,
    features: FeatureTable,
    keys: NDArray[np.uint64],
    perturbed: Sequence[PerturbedGenes],
    *,
    flag: int,
    seed: int,
    targets: sp.csr_matrix | None = None,
) -> tuple[TokenBatch, NDArray[np.int64]]:
    """Put control cells and flags into a minibatch.

    ``X`` (B, columns) values of control cells; ``keys`` (B,) hash of the cell that each row stands for, which draws of
    genes start from; ``perturbed`` (B,) what is perturbed in each; ``targets`` (B, columns) values of the perturbed
    cells, taken as they are; the network does not see them.  Returns the batch and the column of each of its measured
    tokens (B, L).
    """
    config, features = tokenizer.config, tokenizer.completed(features)
    order = np.argsort(features.columns, kind="stable")
    columns, ids = features.columns[order], features.ids[order]
    flagged = np.zeros((len(perturbed), len(columns)), dtype=bool)
    for row, genes in enumerate(perturbed):
        flagged[row, np.searchsorted(columns, genes.columns)] = True
    values = _dense(tokenizer.value_rows(X, features, keys, rng=seed), columns)
    places = _places(config, values > 0, flagged, ids, keys, seed)
    batch = TokenBatch(
        genes=torch.from_numpy(ids[places]),
        values=_taken(values, places),
        mask=torch.ones(places.shape, dtype=torch.bool),
        perturbed=torch.from_numpy(np.where(np.take_along_axis(flagged, places, axis=1), flag, UNTOUCHED)),
        target=None if targets is None else _taken(_dense(targets, columns), places),
    )
    batch = tokenizer.with_channels(batch)
    width = max((len(genes.ids) for genes in perturbed), default=0)
    if width:
        extra = np.full((len(perturbed), width), tokenizer.vocabulary.pad_id, dtype=np.int64)
        for row, genes in enumerate(perturbed):
            extra[row, : len(genes.ids)] = genes.ids
        there = torch.tensor([len(genes.ids) for genes in perturbed])[:, None] > torch.arange(width)
        batch = batch.appended(
            width,
            genes=torch.from_numpy(extra),
            values=0.0,
            mask=there,
            perturbed=torch.where(there, flag, UNTOUCHED),
        )
    return batch, columns[places]


def _dense(X: sp.csr_matrix, columns: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = X[:, columns].toarray().astype(np.float32, copy=False)
    return found


def _taken(matrix: NDArray[np.float32], places: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.take_along_axis(matrix, places, axis=1))


def _places(
    config: TokenizerConfig,
    expressed: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    ids: NDArray[np.int64],
    keys: NDArray[np.uint64],
    seed: int,
) -> NDArray[np.int64]:
    """(B, L) which of the T genes become tokens of each cell, ascending but for a shared draw."""
    n_cells, shared = len(expressed), config.overflow == "shared"
    taken = np.arange(len(ids))
    if config.genes == "batch-wise":
        some = expressed.any(axis=0)
        taken = np.flatnonzero(some if shared else some | flagged.any(axis=0))
    if config.length is None or taken.size <= config.length:
        return np.tile(taken, (n_cells, 1))
    if shared:
        # scGPT permutes the number of candidates and takes the result for genes, so in batch-wise mode these are the first
        # genes of the table and not the candidates.
        chosen = np.random.default_rng([seed, *map(int, keys)]).permutation(taken.size)[: config.length]
        return np.tile(chosen, (n_cells, 1))
    most = int(flagged.sum(axis=1).max(initial=0))
    if most > config.length:
        raise ValueError(f"Expected room for {most} perturbed genes, found length={config.length}. Raise it.")
    if config.overflow == "first":
        lots = np.broadcast_to(taken.astype(np.uint64) + np.uint64(1), (n_cells, taken.size))
    else:
        lots = draws(seed, keys[:, None], ids[taken][None, :], int(kernels.SAMPLE))
    # The smallest numbers stay.  Columns that share a token would share its lot, so ties fall to the first.
    lots = np.where(flagged[:, taken], np.uint64(0), lots)
    return taken[np.sort(np.argsort(lots, axis=1, kind="stable")[:, : config.length], axis=1)]
