"""scIB scores of embeddings, always beside baselines."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args
from warnings import catch_warnings, filterwarnings

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from mudata import MuData
from sklearn.neighbors import NearestNeighbors

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice, check_key, check_texts, check_type
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.modalities import ModalityRows, cell_columns, has_modalities
from scgpt_tools.data.rows import RowSource, plain_vectors, slots_of
from scgpt_tools.metrics.integration import AGGREGATE, GROUPS
from scgpt_tools.settings import settings
from scgpt_tools.tokens.units import describe_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import scipy.sparse as sp

logger = logging.getLogger(__name__)

Baseline = Literal["X_pca", "hvg"]

# Above this many cells, exact neighbours take longer than approximate ones.
_EXACT_UP_TO = 20_000
# The largest neighbourhood that a score looks at.
_NEIGHBOURS = 90
_COMPONENTS = 50


@shared_docs
def score_embedding(
    adata: AnnData | MuData,
    *,
    label_key: str,
    batch_key: str | None = None,
    embeddings: Sequence[str] = ("X_scGPT",),
    baselines: Sequence[Baseline] = ("X_pca", "hvg"),
    kbet: bool = False,
    layer: str | None = None,
    n_top_genes: int = 2000,
    modality: str | None = None,
    n_jobs: int = 1,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Score embeddings for cell types kept and batches mixed, as scIB does :cite:p:`Luecken2022`.

    Runs the ``Benchmarker`` of scib-metrics (extra ``scib``) on each embedding and on baselines.  Scores compare
    embeddings of the same cells; between data sets they do not.

    Parameters
    ----------
    adata
        Embedded cells; not changed.
    label_key
        Column of ``obs`` with cell types.
    batch_key
        Column of ``obs`` with technical batches; ``None`` scores cell types only.
    embeddings
        Keys of ``obsm`` to score.
    baselines
        What to score beside them: ``"X_pca"``, the key of ``obsm`` if it is there, else 50 principal components of
        log-normalised variable genes; ``"hvg"``, those genes themselves.  Neither corrects batches.
    kbet
        Also compute kBET, which takes longer than all other scores together.  Without it the mean over batch
        scores, and so the total, is over the others; it differs from tables that have it.
    layer
        Counts or log-normalised values to compute baselines from; ``None`` takes ``X``.
    n_top_genes
        Number of variable genes.
    modality
        Which modality of a MuData holds the embeddings; ``None`` takes those of all its cells, with baselines from its
        RNA.
    n_jobs
        Threads of the neighbour search above 20,000 cells, where it is approximate; below, it is exact.
    {show_progress}

    Returns
    -------
    One row per embedding, one column per score, each from 0 to 1 and more is better; then the means ``"Bio
    conservation"`` and ``"Batch correction"`` and their weighted mean ``"Total"`` (0.6 and 0.4).  A score that was not
    computed is a column of NaN.

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    KeyError
        If a column or an embedding is absent; the message lists what is there.
    ValueError
        If there are fewer than 91 cells, cells without label or batch, fewer than two labels or batches, every label
        comes from one batch only, or an embedding is not finite.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> table = sct.tl.score_embedding(adata, label_key="cell_type", batch_key="batch")  # doctest: +SKIP
    >>> sct.pl.scores(table)  # doctest: +SKIP
    """
    check_arguments(score_embedding, locals())
    for baseline in check_texts("baselines", baselines, least=0):
        check_choice("baselines", baseline, get_args(Baseline))
    if not [*embeddings, *baselines]:
        raise ValueError("Expected `embeddings` or `baselines` to score, found none of either.")
    table = slots_of(check_type("adata", adata, (AnnData, MuData)), modality)
    vectors = {
        key: plain_vectors(table.obsm[check_key(table.obsm, key, "obsm")], f"obsm[{key!r}]") for key in embeddings
    }
    obs = _labels(table, label_key, batch_key)
    with _quiet():
        benchmark = optional("scib_metrics.benchmark", extra="scib")
    scored = ad.AnnData(obs=obs, obsm=vectors)
    genes = _variable_genes(*_gene_values(adata, layer, modality), obs, n_top_genes)
    scored.obsm["X_pca"] = _components(table, genes)
    scored.obsm["hvg"] = genes.X.toarray()
    names = list(dict.fromkeys([*embeddings, *baselines]))
    show = settings.show_progress if show_progress is None else show_progress
    runner = benchmark.Benchmarker(
        scored,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=names,
        bio_conservation_metrics=benchmark.BioConservation(isolated_labels=batch_key is not None),
        batch_correction_metrics=None if batch_key is None else benchmark.BatchCorrection(kbet_per_label=kbet),
        pre_integrated_embedding_obsm_key="X_pca",
        n_jobs=n_jobs,
        progress_bar=show,
    )
    with _quiet():
        runner.prepare(_exact_neighbours if len(scored) <= _EXACT_UP_TO else None)
        runner.benchmark()
        results = runner.get_results(min_max_scale=False)
    if batch_key is not None and not kbet:
        logger.info("Scored without kBET: 'Batch correction' and 'Total' are means over the other scores.")
    return _tidy(results, names, with_batch=batch_key is not None)


def _labels(table: AnnData | MuData, label_key: str, batch_key: str | None) -> pd.DataFrame:
    if table.n_obs <= _NEIGHBOURS:
        raise ValueError(f"Expected more than {_NEIGHBOURS} cells to score neighbourhoods of, found {table.n_obs}.")
    columns = {"label": label_key} if batch_key is None else {"label": label_key, "batch": batch_key}
    obs = pd.DataFrame(index=table.obs_names.astype(str))
    for name, key in columns.items():
        classes = read_classes(cell_columns(table), key)
        if len(classes.names) < 2:
            raise ValueError(f"Expected at least two classes in obs[{key!r}], found only {classes.names}.")
        obs[name] = pd.Categorical([classes.names[code] for code in classes.codes], categories=list(classes.names))
    if batch_key is None:
        obs["batch"] = pd.Categorical(["all"] * len(obs))
    else:
        _refuse_confounded(obs, label_key, batch_key)
    return obs


def _refuse_confounded(obs: pd.DataFrame, label_key: str, batch_key: str) -> None:
    """How batches mix within a type can be told of types that come from several only."""
    batches = obs.groupby("label", observed=True)["batch"].nunique()
    if (batches < 2).all():
        raise ValueError(
            f"Expected a type in obs[{label_key!r}] that comes from several batches, found each of the {len(batches)} in "
            f"one of obs[{batch_key!r}] only: mixing of batches and keeping of types cannot be told apart. Leave out "
            "`batch_key` to score the types alone."
        )


def _gene_values(
    adata: AnnData | MuData, layer: str | None, modality: str | None
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """What baselines are computed from, and some rows that show its unit; of a MuData its RNA or, without such, its first modality."""
    if not has_modalities(adata) or modality is not None:
        source = RowSource(adata, layer=layer, modality=modality)
        return source.take(np.arange(len(source))), source.sample()
    name = "rna" if "rna" in adata.mod else next(iter(adata.mod))
    rows = ModalityRows(adata, modalities=[name], layer=layer)
    # Without the column that tells measured cells from others.
    return rows.take(np.arange(len(rows)))[:, :-1], rows.parts[name].sample()


def _variable_genes(X: sp.csr_matrix, sample: sp.csr_matrix, obs: pd.DataFrame, n_top_genes: int) -> AnnData:
    """Log-normalised values of the genes that vary most, batch by batch."""
    values = ad.AnnData(X.astype(np.float32), obs=obs)
    if describe_values(sample).unit in ("counts", "normalised"):
        sc.pp.normalize_total(values, target_sum=1e4)
        sc.pp.log1p(values)
    sc.pp.filter_genes(values, min_cells=1)
    if values.n_vars > n_top_genes:
        several = obs["batch"].nunique() > 1
        sc.pp.highly_variable_genes(values, n_top_genes=n_top_genes, batch_key="batch" if several else None)
        values = values[:, values.var["highly_variable"]].copy()
    return values


def _components(table: AnnData | MuData, genes: AnnData) -> np.ndarray:
    if "X_pca" in table.obsm:
        return plain_vectors(table.obsm["X_pca"], "obsm['X_pca']")
    n_comps = min(_COMPONENTS, genes.n_obs - 1, genes.n_vars - 1)
    return sc.pp.pca(genes, n_comps=n_comps, copy=True).obsm["X_pca"]


def _exact_neighbours(X: np.ndarray, k: int) -> Any:
    """Neighbours of each cell, itself the first, as scib-metrics wants them."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(X).kneighbors(X)
    module = optional("scib_metrics.nearest_neighbors", extra="scib")
    return module.NeighborsResults(indices=indices, distances=distances)


def _tidy(results: pd.DataFrame, names: list[str], *, with_batch: bool) -> pd.DataFrame:
    """Columns by group, means at the end; what was not computed is there and empty."""
    table = results.loc[names].astype(float)
    table.index.name, table.columns.name = "embedding", None
    if with_batch and "KBET" not in table:
        table["KBET"] = np.nan
    # Scores that a newer scib-metrics may have come before the means.
    first = [name for name in GROUPS if name in table and GROUPS[name] != AGGREGATE]
    last = [name for name in GROUPS if name in table and GROUPS[name] == AGGREGATE]
    return table[[*first, *(name for name in table if name not in GROUPS), *last]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about how scib-metrics uses other packages, and about what those would like to have."""
    with catch_warnings():
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            filterwarnings("ignore", category=category)
        # Batches explain more of a bad embedding than of PCA; the score is 0 then, which says it.
        filterwarnings("ignore", message="PCR comparison score is negative")
        yield
