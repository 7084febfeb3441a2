"""Networks of genes and the programs in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import GeneNetworkKeys, GeneProgramKeys, ProgramScoreKeys
from scgpt_tools._lookup import absent
from scgpt_tools._optional import optional
from scgpt_tools._validate import as_seed, check_hashable, check_key, check_number, check_texts
from scgpt_tools.pl._style import PALETTE, axes, finish, ink, name_points

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgpt_tools._types import RngLike

# More names than this cannot be read on one page.
_MOST_GENES = 200


@shared_docs
def gene_network(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    program: str | None = None,
    network: str = GeneNetworkKeys().key,
    programs: str = GeneProgramKeys().key,
    strong: float | None = None,
    rng: RngLike = 0,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (6, 6),
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the part of a gene network among some genes; wider lines are larger cosines.

    Parameters
    ----------
    adata
        Table with a network from :func:`scgpt_tools.tl.gene_network`.
    genes
        Genes to draw; ``None`` takes those of ``program``.
    program
        Name of a program of :func:`scgpt_tools.tl.gene_programs`.
    network, programs
        Keys that the two functions wrote to.
    strong
        Cosine from which edges are highlighted; ``None`` highlights the strongest quarter.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the layout.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If a key, the program or a gene is absent.
    ValueError
        If no two of the genes are connected, or there are too many to read.
    """
    check_arguments(gene_network, locals())
    edges = adata.varp[check_key(adata.varp, network, "varp")]
    if programs != GeneProgramKeys().key:
        check_key(adata.uns, programs, "uns")
    names = _genes_of(adata, genes, program, programs)
    if len(names) > _MOST_GENES:
        raise ValueError(f"Expected at most {_MOST_GENES} genes to draw, found {len(names)}. Name some by `genes`.")
    places = pd.Index(adata.var_names).get_indexer(pd.Index(names))
    part = edges.tocsr()[places][:, places].tocoo()
    pairs = [(int(i), int(j), float(w)) for i, j, w in zip(part.row, part.col, part.data, strict=True) if i < j]
    if not pairs:
        raise ValueError(f"Expected two of the {len(names)} genes to be connected in varp[{network!r}], found none.")
    weights = np.array([pair[2] for pair in pairs])
    least = np.quantile(weights, 0.75) if strong is None else check_number("strong", strong)
    networkx = optional("networkx", extra="leiden")
    graph = networkx.Graph()
    graph.add_nodes_from({i for pair in pairs for i in pair[:2]})
    graph.add_weighted_edges_from(pairs)
    where = networkx.spring_layout(graph, seed=as_seed(rng, bits=32), k=2 / np.sqrt(len(graph)))
    panel = axes(ax, figsize=figsize)
    for i, j, weight in pairs:
        colour = PALETTE["blue"] if weight >= least else PALETTE["grey"]
        panel.plot(*zip(where[i], where[j], strict=True), color=colour, linewidth=0.3 + 2.2 * weight**2, zorder=1)
    places_drawn = np.array(list(where.values()))
    panel.scatter(places_drawn[:, 0], places_drawn[:, 1], s=18, color=ink(), zorder=2)
    panel.set(xticks=[], yticks=[], title=f"Program {program}" if genes is None else "")
    panel.plot([], [], color=PALETTE["blue"], label=f"cosine at least {least:.2f}")
    panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0), fontsize=8)
    for side in panel.spines.values():
        side.set_visible(False)
    panel.margins(0.12)
    shown = [names[i] for i in where]
    name_points(panel, places_drawn[:, 0], places_drawn[:, 1], shown, np.arange(len(shown)), fontsize=8)
    return finish(panel, show=show, save=save, return_fig=return_fig)


@shared_docs
def program_heatmap(
    adata: AnnData,
    groupby: str,
    *,
    key: str = ProgramScoreKeys().key,
    programs: Sequence[str] | None = None,
    standardize: bool = True,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show the mean score of each program in each group of cells.

    Parameters
    ----------
    adata
        Cells with scores of :func:`scgpt_tools.tl.score_programs`.
    groupby
        Column of ``obs`` with groups, such as cell types.
    key
        Key of ``obsm`` with the scores.
    programs
        Names of programs to show, in this order; ``None`` shows all.
    standardize
        Bring each program to mean 0 and standard deviation 1 over the groups, as scGPT's tutorial does.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If a key or a program is absent.
    ValueError
        If there is one group only.
    """
    check_arguments(program_heatmap, locals())
    scores = pd.DataFrame(adata.obsm[check_key(adata.obsm, key, "obsm")])
    groups = adata.obs[check_key(adata.obs, groupby, "obs")]
    check_hashable(f"obs[{groupby!r}]", groups)
    if not scores.shape[1]:
        raise ValueError(f"Expected at least one program in obsm[{key!r}], found none.")
    wanted = list(scores.columns) if programs is None else check_texts("programs", programs)
    if missing := [name for name in wanted if name not in scores]:
        raise KeyError(absent(missing[0], scores.columns, f"program in obsm[{key!r}] named"))
    means = scores[wanted].groupby(groups.to_numpy(), observed=True).mean().T
    if means.shape[1] < 2:
        raise ValueError(f"Expected cells of two groups or more in obs[{groupby!r}], found {means.shape[1]}.")
    label = "mean score"
    if standardize:
        spread = means.std(axis=1, ddof=0)
        means = means.sub(means.mean(axis=1), axis=0).div(spread.where(spread > 0, 1.0), axis=0)
        label = "mean score, standardized"
    size = figsize or (2.4 + 0.45 * means.shape[1], 1.6 + 0.24 * means.shape[0])
    panel = axes(ax, figsize=size)
    limit = float(np.abs(means.to_numpy()).max())
    look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if standardize else {"cmap": "viridis"}
    sns.heatmap(means, ax=panel, cbar_kws={"label": label, "shrink": 0.7}, xticklabels=True, yticklabels=True, **look)
    panel.set(xlabel=groupby, ylabel="program")
    plt.setp(panel.get_xticklabels(), rotation=45, ha="right")
    plt.setp(panel.get_yticklabels(), rotation=0)
    return finish(panel, show=show, save=save, return_fig=return_fig)


def _genes_of(adata: AnnData, genes: Sequence[str] | None, program: str | None, programs: str) -> list[str]:
    if (genes is None) == (program is None):
        raise ValueError(f"Expected either `genes` or `program`, found genes={genes!r} and program={program!r}.")
    if genes is not None:
        names = check_texts("genes", genes, least=2)
        if missing := [name for name in names if name not in adata.var_names]:
            raise KeyError(absent(missing[0], adata.var_names, "gene in `var_names`:"))
        return names
    found = adata.uns[check_key(adata.uns, programs, "uns")]["programs"]
    if str(program) not in found:
        raise KeyError(absent(program, found, "program named"))
    return list(found[str(program)])
