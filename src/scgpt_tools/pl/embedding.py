"""Embeddings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import is_color_like

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_seed, check_finite, check_hashable, check_key, check_type
from scgpt_tools.pl._style import PALETTE, finish

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

# Seven labels are told apart by colour alone, by every reader; further ones have another shape as well.
_CIRCLES = tuple(PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "vermilion", "black"))
_DARK = ("#882255", "#999933", "#332288", "#8C510A")
_STYLES = (
    *((colour, "o") for colour in _CIRCLES),
    *((colour, "^") for colour in _DARK),
    *((colour, marker) for marker in "sDv" for colour in _CIRCLES),
)
_PANEL = 3.6
# More dots than this make vector graphics too large to open.
_VECTORS = 10_000


@shared_docs
def embedding(
    adata: AnnData,
    color: str,
    *,
    use_rep: str | Sequence[str] = ("X_scGPT", "X_pca"),
    titles: Sequence[str] | None = None,
    palette: Sequence[str] | Mapping[str, str] | None = None,
    size: float | None = None,
    rng: RngLike = 0,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Show one or more embeddings beside each other, coloured by the same labels.

    An embedding of more than two dimensions is drawn as its UMAP, computed by scanpy with its defaults; ``adata`` is
    not changed.  Distances between far clusters and the density of a cluster mean nothing in a UMAP: judge by scores.

    Parameters
    ----------
    adata
        Cells with embeddings.
    color
        Column of ``obs`` with labels.
    use_rep
        Keys of ``obsm``, a panel each.
    titles
        Titles of the panels; ``None`` takes the keys.
    palette
        Colours of the labels, in order or by label; ``None`` takes ``uns[color + "_colors"]`` if scanpy has left
        them there, else colours and shapes that colour-blind readers can tell apart.
    size
        Area of a dot in points; ``None`` takes one that fits the number of cells.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the UMAP.
    ax
        Axes to draw in, as many as panels; ``None`` makes a figure.
    figsize
        Width and height of a new figure in inches.
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, a list if there are several panels, or the figure with
    ``return_fig=True``.

    Raises
    ------
    KeyError
        If a key or the column is absent; the message lists what is there.
    ValueError
        If the column holds numbers, or titles, axes or colours are too few.
    """
    check_arguments(embedding, locals())
    seed = as_seed(rng, bits=32)
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    for key in keys:
        check_key(adata.obsm, key, "obsm")
    labels = _labels(adata, color)
    styles = _styles(labels, palette if palette is not None else adata.uns.get(f"{color}_colors"))
    names = keys if titles is None else list(titles)
    _check_number("titles", len(names), len(keys))
    panels = _panels(ax, keys, figsize)
    for panel, key, name in zip(panels, keys, names, strict=True):
        _scatter(panel, _flat(adata, key, seed), labels, styles, 9000 / len(labels) if size is None else size)
        panel.set_title(name)
    _legend(panels, color, styles, own_figure=ax is None)
    finished = finish(panels[0], show=show, save=save, return_fig=return_fig)
    return panels if finished is panels[0] and len(panels) > 1 else finished


def _labels(adata: AnnData, color: str) -> pd.Categorical:
    values = adata.obs[check_key(adata.obs, color, "obs")]
    if pd.api.types.is_float_dtype(values.dtype):
        raise ValueError(f"Expected labels in obs[{color!r}], found numbers. Use `scanpy.pl.embedding` for numbers.")
    check_hashable(f"obs[{color!r}]", values)
    labels = pd.Categorical(values).remove_unused_categories()
    return labels.rename_categories(str)


def _styles(labels: pd.Categorical, palette: Sequence[str] | Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
    """Colour and shape of each label."""
    names = [str(name) for name in labels.categories]
    if palette is None:
        # So many labels that shapes run out too start again from the first.
        return {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(names)}
    if isinstance(palette, str):
        raise TypeError(f"Expected `palette` to be a list of colours or a colour for each label, found {palette!r}.")
    check_type("palette", palette, (Mapping, Sequence, np.ndarray))
    colours = palette if isinstance(palette, Mapping) else dict(zip(names, palette, strict=False))
    if strange := [colour for colour in colours.values() if not is_color_like(colour)]:
        raise ValueError(f"Expected `palette` to hold colours of matplotlib, found {strange[0]!r}.")
    if not set(names) <= set(colours):
        raise ValueError(f"Expected `palette` to hold a colour for each of {names}, found {palette!r}.")
    return {name: (colours[name], "o") for name in names}


def _check_number(argument: str, found: int, n_keys: int) -> None:
    if found != n_keys:
        raise ValueError(f"Expected as many `{argument}` as embeddings, {n_keys}, found {found}.")


def _panels(ax: Axes | Sequence[Axes] | None, keys: Sequence[str], figsize: tuple[float, float] | None) -> list[Axes]:
    if ax is None:
        size = figsize or (_PANEL * len(keys) + 2.2, _PANEL + 0.3)
        _, made = plt.subplots(1, len(keys), figsize=size, layout="constrained", squeeze=False)
        return list(made[0])
    given: list[Axes] = list(ax) if isinstance(ax, Sequence | np.ndarray) else [ax]
    _check_number("ax", len(given), len(keys))
    return given


def _flat(adata: AnnData, key: str, seed: int) -> NDArray[np.float64]:
    """(cells, 2) coordinates."""
    kept = adata.obsm[key]
    values = np.asarray(kept.toarray() if hasattr(kept, "toarray") else kept)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf" or np.ma.is_masked(kept):
        raise ValueError(
            f"Expected cells by dimensions of numbers in obsm[{key!r}], found an array of shape {values.shape} and type "
            f"{values.dtype}, or a masked one."
        )
    check_finite(f"obsm[{key!r}]", values, "Compute it again.")
    if values.shape[1] == 2:
        return values
    cells = AnnData(obs=pd.DataFrame(index=adata.obs_names), obsm={key: values})
    sc.pp.neighbors(cells, use_rep=key, random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def _scatter(
    panel: Axes, xy: NDArray[np.float64], labels: pd.Categorical, styles: dict[str, tuple[str, str]], size: float
) -> None:
    """Rare labels are drawn last, so that they stay visible; cells without a label are small and grey."""
    area = float(np.clip(size, 1, 40))
    unlabelled = labels.codes < 0
    if unlabelled.any():
        panel.scatter(xy[unlabelled, 0], xy[unlabelled, 1], s=area / 2, c=PALETTE["grey"], linewidths=0)
    counts = np.bincount(labels.codes[~unlabelled], minlength=len(styles))
    for code in np.argsort(-counts, kind="stable"):
        colour, marker = styles[str(labels.categories[code])]
        own = xy[labels.codes == code]
        x, y = own[:, 0], own[:, 1]
        panel.scatter(x, y, s=area, color=colour, marker=marker, linewidths=0, rasterized=len(labels) > _VECTORS)
    panel.set(xticks=[], yticks=[], box_aspect=1)
    panel.margins(0.04)


def _legend(panels: Sequence[Axes], title: str, styles: dict[str, tuple[str, str]], *, own_figure: bool) -> None:
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, markeredgewidth=0, label=name)
        for name, (colour, marker) in styles.items()
    ]
    look: dict[str, Any] = {
        "title": title,
        "frameon": False,
        "alignment": "left",
        "ncols": 1 + (len(handles) - 1) // 16,
    }
    figure = panels[0].get_figure(root=True)
    if own_figure and figure is not None:
        figure.legend(handles=handles, loc="outside right center", **look)
    else:
        panels[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), **look)
