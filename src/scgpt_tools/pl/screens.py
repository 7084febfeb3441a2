"""Many perturbations: models beside baselines, and whole screens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.cluster.hierarchy import leaves_list, linkage

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ScreenKeys
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._validate import check_finite, check_key, check_type
from scgpt_tools.metrics.evaluation import common_conditions, summarise_scores
from scgpt_tools.metrics.panel import SCALES
from scgpt_tools.metrics.scores import PerturbationScores
from scgpt_tools.pl._forest import forest, panels_for
from scgpt_tools.pl._style import axes, finish
from scgpt_tools.pl.perturbation import column_of, dense

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_BENCHMARK = (
    "mse",
    "mse_weighted",
    "pearson_control",
    "pearson_perturbed_mean",
    "discrimination_l1",
    "centroid_accuracy",
)
_TITLES = {
    "mse": "MSE",
    "mse_weighted": "MSE, weighted by DE",
    "pearson_control": "Pearson of change\nagainst control",
    "pearson_perturbed_mean": "Pearson of change\nagainst perturbed mean",
    "discrimination_l1": "discrimination (L1)",
    "centroid_accuracy": "centroid accuracy",
}


@shared_docs
def perturbation_benchmark(
    scores: PerturbationScores,
    *,
    metrics: Sequence[str] | None = None,
    group: str | None = None,
    ncols: int = 3,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show models beside baselines and the ceiling, one panel a metric: means with Student's intervals.

    Parameters
    ----------
    scores
        Result of :func:`scgpt_tools.tl.evaluate_perturbation`.
    metrics
        Which metrics; ``None`` takes six that look at different sides.
    group
        Conditions of this split group only.
    ncols
        Panels in a row.
    title
        Title of the figure.
    ax
        Axes to draw in, for one metric; ``None`` makes a figure.
    figsize
        Width and height of a new figure in inches.
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes of the first panel, or the figure with ``return_fig=True``.

    Raises
    ------
    ValueError
        If a metric or the group is not in the table, or ``ax`` is given for several metrics.
    """
    check_arguments(perturbation_benchmark, locals())
    check_type("scores", scores, PerturbationScores)
    table = scores.table
    there = list(table["metric"].unique())
    names = [name for name in _BENCHMARK if name in there] or there if metrics is None else list(metrics)
    for name in names:
        if name not in there:
            raise ValueError(absent(name, there, "metric"))
    if group is not None:
        groups = sorted(table["group"].unique())
        table = table[table["group"] == lookup(dict(zip(groups, groups, strict=True)), group, "split group")]
    if ax is not None and len(names) > 1:
        raise ValueError(f"Expected one metric for the given `ax`, found {len(names)}.")
    summary = summarise_scores(common_conditions(table))
    roles = table.drop_duplicates("method").set_index("method")["role"]
    panels = [ax] if ax is not None else panels_for(len(names), min(ncols, len(names)), len(roles), figsize)
    for panel, name in zip(panels, names, strict=False):
        forest(panel, summary[summary["metric"] == name].set_index("method"), roles)
        panel.set_title(_TITLES.get(name, name), fontsize="medium", loc="left")
        better = "higher is better" if SCALES[name].higher_is_better else "lower is better"
        panel.set_xlabel(better, fontsize="small")
    figure = panels[0].get_figure(root=True)
    n = table["condition"].nunique()
    if figure is not None and ax is None:
        counted = f"{n} {'held-out ' if scores.held_out else ''}condition{'' if n == 1 else 's'}"
        figure.suptitle(title or f"{counted}{'' if group is None else f' ({group})'}", x=0.02, ha="left")
    elif title:
        panels[0].set_title(title)
    return finish(panels[0], show=show, save=save, return_fig=return_fig)


@shared_docs
def perturbation_heatmap(
    screened: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 30,
    perturbations: Sequence[str] | None = None,
    layer: str = "effect",
    cluster: bool = True,
    limit: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show the effects of an in-silico screen.

    Parameters
    ----------
    screened
        Result of :func:`scgpt_tools.tl.screen`.
    genes
        Genes to show; ``None`` takes those whose effects vary most.
    n_genes
        How many of these.
    perturbations
        Rows to show; ``None`` takes all.
    layer
        Key of ``layers``.
    cluster
        Put rows and columns that are alike beside each other.
    limit
        Effect with the deepest colour; ``None`` takes the 99th percentile.
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
        If the layer, a gene or a perturbation is absent; the message lists what is there.
    ValueError
        If an effect is not finite; the message names the first perturbation.
    """
    check_arguments(perturbation_heatmap, locals())
    check_type("screened", screened, AnnData)
    if not screened.n_obs or not screened.n_vars:
        raise ValueError(f"Expected perturbations and genes to show, found a table of shape {screened.shape}.")
    check_key(screened.layers, layer, "layers")
    row_of = {name: row for row, name in enumerate(screened.obs_names)}
    wanted = list(row_of) if perturbations is None else list(perturbations)
    rows = [lookup(row_of, name, "perturbation", error=KeyError) for name in wanted]
    effects = dense(screened.layers[layer])[rows]
    check_finite(
        f"layers[{layer!r}]",
        effects,
        f"The first is {wanted[_first_bad(effects)]!r}. Leave it out, or predict it again.",
    )
    if genes is None:
        # What every perturbation does alike tells none from another.
        columns = np.argsort(-effects.std(axis=0) if len(rows) > 1 else -np.abs(effects[0]), kind="stable")[:n_genes]
    else:
        columns = np.array([column_of(screened, gene) for gene in genes])
    shown = effects[:, columns]
    if cluster:
        by_row, by_column = _leaves(shown), _leaves(shown.T)
        shown, columns = shown[np.ix_(by_row, by_column)], columns[by_column]
        wanted = [wanted[row] for row in by_row]
    ax = axes(ax, figsize=figsize or (2.2 + 0.22 * len(columns), 1.4 + 0.2 * len(wanted)))
    largest = (float(np.quantile(np.abs(shown), 0.99)) or float(np.abs(shown).max()) or 1.0) if limit is None else limit
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    ax.set_xticks(
        range(len(columns)), [str(name) for name in screened.var_names[columns]], fontsize="small", rotation=90
    )
    ax.set_yticks(range(len(wanted)), wanted, fontsize="small")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure = ax.get_figure(root=True)
    assert figure is not None  # noqa: S101 - axes that were drawn in belong to one
    unit = "change from control mean" if layer == ScreenKeys().effect else layer
    figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02, label=unit)
    ax.set_title(title or "", loc="left")
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _first_bad(effects: NDArray[np.float64]) -> int:
    return int((~np.isfinite(effects)).any(axis=1).argmax())


def _leaves(values: NDArray[np.float64]) -> NDArray[np.int64]:
    if len(values) < 3:
        return np.arange(len(values))
    return leaves_list(linkage(values, method="average", optimal_ordering=True)).astype(np.int64)
