"""In-silico knock-outs beside random genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import KnockoutKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_fraction, check_integer, check_key
from scgpt_tools.pl._style import PALETTE, axes, finish

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@shared_docs
def knockout(
    knockouts: AnnData,
    *,
    group: str | None = None,
    n_genes: int = 10,
    fdr: float = 0.05,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (5, 4),
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show how far changed genes move cells against how many cells have them, beside random genes.

    Parameters
    ----------
    knockouts
        What :func:`scgpt_tools.tl.knockout` returned.
    group
        Group of cells; ``None`` for the only one.
    n_genes
        Genes to name, those of the highest z-scores, or of the largest shifts where there are none.
    fdr
        False discovery rate up to which genes are highlighted.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If the table is of something else, or the group is absent.
    ValueError
        If there are several groups and none is named, or no gene of the group moved a cell.
    """
    check_arguments(knockout, locals())
    check_integer("n_genes", n_genes, least=0)
    check_fraction("fdr", fdr)
    keys = KnockoutKeys()
    record = knockouts.uns[check_key(knockouts.uns, keys.uns, "uns")]
    groups = list(knockouts.obs[keys.group].unique())
    if group is None and len(groups) > 1:
        raise ValueError(f"Expected `group` to be one of {groups}, found None.")
    chosen = groups[0] if group is None else group
    if chosen not in groups:
        raise KeyError(absent(chosen, groups, "group of cells named"))
    table = knockouts.obs[(knockouts.obs[keys.group] == chosen) & (knockouts.obs[keys.shift] > 0)]
    if table.empty:
        raise ValueError(f"Expected genes whose change moves cells of {chosen!r}, found none.")
    share = table[keys.n_changed] / table[keys.n_cells]
    random, found = table[keys.role] == "random", table[keys.q_value] <= fdr
    panel = axes(ax, figsize=figsize)
    kinds = (
        (random, "grey", "random genes"),
        (~random & ~found, "blue", "asked for"),
        (~random & found, "vermilion", f"asked for, FDR {fdr:.0%}"),
    )
    for chosen_rows, colour, label in kinds:
        if chosen_rows.any():
            panel.scatter(
                100 * share[chosen_rows],
                table[keys.shift][chosen_rows],
                s=14,
                color=PALETTE[colour],
                label=label,
                linewidth=0,
            )
    asked = table[~random]
    by = keys.z_score if asked[keys.z_score].notna().any() else keys.shift
    for name in asked[by].nlargest(n_genes).index:
        at = (100 * share[name], table.loc[name, keys.shift])
        # Names of points on the right stand to their left.
        left = share[name] > share.max() / 2
        step, side = (-4, "right") if left else (4, "left")
        gene = table.loc[name, keys.gene]
        panel.annotate(gene, at, xytext=(step, 2), textcoords="offset points", fontsize=8, ha=side)
    panel.set_yscale("log")
    panel.set(
        xlabel="cells that change (%)",
        ylabel="shift of the cell embedding",
        title=f"{_TITLES[record['params']['how']]}{'' if len(groups) == 1 else f', {chosen}'}",
    )
    panel.margins(0.1)
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(panel, show=show, save=save, return_fig=return_fig)


_TITLES = {"remove": "Genes removed", "zero": "Genes at zero", "max": "Genes at the cell's maximum"}
