"""One perturbation: what was observed beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData
from scipy import sparse

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import OWN_CONDITION, PredictionKeys, RankingKeys
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._validate import check_key, check_texts, check_type
from scgpt_tools.data.rows import RowSource
from scgpt_tools.metrics.perturbation import pearson
from scgpt_tools.pl._style import PALETTE, axes, finish, ink, name_points
from scgpt_tools.screens.conditions import control_mask, read_conditions
from scgpt_tools.tokens.perturbations import CONTROL, condition_genes, condition_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

KINDS = {"control": PALETTE["grey"], "observed": PALETTE["blue"], "predicted": PALETTE["orange"]}
"""Colour of each kind of cells."""
_OF_MODELS = tuple(PALETTE[name] for name in ("orange", "vermilion", "green", "purple", "sky"))


@renamed(key="condition_key")
@shared_docs
def perturbation_de(
    adata: AnnData,
    perturbation: str,
    *,
    predicted: str | Sequence[str] = "predicted",
    condition_key: str | None = "condition",
    de_key: str = "perturbation_de",
    genes: Sequence[str] | None = None,
    n_genes: int = 20,
    layer: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show the genes that a perturbation changes most: control, observed and predicted cells.

    Boxes hold the middle half of the cells, whiskers 5 to 95 %, relative to the mean of the controls.  Predictions vary
    less than cells, for what a model predicts is a mean; a diamond stands at theirs.  Perturbed genes bear a star.  A perturbation that no cell has
    is shown beside the controls only.

    Parameters
    ----------
    adata
        Log-normalised cells with conditions and predictions.
    perturbation
        Which one, such as ``"KLF1"``, ``"KLF1+ctrl"`` or ``"SAMD1+ZBTB1"``.
    predicted
        Layer of :func:`scgpt_tools.tl.predict_perturbation`, or the beginning of the names of several.  A list of such
        shows the predictions of several models side by side; the first of them chooses genes that no ranking does.
    condition_key
        Column of ``obs`` with the conditions; ``None`` takes all cells for controls.
    de_key
        Key of ``uns`` that :func:`scgpt_tools.pp.perturbation_de` wrote, which chooses the genes.  Without that
        ranking, and for a perturbation that no cell has, those with the largest predicted change are shown, which the
        figure says.
    genes
        Genes to show instead.
    n_genes
        How many of the top genes to show.
    layer
        Key of ``layers`` with observed values; ``None`` takes ``X``.
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
        If a column, layer, gene or a ranking that is not the usual one is absent; the message lists what is there.
    ValueError
        If there are no controls, neither cells nor predictions have the perturbation, or predictions are not finite.
    """
    check_arguments(perturbation_de, locals())
    names = check_texts("predicted", [predicted] if isinstance(predicted, str) else predicted)
    if len(names) > len(_OF_MODELS):
        raise ValueError(f"Expected at most {len(_OF_MODELS)} predictions to compare, found {len(names)}.")
    models = {
        name: _Compared.read(adata, perturbation, predicted=name, key=condition_key, layer=layer) for name in names
    }
    cells = models[names[0]]
    chosen = list(genes) if genes is not None else _ranked_genes(adata, cells, de_key, n_genes)
    by_prediction = chosen is None
    if chosen is None:
        chosen = _largest_changes(adata, cells, n_genes)
    columns = [column_of(adata, gene) for gene in chosen]
    ax = axes(ax, figsize=figsize or (max(4.0, 1.5 + 0.42 * len(chosen)), 3.6))
    centre = cells.control[:, columns].mean(axis=0)
    drawn = [(kind, KINDS[kind], getattr(cells, kind)) for kind in ("control", "observed")]
    several = len(models) > 1
    for colour, (name, own) in zip(_OF_MODELS, models.items(), strict=False):
        drawn.append((name if several else "predicted", colour if several else KINDS["predicted"], own.predicted))
    drawn = [entry for entry in drawn if len(entry[2])]
    step = 0.81 / max(len(drawn), 3)
    for number, (kind, colour, expression) in enumerate(drawn):
        values = expression[:, columns] - centre
        boxes = ax.boxplot(
            list(values.T),
            positions=np.arange(len(chosen)) + step * (number - (len(drawn) - 1) / 2),
            widths=0.8 * step,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            # The box of predictions that are all alike is a line, whose colour nobody sees.
            showmeans=kind not in ("control", "observed"),
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": colour, "markeredgecolor": ink()},
            medianprops={"color": ink(), "linewidth": 1},
            boxprops={"facecolor": colour, "edgecolor": ink(), "linewidth": 0.5},
            whiskerprops={"linewidth": 0.7, "color": ink()},
            capprops={"linewidth": 0.7, "color": ink()},
        )
        boxes["boxes"][0].set_label(f"{kind} ({len(values):,} cells)")
    ax.axhline(0, color=ink(), linewidth=0.7, linestyle=":", zorder=0)
    targets = set(condition_genes(cells.condition))
    ax.set_xticks(range(len(chosen)), [f"{gene} *" if gene in targets else gene for gene in chosen])
    ax.tick_params(axis="x", labelrotation=60, length=0)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    ax.set(ylabel="change from control mean", xlim=(-0.6, len(chosen) - 0.4))
    ax.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small", borderpad=0.2)
    if by_prediction:
        ax.set_xlabel("genes with the largest predicted change")
    rows = -(-len(legend.get_texts()) // 3)
    ax.set_title(title or cells.title, loc="left", pad=8 + 16 * rows)
    return finish(ax, show=show, save=save, return_fig=return_fig)


@renamed(key="condition_key")
@shared_docs
def perturbation_scatter(
    adata: AnnData,
    perturbation: str,
    *,
    predicted: str = "predicted",
    condition_key: str = "condition",
    layer: str | None = None,
    n_labels: int = 8,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (4.2, 4.2),
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show the predicted against the observed change of every gene.

    Parameters
    ----------
    adata
        Log-normalised cells with conditions and predictions.
    perturbation
        Which one, such as ``"KLF1"`` or ``"SAMD1+ZBTB1"``.
    predicted
        Layer of :func:`scgpt_tools.tl.predict_perturbation`, or the beginning of the names of several.
    condition_key
        Column of ``obs`` with the conditions.
    layer
        Key of ``layers`` with observed values; ``None`` takes ``X``.
    n_labels
        How many of the genes with the largest changes to name.
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
        If a column or layer is absent; the message lists what is there.
    ValueError
        If no cell has the perturbation, there are no controls, or predictions are not finite.
    """
    check_arguments(perturbation_scatter, locals())
    cells = _Compared.read(adata, perturbation, predicted=predicted, key=condition_key, layer=layer)
    if not len(cells.observed):
        raise ValueError(
            f"Expected cells with the perturbation {perturbation!r} in obs[{condition_key!r}] to compare with, found predictions "
            "only. pl.perturbation_de shows those."
        )
    centre = cells.control.mean(axis=0)
    observed, found = cells.observed.mean(axis=0) - centre, cells.predicted.mean(axis=0) - centre
    targets = np.isin(adata.var_names, condition_genes(cells.condition))
    ax = axes(ax, figsize=figsize)
    ax.axline((0, 0), slope=1, color=PALETTE["grey"], linewidth=1, zorder=0)
    ax.axhline(0, color=PALETTE["grey"], linewidth=0.7, linestyle=":", zorder=0)
    ax.axvline(0, color=PALETTE["grey"], linewidth=0.7, linestyle=":", zorder=0)
    ax.scatter(observed[~targets], found[~targets], s=12, color=PALETTE["blue"], alpha=0.6, linewidth=0, label="genes")
    if targets.any():
        there = observed[targets], found[targets]
        ax.scatter(*there, s=28, marker="D", color=PALETTE["vermilion"], linewidth=0, label="perturbed")
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize="small",
        borderpad=0.2,
        handletextpad=0.2,
    )
    score = pearson(found[None], observed[None], where=~targets[None])[0]
    ax.set(xlabel="observed change", ylabel="predicted change")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title or cells.title, loc="left", pad=24)
    ax.set_title(f"Pearson {score:.2f}", loc="right", pad=24, fontsize="small")
    ax.margins(0.08)
    largest = np.argsort(-np.hypot(observed, found), kind="stable")[:n_labels]
    name_points(ax, observed, found, list(map(str, adata.var_names)), largest)
    return finish(ax, show=show, save=save, return_fig=return_fig)


class _Compared(NamedTuple):
    """Expression of three kinds of cells over all genes."""

    condition: str
    control: NDArray[np.float64]
    observed: NDArray[np.float64]
    """No row where no cell has the perturbation."""
    predicted: NDArray[np.float64]

    @property
    def title(self) -> str:
        name = "+".join(condition_genes(self.condition))
        return name if len(self.observed) else f"{name} (no observed cells)"

    @classmethod
    def read(
        cls, adata: AnnData, perturbation: str, *, predicted: str, key: str | None, layer: str | None
    ) -> _Compared:
        check_type("adata", adata, AnnData)
        conditions = np.full(adata.n_obs, CONTROL, dtype=object) if key is None else read_conditions(adata, key)
        controls = np.flatnonzero(control_mask(conditions))
        if not controls.size:
            raise ValueError(f"Expected control cells (label 'ctrl' in obs[{key!r}]) to compare with, found none.")
        if not condition_genes(perturbation):
            raise ValueError(f"Expected `perturbation` to name genes such as 'KLF1', found {perturbation!r}.")
        kinds = {condition_key(kind): kind for kind in sorted(set(conditions)) if condition_genes(kind)}
        layers = _recorded_layers(adata, predicted)
        wanted = condition_key(perturbation)
        if wanted not in kinds and wanted not in layers:
            listed = {"+".join(condition_genes(name)): name for name in (*kinds, *layers)}
            raise ValueError(
                absent("+".join(condition_genes(perturbation)), listed, "perturbation, of cells or predicted,")
            )
        condition = kinds.get(wanted, wanted)
        own = np.flatnonzero(conditions == condition)
        name = layers[wanted] if wanted in layers else check_key(adata.layers, predicted, "layers")
        # Where the perturbation was asked for, its prediction stands at the controls.
        rows = own if own.size and np.isfinite(values := dense(adata.layers[name][own])).all() else controls
        if rows is controls:
            values = dense(adata.layers[name][controls])
            _check_recorded(adata.uns.get(predicted), name, condition)
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected predictions of {perturbation!r} in layers[{name!r}], found NaN or infinite numbers. Run "
                "tl.predict_perturbation with it among `perts`."
            )
        # It looks at the values and at the matrix itself.
        cells = RowSource(adata, layer=layer)
        return cls(condition, cells.take(controls).toarray(), cells.take(own).toarray(), values)


def _recorded_layers(adata: AnnData, predicted: str) -> dict[str, str]:
    """Layer of every perturbation that was asked for by name, by a spelling that no order of genes changes."""
    found = {}
    for layer in adata.layers:
        if layer is not None and layer.startswith(beginning := PredictionKeys(predicted).layer_of("")):
            with suppress(ValueError):
                found[condition_key(layer.removeprefix(beginning))] = layer
    for layer, perturbation in _record(adata.uns.get(predicted)).items():
        if layer in adata.layers:
            with suppress(ValueError):
                found[condition_key(perturbation)] = layer
    return found


def _record(record: Any) -> dict[str, str]:
    """Layer to perturbation, as tl.predict_perturbation leaves it."""
    if not isinstance(record, Mapping) or not {"layers", "perturbations"} <= set(record):
        return {}
    pairs = zip(map(str, record["layers"]), map(str, record["perturbations"]), strict=False)
    return {layer: name for layer, name in pairs if name != OWN_CONDITION}


def _check_recorded(record: Any, layer: str, condition: str) -> None:
    """A layer at the controls belongs to one perturbation, which may be another one than is asked for."""
    recorded = _record(record).get(layer)
    if recorded is not None and condition_key(recorded) != condition_key(condition):
        raise ValueError(f"Expected predictions of {condition!r} in layers[{layer!r}], found those of {recorded!r}.")


def dense(matrix: Any) -> NDArray[np.float64]:
    """A matrix as a dense array."""
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)


def column_of(adata: AnnData, gene: str) -> int:
    """Column of a gene, or an error that names similar ones."""
    if gene not in adata.var_names:
        raise KeyError(absent(gene, list(adata.var_names), "gene"))
    columns = np.flatnonzero(adata.var_names == gene)
    if len(columns) > 1:
        raise ValueError(
            f"Expected one column of {gene!r}, found {len(columns)}. Run adata.var_names_make_unique() first."
        )
    return int(columns[0])


def _ranked_genes(adata: AnnData, cells: _Compared, de_key: str, n: int) -> list[str] | None:
    """First genes of the ranking; ``None`` where there is none of a perturbation that need not have one."""
    keys = RankingKeys(de_key)
    if keys.uns not in adata.uns:
        if de_key == RankingKeys().uns:
            return None
        raise KeyError(f"{absent(keys.uns, adata.uns, 'key in `uns`:')} Run pp.perturbation_de first, or pass `genes`.")
    names = adata.uns[keys.uns]["names"]
    groups = {}
    for group in names.dtype.names:
        with suppress(ValueError):
            groups[condition_key(group)] = group
    if not len(cells.observed) and condition_key(cells.condition) not in groups:
        return None
    group = lookup(groups, condition_key(cells.condition), "ranked condition", error=KeyError)
    return [str(gene) for gene in names[group][:n]]


def _largest_changes(adata: AnnData, cells: _Compared, n: int) -> list[str]:
    change = np.abs(cells.predicted.mean(axis=0) - cells.control.mean(axis=0))
    return [str(adata.var_names[column]) for column in np.argsort(-change, kind="stable")[:n]]
