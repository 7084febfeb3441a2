"""What a search in an index gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Neighbours(NamedTuple):
    """Nearest cells of the reference, nearest first; equally near ones in the order of the reference."""

    rows: NDArray[np.int64]
    """(N, k) numbers of cells of the reference."""
    distances: NDArray[np.float32]
    """(N, k) squared Euclidean distances."""
