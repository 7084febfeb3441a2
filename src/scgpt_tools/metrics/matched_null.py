"""Scores of genes held against random genes that are alike in other ways, such as in how much cells express them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_generator, check_fits, check_integer, check_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike


class MatchedNull(NamedTuple):
    """Scores beside those of matched random genes, one entry for each gene."""

    expected: NDArray[np.float64]
    """Score of a random gene like this one, by a straight line through those that are most alike."""
    z_score: NDArray[np.float64]
    """Score less that, over the standard deviation of those about the line."""
    p_value: NDArray[np.float64]
    """Share of random genes with a z-score as high or higher, each by its own matched genes; the gene itself counts."""


def matched_null(scores: ArrayLike, likeness: ArrayLike, is_random: ArrayLike, *, n_matched: int = 50) -> MatchedNull:
    """Ask whether genes score higher than random genes that are alike.

    Each gene is compared with a straight line through the random genes nearest to it and their deviations from it; a mean
    would be too low for the genes that are expressed most, whose like are all expressed less.  Random genes are compared
    with each other in the same way, and a p-value is a rank among their z-scores: it needs no distribution, is uniform for
    genes that are random themselves, and is at least 1 / (1 + number of random genes).

    Parameters
    ----------
    scores
        (genes,) what is asked about.
    likeness
        (genes, quantities) in what random genes have to be alike; compared by ranks.
    is_random
        (genes,) True for random genes; a gene that is one and asked about is not compared with itself.
    n_matched
        How many random genes each gene is compared with; all of them where there are fewer.

    Returns
    -------
    Expected scores, z-scores and p-values of all genes.

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or there are fewer than ten random genes.
    """
    check_arguments(matched_null, locals())
    values = check_numbers("scores", scores, ndim=1)
    alike = check_numbers("likeness", likeness, ndim=2)
    check_fits("likeness", alike, (len(values), alike.shape[1]))
    random = np.asarray(check_fits("is_random", np.asarray(is_random), values.shape), dtype=bool)
    check_integer("n_matched", n_matched, least=2)
    if random.sum() < 10:
        raise ValueError(f"Expected ten random genes or more to compare with, found {int(random.sum())}.")
    places = np.flatnonzero(random)
    ranks = ranked(alike)
    nearest = NearestNeighbors(n_neighbors=min(n_matched + 1, len(places))).fit(ranks[places])
    found = places[nearest.kneighbors(ranks, return_distance=False)]
    # A random gene is not its own company; of others the last neighbour is one too many.
    itself = found == np.arange(len(values))[:, None]
    itself[~itself.any(axis=1), -1] = True
    own = found[~itself].reshape(len(values), -1)
    expected, spread = _local_fit(ranks[own] - ranks[:, None], values[own])
    z_score = (values - expected) / np.where(spread > 0, spread, np.inf)
    ordered = np.sort(z_score[places])
    as_high = len(places) - np.searchsorted(ordered, z_score, side="left")
    p_value = (as_high + ~random) / (len(places) + ~random)
    return MatchedNull(expected, z_score, p_value)


def _local_fit(
    steps: NDArray[np.float64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear fit through the k genes that are most alike each of n, at the gene itself, and the deviations from it.

    ``steps`` (n, k, quantities) their ranks less those of the gene, ``scores`` (n, k).  Returns (n,) each.
    """
    n, k, quantities = steps.shape
    design = np.concatenate([np.ones((n, k, 1)), steps], axis=2)
    # A quantity that is the same for all of them has no slope.
    ridge = np.diag([0.0] + [1e-4 * k] * quantities)
    weights = np.linalg.solve(
        np.einsum("nki,nkj->nij", design, design) + ridge, np.einsum("nki,nk->ni", design, scores)[..., None]
    )
    residuals = scores - (design @ weights)[..., 0]
    free = max(k - 1 - quantities, 1)
    return weights[:, 0, 0], np.sqrt((residuals**2).sum(axis=1) / free)


def draw_matched(likeness: ArrayLike, asked: ArrayLike, candidates: ArrayLike, n: int, *, rng: RngLike = 0) -> NDArray:
    """Draw genes that are like those asked about.

    Parameters
    ----------
    likeness
        (genes, quantities) in what they are to be alike; compared by ranks.
    asked, candidates
        Numbers of the genes that are asked about, and of those to draw from.
    n
        How many.  All candidates where there are no more.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the order in which genes choose.

    Returns
    -------
    Numbers of genes, ascending: of each gene asked about, in turn, the nearest that is not taken yet.
    """
    alike = check_numbers("likeness", likeness, ndim=2)
    asked, free = np.asarray(asked, dtype=np.int64), np.asarray(candidates, dtype=np.int64)
    check_integer("n", n)
    if len(free) <= n or not len(asked):
        return np.sort(free[:n])
    ranks = ranked(alike)
    turns = as_generator(rng).permutation(asked)[:n]
    each = min(-(-n // len(turns)) * 4, len(free))
    nearest = NearestNeighbors(n_neighbors=each).fit(ranks[free]).kneighbors(ranks[turns], return_distance=False)
    taken: dict[int, None] = {}
    for column in nearest.T:  # the best of each gene before the second best of any
        for place in column:
            if len(taken) < n:
                taken.setdefault(int(free[place]))
    rest = (int(gene) for gene in as_generator(rng).permutation(free) if int(gene) not in taken)
    return np.sort(np.array([*taken, *(gene for gene, _ in zip(rest, range(n - len(taken)), strict=False))]))


def ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column as ranks from 0 to 1, equal values with their mean rank."""
    return (rankdata(values, axis=0) - 1) / max(len(values) - 1, 1)
