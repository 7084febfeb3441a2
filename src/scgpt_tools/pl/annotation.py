"""Predicted cell types: against the truth, and how sure of them the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import AnnotateKeys
from scgpt_tools._validate import check_choice, check_key
from scgpt_tools.metrics.annotation import Normalize, confusion_table
from scgpt_tools.pl._style import PALETTE, axes, check_colours, finish, ink

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Tables with more cells than this have no room for numbers.
_NUMBERED = 400


@shared_docs
def confusion_matrix(
    adata: AnnData,
    *,
    truth: str,
    predicted: str = "scgpt_cell_type",
    normalize: Normalize = "truth",
    cmap: str = "cividis",
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show which cell types were predicted for which.

    Parameters
    ----------
    adata
        Annotated cells; those without a known type are left out.
    truth
        Column of ``obs`` with known types.
    predicted
        Column of ``obs`` with predicted types.
    normalize
        ``"truth"`` shows which part of each known type got which prediction, ``"predicted"`` which part of each
        prediction is what in truth, ``"none"`` numbers of cells.
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
    KeyError
        If a column is absent; the message lists what is there.
    """
    check_arguments(confusion_matrix, locals())
    check_colours(cmap)
    check_choice("normalize", normalize, get_args(Normalize))
    columns = [adata.obs[check_key(adata.obs, key, "obs")] for key in (truth, predicted)]
    counts = confusion_table(*columns, normalize="none")
    table = confusion_table(*columns, normalize=normalize)
    ax = axes(ax, figsize=figsize or (1.8 + 0.5 * table.shape[1], 1.6 + 0.4 * table.shape[0]))
    top = float(table.to_numpy().max()) if normalize == "none" else 1.0
    image = ax.imshow(table.to_numpy(), cmap=cmap, vmin=0, vmax=top, aspect="auto")
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(table.shape[0]), [f"{name} ({n})" for name, n in counts.sum(axis=1).items()])
    ax.set(xlabel="predicted", ylabel="known type (cells)")
    ax.set_title(title or "", loc="left")
    if table.size <= _NUMBERED:
        _write_numbers(ax, table.to_numpy(dtype=float), top=top, digits=0 if normalize == "none" else 2)
    what = {"truth": "share of the known type", "predicted": "share of the prediction", "none": "cells"}[normalize]
    ax.figure.colorbar(image, ax=ax, label=what)
    return finish(ax, show=show, save=save, return_fig=return_fig)


@shared_docs
def confidence(
    adata: AnnData,
    *,
    key: str = "scgpt_cell_type",
    truth: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show how sure the model is of each type that it predicts, and whether rightly.

    One line per predicted type: its median as a dot, half of its cells thick, nine in ten thin.  With ``truth``, one
    for right and one for wrong predictions.

    Parameters
    ----------
    adata
        Cells annotated by :func:`scgpt_tools.tl.annotate` or :func:`scgpt_tools.tl.map_reference`.
    key
        Their ``key_added``.
    truth
        Column of ``obs`` with known types.
    title
        Title of the plot.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If a column is absent; the message lists what is there.
    """
    check_arguments(confidence, locals())
    keys = AnnotateKeys(key)
    predicted = adata.obs[check_key(adata.obs, keys.obs, "obs")].astype(str)
    sure = adata.obs[check_key(adata.obs, keys.obs_confidence, "obs")]
    groups = {"cells": (pd.Series(data=True, index=adata.obs_names), PALETTE["sky"])}
    if truth is not None:
        known = adata.obs[check_key(adata.obs, truth, "obs")]
        right = predicted.to_numpy() == known.astype(str).to_numpy()
        groups = {
            "right": (pd.Series(right & known.notna().to_numpy(), index=adata.obs_names), PALETTE["blue"]),
            "wrong": (pd.Series(~right & known.notna().to_numpy(), index=adata.obs_names), PALETTE["orange"]),
        }
    names = sorted(str(name) for name in predicted.unique())
    ax = axes(ax, figsize=figsize or (6.5, 1.4 + 0.45 * len(names)))
    for number, (label, (mask, colour)) in enumerate(groups.items()):
        cells = [sure[mask & (predicted == name)].to_numpy() for name in names]
        _spread(ax, cells, shift=(number - (len(groups) - 1) / 2) * 0.36, colour=colour)
        ax.plot([], [], color=colour, linewidth=6, label=f"{label} ({sum(map(len, cells)):,})")
    ax.set_yticks(range(len(names)), [f"{name} ({int((predicted == name).sum())})" for name in names])
    ax.set(xlim=(0, 1.02), ylim=(len(names) - 0.4, -0.6), xlabel="confidence", ylabel="predicted type (cells)")
    threshold = float(adata.uns.get(keys.uns, {}).get("params", {}).get("threshold", 0.0))
    if threshold > 0:
        ax.axvline(threshold, color=ink(), linewidth=1, linestyle="--", label="threshold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    ax.set_title(title or "", loc="left", pad=26)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _write_numbers(ax: Axes, values: np.ndarray, *, top: float, digits: int) -> None:
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = f"{value:.{digits}f}" if value else ""
        # cividis is dark at its lower end.
        ink = "black" if value > 0.6 * top else "white"
        ax.text(column, row, text, ha="center", va="center", color=ink, fontsize="small")


def _spread(ax: Axes, values: list[np.ndarray], *, shift: float, colour: str) -> None:
    """Median as a dot, half of the cells as a thick line, nine in ten as a thin one."""
    for place, cells in enumerate(values):
        if not cells.size:
            continue
        low, lower, middle, upper, high = np.quantile(cells, (0.05, 0.25, 0.5, 0.75, 0.95))
        ax.hlines(place + shift, low, high, color=colour, linewidth=1.5)
        ax.hlines(place + shift, lower, upper, color=colour, linewidth=6)
        ax.plot(middle, place + shift, "o", color="white", markeredgecolor=PALETTE["black"], markersize=5)
