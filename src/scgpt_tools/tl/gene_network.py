"""Which genes have alike vectors: a graph of them, and the nearest of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import EmbedGenesKeys, GeneNetworkKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_number, check_texts
from scgpt_tools._warnings import warn_user
from scgpt_tools.settings import settings
from scgpt_tools.tl._gene_vectors import read_gene_vectors, unit
from scgpt_tools.tl.embed_genes import embed_genes

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.models.cell_model import CellModel

# Rows of the matrix of cosines that are held at once: 1,024 by 20,000 are 80 MB.
_BLOCK = 1024


@shared_docs
def gene_network(
    adata: AnnData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    use_rep: str | None = None,
    genes: Sequence[str] | None = None,
    threshold: float = 0.5,
    n_neighbors: int | None = 15,
    key_added: str = "gene_network",
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Connect genes whose embeddings are alike, as scGPT's tutorial on gene networks does :cite:p:`Cui2024`.

    An edge says that the model has seen two genes in like company.  It has no direction and no sign, and is no evidence
    that one regulates the other; compare with :func:`scgpt_tools.metrics.score_edges` and with co-expression.

    Parameters
    ----------
    adata
        Table with the genes in ``var_names``.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes; its embedding of each gene
        is looked up by :func:`scgpt_tools.tl.embed_genes`.  Not read if ``use_rep`` is given.
    use_rep
        Key of ``varm`` with vectors of genes to connect instead, such as those that
        :func:`scgpt_tools.tl.embed_genes` wrote.
    genes
        Names to restrict the network to; ``None`` connects all genes that have a vector.
    threshold
        Least cosine of an edge.
    n_neighbors
        Edges of each gene to its most similar ones only; an edge is kept if either of its genes keeps it.  ``None``
        keeps all above the threshold, as scGPT does, which can be millions.
    key_added
        Key of the result in ``varp`` and ``uns``.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``varp[key_added]`` : float32 CSR, (genes, genes)
        Cosine of each edge; symmetric, nothing on the diagonal.
    ``uns[key_added]`` : :class:`dict`
        ``params``, and ``model`` if one was read.

    Raises
    ------
    KeyError
        If ``use_rep`` or a gene is absent.
    ValueError
        If fewer than two genes have a vector, or no two are as alike as the threshold.

    Notes
    -----
    The cosines are computed in blocks, so memory holds one block and the edges, never all pairs.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scgpt_tools as sct
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sct.tl.gene_network(adata, "scgpt-demo", n_neighbors=10)
    >>> adata.varp["gene_network"].shape
    (765, 765)
    """
    check_arguments(gene_network, locals())
    keys = GeneNetworkKeys(key_added)
    vectors_of, model_record = (adata, None) if use_rep is not None else _with_vectors(adata, model)
    columns, vectors = read_gene_vectors(vectors_of, use_rep or EmbedGenesKeys().varm, genes)
    edges = _edges(unit(vectors), threshold, n_neighbors, show_progress=show_progress)
    if not edges.nnz:
        raise ValueError(f"Expected two genes with a cosine of at least {threshold:g}, found none. Lower `threshold`.")
    record: dict[str, Any] = {
        "params": {
            "use_rep": use_rep or "",
            "threshold": threshold,
            "n_neighbors": n_neighbors or 0,
            "n_genes": len(columns),
        }
    }
    result = adata.copy() if copy else adata
    result.varp[keys.varp] = _spread(edges, columns, adata.n_vars)
    result.uns[keys.uns] = record if model_record is None else {**record, "model": model_record}
    return result if copy else None


def similar_genes(
    adata: AnnData,
    query: str | Sequence[str] | Mapping[str, float] | NDArray[np.floating[Any]],
    *,
    use_rep: str = "X_scGPT_genes",
    genes: Sequence[str] | None = None,
    n_genes: int | None = None,
) -> pd.DataFrame:
    """Rank genes by the cosine of their vectors with a query.

    Parameters
    ----------
    adata
        Table with vectors of genes in ``varm``.
    query
        A gene; several genes, whose mean vector is taken; genes with weights, for their weighted mean; or a vector.
    use_rep
        Key of ``varm``, as :func:`scgpt_tools.tl.embed_genes` writes it.
    genes
        Names to rank; ``None`` ranks all that have a vector.  Names without one are left out with a warning.  A query
        that is among them is listed too.
    n_genes
        Number of genes to return; ``None`` returns all.

    Returns
    -------
    Columns ``gene`` and ``similarity``, the most similar first; genes of equal similarity in the order of the table.

    Raises
    ------
    KeyError
        If the key or a gene is absent.
    ValueError
        If a gene of the query has no vector, or weights add up to zero.
    """
    check_arguments(similar_genes, locals())
    columns, vectors = read_gene_vectors(adata, use_rep, None)
    names = pd.Index(adata.var_names[columns])
    target = unit(_query_vector(query, names, vectors)[None])[0]
    if genes is not None:
        wanted = pd.Index(check_texts("genes", genes))
        kept = names.isin(wanted)
        if not kept.any():
            raise KeyError(absent(wanted[0], names, "gene with a vector named"))
        if len(without := wanted.difference(names)):
            first = ", ".join(map(str, without[:10]))
            warn_user(
                f"Expected genes with a vector in varm[{use_rep!r}], found {len(without)} without one, which are left "
                f"out: {first}{', ...' if len(without) > 10 else ''}."
            )
        names, vectors = names[kept], vectors[kept]
    similarity = unit(vectors) @ target
    order = np.argsort(-similarity, kind="stable")[:n_genes]
    return pd.DataFrame({"gene": names[order].astype(object), "similarity": similarity[order]})


def _query_vector(query: Any, names: pd.Index, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    if isinstance(query, np.ndarray) and query.dtype.kind in "fiu":
        if query.shape != vectors.shape[1:]:
            raise ValueError(f"Expected a query of {vectors.shape[1]} numbers, found the shape {query.shape}.")
        return query.astype(np.float32)
    weights = query if isinstance(query, Mapping) else dict.fromkeys(_as_list(query), 1.0)
    places = names.get_indexer(pd.Index(list(weights)))
    if (places < 0).any():
        raise KeyError(absent(list(weights)[int((places < 0).argmax())], names, "gene with a vector named"))
    numbers = np.array([check_number(f"weight of {name}", weight) for name, weight in weights.items()])
    if numbers.sum() == 0:
        raise ValueError("Expected weights that do not add up to zero, found such.")
    return ((numbers[:, None] * vectors[places]).sum(axis=0) / numbers.sum()).astype(np.float32)


def _as_list(query: str | Sequence[str]) -> list[str]:
    return [query] if isinstance(query, str) else check_texts("query", query)


def _with_vectors(adata: AnnData, model: CellModel | str | PathLike[str]) -> tuple[AnnData, dict[str, Any]]:
    """The genes alone, with the model's vectors, and which model it was."""
    genes = type(adata)(var=pd.DataFrame(index=adata.var_names))
    keys = EmbedGenesKeys()
    embed_genes(genes, model, key_added=keys.varm)
    return genes, genes.uns[keys.uns]["model"]


def _edges(
    vectors: NDArray[np.float32], threshold: float, n_neighbors: int | None, *, show_progress: bool | None
) -> sparse.csr_matrix:
    """Cosines of pairs, symmetric; a pair is there if it passes for either gene."""
    blocks = []
    starts = range(0, len(vectors), _BLOCK)
    for start in settings.progress(starts, total=len(starts), unit="block", show=show_progress):
        cosines = vectors[start : start + _BLOCK] @ vectors.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        kept = cosines >= threshold
        if n_neighbors is not None and n_neighbors < len(vectors) - 1:
            least = np.partition(cosines, -n_neighbors, axis=1)[:, -n_neighbors, None]
            kept &= cosines >= least
        rows, columns = np.nonzero(kept)
        blocks.append(sparse.csr_matrix((cosines[rows, columns], (rows, columns)), shape=cosines.shape))
    edges = sparse.vstack(blocks, format="csr")
    # Both directions are one number up to the order of summation.
    return edges.maximum(edges.T).tocsr()


def _spread(edges: sparse.csr_matrix, columns: NDArray[np.int64], n_genes: int) -> sparse.csr_matrix:
    pairs = edges.tocoo()
    return sparse.csr_matrix((pairs.data, (columns[pairs.row], columns[pairs.col])), shape=(n_genes, n_genes))
