"""How well an embedding of cells separates labels that it has not seen.

Always score a baseline such as PCA beside it: the numbers depend on the cells and the labels far more than they do on a
model, and mean little alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_generator, check_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike

# k-means ends in a local optimum; the best of as many starts is kept.
_STARTS = 10


class ClusterScores(NamedTuple):
    """Agreement of an embedding with labels; more is better."""

    nmi: float
    """Normalised mutual information of clusters and labels, 0 to 1."""
    ari: float
    """Adjusted Rand index of clusters and labels, 0 by chance, 1 at best."""
    asw: float
    """Average silhouette width of the labels, moved to 0 to 1 as scIB does; 0.5 where labels overlap."""


def score_clusters(
    embedding: ArrayLike, labels: ArrayLike, *, n_clusters: int | None = None, rng: RngLike = 0
) -> ClusterScores:
    """Score an embedding by k-means clusters and by silhouettes, as scIB does (Luecken et al. 2022).

    Parameters
    ----------
    embedding
        (cells, dimensions).
    labels
        Label of each cell.
    n_clusters
        Number of clusters; ``None`` takes the number of labels.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the clusters' starts.

    Returns
    -------
    NMI and ARI of the clusters, and the silhouette width of the labels.

    Raises
    ------
    ValueError
        If a value or a label is missing, the lengths differ, or there are fewer than two labels.
    """
    check_arguments(score_clusters, locals())
    cells, groups = _checked(embedding, labels)
    if n_clusters is not None:
        check_integer("n_clusters", n_clusters, least=2)
    n_labels = np.unique(groups).size
    seed = int(as_generator(rng).integers(2**31))
    clusters = KMeans(n_clusters or n_labels, n_init=_STARTS, random_state=seed).fit_predict(cells)
    return ClusterScores(
        nmi=float(normalized_mutual_info_score(groups, clusters)),
        ari=float(adjusted_rand_score(groups, clusters)),
        asw=float((silhouette_score(cells, groups) + 1) / 2),
    )


def _checked(embedding: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The embedding in full precision, and labels as numbers."""
    cells = np.asarray(embedding, dtype=np.float64)
    if cells.ndim != 2 or not np.isfinite(cells).all():
        raise ValueError(
            f"Expected a finite (cells, dimensions) embedding, found shape {cells.shape} or missing values."
        )
    codes, names = pd.factorize(np.asarray(labels, dtype=object), use_na_sentinel=True)
    if len(codes) != len(cells) or (codes < 0).any():
        raise ValueError(
            f"Expected one label for each of the {len(cells)} cells, found {len(codes)} of which {(codes < 0).sum()} are "
            "missing."
        )
    if not 1 < len(names) < len(cells):
        raise ValueError(f"Expected at least 2 labels and fewer labels than cells, found {len(names)}.")
    return cells, codes
