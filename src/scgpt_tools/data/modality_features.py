"""What a model learns about a modality from its cells before training: which features to keep, and what bins mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgpt_tools.tokens.joint import part_values
from scgpt_tools.tokens.orders import draws
from scgpt_tools.tokens.values import bin_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.data.modalities import ModalityRows
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.modalities import ModalityConfig

# Keeps these draws apart from those of tokenizers and corruptions.
_CHOOSE = 5
# Cells that the meaning of bins is read off.
_LOOKED_AT = 2000
# A feature that is the same in all cells has no spread to divide by.
_LEAST_SPREAD = 1e-3


def choose_features(rows: ModalityRows, features: FeatureTable, part: ModalityConfig, *, seed: int) -> ModalityConfig:
    """Apply the cap on the features of a modality.

    ``rows``: the cells; read once, block by block.  Returns the configuration with the tokens that stay in ``keep``, or
    as it was if the cap is not reached.
    """
    if part.most is None or part.keep is not None or len(features) <= part.most:
        return part
    scores = _scores(rows.parts[part.name], features, part)
    noise = draws(seed, 0, features.ids, _CHOOSE)
    # Equal scores go by draw, not by the order of the columns.
    best = np.lexsort((noise, -scores))[: part.most]
    return replace(part, keep=tuple(str(name) for name in features.names[np.sort(best)]))


def with_statistics(rows: ModalityRows, features: FeatureTable, part: ModalityConfig, *, seed: int) -> ModalityConfig:
    """Note what values of a modality mean: the mean ``log1p`` in each bin, or mean and spread of each feature.

    ``rows``: the cells; some 2000 of them, from all over the table, are read.  Returns the configuration with
    ``levels`` or with ``centers`` and ``spreads``, or as it was if it needs neither.
    """
    source = rows.parts[part.name]
    some = np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(np.int64))
    if part.standard:
        return _with_spreads(source.take(some), features, part)
    if part.values != "binned" or part.bins is None:
        return part
    X = sp.csr_matrix(source.take(some)[:, features.columns])
    X.eliminate_zeros()
    bins = bin_rows(X, part.bins, ties=part.ties, keys=source.keys[some], seed=seed)
    totals = np.bincount(bins.data, weights=np.log1p(X.data), minlength=part.bins)
    counts = np.bincount(bins.data, minlength=part.bins)
    seen = np.flatnonzero(counts)
    places, levels = np.append(0, seen), np.append(0.0, totals[seen] / counts[seen])
    # Bins that no value fell into lie between their neighbours.
    return replace(part, levels=tuple(np.interp(np.arange(part.bins), places, levels).round(6).tolist()))


def _with_spreads(X: sp.csr_matrix, features: FeatureTable, part: ModalityConfig) -> ModalityConfig:
    # The order of `keep` is that of the numbers.
    values = part_values(sp.csr_matrix(X, dtype=np.float64), part, features)[:, features.columns].toarray()
    values = np.log1p(values) if part.values == "log1p" else values
    spreads = values.std(axis=0)
    spreads[spreads < _LEAST_SPREAD] = 1.0
    return replace(
        part,
        keep=tuple(str(name) for name in features.names),
        centers=tuple(values.mean(axis=0).round(6).tolist()),
        spreads=tuple(spreads.round(6).tolist()),
    )


def _scores(source: RowSource, features: FeatureTable, part: ModalityConfig) -> NDArray[np.float64]:
    """How much each feature deserves to stay."""
    if part.choose == "random":
        return np.zeros(len(features))
    above, total, squares = (np.zeros(len(features)) for _ in range(3))
    for block in source.blocks():
        X = sp.csr_matrix(block.X[:, features.columns], dtype=np.float64)
        above += np.asarray((X != 0).sum(axis=0)).ravel()
        values = _comparable(X, block.X, features, part)
        total += np.asarray(values.sum(axis=0)).ravel()
        squares += np.asarray(values.multiply(values).sum(axis=0)).ravel()
    if part.choose == "frequent":
        return above
    mean = total / len(source)
    return squares / len(source) - mean**2


def _comparable(X: sp.csr_matrix, whole: sp.csr_matrix, features: FeatureTable, part: ModalityConfig) -> sp.csr_matrix:
    """Values whose variance is not that of the depth of cells."""
    if part.values in ("binary", "clr"):
        return part_values(sp.csr_matrix(whole, dtype=np.float64), part, features)[:, features.columns]
    depth = np.asarray(X.sum(axis=1)).ravel()
    typical = np.median(depth[depth > 0]) if (depth > 0).any() else 1.0
    factors = np.divide(typical, depth, out=np.zeros_like(depth), where=depth > 0)
    return sp.csr_matrix(sp.diags(factors) @ X).log1p()
