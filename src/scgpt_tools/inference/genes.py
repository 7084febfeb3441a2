"""A classifier on genes over a table that was opened for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.gene_classifier import genes_of, log_normalised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.inference.cells import Cells
    from scgpt_tools.models.gene_classifier import GeneClassifier
    from scgpt_tools.tokens.features import FeatureTable


@dataclass(frozen=True, eq=False)
class GeneCells:
    """Cells whose columns are matched to the genes of a classifier."""

    source: RowSource
    features: FeatureTable
    classifier: GeneClassifier

    def probabilities(self) -> NDArray[np.float32]:
        """(cells, C) of every class, block by block."""
        unit = self.source.units.unit
        parts = [
            self.classifier.probabilities(log_normalised(block.X, unit)[:, self.features.columns], self.features.ids)
            for block in self.source.blocks(1024)
        ]
        return np.concatenate(parts)


def open_genes(cells: Cells, classifier: GeneClassifier) -> GeneCells:
    """The same table for a classifier, with the names that the model's genes were matched by."""
    source, request = cells.source, cells.request
    if request.tokens is not None:
        raise ValueError(
            f"Expected values for a classifier on genes, found bins, tokens={request.tokens!r}. Leave it out."
        )
    if not isinstance(source, RowSource):
        raise TypeError("Expected one modality for a classifier on genes, found several. Name one with `modality`.")
    features = genes_of(
        source.var,
        classifier.vocabulary,
        request.duplicates,
        source.totals,
        column=request.genes,
        symbols=request.symbols,
        aliases=request.aliases,
        ignore_case=request.ignore_case,
    )
    return GeneCells(source, features, classifier)
