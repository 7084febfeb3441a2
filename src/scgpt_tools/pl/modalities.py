"""Cells of several modalities: where they lie together, and which modality says how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ModalityWeightKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_key
from scgpt_tools.data.modalities import cell_columns
from scgpt_tools.pl._style import PALETTE, axes, check_colours, finish, ink
from scgpt_tools.pl.embedding import _flat, _legend, _scatter, _styles, draw_numbers, make_room

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

MEASURED = "modalities"
"""What to colour by to see in which modalities cells were measured."""

_PANEL = 3.6
_COLOURS = tuple(PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "vermilion"))


@shared_docs
def joint_embedding(
    mdata: MuData,
    color: str | Sequence[str] = MEASURED,
    *,
    use_rep: str = "X_scGPT",
    layer: str | None = None,
    cmap: str = "cividis",
    size: float | None = None,
    rng: RngLike = 0,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Show one embedding of the cells of a MuData, coloured by labels and by features of its modalities.

    An embedding of more than two dimensions is drawn as its UMAP, computed once by scanpy with its defaults; ``mdata``
    is not changed.

    Parameters
    ----------
    mdata
        Cells with an embedding in ``mdata.obsm``.
    color
        What to colour by, a panel each: a column of ``obs``, of the MuData or as ``"modality:column"`` of a modality;
        a feature as ``"modality:feature"``, as muon names them; or ``"modalities"``, the ones that each cell was
        measured in.
    use_rep
        Key of ``mdata.obsm``.
    layer
        Where values of features are read; ``None`` takes ``X``.
    cmap
        Colour map of values.
    size
        Area of a dot in points; ``None`` takes one that fits the number of cells.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the UMAP.
    figsize
        Width and height of the figure in inches.
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If the embedding, a column or a feature is absent; the message lists what is there.
    TypeError
        If ``mdata`` is no MuData.
    """
    check_arguments(joint_embedding, locals())
    check_colours(cmap)
    check_key(mdata.obsm, use_rep, "obsm")
    names = [color] if isinstance(color, str) else list(color)
    shown = {name: _values(mdata, name, layer) for name in names}
    xy = _flat(mdata, use_rep, as_seed(rng, bits=32))
    area = 9000 / mdata.n_obs if size is None else size
    width = figsize or (_PANEL * len(names) + 1.6, _PANEL + 0.3)
    figure, made = plt.subplots(1, len(names), figsize=width, layout="constrained", squeeze=False)
    panels: list[Axes] = list(made[0])
    legends = {}
    for panel, (name, values) in zip(panels, shown.items(), strict=True):
        if isinstance(values, pd.Categorical):
            styles = _styles(values, mdata.uns.get(f"{name}_colors"))
            _scatter(panel, xy, values, styles, area)
            legends[panel] = _legend([panel], "", styles, own_figure=False)
        else:
            figure.colorbar(draw_numbers(panel, xy, values, cmap, area), ax=panel, shrink=0.7)
        panel.set_title(name)
    if figsize is None:
        make_room(legends)
    finished = finish(panels[0], show=show, save=save, return_fig=return_fig)
    return panels if finished is panels[0] else finished  # type: ignore[return-value]


@shared_docs
def modality_weights(
    mdata: MuData,
    *,
    groupby: str | None = None,
    key: str = "mod_weight",
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw how much each modality has to say about cells, as the mean weight and its quartiles in each group.

    Parameters
    ----------
    mdata
        Cells with the columns that :func:`scgpt_tools.tl.modality_weights` writes; muon's weights have the same names.
    groupby
        Column of ``obs`` with groups; ``None`` draws all cells as one.
    key
        End of the names of the columns.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If there are no weights, or no such column.
    """
    check_arguments(modality_weights, locals())
    columns = {name: ModalityWeightKeys(key).obs(name) for name in mdata.mod}
    there = {name: column for name, column in columns.items() if column in mdata.obs}
    if not there:
        raise KeyError(
            f"{absent(next(iter(columns.values())), mdata.obs.columns, 'column of `obs` named')} "
            "`sct.tl.modality_weights(mdata, model)` writes it."
        )
    groups = _groups(mdata, groupby)
    ax = axes(ax, figsize=figsize or (5.0, 1.2 + 0.42 * len(groups.categories)))
    height = 0.8 / len(there)
    for number, column in enumerate(there.values()):
        weights = mdata.obs[column].to_numpy(dtype=float)
        for place, group in enumerate(groups.categories):
            own = weights[(groups == group) & ~np.isnan(weights)]
            if own.size:
                low, high = np.quantile(own, (0.25, 0.75))
                y = place - 0.4 + (number + 0.5) * height
                ax.barh(y, own.mean(), height=height * 0.9, color=_COLOURS[number % len(_COLOURS)])
                ax.hlines(y, low, high, color=ink(), linewidth=1.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[i % len(_COLOURS)], label=n) for i, n in enumerate(there)]
    ax.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="modality")
    ax.set_yticks(range(len(groups.categories)), groups.categories)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="weight (mean, and middle half of the cells)", title="Contribution of each modality")
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _groups(mdata: MuData, groupby: str | None) -> pd.Categorical[Any]:
    if groupby is None:
        return pd.Categorical(["all cells"] * mdata.n_obs)
    columns = cell_columns(mdata)
    if groupby not in columns:
        raise KeyError(absent(groupby, columns.columns, "column of `obs` named"))
    return pd.Categorical(columns[groupby]).rename_categories(str)


def _values(mdata: MuData, name: str, layer: str | None) -> pd.Categorical[Any] | NDArray[np.float64]:
    """Labels, or numbers with NaN for cells that have none."""
    columns = cell_columns(mdata)
    if name in columns:
        numbers = pd.to_numeric(columns[name], errors="coerce")
        if numbers.notna().any() and numbers.notna().sum() == columns[name].notna().sum():
            return numbers.to_numpy(dtype=np.float64)
        return pd.Categorical(columns[name]).rename_categories(str)
    if name == MEASURED:
        there = pd.DataFrame({key: mdata.obs_names.isin(table.obs_names) for key, table in mdata.mod.items()})
        return pd.Categorical([" + ".join(there.columns[row]) or "none" for row in there.to_numpy()])
    modality, _, feature = name.partition(":")
    table: Any = mdata.mod[modality] if modality in mdata.mod else None
    if table is None or feature not in table.var_names:
        known = [MEASURED, *columns, *(f"{key}:{own}" for key, part in mdata.mod.items() for own in part.var_names)]
        raise KeyError(absent(name, known, "label or feature"))
    if layer is not None:
        check_key(table.layers, layer, "layers")
    X = table[:, feature].X if layer is None else table[:, feature].layers[layer]
    values = pd.Series(np.asarray(X.toarray() if hasattr(X, "toarray") else X).ravel(), index=table.obs_names)
    return values.reindex(mdata.obs_names).to_numpy(dtype=np.float64)
