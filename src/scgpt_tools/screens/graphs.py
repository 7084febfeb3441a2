"""Gene graphs as GEARS builds them: by co-expression, and by shared ontology terms.

Both keep, for every target gene, the ``k + 1`` strongest sources (the gene itself counts) above a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class GeneGraph:
    """Weighted edges between gene positions."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float64]


def coexpression_graph(matrix: Any, *, k: int | None = 20, threshold: float = 0.4) -> GeneGraph:
    """Connect genes by the absolute Pearson correlation over cells.

    GEARS takes the cells of those training conditions that perturb at most one gene.

    Parameters
    ----------
    matrix
        N cells by G genes, log-normalised.  Sparse input is never made dense; dense input is multiplied in its own
        precision, as GEARS does.
    k
        Neighbours of each target; ``None`` keeps all.
    threshold
        Smallest weight, exclusive.  Genes that do not vary have weight 0.

    Returns
    -------
    The edges.
    """
    product = _sparse_products(matrix) if sparse.issparse(matrix) else _products(np.asarray(matrix))
    spread = np.sqrt(np.clip(np.diag(product), 0, None))
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    return _strongest(np.abs(product * np.outer(scale, scale)), k, threshold)


def ontology_graph(terms: Sequence[Collection[str]], *, k: int | None = 20, threshold: float = 0.1) -> GeneGraph:
    """Connect genes by the Jaccard index of their sets of terms.

    Parameters
    ----------
    terms
        Terms of each of G genes, for example of the Gene Ontology.
    k
        Neighbours of each target; ``None`` keeps all.
    threshold
        Smallest weight, exclusive.

    Returns
    -------
    The edges.
    """
    vocabulary = {term: column for column, term in enumerate(sorted({term for own in terms for term in own}))}
    columns = [np.array([vocabulary[term] for term in set(own)], dtype=np.int64) for own in terms]
    pointers = np.cumsum([0, *map(len, columns)])
    indices = np.concatenate([*columns, np.array([], dtype=np.int64)])
    member = sparse.csr_matrix((np.ones(indices.size), indices, pointers), shape=(len(terms), max(len(vocabulary), 1)))
    shared = (member @ member.T).toarray()
    sizes = np.diag(shared)
    union = sizes[:, None] + sizes[None, :] - shared
    return _strongest(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), k, threshold)


def _products(matrix: NDArray[Any]) -> NDArray[Any]:
    """Sums of products of centred genes, in the precision of the input."""
    centred = matrix - matrix.mean(axis=0)
    return centred.T @ centred


def _sparse_products(matrix: Any) -> NDArray[np.float64]:
    cells = sparse.csr_matrix(matrix, dtype=np.float64)
    total = np.asarray(cells.sum(axis=0)).ravel()
    squares = (cells.T @ cells).toarray()
    products = squares - np.outer(total, total) / cells.shape[0]
    # A gene that does not vary has a sum of squares that is 0 but for rounding.
    constant = np.diag(products) <= 1e-12 * np.diag(squares)
    products[constant] = 0
    products[:, constant] = 0
    return products


def _strongest(weights: NDArray[np.float64], k: int | None, threshold: float) -> GeneGraph:
    """Edges of a symmetric matrix; rows are targets."""
    n = weights.shape[0]
    kept = n if k is None else min(k + 1, n)
    source = np.argpartition(-weights, kept - 1, axis=1)[:, :kept] if n else np.zeros((0, 0), dtype=np.int64)
    target = np.repeat(np.arange(n), kept)
    source = source.ravel()
    weight = weights[target, source]
    strong = weight > threshold
    return GeneGraph(source[strong], target[strong], weight[strong])
