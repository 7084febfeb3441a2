"""What baselines learn from, mean changes of training conditions, and what they give back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgpt_tools._validate import check_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    GeneSet = tuple[str, ...]


@dataclass(frozen=True)
class TrainingEffects:
    """Mean changes of Q training conditions over G genes."""

    genes: tuple[str, ...]
    """Names of the G columns."""
    control: NDArray[np.float64]
    """(G,) mean of the training controls."""
    perturbed: tuple[GeneSet, ...]
    """Genes that each condition perturbs."""
    effects: NDArray[np.float64]
    """(Q, G) change of each condition against the control of its own context."""
    n_cells: NDArray[np.int64] | None = None
    """(Q,) cells of each condition, for :func:`perturbed_mean` by cell."""
    errors: NDArray[np.float64] | None = None
    """(Q, G) standard error of each effect, for :func:`shrunken_mean`."""

    def __post_init__(self) -> None:
        shape = (len(self.perturbed), len(self.genes))
        if self.effects.shape != shape or self.control.shape != shape[1:]:
            raise ValueError(
                f"Expected effects of shape {shape} and controls of shape {shape[1:]}, "
                f"found {self.effects.shape} and {self.control.shape}."
            )
        check_numbers("control", self.control)
        check_numbers("effects", self.effects)
        if self.n_cells is not None and np.shape(self.n_cells) != shape[:1]:
            raise ValueError(f"Expected `n_cells` of shape {shape[:1]}, found {np.shape(self.n_cells)}.")
        if self.errors is not None and check_numbers("errors", self.errors).shape != shape:
            raise ValueError(f"Expected `errors` of shape {shape}, found {self.errors.shape}.")
        if not self.perturbed or not all(self.perturbed):
            raise ValueError("Expected at least one training condition, each with a perturbed gene, and no controls.")

    def singles(self) -> dict[str, NDArray[np.float64]]:
        """Effect of each gene that is perturbed alone; the mean where several conditions do so."""
        rows: dict[str, list[int]] = {}
        for row, genes in enumerate(self.perturbed):
            if len(genes) == 1:
                rows.setdefault(genes[0], []).append(row)
        return {gene: self.effects[own].mean(axis=0) for gene, own in rows.items()}

    def by_genes(self) -> TrainingEffects:
        """The same with one condition for each set of genes, the mean over its cells in all contexts."""
        rows: dict[GeneSet, list[int]] = {}
        for row, genes in enumerate(self.perturbed):
            rows.setdefault(tuple(sorted(genes)), []).append(row)
        if len(rows) == len(self.perturbed):
            return replace(self, perturbed=tuple(rows))
        cells = np.ones(len(self.perturbed), dtype=np.int64) if self.n_cells is None else self.n_cells
        shares = [cells[own, None] / cells[own].sum() for own in rows.values()]
        each = list(zip(rows.values(), shares, strict=True))
        errors = None
        if self.errors is not None:
            errors = np.stack([np.sqrt(np.sum((share * self.errors[own]) ** 2, axis=0)) for own, share in each])
        return replace(
            self,
            perturbed=tuple(rows),
            effects=np.stack([np.sum(share * self.effects[own], axis=0) for own, share in each]),
            n_cells=np.array([cells[own].sum() for own in rows.values()]),
            errors=errors,
        )

    def mean(self, *, by_cell: bool = False) -> NDArray[np.float64]:
        """(G,) mean effect, over conditions or over their cells."""
        if by_cell and self.n_cells is None:
            raise ValueError("Expected `n_cells` of the training effects to weigh by cell, found None.")
        return np.average(self.effects, axis=0, weights=self.n_cells if by_cell else None)


class Prediction(NamedTuple):
    """Effects of T conditions, and of which of them the baseline knew every gene."""

    effects: NDArray[np.float64]
    """(T, G)"""
    informed: NDArray[np.bool_]
    """(T,) False where the mean over training conditions stood in for a gene."""
