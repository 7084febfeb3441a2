"""A plain member for a committee of models that name cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_generator, check_integer
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.calibration import draw_cells
from scgpt_tools.models.gene_classifier import (
    N_GENES,
    GeneClassifier,
    genes_of,
    log_normalised,
    most_variable,
    sums_of_columns,
)
from scgpt_tools.settings import settings
from scgpt_tools.tokens.names import column_names
from scgpt_tools.vocabulary import PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.matching import Duplicates

# Cells that are read at once.
_ROWS = 8192


@shared_docs
def fit_gene_classifier(
    reference: AnnData | MuData,
    *,
    label_key: str,
    layer: str | None = None,
    genes: str | None = None,
    duplicates: Duplicates = "most_counts",
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
    duplicates
        Of several columns of the same name, read the one with the ``"most_counts"`` or the ``"first"``, both with a warning, or
        refuse them (``"error"``), as where the classifier is used.
    {modality}
    n_genes
        Genes of the largest variance to look at.
    n_cells
        Most cells to fit to; of more, so many are drawn, of rare classes up to 50 each.
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
        If fewer than two classes have cells, there are more classes than ``n_cells``, several columns have the same name and
        ``duplicates="error"``, or a value is negative, missing or infinite.

    Warns
    -----
    UserWarning
        If several columns have the same name.

    Notes
    -----
    Cells are read in blocks, twice: to choose the genes, and to keep the values of these that are not zero, at some 12 bytes
    each and for a moment twice that.  A million cells with 400 of the chosen genes each are 5 GB.

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
    if len(labels.names) > n_cells:
        raise ValueError(
            f"Expected `n_cells` to be one for each class or more, {len(labels.names)}, found {n_cells}. Take more cells."
        )
    check_integer("n_genes", n_genes)
    names = dict.fromkeys(name for name in column_names(source.var, genes) if name is not None)
    features = genes_of(source.var, Vocabulary([PAD, *names]), duplicates, source.totals, column=genes)
    cells = np.flatnonzero(labels.codes != UNKNOWN)
    cells = cells[draw_cells(labels.codes[cells], n_cells, as_generator(rng))]
    columns, X = _read(source, cells, features.columns, n_genes)
    known = features.names[np.searchsorted(features.columns, columns)]
    return GeneClassifier.fit(
        X, labels.codes[cells], genes=list(map(str, known)), classes=labels.names, n_genes=n_genes, strength=strength
    )


def _read(
    source: RowSource, cells: NDArray[np.int64], columns: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], sp.csr_matrix]:
    """Those of some columns that vary most among some cells, and their values in these, log-normalised."""
    unit = source.units.unit
    with settings.progress((), total=2 * cells.size, unit="cell", show=None if cells.size > _ROWS else False) as bar:

        def blocks(wanted: NDArray[np.int64]) -> Iterator[sp.csr_matrix]:
            for start in range(0, cells.size, _ROWS):
                rows = cells[start : start + _ROWS]
                yield log_normalised(source.take(rows), unit)[:, wanted]
                bar.update(rows.size)

        sums, squares = (sum(each) for each in zip(*map(sums_of_columns, blocks(columns)), strict=True))
        chosen = columns[most_variable(sums, squares, rows=cells.size, n=n)]
        return chosen, sp.vstack(list(blocks(chosen)), format="csr")
