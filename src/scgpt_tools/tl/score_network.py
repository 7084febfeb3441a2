"""Networks of genes held against a reference, and against each other."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_generator, as_seed, check_integer
from scgpt_tools.metrics.networks import score_edges
from scgpt_tools.tl._pair_scores import pair_scores
from scgpt_tools.tl._reference_network import read_reference_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

_LEAST = 10


@shared_docs
def score_network(
    adata: AnnData,
    reference: pd.DataFrame | str | PathLike[str],
    *,
    use_rep: str | Sequence[str] = "X_scGPT_genes",
    maps: AnnData | None = None,
    knockouts: AnnData | None = None,
    genes: Sequence[str] | None = None,
    directed: bool = False,
    layer: str | None = None,
    n_shuffles: int = 20,
    rng: RngLike = 0,
) -> pd.DataFrame:
    """Ask whether the network of a model finds the edges of a reference, beside co-expression and chance.

    Every method is judged on the same pairs of genes: those that all of them know and the reference has an edge of.
    A network of a model is worth something where it is ahead of co-expression, of chance, and of its own scores after
    genes were exchanged for others of like degree.

    Parameters
    ----------
    adata
        Cells with log-normalised values and vectors of genes; not changed.
    reference
        Edges, as a table or a .csv or .tsv file, whose first two columns (or those named ``source`` and ``target``, or
        ``gene1`` and ``gene2``) are genes by the names of ``var_names``.  With a column ``weight``, pairs of weight 0 are no
        edges, and where there are some, only pairs that are listed count.
    use_rep
        Keys of ``varm`` with vectors of genes, as :func:`scgpt_tools.tl.embed_genes` writes them; pairs are scored by
        cosine.
    maps
        Result of :func:`scgpt_tools.tl.attention`; each of its groups is judged.
    knockouts
        Result of :func:`scgpt_tools.tl.knockout` with ``expression``: the absolute predicted change of one gene when the
        other is changed.  Pairs without a changed gene are left out.
    genes
        Names to restrict pairs to.
    directed
        Judge whether the first gene of an edge acts on the second: pairs start from genes that are first in some edge of
        the reference.  Otherwise the larger score of both directions is taken.
    layer
        Key of ``layers`` to take co-expression from; ``None`` takes ``X``.
    n_shuffles
        Draws of the exchange of genes.
    {rng_simple}

    Returns
    -------
    One row a method, co-expression and ``"random"`` last, with the columns of
    :class:`scgpt_tools.metrics.EdgeScores`: ``auroc``, ``auprc``, ``early_precision``, ``density`` (chance of the last
    two), ``auroc_hubs``, ``auprc_hubs`` and ``early_precision_hubs``, what hubs alone explain, ``n_pairs``, ``n_edges``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If a key or a gene is absent; the message lists what is there.
    ValueError
        If no edge of the reference joins two genes that all methods know, or all pairs are edges.
    """
    check_arguments(score_network, locals())
    check_integer("n_shuffles", n_shuffles)
    seed = as_seed(rng)
    edges = read_reference_network("reference", reference)
    nodes = pd.Index(edges["gene1"]).union(pd.Index(edges["gene2"]))
    wanted = adata.var_names[adata.var_names.isin(nodes) & (adata.var_names.isin(genes) if genes is not None else True)]
    if len(wanted) < 2:
        raise ValueError(
            f"Expected genes of the reference in `var_names`, found {len(wanted)}: the reference has "
            f"{', '.join(map(str, nodes[:3]))}, ..., the table {', '.join(map(str, adata.var_names[:3]))}, ...."
        )
    found = pair_scores(adata, list(wanted), use_rep=use_rep, maps=maps, knockouts=knockouts, layer=layer)
    truth = np.zeros((len(found.genes), len(found.genes)), dtype=bool)
    ends = [found.genes.get_indexer(pd.Index(edges[name])) for name in ("gene1", "gene2")]
    inside = (ends[0] >= 0) & (ends[1] >= 0)
    listed, is_edge = np.zeros_like(truth), (edges["weight"] != 0).to_numpy()
    truth[ends[0][inside & is_edge], ends[1][inside & is_edge]] = True
    listed[ends[0][inside], ends[1][inside]] = True
    shape = truth.shape
    methods = found.methods | {"random": as_generator(seed).random(shape)}
    if not directed:
        methods = {name: np.fmax(values, values.T) for name, values in methods.items()}
    judged = ~np.any([np.isnan(values) for values in methods.values()], axis=0)
    if directed:
        judged &= np.isin(np.arange(len(truth)), ends[0][inside])[:, None]
    if not is_edge.all():
        judged &= listed if directed else listed | listed.T
    rows = {
        name: score_edges(
            np.where(judged, values, np.nan), truth, directed=directed, n_shuffles=n_shuffles, rng=seed
        )._asdict()
        for name, values in methods.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "method"
    return table


def compare_networks(
    adata: AnnData,
    *,
    use_rep: str | Sequence[str] = "X_scGPT_genes",
    maps: AnnData | None = None,
    knockouts: AnnData | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Ask whether what a model says of pairs of genes agrees: its gene vectors, its attention, knock-outs, co-expression.

    Attention is no explanation by itself.  If genes that attend to one are those whose predicted expression changes when
    it is knocked out, both look at the same; if attention follows co-expression only, it adds nothing to it.

    Parameters
    ----------
    adata
        Cells with log-normalised values and vectors of genes; not changed.
    use_rep
        Keys of ``varm`` with vectors of genes, as :func:`scgpt_tools.tl.embed_genes` writes them; pairs are scored by
        cosine.
    maps
        Result of :func:`scgpt_tools.tl.attention`; each of its groups is a method.
    knockouts
        Result of :func:`scgpt_tools.tl.knockout` with ``expression``: the absolute predicted change of one gene when the
        other is changed.
    genes
        Names to restrict pairs to.
    layer
        Key of ``layers`` to take co-expression from; ``None`` takes ``X``.

    Returns
    -------
    One row for a gene and two methods: ``gene``, ``first``, ``second``, ``spearman``, the rank correlation of their scores
    over the other genes, and ``n_genes``, how many both score.  Genes with fewer than ten have no row.

    Raises
    ------
    KeyError
        If a key or a gene is absent.
    ValueError
        If there is nothing to compare.
    """
    check_arguments(compare_networks, locals())
    found = pair_scores(adata, genes, use_rep=use_rep, maps=maps, knockouts=knockouts, layer=layer)
    rows = []
    for place, gene in enumerate(found.genes):
        for (first, a), (second, b) in combinations(found.methods.items(), 2):
            own = np.delete(np.stack([a[place], b[place]]), place, axis=1)
            own = own[:, ~np.isnan(own).any(axis=0)]
            if own.shape[1] >= _LEAST and (np.ptp(own, axis=1) > 0).all():
                rows.append((str(gene), first, second, _spearman(own), own.shape[1]))
    if not rows:
        raise ValueError(f"Expected a gene of which two methods score {_LEAST} others or more, found none.")
    return pd.DataFrame(rows, columns=["gene", "first", "second", "spearman", "n_genes"])


def _spearman(scores: NDArray[np.float64]) -> float:
    return float(np.corrcoef(rankdata(scores, axis=1))[0, 1])
