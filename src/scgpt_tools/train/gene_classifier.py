"""A plain member for a committee of models that name cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_generator, check_integer
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.calibration import draw_held_out
from scgpt_tools.models.gene_classifier import N_GENES, GeneClassifier, log_normalised
from scgpt_tools.tokens.names import column_names

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools._types import RngLike


@shared_docs
def fit_gene_classifier(
    reference: AnnData | MuData,
    *,
    label_key: str,
    layer: str | None = None,
    genes: str | None = None,
    modality: str | None = None,
    n_genes: int = N_GENES,
    n_cells: int = 20_000,
    strength: float = 1.0,
    rng: RngLike = 0,
) -> GeneClassifier:
    """Fit logistic regression on genes to annotated cells, as a member of a committee.

    It errs elsewhere than a network, so :func:`scgpt_tools.tl.annotate` may be more right with both than with either; score
    it alone too.

    Parameters
    ----------
    reference
        Annotated cells; may be backed, lazy or a view.  Never changed.
    label_key
        Column of ``obs`` with classes.  Cells without one (NaN) are left out.
    layer
        Key of ``layers`` with counts or log1p values; ``None`` takes ``X``.  Counts are scaled to 10,000 a cell and logged.
    {genes}
    {modality}
    n_genes
        Genes of the largest variance to look at.
    n_cells
        Most cells to fit to; of more, so many are drawn, of rare classes at least 50.
    strength
        Inverse of the penalty on weights, scikit-learn's ``C``.
    rng
        Seed of the draw.

    Returns
    -------
    The classifier, which has ``save``.

    Raises
    ------
    KeyError
        If a column, layer or modality is absent; the message lists what is there.
    ValueError
        If fewer than two classes have cells, or a value is negative, missing or infinite.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(reference, "scgpt-demo", task="annotate", label_key="cell_type")  # doctest: +SKIP
    >>> linear = sct.train.fit_gene_classifier(reference, label_key="cell_type")  # doctest: +SKIP
    >>> sct.tl.annotate(query, [model, linear])  # doctest: +SKIP
    """
    check_arguments(fit_gene_classifier, locals())
    check_integer("n_cells", n_cells, least=2)
    source = RowSource(reference, layer=layer, modality=modality)
    labels = read_classes(source.obs, label_key, allow_unknown=True)
    if len(labels.names) < 2:
        raise ValueError(f"Expected cells of two classes of {label_key!r} or more, found only {list(labels.names)}.")
    names = column_names(source.var, genes)
    first = {name: place for place, name in reversed(list(enumerate(names))) if name is not None}
    columns = np.sort(np.fromiter(first.values(), dtype=np.int64))
    cells = np.flatnonzero(labels.codes != UNKNOWN)
    cells = cells[draw_held_out(labels.codes[cells], n_cells, as_generator(rng))]
    X = log_normalised(source.take(cells), source.units.unit)[:, columns]
    known = [str(names[column]) for column in columns]
    return GeneClassifier.fit(
        X, labels.codes[cells], genes=known, classes=labels.names, n_genes=n_genes, strength=strength
    )
