"""How a perfect prediction would score: one that knows what each perturbation does, but not the noise of its cells.

No prediction can know the noise of a mean over few cells, so none is right to the last digit, and half of the cells as a
prediction of the other half is less right than it could be.  Here the screen is repeated: measured cells of each held-out
condition and controls get random weights, with which their means vary as those of new cells would, genes together as they
do.  What is measured varies more than what is true; so measured changes are shrunken until shrunken change and noise
together vary over genes as much as was measured.  The shrunken changes are scored against themselves with the noise of a
repetition, and the genes that are looked at are those that stand out there.

Errors then are the noise floor, the mean of variance / n over genes, and correlations the square root of the reliability of
the measured changes, as in the theory of tests :cite:p:`Spearman1904`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scgpt_tools.metrics.evaluation import evaluation_table
from scgpt_tools.metrics.perturbation import de_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scgpt_tools.metrics.panel import Truth

REPETITIONS = 8
"""Repetitions of the screen of which the mean is taken."""


@dataclass(frozen=True, eq=False)
class Ceiling:
    """Noise of the means of a screen, in repetitions of it."""

    truth: Truth
    of_conditions: NDArray[np.float64]
    """(R, C, G) what repeated means of conditions have more than the measured ones."""
    of_controls: NDArray[np.float64]
    """(R, C, G) the same of the controls that true changes refer to."""
    rest: NDArray[np.float64] | None = None
    """(C, G) test scores against all other perturbed cells, which weights are from."""

    def scores(self, method: str, **options: Any) -> pd.DataFrame:
        """Scores of a perfect prediction, as :func:`~scgpt_tools.metrics.evaluation_table` has them.

        ``options``: what else that function takes.
        """
        changes, shares = self._shrunken()
        control = np.broadcast_to(self.truth.control, changes.shape)
        perfect = {method: control + changes}
        repeated = [
            evaluation_table(perfect, self._repetition(control, changes, shares, *noise), **options)
            for noise in zip(self.of_conditions, self.of_controls, strict=True)
        ]
        table = repeated[0]
        # Undefined in a repetition, such as a correlation without variance, is undefined in all.
        return table.assign(value=np.mean([found["value"].to_numpy() for found in repeated], axis=0))

    def _repetition(
        self,
        control: NDArray[np.float64],
        changes: NDArray[np.float64],
        shares: NDArray[np.float64],
        noise: NDArray[np.float64],
        of_control: NDArray[np.float64],
    ) -> Truth:
        truth = self.truth
        scores, weights = truth.scores, truth.weights
        if scores is not None:
            by_error = self._by_error(scores)
            repeated = (changes + noise - of_control) * by_error
            # A score is infinite where a gene has no noise, so that a repetition has it too.
            scores = np.where(np.isinf(scores), scores, repeated)
            if weights is not None and self.rest is not None:
                weights = de_weights(np.where(np.isinf(self.rest), self.rest, shares * self.rest + noise * by_error))
        return replace(
            truth,
            true=control + changes + noise,
            reference_control=control + of_control,
            scores=scores,
            weights=weights,
        )

    def _by_error(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C, G) one by the standard error of each change, from its test score; 0 where there is none."""
        changes = self.truth.true - self.truth.control
        known = np.isfinite(scores) & (changes != 0)
        return np.divide(np.where(known, scores, 0.0), changes, out=np.zeros_like(changes), where=known)

    def _shrunken(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C, G) changes that vary as much as the true ones, and (C, 1) by how much what is a condition's own shrinks.

        What conditions of a context share, and what they do not, is measured with more and with less noise.
        """
        truth = self.truth
        shrunken = np.empty_like(truth.changes)
        shares = np.empty((len(shrunken), 1))
        contexts = np.asarray(truth.contexts or [""] * len(truth.conditions))
        for context in np.unique(contexts):
            rows = np.flatnonzero(contexts == context)
            changes, scored = truth.changes[rows], truth.scored[rows]
            noise, of_controls = self.of_conditions[:, rows], self.of_controls[:, rows]
            shared, own = changes.mean(axis=0), changes - changes.mean(axis=0)
            shared_noise = noise.mean(axis=1) - of_controls[:, 0]
            own_noise = noise - noise.mean(axis=1, keepdims=True)
            by_shared = _share(shared, shared_noise, np.asarray(scored.all(axis=0)))
            by_own = [_share(own[row], own_noise[:, row], scored[row]) for row in range(len(rows))]
            shares[rows, 0] = by_own
            shrunken[rows] = by_shared * shared + shares[rows] * own
        return shrunken, shares


def repeat(
    cells: Any,
    units: NDArray[Any],
    names: Sequence[str],
    truth: Truth,
    contexts: NDArray[Any],
    controls: NDArray[np.bool_],
    *,
    seed: int,
    rest: NDArray[np.float64] | None = None,
    repetitions: int = REPETITIONS,
) -> Ceiling:
    """Repeat a screen.

    ``cells``: N rows of a matrix; ``units``: (N,) row of the truth that each cell belongs to, by its name in ``names``, or
    empty; ``contexts``: (N,) context of each cell; ``controls``: (N,) cells that true changes refer to;
    ``rest``: (C, G) test scores against all other perturbed cells.
    """
    rng = np.random.default_rng(seed)
    of_rows = np.asarray(truth.contexts or [""] * len(names), dtype=object)
    there = list(dict.fromkeys(of_rows))
    own = _places(names, units)
    reference = np.where(controls, _places(there, contexts), -1)
    noise = [_noise(cells, own, len(names), rng) for _ in range(repetitions)]
    of_context = [_noise(cells, reference, len(there), rng) for _ in range(repetitions)]
    return Ceiling(truth, np.stack(noise), np.stack(of_context)[:, _places(there, of_rows)], rest)


def _places(names: Sequence[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Position of each label among the names, -1 for others."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(label, -1) for label in labels], dtype=np.int64)


def _noise(cells: Any, groups: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, G) by how much the mean of as many new cells of each group could be off, as weighted sums of its cells."""
    found = np.zeros((n, cells.shape[1]))
    for group in range(n):
        rows = np.flatnonzero(groups == group)
        if rows.size < 2:
            continue
        weights = rng.normal(size=rows.size)
        weights -= weights.mean()
        # A sum of cells with weights that sum to 0 has the variance of a cell times that of the weights.
        weights /= np.sqrt(rows.size * (weights**2).sum())
        own = cells[rows]
        total = sparse.csr_matrix(weights[None]) @ own if sparse.issparse(own) else weights[None] @ np.asarray(own)
        found[group] = np.asarray(total.toarray() if sparse.issparse(total) else total)[0]
    return found


def _share(changes: NDArray[np.float64], noise: NDArray[np.float64], scored: NDArray[np.bool_]) -> float:
    """By how much measured changes (G,) have to be shrunken to vary as much as they would without noise (R, G)."""
    if not scored.any():
        return 0.0
    measured = float(np.mean(changes[scored] ** 2))
    return float(np.sqrt(max(0.0, 1 - float(np.mean(noise[:, scored] ** 2)) / measured))) if measured > 0 else 0.0
