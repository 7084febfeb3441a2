"""How many molecules a cell has, as two tokens of it (scFoundation :cite:p:`Hao2024`).

Both hold a logarithm of base 10: T, how many molecules the values to predict are of, and S, how many those are of that the
network is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH_TOKENS = ("<target_depth>", "<source_depth>")
"""T and S, in their order."""


def depths(molecules: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value of both tokens, by the molecules of cells; 0 for a cell without any."""
    return np.log10(np.maximum(molecules, 1.0))
