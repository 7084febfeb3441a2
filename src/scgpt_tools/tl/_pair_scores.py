"""Scores of pairs of genes from everything that a model says of them, on the same pairs.

Letters: G genes.  Rows are the genes that act, columns those that are acted on, where a score has a direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._keys import KnockoutKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key, check_texts
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tl._gene_vectors import read_gene_vectors, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

COEXPRESSION = "co-expression"
# 5,000 genes are 200 MB for each method.
_MOST_GENES = 5000


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of the same pairs by several methods."""

    genes: pd.Index
    """(G,)"""
    methods: dict[str, NDArray[np.float64]]
    """(G, G) by name; NaN where a method says nothing of a pair."""


def pair_scores(
    adata: AnnData,
    genes: Sequence[str] | None,
    *,
    use_rep: str | Sequence[str],
    maps: AnnData | None,
    knockouts: AnnData | None,
    layer: str | None,
) -> PairScores:
    """Collect what each method says of pairs of genes that all of them know.

    ``use_rep``: keys of ``varm``, whose cosines are taken; ``maps``, ``knockouts``: results of ``tl.attention`` and
    ``tl.knockout``, each group of which is a method; co-expression of the cells comes last.
    """
    names = pd.Index(adata.var_names if genes is None else check_texts("genes", genes, least=2)).unique()
    if missing := [name for name in names if name not in adata.var_names]:
        raise KeyError(absent(missing[0], adata.var_names, "gene in `var_names`:"))
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    for key in keys:
        names = names[names.isin(adata.var_names[read_gene_vectors(adata, key, None).columns])]
    if maps is not None:
        names = names[names.isin(maps.var_names)]
    if knockouts is not None:
        _check_knockouts(knockouts)
        names = names[names.isin(knockouts.var_names)]
    if not 2 <= len(names) <= _MOST_GENES:
        raise ValueError(
            f"Expected 2 to {_MOST_GENES} genes that all methods know, found {len(names)}. Name some by `genes`."
        )
    methods = {f"cosine of {key}": _cosines(adata, key, names) for key in keys}
    if maps is not None:
        for group in (key for key in maps.layers if key is not None):
            # The column of a gene says how much others attend to it.
            methods[f"attention, {group}"] = _square(maps.to_df(layer=group), names).T
    if knockouts is not None:
        methods |= _changes(knockouts, names)
    return PairScores(names, methods | {COEXPRESSION: _correlations(adata, names, layer)})


def _check_knockouts(knockouts: AnnData) -> None:
    check_key(knockouts.uns, KnockoutKeys().uns, "uns")
    if knockouts.X is None:
        raise ValueError(
            "Expected knock-outs with predicted expression, found none. Pass `expression=` to `tl.knockout`."
        )


def _cosines(adata: AnnData, key: str, names: pd.Index) -> NDArray[np.float64]:
    vectors = unit(np.asarray(adata.varm[key], dtype=np.float32)[adata.var_names.get_indexer(names)])
    return (vectors @ vectors.T).astype(np.float64)


def _square(table: pd.DataFrame, names: pd.Index) -> NDArray[np.float64]:
    return table.loc[names, names].to_numpy(dtype=np.float64)


def _changes(knockouts: AnnData, names: pd.Index) -> dict[str, NDArray[np.float64]]:
    """Absolute predicted changes; NaN in the rows of genes that were not changed."""
    keys, found = KnockoutKeys(), {}
    columns = knockouts.var_names.get_indexer(names)
    for group in knockouts.obs[keys.group].unique():
        own = (knockouts.obs[keys.group] == group).to_numpy()
        places = names.get_indexer(pd.Index(knockouts.obs[keys.gene][own]))
        scores = np.full((len(names), len(names)), np.nan)
        rows = np.flatnonzero(own)[places >= 0]
        scores[places[places >= 0]] = np.abs(np.asarray(knockouts.X)[np.ix_(rows, columns)])
        found[f"knock-out, {group}"] = scores
    return found


def _correlations(adata: AnnData, names: pd.Index, layer: str | None) -> NDArray[np.float64]:
    """Absolute Pearson correlations over the cells, read in blocks; NaN for genes that do not vary."""
    columns = adata.var_names.get_indexer(names)
    n, sums, products = 0, np.zeros(len(names)), np.zeros((len(names), len(names)))
    for block in RowSource(adata, layer=layer).blocks():
        values = block.X[:, columns].astype(np.float64)
        n += values.shape[0]
        sums += np.asarray(values.sum(axis=0)).ravel()
        products += (values.T @ values).toarray()
    covariance = products / n - np.outer(sums, sums) / n**2
    spread = np.sqrt(np.clip(np.diag(covariance), 0, None))
    spread[spread < 1e-9] = np.nan
    return np.abs(covariance / np.outer(spread, spread))
