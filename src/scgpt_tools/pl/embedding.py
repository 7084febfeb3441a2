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
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_finite, check_hashable, check_key, check_type
from scgpt_tools.pl._style import PALETTE, check_colours, finish, ink, is_dark
from scgpt_tools.pl.perturbation import column_of, dense

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

# Seven labels are told apart by colour alone, by every reader; further ones have another shape as well.
_CIRCLES = tuple(PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "vermilion", "black"))
_DARK = ("#882255", "#999933", "#332288", "#8C510A")
_LIGHTER = dict(zip(_DARK, ("#DD77AA", "#DDCC77", "#9988DD", "#CC9955"), strict=True))
_STYLES = (
    *((colour, "o") for colour in _CIRCLES),
    *((colour, "^") for colour in _DARK),
    *((colour, marker) for marker in "sDv" for colour in _CIRCLES),
)
_PANEL = 3.6
# Colours of one embedding beside each other.
_IN_A_ROW = 3
# More dots than this make vector graphics too large to open.
_VECTORS = 10_000


@shared_docs
def embedding(
    adata: AnnData,
    color: str | Sequence[str],
    *,
    use_rep: str | Sequence[str] | None = None,
    layer: str | None = None,
    titles: Sequence[str] | None = None,
    palette: Sequence[str] | Mapping[str, str] | None = None,
    cmap: str = "cividis",
    size: float | None = None,
    rng: RngLike = 0,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Show one or more embeddings beside each other, coloured by labels, numbers or genes.

    An embedding of more than two dimensions is drawn as its UMAP, computed by scanpy with its defaults; ``adata`` is
    not changed.  Distances between far clusters and the density of a cluster mean nothing in a UMAP: judge by scores.

    Parameters
    ----------
    adata
        Cells with embeddings.
    color
        Column of ``obs`` with labels or numbers, or a gene; several have a row of panels each, or, of a single embedding, a
        panel each.
    use_rep
        Keys of ``obsm``, a panel each; ``None`` takes ``"X_scGPT"`` and ``"X_pca"``, those that are there, and else what
        other embeddings there are.
    layer
        Key of ``layers`` that genes are read from; ``None`` takes ``X``.
    titles
        Titles of the embeddings, or of the colours where there is one embedding and several of them; ``None`` takes the
        keys.
    palette
        Colours of the labels, in order or by label; ``None`` takes ``uns[color + "_colors"]`` if scanpy has left
        them there, else colours and shapes that colour-blind readers can tell apart.
    cmap
        Colour map of matplotlib for numbers and genes.
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
        If a key, a column or a gene is absent; the message lists what is there.
    ValueError
        If titles, axes or colours are too few, or numbers are not finite.
    """
    check_arguments(embedding, locals())
    check_colours(cmap)
    seed = as_seed(rng, bits=32)
    keys = _embeddings(adata, use_rep)
    colours = [color] if isinstance(color, str) else list(color)
    shown = {name: _values(adata, name, layer) for name in colours}
    styles = {
        name: _styles(values, palette if palette is not None else adata.uns.get(f"{name}_colors"))
        for name, values in shown.items()
        if isinstance(values, pd.Categorical)
    }
    by_colour = len(keys) == 1 and len(colours) > 1
    usual = colours if by_colour else keys
    names = usual if titles is None else list(titles)
    _check_number("titles", len(names), len(usual), "colours" if by_colour else "embeddings")
    panels = _panels(ax, len(colours), len(keys), figsize)
    flat = {key: _flat(adata, key, seed) for key in dict.fromkeys(keys)}
    area = 9000 / adata.n_obs if size is None else size
    one_legend = ax is None and len(colours) == 1
    legends: dict[Axes, Legend] = {}
    for row, (name, values) in enumerate(shown.items()):
        own = panels[row * len(keys) : (row + 1) * len(keys)]
        for panel, key in zip(own, keys, strict=True):
            if isinstance(values, pd.Categorical):
                _scatter(panel, flat[key], values, styles[name], area)
            else:
                drawn = draw_numbers(panel, flat[key], values, cmap, area)
        if not isinstance(values, pd.Categorical):
            figure = own[-1].get_figure(root=True)
            assert figure is not None  # noqa: S101 - axes that were drawn in belong to one
            figure.colorbar(drawn, ax=own[-1], shrink=0.7, label="" if by_colour else name)
        else:
            legends[own[-1]] = _legend(own, "" if by_colour else name, styles[name], own_figure=one_legend)
    for place, panel in enumerate(panels[: len(names)]):
        panel.set_title(names[place])
    if ax is None and figsize is None:
        make_room(legends)
    finished = finish(panels[0], show=show, save=save, return_fig=return_fig)
    return panels if finished is panels[0] and len(panels) > 1 else finished


def _embeddings(adata: AnnData, use_rep: str | Sequence[str] | None) -> list[str]:
    if use_rep is not None:
        return [check_key(adata.obsm, key, "obsm") for key in ([use_rep] if isinstance(use_rep, str) else use_rep)]
    found = [key for key in ("X_scGPT", "X_pca") if key in adata.obsm]
    found = found or [key for key in adata.obsm if key.startswith("X_")]
    if not found:
        raise KeyError(
            f"Expected an embedding in `obsm`, found {list(adata.obsm) or 'none'}. Run sct.tl.embed(adata, model), or name "
            "one with `use_rep`."
        )
    return found


def _values(adata: AnnData, name: str, layer: str | None) -> pd.Categorical[Any] | NDArray[np.float64]:
    """Labels, or numbers with NaN for cells that have none."""
    if name in adata.obs:
        values = adata.obs[check_key(adata.obs, name, "obs")]
        whole = pd.api.types.is_integer_dtype(values.dtype)
        if pd.api.types.is_float_dtype(values.dtype) or (whole and values.nunique() > len(_STYLES)):
            return values.to_numpy(dtype=np.float64)
        check_hashable(f"obs[{name!r}]", values)
        labels = pd.Categorical(values).remove_unused_categories()
        return labels.rename_categories(str)
    if name not in adata.var_names:
        raise KeyError(absent(name, [*adata.obs.columns, *adata.var_names], "column of `obs` or gene named"))
    column = column_of(adata, name)
    if layer is not None:
        check_key(adata.layers, layer, "layers")
    table = adata[:, column]
    expression = np.ravel(dense(table.X if layer is None else table.layers[layer]))
    check_finite(f"the expression of {name!r}", expression, "Leave such cells out.")
    return expression


def _styles(labels: pd.Categorical, palette: Sequence[str] | Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
    """Colour and shape of each label."""
    names = [str(name) for name in labels.categories]
    if palette is None:
        # So many labels that shapes run out too start again from the first.
        return {name: _visible(*_STYLES[i % len(_STYLES)]) for i, name in enumerate(names)}
    if isinstance(palette, str):
        raise TypeError(f"Expected `palette` to be a list of colours or a colour for each label, found {palette!r}.")
    check_type("palette", palette, (Mapping, Sequence, np.ndarray))
    colours = palette if isinstance(palette, Mapping) else dict(zip(names, palette, strict=False))
    if strange := [colour for colour in colours.values() if not is_color_like(colour)]:
        raise ValueError(f"Expected `palette` to hold colours of matplotlib, found {strange[0]!r}.")
    if not set(names) <= set(colours):
        raise ValueError(f"Expected `palette` to hold a colour for each of {names}, found {palette!r}.")
    return {name: (colours[name], "o") for name in names}


def _visible(colour: str, marker: str) -> tuple[str, str]:
    """A style on the ground that is drawn on."""
    if colour == PALETTE["black"]:
        return ink(), marker
    return (_LIGHTER[colour] if is_dark() and colour in _LIGHTER else colour), marker


def _check_number(argument: str, found: int, expected: int, what: str) -> None:
    if found != expected:
        raise ValueError(f"Expected as many `{argument}` as {what}, {expected}, found {found}.")


def _panels(
    ax: Axes | Sequence[Axes] | None, n_colours: int, n_keys: int, figsize: tuple[float, float] | None
) -> list[Axes]:
    """A row for each colour and a column for each embedding, or of one embedding rows of some colours."""
    number = n_colours * n_keys
    if ax is not None:
        given: list[Axes] = list(ax) if isinstance(ax, Sequence | np.ndarray) else [ax]
        _check_number("ax", len(given), number, "panels")
        return given
    ncols = min(n_colours, _IN_A_ROW) if n_keys == 1 else n_keys
    nrows = -(-number // ncols)
    legends = ncols if n_keys == 1 and n_colours > 1 else 1
    size = figsize or (_PANEL * ncols + (1.4 if legends > 1 else 2.2) * legends, (_PANEL + 0.3) * nrows)
    _, made = plt.subplots(nrows, ncols, figsize=size, layout="constrained", squeeze=False)
    for spare in made.ravel()[number:]:
        spare.set_axis_off()
    return list(made.ravel()[:number])


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


def draw_numbers(panel: Axes, xy: NDArray[np.float64], values: NDArray[np.float64], cmap: str, size: float) -> Any:
    """High values are drawn last; cells without a value are small and grey."""
    area = float(np.clip(size, 1, 40))
    known = ~np.isnan(values)
    vectors = len(values) > _VECTORS
    if not known.all():
        panel.scatter(xy[~known, 0], xy[~known, 1], s=area / 2, c=PALETTE["grey"], linewidths=0, rasterized=vectors)
    order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    panel.set(xticks=[], yticks=[], box_aspect=1)
    panel.margins(0.04)
    x, y = xy[order, 0], xy[order, 1]
    return panel.scatter(x, y, s=area, c=values[order], cmap=cmap, linewidths=0, rasterized=vectors)


def _legend(panels: Sequence[Axes], title: str, styles: dict[str, tuple[str, str]], *, own_figure: bool) -> Legend:
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
        return figure.legend(handles=handles, loc="outside right center", **look)
    return panels[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), **look)


def make_room(legends: Mapping[Axes, Legend]) -> None:
    """Widen a figure where the legends of a column of panels take more than was left for them."""
    by_column: dict[int, float] = {}
    for panel, legend in legends.items():
        figure, place = panel.get_figure(root=True), panel.get_subplotspec()
        assert figure is not None  # noqa: S101 - panels of a new figure
        assert place is not None  # noqa: S101 - of subplots
        width = legend.get_window_extent().width / figure.dpi
        by_column[place.colspan.start] = max(width, by_column.get(place.colspan.start, 0.0))
        needed = _PANEL * place.get_gridspec().ncols + sum(by_column.values()) + 0.4
        figure.set_figwidth(max(figure.get_figwidth(), needed))
