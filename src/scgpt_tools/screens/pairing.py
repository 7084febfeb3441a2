"""A control cell for every perturbed cell: the input whose response a model learns."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools.data.rows import row_keys
from scgpt_tools.tokens.orders import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Labels

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def pair_controls(
    is_control: NDArray[np.bool_],
    names: Labels,
    *,
    contexts: Labels | None = None,
    n: int = 1,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Draw ``n`` controls of the same context for every perturbed cell, (N, n) rows; controls are paired with themselves.

    The draw of a cell depends on the seed, its name and the controls of its context only: not on the order of the
    cells, nor on which other perturbed cells there are.  The n controls of a cell differ while there are enough.

    Raises
    ------
    ValueError
        If a context has perturbed cells and no control; all such contexts are named.
    """
    keys = unique_keys(names)
    pairs = np.repeat(np.arange(keys.size)[:, None], n, axis=1)
    groups = np.zeros(keys.size, dtype=int) if contexts is None else pd.factorize(np.asarray(contexts, dtype=str))[0]
    check_controls(is_control, contexts)
    for group in np.unique(groups):
        cells = np.flatnonzero((groups == group) & ~is_control)
        controls = np.flatnonzero((groups == group) & is_control)
        if cells.size:
            controls = controls[np.argsort(mix(keys[controls], seed, 0), kind="stable")]
            start = (mix(keys[cells], seed, 1) % np.uint64(controls.size)).astype(np.int64)
            pairs[cells] = controls[(start[:, None] + np.arange(n)) % controls.size]
    return pairs


def pair_controls_gears(conditions: Labels, *, n: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """Draw controls as GEARS does: with replacement, over all cell types, conditions in order of first appearance.

    ``seed`` is what ``numpy.random.seed`` was called with just before; the global stream itself is not touched.
    """
    codes, labels = pd.factorize(np.asarray(conditions, dtype=str))
    is_control = (labels == "ctrl")[codes]
    check_controls(is_control, None)
    pairs = np.repeat(np.arange(codes.size)[:, None], n, axis=1)
    # One draw a cell there and one draw in all here: the legacy generator gives the same numbers.
    order = np.argsort(codes, kind="stable")
    cells = order[~is_control[order]]
    controls = np.flatnonzero(is_control)
    pairs[cells] = controls[np.random.RandomState(seed).randint(0, controls.size, (cells.size, n))]
    return pairs


def pool_of_controls(
    controls: NDArray[np.int64], keys: NDArray[np.uint64], n: int | None, *, bootstrap: bool, seed: int
) -> NDArray[np.int64]:
    """Controls to predict from, of rows (m,) with the hashes of their names.

    At most ``n`` of them, drawn by seed and name, each once; ``None`` takes all.  With ``bootstrap`` exactly ``n``, or as many as
    there are, with replacement: the draw of scGenePT's ``pred_perturb_from_ctrl`` after ``numpy.random.seed(seed)``.
    """
    if bootstrap:
        return controls[np.random.RandomState(seed).randint(0, len(controls), len(controls) if n is None else n)]
    return controls if n is None else controls[sample(seed, 0, keys, n)]


def unique_keys(names: Labels) -> NDArray[np.uint64]:
    """(N,) hash of the name of each cell, which its draws start from."""
    keys = row_keys(names)
    if np.unique(keys).size < keys.size:
        raise ValueError("Expected unique names of cells, found repeated ones; see `obs_names_make_unique`.")
    return keys


def check_controls(is_control: NDArray[np.bool_], contexts: Labels | None) -> None:
    """Refuse a screen without controls, and contexts with perturbed cells only; all of these are named."""
    if not is_control.any():
        raise ValueError("Expected control cells to pair with, found none; see the control label of the conditions.")
    if contexts is None:
        return
    labels = np.asarray(contexts, dtype=str)
    if without := sorted(set(labels[~is_control]) - set(labels[is_control])):
        shown = ", ".join(repr(str(name)) for name in without[:10])
        raise ValueError(
            f"Expected control cells in every context with perturbed cells, found none in {len(without)} ({shown}). "
            "Pair within fewer columns, or leave these cells out."
        )


def mix(keys: NDArray[np.uint64], seed: int, purpose: int | str) -> NDArray[np.uint64]:
    """Finaliser of splitmix64: every bit of key, seed and purpose reaches every bit of the result."""
    for part in np.frombuffer(sha256(f"{seed}\n{purpose}".encode()).digest(), dtype="<u8"):
        keys = (keys ^ part) + _GOLDEN
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys = keys ^ (keys >> np.uint64(31))
    return keys
