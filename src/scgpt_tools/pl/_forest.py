"""Means with intervals, one line a method, one panel a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from scgpt_tools.pl._style import PALETTE, ink

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ROLES = {"model": PALETTE["vermilion"], "baseline": PALETTE["blue"], "ceiling": PALETTE["black"]}
"""Colour of each kind of method; models are drawn on top, the ceiling at the foot."""
_MARKERS = {"model": "D", "baseline": "o", "ceiling": "s"}


def panels_for(n: int, ncols: int, n_methods: int, figsize: tuple[float, float] | None) -> list[Axes]:
    """The panels of a new figure, which share their methods."""
    nrows = -(-n // ncols)
    size = figsize or (1.6 + 2.3 * ncols, nrows * (1.1 + 0.26 * n_methods))
    _, grid = plt.subplots(nrows, ncols, figsize=size, layout="constrained", sharey=True, squeeze=False)
    panels = list(grid.ravel())
    for empty in panels[n:]:
        empty.set_axis_off()
    return panels[:n]


def forest(ax: Axes, summary: pd.DataFrame, roles: pd.Series) -> None:
    """Draw means and intervals of all methods.

    ``summary``: ``mean``, ``low`` and ``high`` by method, of which some may be absent; ``roles``: role by method.
    """
    methods = sorted(roles.index, key=lambda name: list(ROLES).index(roles[name]))
    for height, method in enumerate(methods):
        role = roles[method]
        if method not in summary.index or np.isnan(summary.loc[method, "mean"]):
            continue
        mean, low, high = (float(summary.loc[method, name]) for name in ("mean", "low", "high"))
        colour = ink() if ROLES[role] == PALETTE["black"] else ROLES[role]
        ax.plot([low, high], [height, height], color=colour, linewidth=1.5, alpha=0.6, solid_capstyle="butt")
        ax.plot(mean, height, marker=_MARKERS[role], color=colour, markersize=5, linestyle="none")
        if role == "model":
            ax.axvline(mean, color=ROLES[role], linewidth=0.7, linestyle=":", zorder=0)
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=PALETTE["grey"], linewidth=0.4, alpha=0.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
