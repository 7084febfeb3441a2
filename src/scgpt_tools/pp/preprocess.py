"""The steps that scGPT puts before its transformer, by scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING
from warnings import warn

import numpy as np
import scanpy as sc

from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import PreprocessKeys
from scgpt_tools.data.rows import RowSource, row_keys
from scgpt_tools.tokens.orders import seed_of
from scgpt_tools.tokens.units import describe_values
from scgpt_tools.tokens.values import bin_rows, canonical

if TYPE_CHECKING:
    from typing import Literal

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike, Ties


@shared_docs
def preprocess(
    adata: AnnData,
    *,
    layer: str | None = None,
    min_gene_counts: int | None = None,
    min_cell_counts: int | None = None,
    target_sum: float | None = 1e4,
    log1p: bool = True,
    n_top_genes: int | None = None,
    hvg_flavor: Literal["seurat", "cell_ranger", "seurat_v3", "seurat_v3_paper"] = "seurat_v3",
    batch_key: str | None = None,
    bins: int | None = 51,
    ties: Ties = "left",
    rng: RngLike = 0,
) -> AnnData:
    """Filter, normalise, take logarithms, choose genes and bin, as scGPT's ``Preprocessor`` does :cite:p:`Cui2024`.

    A short name for calls of :mod:`scanpy.pp` in scGPT's order, for those who train on all measured genes.  To bin the
    genes of a model's vocabulary only, use :func:`tokenize`.  Differs from the original where that had a defect: a
    whole number is a target sum like any other, ``X_normed`` keeps the normalised values, and the bins are sparse.

    Parameters
    ----------
    adata
        Raw counts, in memory.  Never changed.
    {layer}
    min_gene_counts
        Drop genes with fewer counts; ``None`` keeps all.
    min_cell_counts
        Then drop cells with fewer counts; ``None`` keeps all.
    target_sum
        Counts of each cell after normalisation; ``None`` leaves the counts as they are.
    log1p
        Take ``log(1 + x)``.
    n_top_genes
        Keep this many highly variable genes; ``None`` keeps all.
    hvg_flavor
        How to choose them: the ``seurat_v3`` flavors from counts, the others from the last of the steps above.
    batch_key
        Column of ``obs``: choose genes within each batch.
    bins
        Number of bins, zero included; ``None`` does not bin.
    ties
        Bin of a value that sits on several equal edges: the last between them, or one drawn by seed.
    {rng}

    Returns
    -------
    A new table with the genes and cells that are left, ``X`` as it was, and

    ``layers["X_normed"]`` : float
        Values after normalisation.
    ``layers["X_log1p"]`` : float
        Their logarithms.
    ``layers["X_binned"]`` : :class:`scipy.sparse.csr_matrix`, uint8 or int16
        Bins of the last of those, by each cell's own quantiles.

    Raises
    ------
    KeyError
        If the layer is absent; the message lists what is there.
    ValueError
        If a value is negative, missing or infinite, or the table is backed.
    """
    if adata.isbacked:
        raise ValueError("Expected a table in memory, found a backed one. Pass `adata.to_memory()`.")
    RowSource(adata, layer=layer).check()
    adata = _filtered(adata, layer, min_gene_counts, min_cell_counts)
    keys, last = PreprocessKeys(), layer
    if log1p and (units := describe_values(_matrix(adata, layer))).unit == "log1p":
        warn(f"Expected values without a logarithm, found {units}. Pass log1p=False to leave it out.", stacklevel=2)
    if target_sum is not None:
        adata.layers[keys.normed] = _matrix(adata, last).copy()
        sc.pp.normalize_total(adata, target_sum=float(target_sum), layer=keys.normed)
        last = keys.normed
    if log1p:
        adata.layers[keys.log1p] = _matrix(adata, last).copy()
        sc.pp.log1p(adata, layer=keys.log1p)
        last = keys.log1p
    if n_top_genes is not None:
        source = layer if hvg_flavor.startswith("seurat_v3") else last
        sc.pp.highly_variable_genes(
            adata, layer=source, n_top_genes=n_top_genes, flavor=hvg_flavor, batch_key=batch_key, subset=True
        )
    if bins is not None:
        adata.layers[keys.binned] = bin_rows(
            canonical(_matrix(adata, last)),
            bins,
            ties=ties,
            keys=row_keys(adata.obs_names),
            token_of=_gene_keys(adata),
            seed=int(seed_of(rng)),
        )
    return adata


def _filtered(adata: AnnData, layer: str | None, min_gene_counts: int | None, min_cell_counts: int | None) -> AnnData:
    """A copy with the genes, then the cells, that have enough counts."""
    if min_gene_counts is not None:
        enough, _ = sc.pp.filter_genes(_matrix(adata, layer), min_counts=min_gene_counts)
        adata = adata[:, enough]
    if min_cell_counts is not None:
        enough, _ = sc.pp.filter_cells(_matrix(adata, layer), min_counts=min_cell_counts)
        adata = adata[enough]
    return adata.copy()


def _matrix(adata: AnnData, layer: str | None) -> sp.csr_matrix | NDArray[np.generic]:
    return adata.X if layer is None else adata.layers[layer]


def _gene_keys(adata: AnnData) -> NDArray[np.int64]:
    """Numbers that stand for the genes in draws, whatever their order and number."""
    return (row_keys(adata.var_names) >> np.uint64(1)).astype(np.int64)
