"""Networks of genes against a reference network: are the edges where they should be, and is that more than hubs explain.

Letters: G genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_generator, check_finite, check_flag, check_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike

_DEGREE_BINS = 10


class EdgeScores(NamedTuple):
    """How well scores of pairs find the edges of a reference."""

    auroc: float
    """Area under the receiver operating characteristic; 0.5 for chance."""
    auprc: float
    """Average precision; :attr:`density` for chance."""
    early_precision: float
    """Share of true edges among the k best pairs, k the number of true edges; :attr:`density` for chance."""
    density: float
    """Share of true edges among the pairs that are judged."""
    auroc_hubs: float
    """Mean AUROC where each gene is exchanged for one of like degree in the reference: what hubs alone explain."""
    auprc_hubs: float
    """Mean average precision of the same."""
    early_precision_hubs: float
    """Mean early precision of the same."""
    n_pairs: int
    """Pairs that were judged."""
    n_edges: int
    """True edges among them."""


def score_edges(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    directed: bool = False,
    n_shuffles: int = 20,
    rng: RngLike = 0,
) -> EdgeScores:
    """Judge scores of gene pairs by the edges of a reference network.

    A network of a model is worth something where it is ahead of both baselines that come with it: chance, and the same
    scores after every gene was exchanged for one of like degree, which keeps the hubs and loses the identities.
    Co-expression is the third one to compare with: call the function on its correlations too.

    Parameters
    ----------
    scores
        (G, G) score of each pair, rows the regulators if ``directed``; larger is more likely.  NaN leaves a pair out.
    reference
        (G, G) True at edges.
    directed
        Judge both directions of a pair by themselves; otherwise the larger score of both is taken, and an edge in
        either direction is one.
    n_shuffles
        Draws of the exchange of genes.
    rng
        Whole number, generator or ``None`` (fresh entropy) for those draws.

    Returns
    -------
    Scores and their baselines, by the definitions of BEELINE :cite:p:`Pratapa2020` without its division by chance.

    Raises
    ------
    ValueError
        If shapes differ, or there is no edge, or nothing but edges, among the pairs.
    """
    check_arguments(score_edges, locals())
    directed, n_shuffles, rng = (
        check_flag("directed", directed),
        check_integer("n_shuffles", n_shuffles),
        as_generator(rng),
    )
    values, edges = np.asarray(scores, dtype=np.float64), np.asarray(reference)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape != edges.shape:
        raise ValueError(f"Expected two square tables of the same genes, found {values.shape} and {edges.shape}.")
    if edges.dtype != bool:
        raise ValueError(f"Expected `reference` to be True at edges and False elsewhere, found {edges.dtype}.")
    judged = ~np.isnan(values) & ~np.eye(len(values), dtype=bool)
    if not directed:
        values, edges = np.fmax(values, values.T), edges | edges.T
        judged = np.triu(judged | judged.T, k=1)
    truth, found = edges[judged], values[judged]
    check_finite("the scores of pairs", found, "Leave pairs out by NaN, not by infinity.")
    n_edges = int(truth.sum())
    if n_edges in (0, len(truth)):
        raise ValueError(f"Expected edges and pairs without one, found {n_edges} edges among {len(truth)} pairs.")
    shuffled = [_judge(edges[np.ix_(order, order)][judged], found) for order in _like_degrees(edges, n_shuffles, rng)]
    auroc, auprc, early_precision = _judge(truth, found)
    return EdgeScores(
        auroc=auroc,
        auprc=auprc,
        early_precision=early_precision,
        density=n_edges / len(truth),
        auroc_hubs=float(np.nanmean([own[0] for own in shuffled])),
        auprc_hubs=float(np.nanmean([own[1] for own in shuffled])),
        early_precision_hubs=float(np.nanmean([own[2] for own in shuffled])),
        n_pairs=len(truth),
        n_edges=n_edges,
    )


def _judge(truth: NDArray[np.bool_], found: NDArray[np.float64]) -> tuple[float, float, float]:
    """AUROC, average precision and early precision; pairs of equal scores at its threshold count in part."""
    if truth.all() or not truth.any():
        return np.nan, np.nan, np.nan
    n_edges = int(truth.sum())
    least = np.partition(found, -n_edges)[-n_edges]
    above, level = found > least, found == least
    right = truth[above].sum() + (n_edges - above.sum()) * truth[level].mean()
    return float(roc_auc_score(truth, found)), float(average_precision_score(truth, found)), float(right / n_edges)


def _like_degrees(edges: NDArray[np.bool_], n_draws: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Orders of the genes that exchange genes of like degree only."""
    degree = edges.sum(axis=0) + edges.sum(axis=1)
    n_groups = min(_DEGREE_BINS, max(1, len(degree) // 2))
    orders = []
    for _ in range(n_draws):
        order = np.arange(len(degree))
        # Genes of equal degree in any order, or neighbours in the table would be exchanged with each other only.
        ranked = np.lexsort((rng.random(len(degree)), degree))
        for own in np.array_split(ranked, n_groups):
            order[own] = rng.permutation(own)
        orders.append(order)
    return orders
