"""Scores of embeddings beside each other."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools.metrics.integration import AGGREGATE, GROUPS
from scgpt_tools.pl._style import axes, check_colours, finish

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@shared_docs
def scores(
    table: pd.DataFrame,
    *,
    sort: bool = True,
    cmap: str = "cividis",
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw a table of scores, one row per embedding.

    The best of each column is bold; colours run from 0 to 1 in all columns.  Columns without any score are left out.

    Parameters
    ----------
    table
        Result of :func:`scgpt_tools.tl.score_embedding`.
    sort
        Put the embedding with the best last column first; otherwise keep the order.
    cmap
        Colour map of matplotlib.
    title
        Title of the plot.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    TypeError
        If it is no table, or one with columns that are no numbers.
    ValueError
        If the table has no rows, or no scores.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"Expected `table` to be a table of scores, found {type(table).__name__}. Pass what `tl.score_embedding` returns."
        )
    check_arguments(scores, locals())
    check_colours(cmap)
    if table.empty:
        raise ValueError(f"Expected a table with scores, found shape {table.shape}.")
    # What was not asked for, such as kBET, says nothing.
    table = table.dropna(axis="columns", how="all")
    if others := [str(name) for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]:
        raise TypeError(f"Expected columns of scores, found {others[:5]}, which hold no numbers. Leave them out.")
    if table.empty:
        raise ValueError("Expected scores, found none: every column is empty.")
    if sort:
        table = table.sort_values(table.columns[-1], ascending=False)
    values = table.to_numpy(dtype=float)
    ax = axes(ax, figsize=figsize or (1.8 + 0.72 * table.shape[1], 1.7 + 0.42 * table.shape[0]))
    image = ax.imshow(np.clip(values, 0, 1), cmap=cmap, vmin=0, vmax=1, aspect="auto")
    best = np.nanmax(np.where(np.isnan(values), -np.inf, values), axis=0)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        ax.text(
            column,
            row,
            "–" if np.isnan(value) else f"{value:.2f}",
            ha="center",
            va="center",
            # cividis is dark at its lower end; nothing is drawn under a missing score.
            color="black" if np.isnan(value) or value > 0.6 else "white",
            weight="bold" if value == best[column] else "normal",
            fontsize="small",
        )
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _mark_groups(ax, list(table.columns))
    ax.set_title(title or "", loc="left", pad=22)
    ax.figure.colorbar(image, ax=ax, label="score")
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _mark_groups(ax: Axes, columns: list[str]) -> None:
    """Name each group above its columns, with a gap before it."""
    groups = [GROUPS.get(name, "") for name in columns]
    starts = [0, *(place + 1 for place, (one, other) in enumerate(pairwise(groups)) if one != other)]
    for start, stop in pairwise([*starts, len(columns)]):
        if start:
            ax.axvline(start - 0.5, color=ax.get_facecolor(), linewidth=6 if groups[start] == AGGREGATE else 4)
        name = "Means" if groups[start] == AGGREGATE else groups[start]
        middle = (start + stop - 1) / 2
        ax.text(middle, 1.02, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize="small")
