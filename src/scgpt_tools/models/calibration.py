"""What votes and distances of an index are worth, from cells of the reference that were mapped as if they were new.

A held-out cell is looked up among the others: all but itself, or all but those of its own batch (a donor, a data set),
which says more about new data.  Classes and distances of its neighbours are kept, so that later queries with any number
of neighbours up to :data:`MOST_NEIGHBOURS` and either vote are calibrated without the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scgpt_tools.metrics.calibration import calibrated_confidence, conformal_p_values
from scgpt_tools.metrics.mapping import Vote, vote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.models.neighbours import Neighbours

MOST_NEIGHBOURS = 50
"""Neighbours of a held-out cell that are kept; scGPT maps to atlases with as many."""
# Held-out cells of a class that has as many.
_OF_A_CLASS = 50


class Searchable(Protocol):
    """An index, as far as holding out cells needs it."""

    @property
    def codes(self) -> NDArray[Any]:
        """(cells,) class of each cell."""

    def search(self, vectors: Any, k: int, *, among: NDArray[np.bool_] | None = None) -> Neighbours:
        """The nearest cells, of some of them."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Held-out cells of a reference.

    Parameters
    ----------
    codes
        (m,) class of each, as a position in the classes of the index.
    weights
        (m,) how many cells of the reference each stands for.
    neighbours
        (m, K) classes of its neighbours, nearest first.
    distances
        (m, K) squared Euclidean distances to them.
    across
        Column of ``obs`` with the batches: neighbours of a cell are of other batches.  Empty if they are all others.
    """

    codes: NDArray[np.int64]
    weights: NDArray[np.float64]
    neighbours: NDArray[np.int64]
    distances: NDArray[np.float32]
    across: str = ""

    def __post_init__(self) -> None:
        m = len(self.codes)
        if not m or self.neighbours.shape != self.distances.shape or self.neighbours.shape[:1] != (m,):
            raise ValueError(
                f"Expected neighbours and distances of each of {m} held-out cells, found shapes "
                f"{self.neighbours.shape} and {self.distances.shape}."
            )
        if self.weights.shape != (m,) or not (np.isfinite(self.distances).all() and (self.weights > 0).all()):
            raise ValueError("Expected a weight above 0 and finite distances of each held-out cell, found others.")

    def __len__(self) -> int:
        return len(self.codes)

    def check_neighbours(self, k: int) -> None:
        """Refuse more neighbours than were kept."""
        if k > (most := self.neighbours.shape[1]):
            raise ValueError(
                f"Expected at most {most} neighbours where confidences are calibrated or unknown cells rejected, since "
                f"the index keeps as many of its held-out cells; found k={k}."
            )

    def confidence(
        self, shares: NDArray[np.float64], k: int, *, how: Vote, proportions: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """How often winners with these shares of the votes are right."""
        ballot = vote(self.neighbours[:, :k], len(proportions), how=how, proportions=proportions)
        correct = ballot.winner == self.codes
        return calibrated_confidence(shares, held_out=ballot.confidence, correct=correct, weights=self.weights)

    def p_values(self, distances: NDArray[np.floating[Any]], winners: NDArray[np.int64]) -> NDArray[np.float64]:
        """P-values of cells for being of the class that they got, from their distances to their neighbours, (N, k)."""
        own = self.distances[:, : distances.shape[1]].mean(axis=1)
        return conformal_p_values(distances.mean(axis=1), winners, held_out=own, held_out_classes=self.codes)


def draw_cells(codes: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of ``n`` cells, of fewer all, ascending: of rare classes up to 50 each, and of the others their share.

    Where 50 of each class are more than ``n``, all have the same number, as far as they reach.
    """
    if len(codes) <= n:
        return np.arange(len(codes))
    order = rng.permutation(len(codes))
    # The place of each cell within its class, in the order that was drawn.
    by_class = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes)
    places = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # One cell of every class after the other up to that number, and then of each the same share of its own.
    turn = np.where(places < _OF_A_CLASS, places - _OF_A_CLASS, places / np.repeat(sizes, sizes))
    return np.sort(by_class[np.argsort(turn, kind="stable")[:n]])


def draw_held_out(codes: NDArray[Any], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of about ``n`` cells to hold out, ascending: more of them where 50 of each class are more."""
    return draw_cells(codes, max(n, min(_OF_A_CLASS, n) * np.unique(codes).size), rng)


def hold_out(
    index: Searchable,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    batches: NDArray[np.int64] | None,
    across: str,
) -> Calibration:
    """Map cells of the reference to the others.

    ``rows``: (m,) rows of the reference; ``vectors``: (m, dimensions) of these; ``batches``: (cells,) batch of every cell
    of the reference, or ``None`` to leave out each cell alone; ``across``: column of ``obs`` that the batches are from.
    """
    if len(index.codes) < 2:
        raise ValueError("Expected at least two cells in a reference with held-out cells, found one. Hold out none.")
    if batches is None:
        kept, found = np.arange(len(rows)), _without_themselves(index, rows, vectors)
    else:
        kept, found = _in_other_batches(index, rows, vectors, batches)
    codes = index.codes[rows[kept]].astype(np.int64)
    each = np.bincount(index.codes, minlength=codes.max() + 1)[codes]
    held_out = np.bincount(codes)[codes]
    return Calibration(codes, each / held_out, index.codes[found.rows].astype(np.int64), found.distances, across)


def _without_themselves(index: Searchable, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Neighbours:
    found = index.search(vectors, min(MOST_NEIGHBOURS + 1, len(index.codes)))
    themselves = found.rows == rows[:, None]
    # Of a compressed index a cell may not find itself; then it loses its last neighbour.
    themselves[~themselves.any(axis=1), -1] = True
    shape = (len(rows), found.rows.shape[1] - 1)
    return type(found)(found.rows[~themselves].reshape(shape), found.distances[~themselves].reshape(shape))


def _in_other_batches(
    index: Searchable, rows: NDArray[np.int64], vectors: NDArray[np.float32], batches: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Neighbours]:
    """Neighbours of those cells whose class is in other batches too."""
    sizes = np.bincount(batches)
    if np.count_nonzero(sizes) < 2:
        raise ValueError("Expected at least two batches to hold out cells across them, found one.")
    pairs = np.unique(index.codes.astype(np.int64) * len(sizes) + batches)
    elsewhere = np.bincount(pairs // len(sizes), minlength=int(index.codes.max()) + 1) > 1
    kept = np.flatnonzero(elsewhere[index.codes[rows]])
    if not kept.size:
        raise ValueError("Expected a class that is in more than one batch to hold out cells across them, found none.")
    k = min(MOST_NEIGHBOURS, len(batches) - int(sizes[np.unique(batches[rows[kept]])].max()))
    parts = []
    for batch in np.unique(batches[rows[kept]]):
        some = kept[batches[rows[kept]] == batch]
        parts.append((some, index.search(vectors[some], k, among=batches != batch)))
    order = np.argsort(np.concatenate([some for some, _ in parts]), kind="stable")
    kind = type(parts[0][1])
    stacked = (np.concatenate(each)[order] for each in zip(*(found for _, found in parts), strict=True))
    return kept, kind(*stacked)
