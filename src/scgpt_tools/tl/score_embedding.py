"""scIB scores of embeddings, always beside baselines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, get_args

from anndata import AnnData
from mudata import MuData

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import check_choice, check_key, check_texts, check_type
from scgpt_tools.data.rows import plain_vectors, slots_of
from scgpt_tools.settings import settings
from scgpt_tools.tl._scib import components_of, gene_values, labels_of, score_with_scib, variable_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

logger = logging.getLogger(__name__)

Baseline = Literal["X_pca", "hvg"]


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
    obs = labels_of(table, label_key, batch_key)
    genes = variable_genes(*gene_values(adata, layer, modality), obs, n_top_genes)
    own = "X_pca" in table.obsm
    components = plain_vectors(table.obsm["X_pca"], "obsm['X_pca']") if own else components_of(genes)
    others = {"X_pca": components, "hvg": genes.X.toarray()}
    names = list(dict.fromkeys([*embeddings, *baselines]))
    scores = score_with_scib(
        obs,
        {name: vectors[name] if name in vectors else others[name] for name in names},
        components,
        with_batch=batch_key is not None,
        kbet=kbet,
        n_jobs=n_jobs,
        show=settings.show_progress if show_progress is None else show_progress,
    )
    if batch_key is not None and not kbet:
        logger.info("Scored without kBET: 'Batch correction' and 'Total' are means over the other scores.")
    return scores
