"""Draws that belong to a cell and a token, and which tokens of a long cell they keep.

A draw is a hash of the seed, the cell's key and the token's id, so a cell gets the same tokens whatever its batch, its
neighbours, the order of the columns or the number of workers.  A network without positions does not see the order of
tokens; they stay in column order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools.tokens import kernels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draws(seed: int, key: int | NDArray[np.integer], tokens: ArrayLike, purpose: int) -> NDArray[np.uint64]:
    """64 random bits for each token of one cell.

    ``key``: hash of the cell's name; for several cells a column of them, with a row of tokens each; ``purpose``: what
    the draws are for; each purpose has its own.  Returns one number per token: splitmix64 started at the cell, read at
    the place of the token.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what a hash wants
        start = _mix(_mix(np.uint64(seed) + np.uint64(purpose) * np.uint64(_GOLDEN)) ^ np.uint64(key))
        return _mix(start + (np.asarray(tokens).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def tie_uniforms(seed: int, key: int, tokens: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1) that place the tied values of one cell; see :func:`~scgpt_tools.tokens.values.bin_row`."""
    return (draws(seed, key, tokens, int(kernels.TIES)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(seed: int, key: int, tokens: ArrayLike, room: int) -> NDArray[np.int64]:
    """Which tokens of a long cell stay.

    Returns their places, ascending: those with the smallest draws, each set of ``room`` tokens as likely as any other.
    """
    order = np.argsort(draws(seed, key, tokens, int(kernels.SAMPLE)), kind="stable")
    return np.sort(order[:room])


def _mix(state: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX2)
    return np.asarray(state ^ (state >> np.uint64(31)))
