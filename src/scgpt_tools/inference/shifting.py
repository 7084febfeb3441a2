"""Predicted cells that vary as real ones do: controls, each moved by the mean change that a model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools.screens.means import mean_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools.data.rows import RowSource

_RUN = 1024
"""Cells that are made dense at once."""


def move_controls(
    source: RowSource,
    rows: NDArray[np.int64],
    groups: NDArray[np.int64],
    values: NDArray[np.float32],
    places: NDArray[np.int64],
) -> None:
    """Replace predictions by the control of each, moved by the mean predicted change of its group, 0 at least.

    ``rows`` (n, c) controls whose mean each prediction started from, its own the first; ``groups`` (n,) which predictions
    have a change in common; ``values[places]`` (n, G) predictions, which are replaced.
    """
    changes = np.zeros((groups.max(initial=-1) + 1, source.n_columns))
    for part, starts in _runs(source, rows):
        member = np.zeros((len(changes), starts.shape[0]))
        member[groups[part], np.arange(starts.shape[0])] = 1
        changes += member @ values[places[part]].astype(np.float64) - member @ starts
    changes /= np.bincount(groups, minlength=len(changes))[:, None]
    for part, controls in _runs(source, rows[:, :1]):
        values[places[part]] = (controls.toarray() + changes[groups[part]]).clip(min=0)


def _runs(source: RowSource, rows: NDArray[np.int64]) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """Means of rows of the table, (b, G) at once."""
    for start in range(0, len(rows), _RUN):
        part = slice(start, start + _RUN)
        different, places = np.unique(rows[part], return_inverse=True)
        yield part, mean_rows(source.take(different), places.reshape(rows[part].shape))
