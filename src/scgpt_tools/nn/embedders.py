"""From token ids and values to vectors.

Every part works on tokens of any leading shape, (B, L) or packed (N,), and returns the same shape with D appended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools._lookup import lookup
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.norms import DomainNorm, SharedNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class NormedTable(nn.Module):
    """A table of embeddings followed by a layer norm: genes, batch labels, modalities."""

    def __init__(self, rows: int, dim: int, pad: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim, padding_idx=pad)
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (...) ids."""
        return self.norm(self.table(ids))


def gene_table(rows: int, dim: int, pad: int) -> NormedTable:
    """Make the table of genes, drawn from U(-0.1, 0.1) as scGPT's, the row of padding included."""
    genes = NormedTable(rows, dim, pad)
    nn.init.uniform_(genes.table.weight, -0.1, 0.1)
    return genes


class ContinuousValue(nn.Module):
    """Embed a number by a small MLP; values are capped at 512 and negative markers are ordinary inputs.

    Bins are few: without gradients, on a CPU, each different value is embedded once and looked up.
    """

    CAP = 512.0
    REPEATS = 4
    """How often a value has to be there on average to be looked up."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, dim), Linear(dim, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) values."""
        if values.device.type == "cpu" and not self.training and not torch.is_grad_enabled():
            # On a GPU the number of different values would have to be waited for.
            different, places = values.unique(return_inverse=True)
            if len(different) * self.REPEATS <= values.numel():
                return F.embedding(places, self._embed(different))
        return self._embed(values)

    def _embed(self, values: Tensor) -> Tensor:
        x = values.to(self.first.weight.dtype).clamp(max=self.CAP).unsqueeze(-1)
        return self.dropout(self.norm(self.second(self.first(x).relu())))


class BinnedValue(NormedTable):
    """Embed a bin by its row of a table; fractions are cut off."""

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) bins.

        Raises
        ------
        ValueError
            If a bin has no row.
        """
        bins, rows = values.long(), self.table.num_embeddings
        # Both at once: each number that is read from a GPU has to be waited for.
        least, most = torch.stack(bins.aminmax()).tolist() if bins.numel() else (0, 0)
        if least < 0 or most >= rows:
            raise ValueError(
                f"Expected bins within 0 .. {rows - 1}, found {least} .. {most}. Markers for masked and padded values "
                "need rows of their own in the table."
            )
        return super().forward(bins)


class ScaleValue(nn.Module):
    """Leave the value a number: it multiplies the gene embedding."""

    def forward(self, values: Tensor) -> Tensor:
        """Append an axis to (...) values."""
        return values.unsqueeze(-1)


VALUES: dict[str, Callable[..., nn.Module]] = {
    "continuous": lambda dim, dropout, rows, pad: ContinuousValue(dim, dropout),
    "binned": lambda dim, dropout, rows, pad: BinnedValue(rows, dim, pad),
    "scale": lambda dim, dropout, rows, pad: ScaleValue(),
}

NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": lambda dim, domains: SharedNorm(dim),
    "domain": DomainNorm,
    "domain_of_first": lambda dim, domains: DomainNorm(dim, domains, of_first=True),
}


class Embedded(NamedTuple):
    """Vectors of the tokens, before the encoder."""

    tokens: Tensor
    """(..., D) the encoder's input."""
    genes: Tensor
    """(..., D) the gene part alone."""


class Embedder(nn.Module):
    """Add up what is known of a token: its gene, its value, its perturbation flag.

    Parameters
    ----------
    genes
        Rows of the gene table.
    pad
        Row that padding reads.
    dim
        Width of the vectors.
    dropout
        Probability in the value part.
    values
        A name in :data:`VALUES`; ``"scale"`` multiplies gene and value.
    value_rows, value_pad
        Size and padding row of the table of bins.
    perturbation_rows, perturbation_pad
        Size and padding row of the table of perturbation flags; 0 for none.
    generation
        Have a vector that stands for a value to be generated.
    norm
        A name in :data:`NORMS`, or ``"none"``.
    domains
        Number of batch labels with statistics of their own.
    """

    def __init__(
        self,
        *,
        genes: int,
        pad: int,
        dim: int,
        dropout: float,
        values: str = "continuous",
        value_rows: int | None = None,
        value_pad: int | None = None,
        perturbation_rows: int = 0,
        perturbation_pad: int | None = None,
        generation: bool = False,
        norm: str = "none",
        domains: int = 0,
    ) -> None:
        super().__init__()
        self.genes = gene_table(genes, dim, pad)
        self.values = lookup(VALUES, values, "value embedding")(dim, dropout, value_rows, value_pad)
        self.perturbation = (
            nn.Embedding(perturbation_rows, dim, padding_idx=perturbation_pad) if perturbation_rows else None
        )
        # Row 1 marks a token to be generated; row 0 is never read, but released checkpoints hold it.
        self.generation = nn.Embedding(2, dim) if generation else None
        self.norm = None if norm == "none" else lookup(NORMS, norm, "embedder norm")(dim, domains)

    def forward(
        self,
        genes: Tensor,
        values: Tensor | None,
        *,
        perturbed: Tensor | None = None,
        generated: Tensor | None = None,
        domain: Tensor | None = None,
    ) -> Embedded:
        """Embed tokens of any leading shape; ``values=None`` embeds the genes alone."""
        gene_vectors = self.genes(genes)
        tokens = gene_vectors if values is None else self._with_values(gene_vectors, values, generated)
        if perturbed is not None:
            if self.perturbation is None:
                raise ValueError("Expected a model with perturbation flags, found one without; load or train such one.")
            tokens = tokens + self.perturbation(perturbed)
        if self.norm is not None:
            tokens = self.norm(tokens, domain)
        return Embedded(tokens, gene_vectors)

    def _with_values(self, genes: Tensor, values: Tensor, generated: Tensor | None) -> Tensor:
        if generated is not None and self.generation is None:
            raise ValueError("Expected a model with the generation flag for generated tokens, found one without.")
        value_vectors = self.values(values)
        if isinstance(self.values, ScaleValue):
            return genes * value_vectors.to(genes.dtype)
        if generated is not None and self.generation is not None:
            value_vectors = torch.where(generated.unsqueeze(-1), self.generation.weight[1], value_vectors)
        return genes + value_vectors
