"""From token and cell embeddings to predictions.

A head reads :class:`~scgpt_tools.nn.sockets.HeadInput` and returns tensors by what to add to its name: nothing for the
prediction itself, ``_nonzero`` for the probability that a value is not zero.

Shape letters: B cells, L tokens, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.reversal import reverse_gradient
from scgpt_tools.nn.sockets import HeadConfig, HeadInput, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
"""Between the layers of heads that read cells."""

FromCellStyle = Literal["inner", "inner_detached", "concat", "sum"]


class Predicted(NamedTuple):
    """What a head says of each token."""

    value: Tensor
    """(B, L)."""
    nonzero: Tensor | None = None
    """(B, L) probability that the value is not zero, of heads that have one."""

    def named(self) -> dict[str, Tensor]:
        """By what to add to the name of a head."""
        return {"": self.value} if self.nonzero is None else {"": self.value, "_nonzero": self.nonzero}


def regressor(width: int, dim: int) -> nn.Sequential:
    """Three linear maps with leaky ReLUs, ending in one number."""
    return nn.Sequential(nn.Linear(width, dim), nn.LeakyReLU(), nn.Linear(dim, dim), nn.LeakyReLU(), nn.Linear(dim, 1))


class ExpressionHead(nn.Module):
    """Predict each token's expression from its embedding (MLM, GEP)."""

    widened: ClassVar[tuple[str, ...]] = ("value.0.weight", "nonzero.0.weight")
    """Tensors that have more room in a head with a context, which adds nothing at first."""

    def __init__(self, dim: int, width: int, *, nonzero: bool = False) -> None:
        super().__init__()
        self.value = regressor(width, dim)
        self.nonzero = regressor(width, dim) if nonzero else None

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return the expression (B, L) and perhaps its ``_nonzero`` (B, L)."""
        return self.predict(inputs.tokens_in_context).named()

    def predict(self, x: Tensor) -> Predicted:
        """From (B, L, width) to values (B, L), and the probability that they are not zero."""
        value = self.value(x).squeeze(-1)
        return Predicted(value, None if self.nonzero is None else self.nonzero(x).squeeze(-1).sigmoid())


@dataclass(frozen=True, kw_only=True)
class ExpressionConfig(HeadConfig):
    """Predict a token's expression from its contextual embedding (MLM, GEP)."""

    of_its_own: ClassVar[bool] = True

    nonzero: bool = False
    """Also predict the probability that the value is not zero."""

    def __post_init__(self) -> None:
        settle_fields(self)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return ExpressionHead(sizes.dim, sizes.width, nonzero=self.nonzero)


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
        """Return the expression (B, L) in the unit of the input and perhaps its ``_nonzero`` (B, L)."""
        slope, offset = (part(inputs.tokens).squeeze(-1) for part in (self.slope, self.offset))
        value = self.affine(slope, offset, inputs.values, inputs.mask)
        nonzero = None if self.nonzero is None else self.nonzero(inputs.tokens).squeeze(-1).sigmoid()
        return Predicted(value, nonzero).named()

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


@dataclass(frozen=True, kw_only=True)
class AffineConfig(ExpressionConfig):
    """Predict a slope and an offset for a token's input value, as scGPT does for perturbations."""

    activation: str | None = None
    """Name of a ``torch.nn`` activation on slope and offset."""
    adaptive_offset: bool = False
    """Scale the offset by the mean non-zero input value of the cell."""

    def check(self, sizes: Sizes) -> None:
        """Refuse a context, which the head would not see."""
        if sizes.context:
            raise ValueError("The affine expression head reads no context, found batches or modalities in `context`.")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return AffineExpressionHead(
            sizes.dim, nonzero=self.nonzero, activation=self.activation, adaptive_offset=self.adaptive_offset
        )


class FromCellHead(nn.Module):
    r"""Predict expression from the cell embedding and each gene's embedding (MVC, GEPC).

    ``"inner"`` computes :math:`c^\top W q_g` with the query :math:`q_g = \sigma(Q g)`; ``"inner_detached"`` keeps the
    gradient out of the gene embeddings; ``"concat"`` and ``"sum"`` feed both to a small network.
    """

    NARROW = 64
    widened: ClassVar[tuple[str, ...]] = (
        "product.weight",
        "nonzero.weight",
        "nonzero.bias",
        "query.weight",
        "query.bias",
    )
    """As for :class:`ExpressionHead`."""
    drawn: ClassVar[tuple[str, ...]] = ("query.weight", "query.bias")
    """Those whose new rows stay as they were drawn: nothing reads them yet, and they can learn."""

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
        """Return the expression (B, L) and perhaps its ``_nonzero`` (B, L)."""
        genes = inputs.genes if genes is None else genes
        return self.predict(inputs.cell_in_context, genes).named()

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
        """Return the expression (B, L) and perhaps its ``_nonzero`` (B, L)."""
        return super().forward(inputs, genes=inputs.genes_in_context if genes is None else genes)


@dataclass(frozen=True, kw_only=True)
class FromCellConfig(HeadConfig):
    """Predict expression from the cell embedding and a gene's embedding (MVC, GEPC)."""

    of_its_own: ClassVar[bool] = True

    style: FromCellStyle = "inner"
    nonzero: bool = False
    """Also predict the probability that the value is not zero; inner styles only."""
    context_in_query: bool = False
    """Give the gene query the context too; scGPT's multi-omic class does, its RNA class does not."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.nonzero and self.style in ("concat", "sum"):
            raise ValueError(f"`nonzero` needs an inner-product style, found {self.style=}.")

    def check(self, sizes: Sizes) -> None:
        """Refuse what could not be computed with the context there is."""
        if self.context_in_query and not sizes.context:
            raise ValueError("`context_in_query` needs batches or modalities in `context`, found neither.")
        if self.style == "sum" and sizes.context and not self.context_in_query:
            raise ValueError("style='sum' adds cell and gene query: with a `context` it needs `context_in_query` too.")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        make = FromCellInContextHead if self.context_in_query else FromCellHead
        query = sizes.width if self.context_in_query else sizes.dim
        return make(width=sizes.width, query=query, style=self.style, nonzero=self.nonzero)


def inner(query: Tensor, cell: Tensor) -> Tensor:
    """(B, L, D) and (B, D) to (B, L)."""
    return torch.bmm(query, cell.unsqueeze(-1)).squeeze(-1)


class ClassifierHead(nn.Module):
    """Predict a class from the cell embedding (CLS): linear, activation, then norm, in that order, per layer."""

    def __init__(
        self,
        dim: int,
        classes: int,
        layers: int = 3,
        activation: type[nn.Module] = nn.ReLU,
        *,
        width: int | None = None,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = dim if width is None or layers == 1 else width
        widths = [dim, *(width for _ in range(layers - 1))]
        parts = [
            part
            for narrow, wide in zip(widths[:-1], widths[1:], strict=True)
            for part in (nn.Linear(narrow, wide), activation(), *((nn.LayerNorm(wide),) if norm else ()))
        ]
        self.hidden, self.out = nn.Sequential(*parts), nn.Linear(width, classes)
        self.dropout = dropout

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, C)."""
        return {"": self.logits(inputs.cell)}

    def logits(self, cell: Tensor) -> Tensor:
        """(B, D) cell embeddings to (B, C) logits."""
        return self.out(F.dropout(self.hidden(cell), self.dropout, self.training))


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(HeadConfig):
    """Predict a class from the cell embedding (CLS)."""

    of_cells: ClassVar[bool] = True
    of_its_own: ClassVar[bool] = True
    classes: int = 1
    layers: int = 3
    names: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits; they travel with the model."""
    width: int | None = None
    """Width between the layers; ``None`` for that of the cell embedding."""
    activation: Literal["relu", "gelu"] = "relu"
    """After each layer but the last."""
    norm: bool = True
    """Layer norm after the activation."""
    dropout: float = 0.0
    """Before the last layer."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("classes", self.classes, 1)
        check_least("layers", self.layers, 1)
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"Expected {self.classes} class names, found {len(self.names)}.")
        if self.width is not None:
            check_least("width", self.width, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected `dropout` to be in [0, 1), found {self.dropout}.")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return ClassifierHead(
            sizes.dim,
            self.classes,
            self.layers,
            ACTIVATIONS[self.activation],
            width=self.width,
            norm=self.norm,
            dropout=self.dropout,
        )


class RegressorHead(ClassifierHead):
    """Predict numbers from the cell embedding, in the unit that they were learnt in."""

    def __init__(self, dim: int, *, centre: tuple[float, ...], scale: tuple[float, ...], **more: Any) -> None:
        super().__init__(dim, len(centre), **more)
        self.centre, self.scale = centre, scale

    def in_units(self, scaled: Tensor) -> Tensor:
        """(B, T) what the head says, in the units of the data."""
        return scaled * scaled.new_tensor(self.scale) + scaled.new_tensor(self.centre)


@dataclass(frozen=True, kw_only=True)
class RegressorConfig(HeadConfig):
    """Predict numbers, such as an age or a score, from the cell embedding.

    The head says how many spreads a number lies above the mean of the training cells; both travel with the model.
    """

    of_cells: ClassVar[bool] = True
    of_its_own: ClassVar[bool] = True
    names: tuple[str, ...]
    """What the numbers are."""
    centre: tuple[float, ...]
    """Mean of each number over the training cells."""
    scale: tuple[float, ...]
    """Its standard deviation."""
    layers: int = 3
    width: int | None = None
    """Width between the layers; ``None`` for that of the cell embedding."""
    activation: Literal["relu", "gelu"] = "relu"
    """After each layer but the last."""
    norm: bool = True
    """Layer norm after the activation."""
    dropout: float = 0.0
    """Before the last layer."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("layers", self.layers, 1)
        if not self.names or not len(self.names) == len(self.centre) == len(self.scale):
            raise ValueError(
                f"Expected a name, a centre and a scale of each number, found {len(self.names)}, {len(self.centre)} and "
                f"{len(self.scale)}."
            )
        if min(self.scale) <= 0:
            raise ValueError(f"Expected scales above 0, found {min(self.scale)}.")
        if self.width is not None:
            check_least("width", self.width, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected `dropout` to be in [0, 1), found {self.dropout}.")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return RegressorHead(
            sizes.dim,
            centre=self.centre,
            scale=self.scale,
            layers=self.layers,
            activation=ACTIVATIONS[self.activation],
            width=self.width,
            norm=self.norm,
            dropout=self.dropout,
        )


class AdversaryHead(ClassifierHead):
    """Predict the batch label behind a gradient reversal, so that the encoder learns to hide it (DAB)."""

    def __init__(self, dim: int, classes: int, layers: int = 3) -> None:
        super().__init__(dim, classes, layers, nn.LeakyReLU)
        self.reversal = 1.0
        """Factor of the reversed gradient; part of a training run, not of the model."""

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, C)."""
        return {"": self.logits(reverse_gradient(inputs.cell, self.reversal))}


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig(HeadConfig):
    """Predict the batch label from the cell embedding behind a gradient reversal (DAB)."""

    of_cells: ClassVar[bool] = True
    of_its_own: ClassVar[bool] = True
    classes: int
    layers: int = 3

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("classes", self.classes, 1)
        check_least("layers", self.layers, 1)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return AdversaryHead(sizes.dim, self.classes, self.layers)


def sample_zeros(prediction: Tensor, nonzero: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Set predictions to zero at random, each with the probability ``1 - nonzero``."""
    return torch.bernoulli(nonzero, generator=generator) * prediction
