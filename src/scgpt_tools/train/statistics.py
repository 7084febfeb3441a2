"""What is computed of training cells before the first step: edges of bins, medians of genes, highly variable genes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from scgpt_tools._validate import check_flag, check_integer
from scgpt_tools.config import settle_fields
from scgpt_tools.tokens.edges import quantile_edges
from scgpt_tools.tokens.ranks import medians_of
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellTable
    from scgpt_tools.train.collection import Collection
    from scgpt_tools.vocabulary import Vocabulary

# Depth that medians and highly variable genes are computed at where the tokenizer has none.
_DEPTH = 1e4


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """What of the tokenizer is computed from training cells; it then travels with the model."""

    quantile_bins: int | None = None
    """Bins with as many values of training cells in each, beside the value of a token; equal edges are one, so there may be
    fewer.  ``None`` keeps the tokenizer's own."""
    medians: bool = False
    """Rank genes by their values over their medians among the training cells that express them, as Geneformer does
    :cite:p:`Theodoris2023`; for tokenizers of ``order: rank``."""
    cells: int = 20_000
    """Training cells, drawn by seed, that these and highly variable genes are computed from; so many are in memory."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.quantile_bins is not None:
            check_integer("quantile_bins", self.quantile_bins)
        check_flag("medians", self.medians)
        check_integer("cells", self.cells)


def fitted(
    config: StatisticsConfig,
    tokenizer: TokenizerConfig,
    vocabulary: Vocabulary,
    tables: Sequence[CellTable],
    cells: NDArray[np.int64],
) -> TokenizerConfig:
    """A tokenizer with what training cells say.

    ``cells``: numbers of those to look at, through all tables.
    """
    if config.medians:
        if tokenizer.order != "rank":
            raise ValueError(
                f"Expected a tokenizer with order='rank' for `statistics.medians`, found {tokenizer.order!r}."
            )
        depth = _DEPTH if tokenizer.target_sum is None else tokenizer.target_sum
        counts = sp.vstack([_by_token(X, table, len(vocabulary)) for table, X in _read(tables, cells)], format="csr")
        tokenizer = replace(tokenizer, medians=medians_of(counts, target_sum=depth))
    if config.quantile_bins is not None:
        plain = Tokenizer(replace(tokenizer, edges=None), vocabulary)
        values = [
            plain.value_rows(X, table.features, table.source.keys[rows])[:, table.features.columns].data
            for table, rows, X in _read_rows(tables, cells)
        ]
        tokenizer = replace(tokenizer, edges=quantile_edges(np.concatenate(values), config.quantile_bins))
    return tokenizer


def sampled(cells: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """At most ``n`` of the cells, ascending."""
    return cells if cells.size <= n else np.sort(np.random.default_rng(seed).choice(cells, n, replace=False))


def highly_variable(collection: Collection, genes: Sequence[str], n: int, cells: NDArray[np.int64]) -> list[str]:
    """Choose genes by scanpy's dispersions (``seurat``), within each file if there are several.

    ``genes``: those to choose from.  Returns ``n`` of them, in their order.
    """
    if n > len(genes):
        raise ValueError(f"Expected `highly_variable` of at most {len(genes)}, the genes of the vocabulary, found {n}.")
    place = pd.Index(genes)
    parts, files = [], []
    for number, (source, rows) in enumerate(collection.rows_of(cells)):
        if not rows.size:
            continue
        X = source.take(rows).tocoo()
        found = place.get_indexer(pd.Index(collection.names(number), dtype=object))
        known = found[X.col] >= 0
        # Columns of the same gene are added up.
        shape = (rows.size, len(genes))
        part = sp.csr_matrix((X.data[known].astype(np.float32), (X.row[known], found[X.col[known]])), shape=shape)
        sample = AnnData(part)
        if source.units.unit in ("counts", "normalised"):
            sc.pp.normalize_total(sample, target_sum=_DEPTH)
            sc.pp.log1p(sample)
        parts.append(sample.X)
        files += [str(number)] * rows.size
    table = AnnData(
        sp.vstack(parts, format="csr"), obs=pd.DataFrame({"file": files}, index=pd.RangeIndex(len(files)).astype(str))
    )
    table.obs["file"] = table.obs["file"].astype("category")
    several = "file" if len(parts) > 1 else None
    # Genes that no cell expresses have no dispersion.
    expressed = np.asarray((table.X > 0).sum(axis=0)).ravel() > 0
    if n > expressed.sum():
        raise ValueError(
            f"Expected `highly_variable` of at most {expressed.sum()}, the genes that the sampled cells express, found {n}."
        )
    table = table[:, expressed].copy()
    sc.pp.highly_variable_genes(table, n_top_genes=n, flavor="seurat", batch_key=several)
    chosen = np.flatnonzero(expressed)[table.var["highly_variable"].to_numpy()]
    return [genes[number] for number in chosen]


def _read_rows(
    tables: Sequence[CellTable], cells: NDArray[np.int64]
) -> list[tuple[CellTable, NDArray[np.int64], sp.csr_matrix]]:
    starts = np.cumsum([0, *(len(table.source) for table in tables)])
    found = []
    for table, start, stop in zip(tables, starts, starts[1:], strict=False):
        rows = cells[(cells >= start) & (cells < stop)] - start
        if rows.size:
            found.append((table, rows, table.source.take(rows)))
    return found


def _read(tables: Sequence[CellTable], cells: NDArray[np.int64]) -> list[tuple[CellTable, sp.csr_matrix]]:
    return [(table, X) for table, _, X in _read_rows(tables, cells)]


def _by_token(X: sp.csr_matrix, table: CellTable, n_tokens: int) -> sp.csr_matrix:
    """Values with a column for each token."""
    features = table.features
    known = X[:, features.columns].tocoo()
    return sp.csr_matrix((known.data, (known.row, features.ids[known.col])), shape=(X.shape[0], n_tokens))
