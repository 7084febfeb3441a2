"""What all plots share: colours, and how a figure ends.

Every plot takes ``ax``, ``show``, ``save`` and ``return_fig`` as scanpy's do, but that ``save`` is the path of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib import colormaps

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_choice, check_text

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "orange": "#E69F00",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#BBBBBB",
    "black": "#000000",
}
"""Colours that colour-blind readers tell apart (Okabe and Ito, 2008), and a grey for what is absent."""


def check_colours(cmap: str) -> str:
    """The name of a colour map of matplotlib."""
    return check_choice("cmap", check_text("cmap", cmap), tuple(colormaps))


def axes(ax: Axes | None, *, figsize: tuple[float, float]) -> Axes:
    """The axes to draw in: the given ones, or those of a new figure."""
    if ax is not None:
        return ax
    _, new = plt.subplots(figsize=figsize, layout="constrained")
    return new


def finish(ax: Axes, *, show: bool | None, save: str | PathLike[str] | None, return_fig: bool) -> Axes | Figure | None:
    """Write a finished plot to a file if asked to, and show it or hand it over.

    ``show``: show the figure; ``None`` follows ``scanpy.settings.autoshow``; ``save``: file to write the figure to;
    ``None`` writes none.  Returns the figure, ``None`` after showing, else the axes.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None  # noqa: S101 - axes that were drawn in belong to one
    if save is not None:
        figure.savefig(as_path("save", save), bbox_inches="tight")
    if return_fig:
        return figure
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return None
    return ax
