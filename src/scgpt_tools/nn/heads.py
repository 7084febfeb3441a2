"""From token and cell embeddings to predictions.

A head reads :class:`HeadInput` and returns named tensors; a name ending in ``_nonzero`` is the probability that a value
is not zero.  ``context`` is what is known of a cell beside its expression (batch label, modality), as one embedding.

Shape letters: B cells, L tokens, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from scgpt_tools.nn.reversal import reverse_gradient

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HeadInput:
    """What heads may read."""

    tokens: Tensor
    """(B, L, D) encoder output."""
    genes: Tensor
    """(B, L, D) gene embeddings."""
    cell: Tensor
    """(B, D) pooled embedding."""
    values: Tensor
    """(B, L) input values."""
    mask: Tensor
    """(B, L) True on real tokens."""
    token_context: Tensor | None = None
    """(B, L, D)."""
    cell_context: Tensor | None = None
    """(B, D)."""

    @property
    def tokens_in_context(self) -> Tensor:
        """(B, L, D or 2 D): token part first."""
        return self.tokens if self.token_context is None else torch.cat((self.tokens, self.token_context), dim=-1)

    @property
    def cell_in_context(self) -> Tensor:
        """(B, D or 2 D): cell part first."""
        return self.cell if self.cell_context is None else torch.cat((self.cell, self.cell_context), dim=-1)

    @property
    def genes_in_context(self) -> Tensor:
        """(B, L, D or 2 D): gene part first."""
        return self.genes if self.token_context is None else torch.cat((self.genes, self.token_context), dim=-1)


class Predicted(NamedTuple):
    """What a head says of each token."""

    value: Tensor
    """(B, L)."""
    nonzero: Tensor | None = None
    """(B, L) probability that the value is not zero, of heads that have one."""


def _named(name: str, value: Tensor, nonzero: Tensor | None) -> dict[str, Tensor]:
    return {name: value} if nonzero is None else {name: value, f"{name}_nonzero": nonzero}


def regressor(width: int, dim: int) -> nn.Sequential:
    """Three linear maps with leaky ReLUs, ending in one number."""
    return nn.Sequential(nn.Linear(width, dim), nn.LeakyReLU(), nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1))


class ExpressionHead(nn.Module):
    """Predict each token's expression from its embedding (MLM, GEP)."""

    def __init__(self, dim: int, width: int, *, nonzero: bool = False) -> None:
        super().__init__()
        self.value = regressor(width, dim)
        self.nonzero = regressor(width, dim) if nonzero else None

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return ``expression`` (B, L) and perhaps ``expression_nonzero`` (B, L)."""
        return _named("expression", *self.predict(inputs.tokens_in_context))

    def predict(self, x: Tensor) -> Predicted:
        """From (B, L, width) to values (B, L), and the probability that they are not zero."""
        value = self.value(x).squeeze(-1)
        return Predicted(value, None if self.nonzero is None else self.nonzero(x).squeeze(-1).sigmoid())


class AffineExpressionHead(nn.Module):
    r"""Predict expression after a perturbation as :math:`a \odot x + b`, with a and b read from each token.

    scGPT's affine decoder :cite:p:`Cui2024`.  ``adaptive_offset`` multiplies b by the mean non-zero input of the cell
    (0 for a cell without any, where the original divides by zero).
    """

    def __init__(
        self, dim: int, *, nonzero: bool = False, activation: str | None = None, adaptive_offset: bool = False
    ) -> None:
        super().__init__()
        self.slope, self.offset = regressor(dim, dim), regressor(dim, dim)
        self.nonzero = regressor(dim, dim) if nonzero else None
        self.activation = nn.Identity() if activation is None else _activation(activation)
        self.adaptive_offset = adaptive_offset

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return ``expression`` (B, L) in the unit of the input and perhaps ``expression_nonzero`` (B, L)."""
        slope, offset = (part(inputs.tokens).squeeze(-1) for part in (self.slope, self.offset))
        predictions = {"expression": self.affine(slope, offset, inputs.values, inputs.mask)}
        if self.nonzero is not None:
            predictions["expression_nonzero"] = self.nonzero(inputs.tokens).squeeze(-1).sigmoid()
        return predictions

    def affine(self, slope: Tensor, offset: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Expression (B, L) from slope, offset, the values before and where tokens are real."""
        slope, offset = self.activation(slope), self.activation(offset)
        if self.adaptive_offset:
            real = values * mask
            nonzero = (real != 0).sum(dim=1, keepdim=True).clamp(min=1)
            offset = offset * real.sum(dim=1, keepdim=True) / nonzero
        return slope * values + offset


def _activation(name: str) -> nn.Module:
    found = getattr(nn, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"Expected `activation` to name a class of torch.nn such as 'ReLU', found {name!r}.")
    try:
        return found()
    except TypeError:
        raise ValueError(f"Expected `activation` to need no arguments, such as 'ReLU', found {name!r}.") from None


class FromCellHead(nn.Module):
    r"""Predict expression from the cell embedding and each gene's embedding (MVC, GEPC).

    ``"inner"`` computes :math:`c^\top W q_g` with the query :math:`q_g = \sigma(Q g)`; ``"inner_detached"`` keeps the
    gradient out of the gene embeddings; ``"concat"`` and ``"sum"`` feed both to a small network.
    """

    NARROW = 64

    def __init__(self, *, width: int, query: int, style: str = "inner", nonzero: bool = False) -> None:
        super().__init__()
        self.style = style
        self.detached = style == "inner_detached"
        self.query = nn.Linear(query, self.NARROW if style == "concat" else query)
        if style in ("inner", "inner_detached"):
            self.product = nn.Linear(query, width, bias=False)
            self.nonzero = nn.Linear(query, width) if nonzero else None
        else:
            self.expand = nn.Linear(width + self.NARROW if style == "concat" else width, self.NARROW)
            self.activation, self.contract = nn.PReLU(), nn.Linear(self.NARROW, 1)

    def forward(self, inputs: HeadInput, *, genes: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``expression_from_cell`` (B, L) and perhaps its ``_nonzero`` (B, L)."""
        genes = inputs.genes if genes is None else genes
        return _named("expression_from_cell", *self.predict(inputs.cell_in_context, genes))

    def predict(self, cell: Tensor, genes: Tensor) -> Predicted:
        """From cells (B, width) and genes (B, L, query) to values (B, L), and the probability that they are not zero."""
        query = self.query(genes.detach() if self.detached else genes).sigmoid()
        if self.style in ("concat", "sum"):
            cells = cell.unsqueeze(1)
            joint = (
                torch.cat((cells.expand(-1, query.shape[1], -1), query), -1)
                if self.style == "concat"
                else cells + query
            )
            return Predicted(self.contract(self.activation(self.expand(joint))).squeeze(-1))
        value = self.score(self.product, query, cell)
        return Predicted(value, None if self.nonzero is None else self.score(self.nonzero, query, cell).sigmoid())

    def score(self, linear: nn.Module, query: Tensor, cell: Tensor) -> Tensor:
        """(W q + b) . c as q . (W' c) + b . c: the cell goes through the map once, not every gene."""
        weight, bias = cast("Tensor", linear.weight), cast("Tensor | None", linear.bias)
        scores = inner(query, cell @ weight)
        return scores if bias is None else scores + (cell @ bias).unsqueeze(1)


class FromCellInContextHead(FromCellHead):
    """The same with the context in the gene query too, as in scGPT's multi-omic class."""

    def forward(self, inputs: HeadInput, *, genes: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``expression_from_cell`` (B, L) and perhaps its ``_nonzero`` (B, L)."""
        return super().forward(inputs, genes=inputs.genes_in_context if genes is None else genes)


def inner(query: Tensor, cell: Tensor) -> Tensor:
    """(B, L, D) and (B, D) to (B, L)."""
    return torch.bmm(query, cell.unsqueeze(-1)).squeeze(-1)


class ClassifierHead(nn.Module):
    """Predict a class from the cell embedding (CLS): linear, activation, then norm, in that order, per layer."""

    name = "cell_type"

    def __init__(self, dim: int, classes: int, layers: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        parts = [part for _ in range(layers - 1) for part in (nn.Linear(dim, dim), activation(), nn.LayerNorm(dim))]
        self.hidden, self.out = nn.Sequential(*parts), nn.Linear(dim, classes)

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, C) under the head's name."""
        return {self.name: self.logits(inputs.cell)}

    def logits(self, cell: Tensor) -> Tensor:
        """(B, D) cell embeddings to (B, C) logits."""
        return self.out(self.hidden(cell))


class AdversaryHead(ClassifierHead):
    """Predict the batch label behind a gradient reversal, so that the encoder learns to hide it (DAB)."""

    name = "batch"

    def __init__(self, dim: int, classes: int, layers: int = 3) -> None:
        super().__init__(dim, classes, layers, nn.LeakyReLU)
        self.reversal = 1.0
        """Factor of the reversed gradient; part of a training run, not of the model."""

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, C) under ``batch``."""
        return {self.name: self.logits(reverse_gradient(inputs.cell, self.reversal))}


def sample_zeros(prediction: Tensor, nonzero: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Set predictions to zero at random, each with the probability ``1 - nonzero``."""
    return torch.bernoulli(nonzero, generator=generator) * prediction
