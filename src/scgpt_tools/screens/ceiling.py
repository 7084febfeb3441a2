"""How a perfect prediction would score: one that knows what each perturbation does, but not the noise of its cells.

No prediction can know the noise of a mean over few cells, so none is right to the last digit, and half of the cells as a
prediction of the other half is less right than it could be.  Here the screen is repeated: measured cells of each held-out
condition and controls get random weights, with which their means vary as those of new cells would, genes together as they
do.  What is measured varies more than what is true, so true changes are drawn from what is probable, given the measured ones
and their standard errors, under a prior that is fitted to each condition (:mod:`scgpt_tools.metrics.shrinkage`): few genes
may change much or many a little.  The drawn changes are scored against themselves with the noise of a repetition, and the
genes that are looked at are those that stand out there.

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
from scgpt_tools.metrics.shrinkage import NormalMixture
from scgpt_tools.screens.effects import variance_within
from scgpt_tools.screens.profiles import mean_profiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scgpt_tools.metrics.panel import Truth

REPETITIONS = 8
"""Repetitions of the screen of which the mean is taken."""


@dataclass(frozen=True, eq=False)
class Ceiling:
    """Repetitions of a screen, with the true changes that are probable in it."""

    truth: Truth
    noise: NDArray[np.float64]
    """(R, C, G) what repeated means of conditions have more than the measured ones."""
    noise_of_controls: NDArray[np.float64]
    """(R, C, G) the same of the controls that true changes refer to."""
    changes: NDArray[np.float64]
    """(R, C, G) true changes, drawn from what is probable."""
    rest: NDArray[np.float64]
    """(R, C, G) test scores of the repetitions against all other perturbed cells, which weights are from."""

    def scores(self, method: str, **options: Any) -> pd.DataFrame:
        """Scores of a perfect prediction, as :func:`~scgpt_tools.metrics.evaluation_table` has them.

        ``options``: what else that function takes.
        """
        control = np.broadcast_to(self.truth.control, self.truth.true.shape)
        repeated = [
            evaluation_table({method: control + changes}, self._repetition(control, changes, *noise), **options)
            for changes, *noise in zip(self.changes, self.noise, self.noise_of_controls, self.rest, strict=True)
        ]
        table = repeated[0]
        # Undefined in a repetition, such as a correlation without variance, is undefined in all.
        return table.assign(value=np.mean([found["value"].to_numpy() for found in repeated], axis=0))

    def _repetition(
        self,
        control: NDArray[np.float64],
        changes: NDArray[np.float64],
        noise: NDArray[np.float64],
        of_control: NDArray[np.float64],
        rest: NDArray[np.float64],
    ) -> Truth:
        truth, scores = self.truth, self.truth.scores
        if scores is not None:
            repeated = (changes + noise - of_control) * _by_error(truth)
            # A score is infinite where a gene has no noise, so that a repetition has it too.
            scores = np.where(np.isinf(scores), scores, repeated)
        return replace(
            truth,
            true=control + changes + noise,
            reference_control=control + of_control,
            scores=scores,
            weights=None if truth.weights is None else de_weights(rest),
        )


def repeat(
    cells: sparse.csr_matrix,
    units: NDArray[Any],
    truth: Truth,
    contexts: NDArray[Any],
    controls: NDArray[np.bool_],
    *,
    rest: NDArray[np.float64],
    seed: int,
    repetitions: int = REPETITIONS,
) -> Ceiling:
    """Repeat a screen.

    ``cells``: (N, G); ``units``: (N,) row of the truth that each cell belongs to, by its name there, or empty; ``contexts``:
    (N,) context of each cell; ``controls``: (N,) cells that true changes refer to; ``rest``: (C, G) test scores against all
    other perturbed cells.
    """
    rng = np.random.default_rng(seed)
    names = truth.conditions
    of_rows = np.asarray(truth.contexts or [""] * len(names), dtype=object)
    there = list(dict.fromkeys(of_rows))
    own = _places(names, units)
    reference = np.where(controls, _places(there, contexts), -1)
    errors, errors_of_controls = _errors(cells, [own, reference], [len(names), len(there)])
    noise = np.stack([_noise(cells, own, len(names), rng) for _ in range(repetitions)])
    of_controls = np.stack([_noise(cells, reference, len(there), rng) for _ in range(repetitions)])
    changes, moved = np.empty((2, repetitions, *truth.true.shape))
    for number, context in enumerate(there):
        rows = np.flatnonzero(of_rows == context)
        changes[:, rows], moved[:, rows] = _drawn(
            truth.changes[rows], errors[rows], errors_of_controls[number], truth.scored[rows], repetitions, rng
        )
    of_context = _places(there, of_rows)
    # Beside all other perturbed cells the noise is a condition's own, beside all controls, twice the reference, theirs too.
    with_controls = errors**2 + errors_of_controls[of_context] ** 2 / 2
    ratio = np.sqrt(np.divide(with_controls, errors**2, out=np.ones_like(errors), where=errors > 0))
    repeated = rest + (moved + noise) * _by_error(truth) * ratio
    return Ceiling(truth, noise, of_controls[:, of_context], changes, np.where(np.isinf(rest), rest, repeated))


def _drawn(
    changes: NDArray[np.float64],
    errors: NDArray[np.float64],
    errors_of_controls: NDArray[np.float64],
    scored: NDArray[np.bool_],
    repetitions: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True changes (R, C, G) of the conditions of a context, and what of a condition's own is more than was measured.

    What conditions share, and what they do not, is measured with less and with more noise.  ``changes``, ``errors``, ``scored``
    (C, G); ``errors_of_controls`` (G,).
    """
    n = len(changes)
    shared, own = changes.mean(axis=0), changes - changes.mean(axis=0)
    of_mean = (errors**2).sum(axis=0) / n**2
    shared_errors = np.sqrt(of_mean + errors_of_controls**2)
    own_errors = np.sqrt(errors**2 * (1 - 2 / n) + of_mean) if n > 1 else np.zeros_like(errors)
    prior = _prior(shared, shared_errors, np.asarray(scored.all(axis=0)))
    priors = [_prior(*row) for row in zip(own, own_errors, scored, strict=True)]
    drawn = np.empty((repetitions, *changes.shape))
    for row, mixture in enumerate(priors):
        for number in range(repetitions):
            drawn[number, row] = mixture.draw(own[row], own_errors[row], rng)
    drawn -= drawn.mean(axis=1, keepdims=True)
    together = [prior.draw(shared, shared_errors, rng) for _ in range(repetitions)]
    return np.stack(together)[:, None] + drawn, drawn - own


def _prior(changes: NDArray[np.float64], errors: NDArray[np.float64], scored: NDArray[np.bool_]) -> NormalMixture:
    """Of changes (G,) with their errors, from the genes that count."""
    chosen = scored & (errors > 0)
    return NormalMixture.fit(changes[chosen], errors[chosen])


def _by_error(truth: Truth) -> NDArray[np.float64]:
    """(C, G) one by the standard error of each change, from its test score; 0 where there is none."""
    changes = truth.true - truth.control
    if truth.scores is None:
        return np.zeros_like(changes)
    known = np.isfinite(truth.scores) & (changes != 0)
    return np.divide(np.where(known, truth.scores, 0.0), changes, out=np.zeros_like(changes), where=known)


def _places(names: Sequence[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Position of each label among the names, -1 for others."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(label, -1) for label in labels], dtype=np.int64)


def _errors(
    cells: sparse.csr_matrix, groupings: Sequence[NDArray[np.int64]], sizes: Sequence[int]
) -> list[NDArray[np.float64]]:
    """(n, G) standard errors of the mean of each group, one array a grouping, from the variance within all groups."""
    parts = []
    for groups, n in zip(groupings, sizes, strict=True):
        rows = np.flatnonzero(groups >= 0)
        labels = groups[rows].astype(str)
        parts.append(
            (cells[rows], labels, mean_profiles(cells[rows], labels, names=[str(group) for group in range(n)]))
        )
    variance = variance_within(parts)
    return [
        np.sqrt((np.zeros(cells.shape[1]) if variance is None else variance) / profiles.n_cells[:, None])
        for *_, profiles in parts
    ]


def _noise(
    cells: sparse.csr_matrix, groups: NDArray[np.int64], n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
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
        found[group] = (sparse.csr_matrix(weights[None]) @ cells[rows]).toarray()[0]
    return found
