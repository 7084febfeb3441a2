"""What genes look like within cells: embeddings of their tokens, averaged over groups of cells.

Memory holds a sum of each gene and group, and the tokens of a part of a minibatch.  Letters: N real tokens, D width.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scgpt_tools.models.executor import embed_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.inference.cells import Cells
    from scgpt_tools.tokens.batch import TokenBatch


class GeneContexts(NamedTuple):
    """Mean embeddings of the genes that a table has a token for, in the order of ``features.columns``."""

    means: NDArray[np.float32]
    """(groups, genes, dim); NaN for genes that no cell of the group has a token of."""
    n_cells: NDArray[np.int64]
    """(groups, genes) cells with a token of the gene."""


def mean_gene_contexts(
    cells: Cells, groups: NDArray[np.int64], n_groups: int, *, show_progress: bool | None
) -> GeneContexts:
    """Average over cells; ``groups`` (cells,) group of each, negative for none."""
    n_genes, dim = len(cells.plan.features.columns), cells.model.dim
    sums = torch.zeros(n_groups * n_genes, dim, dtype=torch.float64)
    counts = torch.zeros(n_groups * n_genes, dtype=torch.int64)
    place_of = torch.full((cells.model.config.n_tokens,), -1)
    place_of[torch.from_numpy(cells.plan.features.ids)] = torch.arange(n_genes)
    codes, lock = torch.from_numpy(np.asarray(groups, dtype=np.int64)), Lock()

    def add(batch: TokenBatch) -> Tensor:
        tokens = embed_tokens(cells.model, batch, attention=cells.attention).float().cpu()
        places = place_of[batch.genes[batch.mask]]
        own = codes[batch.require("index")].repeat_interleave(batch.mask.sum(dim=1))
        real = (places >= 0) & (own >= 0)  # the cell token is of no gene
        rows = own[real] * n_genes + places[real]
        with lock:  # several threads compute
            sums.index_add_(0, rows, tokens[real].double())
            counts.index_add_(0, rows, torch.ones_like(rows))
        # The sums are looked at for numbers that are not finite; this names the cells.
        return tokens.new_zeros(len(batch), 1).index_add_(
            0, torch.arange(len(batch)).repeat_interleave(batch.mask.sum(dim=1)), tokens.sum(dim=1, keepdim=True)
        )

    cells.compute(add, width=1, show_progress=show_progress)
    n_cells = counts.numpy().reshape(n_groups, n_genes)
    means = sums.numpy().reshape(n_groups, n_genes, dim)
    with np.errstate(invalid="ignore"):
        means /= n_cells[..., None]
    return GeneContexts(means.astype(np.float32), n_cells)
