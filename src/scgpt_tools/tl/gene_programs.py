"""Groups of genes in a network, and their scores in cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import GeneNetworkKeys, GeneProgramKeys, ProgramScoreKeys
from scgpt_tools._lookup import absent
from scgpt_tools._optional import optional
from scgpt_tools._validate import (
    as_seed,
    check_choice,
    check_finite,
    check_key,
    check_number,
    check_texts,
    check_type,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

    from scgpt_tools._types import RngLike

Method = Literal["leiden", "louvain"]


@shared_docs
def gene_programs(
    adata: AnnData,
    *,
    network: str = GeneNetworkKeys().key,
    method: Method = "leiden",
    resolution: float = 1.0,
    min_genes: int = 5,
    rng: RngLike = 0,
    key_added: str = "gene_program",
    copy: bool = False,
) -> AnnData | None:
    """Group the genes of a network into programs, the "metagenes" of scGPT's tutorial :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        Table with a network of genes, from :func:`scgpt_tools.tl.gene_network`.
    network
        Key of ``varp`` with the network.
    method
        ``"leiden"`` through igraph, as scGPT's code, or ``"louvain"`` through networkx, as the text of its tutorial.
    resolution
        Higher numbers give more and smaller programs.  scGPT's tutorial takes 40 for some 1,200 genes.
    min_genes
        Groups of fewer genes are no programs, and their genes are in none.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the grouping.
    key_added
        Key of the result in ``var`` and ``uns``.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``var[key_added]`` : :class:`pandas.Categorical`
        Number of the program of each gene, the largest first; missing for genes in none.
    ``uns[key_added]`` : :class:`dict`
        ``params``, and ``programs``, the names of the genes of each.

    Raises
    ------
    KeyError
        If there is no such network.
    ImportError
        If ``"leiden"`` is asked for without igraph.
    ValueError
        If no group is large enough.
    """
    check_arguments(gene_programs, locals())
    check_choice("method", method, ("leiden", "louvain"))
    check_number("resolution", resolution, above=0)
    keys = GeneProgramKeys(key_added)
    edges, seed = adata.varp[check_key(adata.varp, network, "varp")].tocsr(), as_seed(rng, bits=32)
    connected = np.flatnonzero(np.diff(edges.indptr))
    groups = _groups(edges[connected][:, connected], method, resolution, seed)
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, dtype=int)
    largest = [group for group in np.argsort(-sizes, kind="stable") if sizes[group] >= min_genes]
    if not largest:
        found = f"the largest of {len(sizes)} has {sizes.max(initial=0)}"
        raise ValueError(
            f"Expected a group of at least min_genes={min_genes} genes, found none: {found}. Lower `resolution`, or "
            "connect more genes."
        )
    program = np.full(adata.n_vars, -1)
    for number, group in enumerate(largest):
        program[connected[groups == group]] = number
    names = [str(number) for number in range(len(largest))]
    result = adata.copy() if copy else adata
    result.var[keys.var] = pd.Categorical.from_codes(program, pd.Index(names))
    result.uns[keys.uns] = {
        "params": {
            "network": network, "method": method, "resolution": resolution, "min_genes": min_genes, "rng": seed,
        },
        "programs": {name: adata.var_names[program == int(name)].to_numpy(dtype=object) for name in names},
    }  # fmt: skip
    return result if copy else None


@shared_docs
def score_programs(
    adata: AnnData,
    programs: str | Mapping[str, Sequence[str]] = GeneProgramKeys().key,
    *,
    layer: str | None = None,
    scale: bool = True,
    groupby: str | None = None,
    rng: RngLike = 0,
    key_added: str = "program_scores",
    copy: bool = False,
) -> AnnData | None:
    """Score how much each cell expresses each program, by :func:`scanpy.tl.score_genes`.

    A score is the mean expression of the program's genes less that of random genes of like expression.

    Parameters
    ----------
    adata
        Cells with log-normalised values.
    programs
        What :func:`scgpt_tools.tl.gene_programs` wrote to ``uns``, by its key, or genes by the name of a program.
    layer
        Key of ``layers`` to read; ``None`` takes ``X``.
    scale
        Bring the scores of each program to 0 .. 1 over the cells, as scGPT's function does.
    groupby
        Column of ``obs``, such as the cell type, to give the mean scores of.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw of random genes.
    key_added
        Key of the result in ``obsm`` and ``uns``.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obsm[key_added]`` : :class:`pandas.DataFrame`, (cells, programs)
        Scores.
    ``uns[key_added]`` : :class:`dict`
        ``params``; with ``groupby`` also ``means``, a table of groups and programs.

    Raises
    ------
    KeyError
        If a key is absent.
    ValueError
        If a program has no gene in the table, or values are not finite.
    """
    check_arguments(score_programs, locals())
    keys, seed = ProgramScoreKeys(key_added), as_seed(rng, bits=32)
    wanted = read_programs(adata, programs)
    if groupby is not None:
        check_key(adata.obs, groupby, "obs")
    values = adata.X if layer is None else adata.layers[check_key(adata.layers, layer, "layers")]
    cells = ad.AnnData(values, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=adata.var_names))
    scores = pd.DataFrame(index=adata.obs_names)
    for name, genes in wanted.items():
        known = [gene for gene in genes if gene in cells.var_names]
        if not known:
            raise ValueError(f"Expected genes of program {name!r} in `var_names`, found none of {len(genes)}.")
        try:
            sc.tl.score_genes(cells, known, score_name="score", random_state=seed, use_raw=False)
        except RuntimeError as error:  # no gene is left to compare with
            raise ValueError(
                f"Expected genes of like expression beside those of program {name!r} in the table, found none among "
                f"{cells.n_vars}. Score on all genes, not on those of the programs alone."
            ) from error
        own = cells.obs["score"].to_numpy(dtype=np.float64)
        check_finite(f"the scores of program {name!r}", own, "Look for NaN in the values.")
        spread = np.ptp(own)
        scores[name] = (own - own.min()) / (spread if spread > 0 else 1.0) if scale else own
    record: dict[str, Any] = {
        "params": {"layer": layer or "X", "scale": scale, "groupby": groupby or "", "rng": seed},
    }
    if groupby is not None:
        record["means"] = scores.groupby(adata.obs[groupby].to_numpy(), observed=True).mean()
        record["means"].index = record["means"].index.astype(str)
    result = adata.copy() if copy else adata
    result.obsm[keys.obsm], result.uns[keys.uns] = scores, record
    return result if copy else None


def _groups(edges: sparse.csr_matrix, method: Method, resolution: float, seed: int) -> np.ndarray:
    """Group of each gene."""
    if not edges.shape[0]:
        return np.zeros(0, dtype=np.int64)
    if method == "louvain":
        networkx = optional("networkx", extra="leiden")
        graph = networkx.from_scipy_sparse_array(edges)
        groups = np.empty(edges.shape[0], dtype=np.int64)
        for number, members in enumerate(
            networkx.community.louvain_communities(graph, resolution=resolution, seed=seed)
        ):
            groups[list(members)] = number
        return groups
    optional("igraph", extra="leiden")
    genes = ad.AnnData(obs=pd.DataFrame(index=[str(row) for row in range(edges.shape[0])]))
    sc.tl.leiden(
        genes,
        resolution=resolution,
        adjacency=edges,
        flavor="igraph",
        n_iterations=-1,
        directed=False,
        random_state=seed,
    )
    return genes.obs["leiden"].astype(int).to_numpy()


def read_programs(adata: AnnData, programs: str | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Genes of each program, from ``uns`` by its key or as they are given."""
    if isinstance(programs, str):
        record = adata.uns[check_key(adata.uns, programs, "uns")]
        if not isinstance(record, Mapping) or "programs" not in record:
            raise KeyError(
                absent("programs", record if isinstance(record, Mapping) else (), f"key in `uns[{programs!r}]`:")
            )
        named: Mapping[str, Sequence[str]] = record["programs"]
    else:
        named = check_type("programs", programs, (str, Mapping))
    if not named:
        raise ValueError("Expected `programs` to name at least one program, found none.")
    return {str(name): check_texts(f"programs[{name!r}]", genes) for name, genes in named.items()}
