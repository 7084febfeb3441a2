"""Mean changes of training conditions, which baselines learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.screens.conditions import unit_name, unit_names
from scgpt_tools.screens.profiles import Profiles, mean_profiles
from scgpt_tools.tokens.perturbations import condition_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray


def training_effects(
    cells: sp.csr_matrix,
    conditions: NDArray[Any],
    contexts: NDArray[Any],
    *,
    perturbed: NDArray[np.bool_],
    controls: NDArray[np.bool_],
    genes: Sequence[str],
) -> TrainingEffects:
    """Change of each condition in each context against the controls of that context.

    ``cells`` (N, G) with ``conditions`` and ``contexts`` (N,), ``""`` for none; ``perturbed`` and ``controls`` (N,) which
    of them to learn from.  Standard errors have the variance of a gene within conditions, pooled over all of them; there
    are none where each has a single cell.
    """
    pairs = sorted(set(zip(contexts[perturbed], conditions[perturbed], strict=True)))
    rows, own = np.flatnonzero(perturbed), np.flatnonzero(controls)
    if not own.size:
        raise ValueError("Expected control cells to train on, found none.")
    units = unit_names(contexts[rows], conditions[rows])
    profiles = mean_profiles(cells[rows], units, names=[unit_name(*pair) for pair in pairs])
    base = mean_profiles(cells[own], contexts[own])
    check_contexts(pairs, base)
    where = [context for context, _ in pairs]
    variance = variance_within([(cells[rows], units, profiles), (cells[own], contexts[own], base)])
    n_controls = dict(zip(base.names, base.n_cells, strict=True))
    sizes = 1 / profiles.n_cells + 1 / np.array([n_controls[context] for context in where])
    return TrainingEffects(
        genes=tuple(genes),
        control=mean_profiles(cells[own], ["ctrl"] * own.size).means[0],
        perturbed=tuple(condition_genes(condition) for _, condition in pairs),
        effects=profiles.means - base.of(where),
        n_cells=profiles.n_cells,
        errors=None if variance is None else np.sqrt(sizes[:, None] * variance),
    )


def variance_within(groups: Sequence[tuple[sp.csr_matrix, NDArray[Any], Profiles]]) -> NDArray[np.float64] | None:
    """(G,) variance of single cells about the mean of their group, of cells with labels and their profiles."""
    squares, freedom = np.zeros(groups[0][0].shape[1]), 0
    for cells, labels, profiles in groups:
        second = mean_profiles(cells.multiply(cells).tocsr(), labels, names=profiles.names).means
        squares += profiles.n_cells @ (second - profiles.means**2).clip(min=0)
        freedom += cells.shape[0] - len(profiles.names)
    return squares / freedom if freedom else None


def check_contexts(pairs: Sequence[tuple[str, str]], controls: Profiles) -> None:
    """Refuse conditions in a context without controls."""
    without = sorted({context for context, _ in pairs} - set(controls.names))
    if without:
        raise ValueError(f"Expected control cells in every context, found none in {without}. Pass fewer `within`.")
