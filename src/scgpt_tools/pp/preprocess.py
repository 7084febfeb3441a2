"""The steps that scGPT puts before its transformer, by scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import scanpy as sc
from anndata import AnnData

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import PreprocessKeys
from scgpt_tools._optional import optional
from scgpt_tools._types import Ties
from scgpt_tools._validate import as_seed, check_choice, check_key, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import RowSource, row_keys
from scgpt_tools.tokens.units import describe_values
from scgpt_tools.tokens.values import bin_rows, canonical, in_usual_form

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

Flavor: TypeAlias = Literal["seurat", "cell_ranger", "seurat_v3", "seurat_v3_paper"]
"""How highly variable genes are chosen."""

# These fit a curve by a function of scikit-misc.
_BY_LOESS = ("seurat_v3", "seurat_v3_paper")


@shared_docs
def preprocess(
    adata: AnnData,
    *,
    layer: str | None = None,
    min_gene_counts: int | None = None,
    min_cell_counts: int | None = None,
    min_cell_genes: int | None = None,
    target_sum: float | None = 1e4,
    log1p: bool = True,
    n_top_genes: int | None = None,
    hvg_flavor: Flavor = "seurat",
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
    min_cell_genes
        Then drop cells with fewer genes above zero; ``None`` keeps all.
    target_sum
        Counts of each cell after normalisation; ``None`` leaves the counts as they are.
    log1p
        Take ``log(1 + x)``.
    n_top_genes
        Keep this many highly variable genes; ``None`` keeps all.
    hvg_flavor
        How to choose them: from the last of the steps above, or with ``"seurat_v3"``, scGPT's own default, and
        ``"seurat_v3_paper"`` from counts, which needs scikit-misc (extra ``hvg``).
    batch_key
        Column of ``obs``: choose genes within each batch; only with ``n_top_genes``.
    bins
        Number of bins, zero included; ``None`` does not bin.
    ties
        Bin of a value that sits on several equal edges: the last between them, or one drawn by seed.
    {rng}

    Returns
    -------
    A new table with the genes and cells that are left, the values of ``X`` as they were (in a form that scanpy takes), and

    ``layers["X_normed"]`` : float
        Values after normalisation.
    ``layers["X_log1p"]`` : float
        Their logarithms.
    ``layers["X_binned"]`` : :class:`scipy.sparse.csr_matrix`, uint8 or int16
        Bins of the last of those, by each cell's own quantiles.

    Raises
    ------
    ImportError
        If scikit-misc is needed and not installed.
    KeyError
        If the layer or ``batch_key`` is absent; the message lists what is there.
    ValueError
        If a value is negative, missing or infinite, the table is backed, or nothing is left of it.
    """
    check_arguments(preprocess, locals())
    check_choice("hvg_flavor", hvg_flavor, get_args(Flavor))
    check_choice("ties", ties, get_args(Ties))
    check_type("adata", adata, AnnData)
    if batch_key is not None:
        check_key(adata.obs, batch_key, "obs")
    if n_top_genes is not None and hvg_flavor in _BY_LOESS:
        optional("skmisc", extra="hvg")
    if adata.isbacked:
        raise ValueError("Expected a table in memory, found a backed one. Pass `adata.to_memory()`.")
    source = RowSource(adata, layer=layer)
    source.check_memory()
    adata = _in_usual_form(adata, layer)
    adata = _filtered(adata, layer, min_gene_counts, min_cell_counts, min_cell_genes)
    for what, size in (("cells", adata.n_obs), ("genes", adata.n_vars)):
        if not size:
            raise ValueError(
                f"Expected {what} with so many counts, found none. Lower `min_gene_counts`, `min_cell_counts` or "
                "`min_cell_genes`."
            )
    keys, last = PreprocessKeys(), layer
    if log1p and (units := describe_values(_matrix(adata, layer))).unit == "log1p":
        warn_user(f"Expected values without a logarithm, found {units}. Pass log1p=False to leave it out.")
    if target_sum is not None:
        adata.layers[keys.normed] = _matrix(adata, last).copy()
        sc.pp.normalize_total(adata, target_sum=float(target_sum), layer=keys.normed)
        last = keys.normed
    if log1p:
        adata.layers[keys.log1p] = _matrix(adata, last).copy()
        sc.pp.log1p(adata, layer=keys.log1p)
        last = keys.log1p
    if n_top_genes is not None:
        adata = _variable(adata, layer, last, n_top_genes, hvg_flavor, batch_key)
    if bins is not None:
        adata.layers[keys.binned] = bin_rows(
            canonical(_matrix(adata, last)),
            bins,
            ties=ties,
            keys=row_keys(adata.obs_names),
            token_of=_gene_keys(adata),
            seed=as_seed(rng),
        )
    return adata


def _in_usual_form(adata: AnnData, layer: str | None) -> AnnData:
    """The table, or a copy with a matrix that scanpy takes: no half precision, foreign byte order or entries in parts."""
    matrix = _matrix(adata, layer)
    if (usual := in_usual_form(matrix)) is matrix:
        return adata
    adata = adata.copy()
    if layer is None:
        adata.X = usual
    else:
        adata.layers[layer] = usual
    return adata


def _filtered(
    adata: AnnData,
    layer: str | None,
    min_gene_counts: int | None,
    min_cell_counts: int | None,
    min_cell_genes: int | None,
) -> AnnData:
    """A copy with the genes, then the cells, that have enough counts."""
    if min_gene_counts is not None:
        enough, _ = sc.pp.filter_genes(_matrix(adata, layer), min_counts=min_gene_counts)
        adata = adata[:, enough]
    if min_cell_counts is not None:
        enough, _ = sc.pp.filter_cells(_matrix(adata, layer), min_counts=min_cell_counts)
        adata = adata[enough]
    if min_cell_genes is not None:
        enough, _ = sc.pp.filter_cells(_matrix(adata, layer), min_genes=min_cell_genes)
        adata = adata[enough]
    return adata.copy()


def _variable(
    adata: AnnData, counts: str | None, last: str | None, n_top_genes: int, flavor: Flavor, batch_key: str | None
) -> AnnData:
    """The genes that vary most."""
    if n_top_genes >= adata.n_vars:
        if n_top_genes > adata.n_vars:
            warn_user(
                f"Expected more than {n_top_genes:,} genes to choose from, found {adata.n_vars:,}, which all stay."
            )
        return adata
    layer = counts if flavor in _BY_LOESS else last
    if flavor not in _BY_LOESS and (units := describe_values(_matrix(adata, layer))).unit not in ("log1p", "empty"):
        warn_user(f"Expected log-normalised values for hvg_flavor={flavor!r}, found {units}. Pass log1p=True.")
    sc.pp.highly_variable_genes(adata, layer=layer, n_top_genes=n_top_genes, flavor=flavor, batch_key=batch_key)
    chosen = np.flatnonzero(adata.var["highly_variable"])
    if chosen.size > n_top_genes:  # genes that are as variable as the last one came in with it
        spread = adata.var["dispersions_norm"].to_numpy()[chosen]
        chosen = np.sort(chosen[np.argsort(-spread, kind="stable")[:n_top_genes]])
    return adata[:, chosen].copy()


def _matrix(adata: AnnData, layer: str | None) -> sp.csr_matrix | NDArray[np.generic]:
    return adata.X if layer is None else adata.layers[layer]


def _gene_keys(adata: AnnData) -> NDArray[np.int64]:
    """Numbers that stand for the genes in draws, whatever their order and number."""
    return (row_keys(adata.var_names) >> np.uint64(1)).astype(np.int64)
