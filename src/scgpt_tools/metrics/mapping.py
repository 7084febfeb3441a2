"""Votes of a cell's nearest neighbours about its class.

N cells, k neighbours each, C classes.  Neighbours are given nearest first; of classes with the same score the one of
the nearer neighbour wins, which is how counting in order of appearance settles a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_choice

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Vote: TypeAlias = Literal["majority", "weighted"]
"""Count neighbours, or weigh their numbers by how rare their class is in the reference."""

# Of the k neighbours: what a class needs before it counts in a weighted vote (scGPT's tutorial on atlases).
_NOISE = 0.01


class Ballot(NamedTuple):
    """Result of a vote."""

    winner: NDArray[np.int64]
    """(N,) number of the winning class."""
    shares: NDArray[np.float64]
    """(N, C) share of each class; a row sums to 1."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(N,) share of the winner."""
        return np.take_along_axis(self.shares, self.winner[:, None], axis=1)[:, 0]


def vote(
    classes: ArrayLike,
    n_classes: int,
    *,
    how: Vote = "majority",
    proportions: ArrayLike | None = None,
    ties: Literal["nearest", "first"] = "nearest",
) -> Ballot:
    r"""Let neighbours vote, as scGPT's reference mapping does :cite:p:`Cui2024`.

    With :math:`n_c` the number of neighbours of class c, ``majority`` gives it the share :math:`n_c / k`, and
    ``weighted`` one proportional to :math:`\max(n_c - 0.01\,k, 0) / p_c`, where :math:`p_c` is the share of the class in
    the reference.

    Parameters
    ----------
    classes
        (N, k) number of the class of each neighbour, nearest first.
    n_classes
        How many classes there are.
    how
        How to count.
    proportions
        (C,) share of each class in the reference; for ``weighted`` only.
    ties
        Of classes with the same score, the one of the nearer neighbour wins, or the first by number, which DeepSC takes.

    Returns
    -------
    Winners and shares.

    Raises
    ------
    ValueError
        If there is no neighbour, or proportions are absent or not above 0 for a class that neighbours have.
    """
    check_arguments(vote, locals())
    check_choice("how", how, get_args(Vote))
    neighbours = np.asarray(classes, dtype=np.int64)
    if neighbours.ndim != 2 or neighbours.shape[1] == 0:
        raise ValueError(f"Expected (cells, neighbours) with at least one neighbour, found shape {neighbours.shape}.")
    counts = _counts(neighbours, n_classes)
    scores = counts if how == "majority" else _rarity_weighted(counts, neighbours.shape[1], proportions)
    if check_choice("ties", ties, ("nearest", "first")) == "first":
        return Ballot(scores.argmax(axis=1), scores / scores.sum(axis=1, keepdims=True))
    return Ballot(_first_of_best(scores, neighbours), scores / scores.sum(axis=1, keepdims=True))


def _counts(neighbours: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    cells = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    counts = np.zeros((len(neighbours), n_classes))
    np.add.at(counts, (cells, neighbours.ravel()), 1.0)
    return counts


def _rarity_weighted(counts: NDArray[np.float64], k: int, proportions: ArrayLike | None) -> NDArray[np.float64]:
    if proportions is None:
        raise ValueError("Expected `proportions` of the classes for how='weighted', found None.")
    shares = np.asarray(proportions, dtype=np.float64)
    seen = counts.any(axis=0)
    if shares.shape != (counts.shape[1],) or not (shares[seen] > 0).all():
        raise ValueError(f"Expected a proportion above 0 for each of {counts.shape[1]} classes, found {shares}.")
    weighted = np.clip(counts - _NOISE * k, 0, None) / np.where(seen, shares, 1.0)
    # Where more than a hundred classes share the neighbours, all of them can be noise by that rule.
    return np.where(weighted.any(axis=1, keepdims=True), weighted, counts)


def _first_of_best(scores: NDArray[np.float64], neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of the nearest neighbour among those whose class has the highest score."""
    of_neighbour = np.take_along_axis(scores, neighbours, axis=1)
    # Scores of equal counts may differ in their last bit after a division.
    best = of_neighbour >= of_neighbour.max(axis=1, keepdims=True) * (1 - 1e-12)
    return np.take_along_axis(neighbours, best.argmax(axis=1)[:, None], axis=1)[:, 0]
