"""One description for every family: which parts a model has and how large they are.

A family is a set of values for these fields (:mod:`scgpt_tools.models.families`); a foreign checkpoint is read into
them (:mod:`scgpt_tools.models.formats`).  Parts are described where they are, in :mod:`scgpt_tools.nn`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scgpt_tools._lookup import lookup
from scgpt_tools.config import Named, settle_fields
from scgpt_tools.nn.bin_values import BinAndNumberConfig
from scgpt_tools.nn.decoder import DecoderConfig
from scgpt_tools.nn.dual_stream import DualStreamConfig
from scgpt_tools.nn.embedders import (
    ContinuousConfig,
    EmbedderConfig,
    EmbedderNorm,
    GenerationConfig,
    GenesConfig,
    LinearConfig,
    PerturbationConfig,
    ScaleConfig,
    TableConfig,
)
from scgpt_tools.nn.heads import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ExpressionConfig,
    FromCellConfig,
    FromCellStyle,
    RegressorConfig,
)
from scgpt_tools.nn.language import LanguageConfig
from scgpt_tools.nn.mixture import MixtureConfig, MixtureRegressorConfig
from scgpt_tools.nn.reference_cells import ReferenceCellsConfig
from scgpt_tools.nn.signed_gates import EarlierStreamConfig
from scgpt_tools.nn.sockets import EncoderConfig, HeadConfig, PartConfig, Sizes, check_least, check_row
from scgpt_tools.nn.soft_bins import SoftBinsConfig
from scgpt_tools.nn.stream_heads import BinsConfig, DeepRegressorConfig
from scgpt_tools.nn.tables import ENCODERS, HEADS, PARTS
from scgpt_tools.nn.token_classes import TokenClassesConfig
from scgpt_tools.nn.transformer import TransformerConfig
from scgpt_tools.tokens.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ENCODERS",
    "HEADS",
    "PARTS",
    "AdversaryConfig",
    "AffineConfig",
    "BinAndNumberConfig",
    "BinsConfig",
    "ClassifierConfig",
    "ContextConfig",
    "ContinuousConfig",
    "DeepRegressorConfig",
    "DualStreamConfig",
    "EarlierStreamConfig",
    "DecoderConfig",
    "EmbedderConfig",
    "EmbedderNorm",
    "EncoderConfig",
    "ExpressionConfig",
    "FromCellConfig",
    "FromCellStyle",
    "GenerationConfig",
    "GenesConfig",
    "HeadConfig",
    "LanguageConfig",
    "MixtureConfig",
    "MixtureRegressorConfig",
    "LinearConfig",
    "ModelConfig",
    "Named",
    "PartConfig",
    "PerturbationConfig",
    "Pooling",
    "ReferenceCellsConfig",
    "RegressorConfig",
    "ScaleConfig",
    "SoftBinsConfig",
    "TableConfig",
    "TokenClassesConfig",
    "TransformerConfig",
    "scgpt_embedder",
]

Pooling = Literal["cls", "mean", "mean_with_padding", "weighted"]
ValueStyle = Literal["continuous", "binned", "scale"]


def scgpt_embedder(
    *,
    values: ValueStyle = "continuous",
    value_rows: int | None = None,
    value_pad: int | None = None,
    perturbation_rows: int = 0,
    perturbation_pad: int | None = None,
    generation: bool = False,
    norm: EmbedderNorm = "none",
) -> EmbedderConfig:
    """Describe the embedder of any of scGPT's models.

    ``values``: an MLP of the value, a table of bins, or the value as a factor of the gene embedding; ``value_rows``,
    ``value_pad``: rows of the table of bins, markers included, and the one that padding reads; only with
    ``values="binned"``; ``perturbation_rows``, ``perturbation_pad``: rows of the table of perturbation flags, 0 for
    models that know none, and the one that is never trained; ``generation``: have the vector that stands for a value to
    be generated (scGPT's pre-training form).
    """
    if (values == "binned") != (value_rows is not None):
        raise ValueError(f"`value_rows` goes with values='binned' only, found {values=} and {value_rows=}.")
    if value_pad is not None and value_rows is None:
        raise ValueError(f"`value_pad` goes with values='binned' only, found {values=} and {value_pad=}.")
    styles: dict[str, Callable[[], PartConfig]] = {
        "continuous": ContinuousConfig,
        "binned": lambda: TableConfig(rows=value_rows or 0, pad=value_pad),
        "scale": ScaleConfig,
    }
    return EmbedderConfig(
        parts=Named(
            genes=GenesConfig(),
            values=lookup(styles, values, "value embedding")(),
            perturbation=PerturbationConfig(rows=perturbation_rows, pad=perturbation_pad)
            if perturbation_rows or perturbation_pad is not None
            else None,
            generation=GenerationConfig() if generation else None,
        ),
        norm=norm,
    )


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Side information that the heads see beside the tokens: batch label and modality, as summed embeddings."""

    batches: int = 0
    """Number of batch labels that the heads are given; 0 for none."""
    modalities: int = 0
    """Rows of the modality table; 0 for models of one modality."""
    modality_pad: int | None = None
    """Row of the modality table that padding reads."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("batches", self.batches, 0)
        check_least("modalities", self.modalities, 0)
        check_row("modality_pad", self.modality_pad, self.modalities)


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
    encoder: EncoderConfig = field(default_factory=TransformerConfig)
    pooling: Pooling = "cls"
    context: ContextConfig = field(default_factory=ContextConfig)
    heads: Named[HeadConfig] = field(default_factory=Named)
    """What the model predicts, by the names that predictions get."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    domains: int = 0
    """Number of batch labels with statistics of their own; only with ``embedder.norm="domain"``."""
    batch_names: tuple[str, ...] | None = None
    """Names of the batch labels, in the order of their numbers."""
    perturbation_flags: tuple[int, ...] = ()
    """Flags of perturbed genes that training has shown; empty where nobody knows."""
    trained_genes: tuple[str, ...] | None = None
    """Genes that the last training read in every cell, expressed or not; cells that are read with others become something
    else.  ``None`` where cells are read by what they express, or nobody knows."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("dim", self.dim, 1)
        if not 0 <= self.pad_id < self.n_tokens:
            raise ValueError(f"Expected `pad_id` within 0 .. {self.n_tokens - 1}, found {self.pad_id}.")
        self.encoder.check(self.sizes)
        self.embedder.check(self.sizes)
        self._check_streams()
        for head in self.heads.values():
            head.check(self.sizes)
        for flag in self.perturbation_flags:
            check_row("perturbation_flags", flag, self.perturbation.rows if self.perturbation else 0)

    def _check_streams(self) -> None:
        """Refuse what has no effect where the encoder reads parts of the embedder one by one."""
        embedder, read = self.embedder, self.encoder.parts
        if not read:
            return
        if embedder.norm != "none" or embedder.dropout:
            raise ValueError(
                f"Expected an embedder without norm and dropout for {self.encoder.kind!r}, which reads its parts one by one, "
                f"found norm={embedder.norm!r} and dropout={embedder.dropout}. They would have no effect; leave them out."
            )
        unread = [
            name
            for name, part in embedder.parts.items()
            if (part.of if isinstance(part, GenerationConfig) else name) not in read
        ]
        if unread:
            raise ValueError(
                f"Expected parts of the embedder among {list(read)} for {self.encoder.kind!r}, found {unread}. Nothing would "
                "read them; leave them out."
            )

    @property
    def sizes(self) -> Sizes:
        """What all parts are built to."""
        return Sizes(
            dim=self.dim,
            n_tokens=self.n_tokens,
            pad_id=self.pad_id,
            dropout=self.encoder.dropout,
            domains=self.domains,
            context=bool(self.context.batches or self.context.modalities),
        )

    @property
    def bins(self) -> TableConfig | None:
        """The embedder's table of values, if it looks them up."""
        return self.embedder.parts.find("values", TableConfig)

    @property
    def perturbation(self) -> PerturbationConfig | None:
        """The embedder's part for flags of perturbed genes, if there is one."""
        return next((part for part in self.embedder.parts.values() if isinstance(part, PerturbationConfig)), None)
