"""What all plots share: colours, and how a figure ends.

Every plot takes ``ax``, ``show``, ``save`` and ``return_fig`` as scanpy's do, but that ``save`` is the path of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_choice, check_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

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


def ink() -> str:
    """Colour of lines and marks that are to stand out, as that of text in the style that is in use."""
    return str(plt.rcParams["text.color"])


def is_dark() -> bool:
    """Whether the style in use draws on a dark ground."""
    red, green, blue = to_rgb(plt.rcParams["axes.facecolor"])
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


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


def name_points(
    ax: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], chosen: ArrayLike, *, fontsize: float = 7.5
) -> None:
    """Write names beside some points, where they hide neither points nor each other as far as there is room.

    Each name takes the best of some places around its point, in the order of ``chosen``; one that stands apart from it is
    connected by a line.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None  # noqa: S101 - axes that were drawn in belong to one
    figure.draw_without_rendering()  # the layout decides where points are
    points = ax.transData.transform(np.column_stack([x, y]))
    inside, unit = np.array(ax.get_window_extent().extents), figure.dpi / 72
    taken: list[NDArray[np.float64]] = []
    for point in np.asarray(chosen):
        width, height = 0.62 * fontsize * len(names[point]) * unit, 1.3 * fontsize * unit
        places = []
        for distance in _DISTANCES:
            for angle in _ANGLES:
                offset = distance * np.array([np.cos(angle), np.sin(angle)])
                corner = points[point] + offset * unit
                # A name to the left ends at its place, one to the right begins there.
                low = corner - np.array([width * (1 - np.cos(angle)) / 2, height * (1 - np.sin(angle)) / 2])
                box = np.concatenate([low, low + [width, height]])
                places.append((_hidden(box, points, taken, inside) + distance / 100, distance, angle, box))
        _, distance, angle, box = min(places, key=lambda place: place[0])
        taken.append(box)
        ax.annotate(
            names[point],
            (np.asarray(x)[point], np.asarray(y)[point]),
            xytext=tuple(((box[:2] + box[2:]) / 2 - points[point]) / unit),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=fontsize,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": ink(), "shrinkA": 0, "shrinkB": 2}
            if distance > _DISTANCES[0]
            else None,
        )


_DISTANCES = (5.0, 12.0, 20.0, 30.0, 44.0, 60.0)
_ANGLES = np.arange(16) * np.pi / 8


def _hidden(
    box: NDArray[np.float64], points: NDArray[np.float64], taken: list[NDArray[np.float64]], inside: NDArray[np.float64]
) -> float:
    """How much a name in a box would hide: points, and ten times as bad other names and what is beside the axes."""
    hit = ((points > box[:2] - 1) & (points < box[2:] + 1)).all(axis=1).sum()
    overlaps = sum(bool((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all()) for other in taken)
    outside = bool((box[:2] < inside[:2]).any() or (box[2:] > inside[2:]).any())
    return float(hit) + 10.0 * (overlaps + outside)
