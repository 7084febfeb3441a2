"""What scib-metrics is given: labels and batches, baselines, exact neighbours; and its scores as a table."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.neighbors import NearestNeighbors

from scgpt_tools._optional import optional
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.modalities import ModalityRows, cell_columns, has_modalities
from scgpt_tools.data.rows import RowSource
from scgpt_tools.metrics.integration import AGGREGATE, GROUPS
from scgpt_tools.tokens.units import describe_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import scipy.sparse as sp
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

# Above this many cells, exact neighbours take longer than approximate ones.
_EXACT_UP_TO = 20_000
NEIGHBOURS = 90
"""The largest neighbourhood that a score looks at."""
COMPONENTS = 50
"""Principal components of a baseline."""


def score_with_scib(
    obs: pd.DataFrame,
    vectors: Mapping[str, NDArray[Any]],
    components: NDArray[Any],
    *,
    with_batch: bool,
    kbet: bool = False,
    n_jobs: int = 1,
    show: bool = False,
) -> pd.DataFrame:
    """Scores of embeddings of the same cells, one row each.

    ``obs``: columns ``label`` and ``batch``, as :func:`labels_of` makes them; ``vectors``: embeddings by name;
    ``components``: principal components, which the share of variance by batches is compared with.
    """
    with quiet():
        benchmark = optional("scib_metrics.benchmark", extra="scib")
    scored = ad.AnnData(obs=obs, obsm=dict(vectors))
    scored.obsm["_components"] = components
    runner = benchmark.Benchmarker(
        scored,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=list(vectors),
        bio_conservation_metrics=benchmark.BioConservation(isolated_labels=with_batch),
        batch_correction_metrics=benchmark.BatchCorrection(kbet_per_label=kbet) if with_batch else None,
        pre_integrated_embedding_obsm_key="_components",
        n_jobs=n_jobs,
        progress_bar=show,
    )
    with quiet():
        runner.prepare(_exact_neighbours if len(scored) <= _EXACT_UP_TO else None)
        runner.benchmark()
        results = runner.get_results(min_max_scale=False)
    return _tidy(results, list(vectors), with_batch=with_batch)


def labels_of(table: AnnData | MuData, label_key: str, batch_key: str | None) -> pd.DataFrame:
    """Label and batch of each cell, ``"all"`` for the batch without a column; refuses what cannot be scored."""
    if table.n_obs <= NEIGHBOURS:
        raise ValueError(f"Expected more than {NEIGHBOURS} cells to score neighbourhoods of, found {table.n_obs}.")
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


def gene_values(
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


def variable_genes(X: sp.csr_matrix, sample: sp.csr_matrix, obs: pd.DataFrame, n_top_genes: int) -> AnnData:
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


def components_of(genes: AnnData) -> NDArray[Any]:
    """(cells, 50) principal components of log-normalised values, fewer of small tables."""
    n_comps = min(COMPONENTS, genes.n_obs - 1, genes.n_vars - 1)
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
def quiet() -> Iterator[None]:
    """Silence warnings about how scib-metrics uses other packages, and about what those would like to have.

    It speaks through the root logger, which without a handler would get one for good, and messages of all packages, ours
    included, would look otherwise from then on.
    """
    root, none = logging.getLogger(), logging.NullHandler()
    root.addHandler(none)
    with catch_warnings():
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            filterwarnings("ignore", category=category)
        # Batches explain more of a bad embedding than of PCA; the score is 0 then, which says it.
        filterwarnings("ignore", message="PCR comparison score is negative")
        try:
            yield
        finally:
            root.removeHandler(none)
