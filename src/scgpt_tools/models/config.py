"""One description for every family: which parts a model has and how large they are.

A family is a set of values for these fields (:mod:`scgpt_tools.models.families`); a foreign checkpoint is read into
them (:mod:`scgpt_tools.models.formats`).  Nothing here knows of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from scgpt_tools.config import settle_fields
from scgpt_tools.tokens.tokenizer import TokenizerConfig

ValueStyle = Literal["continuous", "binned", "scale"]
EmbedderNorm = Literal["none", "batch", "domain", "domain_of_first"]
BlockNorm = Literal["post", "replace"]
Pooling = Literal["cls", "mean", "mean_with_padding", "weighted"]
ExpressionStyle = Literal["plain", "affine"]
FromCellStyle = Literal["inner", "inner_detached", "concat", "sum"]


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"Expected `{name}` to be at least {least}, found {value}.")


def _check_row(name: str, row: int | None, rows: int) -> None:
    if row is not None and not 0 <= row < rows:
        raise ValueError(f"Expected `{name}` to be None or a row of its table of {rows}, found {row}.")


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """How a token becomes a vector: the sum (or product) of its parts, then an optional batch norm."""

    values: ValueStyle = "continuous"
    """An MLP of the value, a table of bins, or the value as a factor of the gene embedding."""
    value_rows: int | None = None
    """Rows of the table of bins, markers included; only with ``values="binned"``."""
    value_pad: int | None = None
    """Row of that table that padding reads and that is never trained."""
    perturbation_rows: int = 0
    """Rows of the table of perturbation flags; 0 for models that know no perturbations."""
    perturbation_pad: int | None = None
    """Row of the flag table that is never trained."""
    generation: bool = False
    """Keep the flag that marks tokens whose value is to be generated (scGPT's pre-training form)."""
    norm: EmbedderNorm = "none"
    """Batch norm over all cells, or one per batch label without affine parameters (DSBN).

    ``"domain_of_first"`` takes the label of the first cell for the whole minibatch, as scGPT does."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if (self.values == "binned") != (self.value_rows is not None):
            raise ValueError(
                f"`value_rows` goes with values='binned' only, found {self.values=} and {self.value_rows=}."
            )
        _check_least("perturbation_rows", self.perturbation_rows, 0)
        _check_row("value_pad", self.value_pad, self.value_rows or 0)
        _check_row("perturbation_pad", self.perturbation_pad, self.perturbation_rows)
        if self.generation and self.values == "scale":
            raise ValueError("`generation` needs a value embedding to stand in for, found values='scale'.")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A stack of transformer blocks."""

    layers: int = 12
    heads: int = 8
    hidden: int = 512
    """Width between the two linear maps of the feed-forward part."""
    dropout: float = 0.2
    """Probability used in the value embedding, on attention weights and after each branch."""
    norm: BlockNorm = "post"
    """``"replace"`` normalises the residual stream itself, as scGPT's fused layers with ``pre_norm`` do."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("layers", "heads", "hidden"):
            _check_least(name, getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected `dropout` to be in [0, 1), found {self.dropout}.")


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Side information that the heads see beside the tokens: batch label and modality, as summed embeddings."""

    batches: int = 0
    """Number of batch labels that the heads are told; 0 for none."""
    modalities: int = 0
    """Rows of the modality table; 0 for models of one modality."""
    modality_pad: int | None = None
    """Row of the modality table that padding reads."""

    def __post_init__(self) -> None:
        settle_fields(self)
        _check_least("batches", self.batches, 0)
        _check_least("modalities", self.modalities, 0)
        _check_row("modality_pad", self.modality_pad, self.modalities)


@dataclass(frozen=True, kw_only=True)
class ExpressionConfig:
    """Predict a token's expression from its contextual embedding (MLM, GEP)."""

    style: ExpressionStyle = "plain"
    """``"affine"`` predicts a slope and an offset for the input value, as scGPT does for perturbations."""
    nonzero: bool = False
    """Also predict the probability that the value is not zero."""
    activation: str | None = None
    """Name of a ``torch.nn`` activation on slope and offset; affine style only."""
    adaptive_offset: bool = False
    """Scale the offset by the mean non-zero input value of the cell; affine style only."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.style != "affine" and (self.activation is not None or self.adaptive_offset):
            raise ValueError(f"`activation` and `adaptive_offset` go with style='affine' only, found {self.style=}.")


@dataclass(frozen=True, kw_only=True)
class FromCellConfig:
    """Predict expression from the cell embedding and a gene's embedding (MVC, GEPC)."""

    style: FromCellStyle = "inner"
    nonzero: bool = False
    """Also predict the probability that the value is not zero; inner styles only."""
    context_in_query: bool = False
    """Give the gene query the context too; scGPT's multi-omic class does, its RNA class does not."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.nonzero and self.style in ("concat", "sum"):
            raise ValueError(f"`nonzero` needs an inner-product style, found {self.style=}.")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Predict a class from the cell embedding (CLS)."""

    classes: int = 1
    layers: int = 3
    names: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits; they travel with the model."""

    def __post_init__(self) -> None:
        settle_fields(self)
        _check_least("classes", self.classes, 1)
        _check_least("layers", self.layers, 1)
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"Expected {self.classes} class names, found {len(self.names)}.")


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """Predict the batch label from the cell embedding behind a gradient reversal (DAB)."""

    classes: int
    layers: int = 3

    def __post_init__(self) -> None:
        settle_fields(self)
        _check_least("classes", self.classes, 1)
        _check_least("layers", self.layers, 1)


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Which heads a model has; ``None`` for absent."""

    expression: ExpressionConfig | None = None
    expression_from_cell: FromCellConfig | None = None
    cell_type: ClassifierConfig | None = None
    batch: AdversaryConfig | None = None

    def __post_init__(self) -> None:
        settle_fields(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: width, parts, heads and the tokenizer that it was trained with."""

    family: str = "scgpt"
    n_tokens: int
    """Rows of the gene table; at least the size of the vocabulary."""
    pad_id: int
    """Token id of padding, whose row of the gene table is never trained."""
    dim: int = 512
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    pooling: Pooling = "cls"
    context: ContextConfig = field(default_factory=ContextConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    domains: int = 0
    """Number of batch labels with statistics of their own; only with ``embedder.norm="domain"``."""
    batch_names: tuple[str, ...] | None = None
    """Names of the batch labels, in the order of their numbers."""
    perturbation_flags: tuple[int, ...] = ()
    """Flags of perturbed genes that training has shown; empty where nobody knows."""

    def __post_init__(self) -> None:
        settle_fields(self)
        _check_least("dim", self.dim, 1)
        if self.dim % self.encoder.heads:
            raise ValueError(
                f"Expected `dim` to be a multiple of the number of heads, found {self.dim} and {self.encoder.heads}."
            )
        if not 0 <= self.pad_id < self.n_tokens:
            raise ValueError(f"Expected `pad_id` within 0 .. {self.n_tokens - 1}, found {self.pad_id}.")
        if self.embedder.norm.startswith("domain") != (self.domains > 0):
            raise ValueError(
                f"`domains` goes with embedder.norm='domain' only, found {self.embedder.norm=} and {self.domains=}."
            )
        for flag in self.perturbation_flags:
            _check_row("perturbation_flags", flag, self.embedder.perturbation_rows)
        self._check_context()

    def _check_context(self) -> None:
        """Refuse heads that would not see the context, or could not be computed with it."""
        there = bool(self.context.batches or self.context.modalities)
        expression, from_cell = self.heads.expression, self.heads.expression_from_cell
        if there and expression is not None and expression.style == "affine":
            raise ValueError("The affine expression head reads no context, found batches or modalities in `context`.")
        if from_cell is None:
            return
        if from_cell.context_in_query and not there:
            raise ValueError("`context_in_query` needs batches or modalities in `context`, found neither.")
        if from_cell.style == "sum" and there and not from_cell.context_in_query:
            raise ValueError("style='sum' adds cell and gene query: with a `context` it needs `context_in_query` too.")
