"""Controls for perturbed cells by optimal transport: the ones they are nearest to, each control taken as often.

For the squared distance it does not matter how far a perturbation moves all cells of a condition: the best assignment of the
moved cells is that of the cells before.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.utils.sparsefuncs import mean_variance_axis

from scgpt_tools._validate import check_integer
from scgpt_tools.screens.conditions import unit_names
from scgpt_tools.screens.pairing import check_controls, mix, unique_keys
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Labels

logger = logging.getLogger(__name__)

_COMPONENTS = 50
_BLOCK = 1024
"""Pairs that are assigned at once: 8 MB of distances, and some tenths of a second."""


def pair_by_transport(
    is_control: NDArray[np.bool_],
    names: Labels,
    conditions: Labels,
    vectors: NDArray[Any],
    *,
    contexts: Labels | None = None,
    n: int = 1,
    seed: int = 0,
    show_progress: bool | None = None,
) -> NDArray[np.int64]:
    """Assign ``n`` controls of the same context to every perturbed cell, (N, n) rows; controls are paired with themselves.

    ``vectors`` (N, D) where the cells are.  To the cells of a condition go as many controls as they take, drawn by seed and
    name, so that the sum of squared distances is least.  Each control is taken once, and where there are fewer than
    needed, all of them equally often, give or take one; a cell may then have the same one twice.  So the controls of a condition
    stay a fair sample, whatever is assigned to whom, and their mean is what random pairs have.  Conditions that take more
    than 1,024 pairs are divided by name into parts that are assigned one after the other.

    Raises
    ------
    ValueError
        As :func:`~scgpt_tools.screens.pairing.pair_controls`, and if ``n`` is above 1,024.
    """
    check_integer("n", n, most=_BLOCK)
    keys = unique_keys(names)
    check_controls(is_control, contexts)
    pairs = np.repeat(np.arange(keys.size)[:, None], n, axis=1)
    groups = np.zeros(keys.size, dtype=int) if contexts is None else np.asarray(contexts, dtype=str)
    controls = _members(groups, is_control)
    random = transported = 0.0
    with settings.progress((), total=int((~is_control).sum()), unit="cell", show=show_progress) as bar:
        for unit, members in _members(unit_names(contexts, conditions), ~is_control).items():
            pool = controls[groups[members[0]]]
            pool = pool[np.argsort(mix(keys[pool], seed, f"controls of {unit}"), kind="stable")]
            cells = members[np.argsort(mix(keys[members], seed, 1), kind="stable")]
            taken = 0
            for part in np.array_split(cells, -(-cells.size // (_BLOCK // n))):
                drawn = pool[(taken + np.arange(part.size * n)) % pool.size]
                taken += drawn.size
                distances = cdist(vectors[np.repeat(part, n)], vectors[drawn], "sqeuclidean")
                rows, chosen = linear_sum_assignment(distances)
                # In the order of the draw: the first of a cell is any of its controls, not the nearest.
                pairs[part] = drawn[np.sort(chosen.reshape(part.size, n), axis=1)]
                random += np.trace(distances)
                transported += distances[rows, chosen].sum()
                bar.update(part.size)
    logger.info(
        "Squared distance of pairs, as a share of that of random ones: %.2f.", transported / random if random else 1
    )
    return pairs


def components(values: sp.csr_matrix, *, seed: int = 0) -> NDArray[Any]:
    """(N, up to 50) principal components of expression (N, G); of few genes the values themselves, which are as far apart."""
    if not mean_variance_axis(values, axis=0)[1].any():
        raise ValueError("Expected cells that differ in expression, found all alike. Pass `use_rep`, or draw pairs.")
    if values.shape[1] <= _COMPONENTS:
        return values.toarray()
    return np.asarray(sc.pp.pca(values, n_comps=min(_COMPONENTS, values.shape[0] - 1), random_state=seed % 2**32))


def _members(labels: NDArray[Any], wanted: NDArray[np.bool_]) -> dict[Any, NDArray[np.int64]]:
    """Rows of the wanted cells by label."""
    rows = np.flatnonzero(wanted)
    return {name: rows[places] for name, places in pd.Series(rows).groupby(labels[rows]).indices.items()}
