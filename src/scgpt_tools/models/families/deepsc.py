"""DeepSC: a stream of genes and one of their expression, read together by the heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from scgpt_tools.models.config import (
    BinAndNumberConfig,
    BinsConfig,
    ContinuousConfig,
    DeepRegressorConfig,
    DualStreamConfig,
    EarlierStreamConfig,
    EmbedderConfig,
    GenesConfig,
    MixtureConfig,
    MixtureRegressorConfig,
    ModelConfig,
    Named,
    PerturbationConfig,
)
from scgpt_tools.models.families.base import Family, Pretraining
from scgpt_tools.tokens.perturbations import PERTURBED
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import CLS, PAD

if TYPE_CHECKING:
    from scgpt_tools.models.config import HeadConfig, PartConfig
    from scgpt_tools.nn.dual_stream import Cross
    from scgpt_tools.vocabulary import Vocabulary

FLAGS = 4
"""Rows of the table of perturbation flags; row 0, of untouched genes, is never trained."""


def deepsc(
    vocabulary: Vocabulary,
    *,
    dim: int = 256,
    layers: int = 10,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    gene_layers: int | None = None,
    streams: Literal["dual", "single"] = "dual",
    cross: Cross = "A",
    bins: int = 5,
    experts: int = 3,
    mixture: MixtureConfig | None = None,
    padding_mask: bool = False,
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe DeepSC as it is pre-trained: the bin and the value of hidden genes.

    Parameters
    ----------
    vocabulary
        Genes of the model; its special tokens included.
    dim, layers, heads, hidden, dropout
        Sizes; the defaults are those that the authors configure, and ``hidden=None`` is four times ``dim``.
    gene_layers
        Layers in which genes take part; ``None`` for 3, or all but the last of fewer layers.
    streams, cross
        How expression looks at genes, see :class:`~scgpt_tools.nn.dual_stream.DualStreamConfig`.
    bins
        Bins of equal width between the smallest and the largest value of a cell.
    experts
        Experts of the regressor; 0 for one network.
    mixture
        Experts in the feed-forward parts of the last layers; ``None`` for none.
    padding_mask
        Hide padding from attention.  DeepSC does not, and its weights expect that.
    generation
        Not possible: DeepSC has no tokens to be generated.
    tokenizer
        How cells become tokens; ``None`` takes the 1024 genes of highest bins.
    """
    if generation:
        raise ValueError("Expected a corruption that hides values for DeepSC, found one that generates tokens.")
    return ModelConfig(
        family="deepsc",
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder_of(BinAndNumberConfig(rows=bins + 3)),
        encoder=DualStreamConfig(
            layers=layers,
            heads=heads,
            hidden=hidden,
            dropout=dropout,
            gene_layers=min(3, layers - 1) if gene_layers is None else gene_layers,
            streams=streams,
            cross=cross,
            mixture=mixture,
            padding_mask=padding_mask,
        ),
        heads=Named(expression=regressor_of(experts), bins=BinsConfig(bins=bins)),
        tokenizer=tokenizer or cell_tokenizer(bins),
    )


def deepsc_perturbation(
    vocabulary: Vocabulary,
    *,
    values: Literal["bins", "number"] = "bins",
    dim: int = 256,
    layers: int = 10,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    gene_layers: int | None = None,
    streams: Literal["dual", "single"] = "dual",
    cross: Cross = "A",
    bins: int = 5,
    experts: int = 3,
    mixture: MixtureConfig | None = None,
    padding_mask: bool = False,
) -> ModelConfig:
    """Describe DeepSC for perturbations: flags on both streams, expression afterwards by the regressor.

    Parameters
    ----------
    vocabulary
        Genes of the model; its special tokens included.
    values
        ``"bins"`` embeds bin and number as in pre-training (first variant); ``"number"`` takes scGPT's network of the
        number instead (second variant), which throws away what pre-training has learnt of values.
    dim, layers, heads, hidden, dropout, gene_layers, streams, cross, bins, experts, mixture, padding_mask
        See :func:`deepsc`.
    """
    plain = deepsc(
        vocabulary,
        dim=dim,
        layers=layers,
        heads=heads,
        hidden=hidden,
        dropout=dropout,
        gene_layers=gene_layers,
        streams=streams,
        cross=cross,
        bins=bins,
        experts=experts,
        mixture=mixture,
        padding_mask=padding_mask,
    )
    return with_flags(plain, values=values)


def streams_of(config: ModelConfig) -> DualStreamConfig:
    """The encoder, if it is one of two streams.

    Raises
    ------
    ValueError
        If it is another.
    """
    if not isinstance(config.encoder, DualStreamConfig):
        raise ValueError(f"Expected an encoder of two streams, as DeepSC has it, found {config.encoder.kind!r}.")
    return config.encoder


def regressor_of(experts: int) -> HeadConfig:
    """The regressor of several experts, or of none."""
    return MixtureRegressorConfig(experts=experts) if experts else DeepRegressorConfig()


def embedder_of(values: PartConfig, *, flags: bool = False) -> EmbedderConfig:
    """Parts of both streams."""
    return EmbedderConfig(
        parts=Named(
            genes=GenesConfig(norm=False, draw="normal"),
            values=values,
            perturbation=PerturbationConfig(rows=FLAGS, pad=0) if flags else None,
        )
    )


def cell_tokenizer(bins: int) -> TokenizerConfig:
    """How cells are read in pre-training."""
    return TokenizerConfig(
        values="raw",
        bins=None,
        length=1024,
        overflow="highest",
        cls_value=bins + 1.0,
        pad_value=0.0,
        mask_value=bins + 2.0,
        expects="log1p",
        linear_bins=bins,
    )


def screen_tokenizer(bins: int | None) -> TokenizerConfig:
    """How cells of a screen are read; ``None`` for a network that reads no bins."""
    return TokenizerConfig(
        genes="all",
        values="raw",
        bins=None,
        length=None,
        cls=False,
        pad_value=0.0,
        expects="log1p",
        linear_bins=bins,
    )


def with_flags(
    config: ModelConfig, *, values: Literal["bins", "number"] | None = None, dropout: float | None = None
) -> ModelConfig:
    """Describe the model of perturbations in the sizes of another; ``values=None`` keeps how values are embedded."""
    if isinstance(config.encoder, EarlierStreamConfig):
        raise ValueError(
            "Expected a current model of DeepSC for perturbations, found one of its first generations, whose layers read no "
            "flags. Start from a base model."
        )
    part = config.embedder.parts["values"]
    bins = part.rows - 3 if isinstance(part, BinAndNumberConfig) else None
    if values == "number" or (values is None and bins is None):
        part, bins = ContinuousConfig(), None
    elif bins is None:
        raise ValueError("Expected a model that embeds bins for values='bins', found one that embeds numbers only.")
    return replace(
        config,
        family="deepsc_perturbation",
        embedder=embedder_of(part, flags=True),
        encoder=config.encoder if dropout is None else replace(config.encoder, dropout=dropout),
        pooling="mean",
        # Nothing reads the bins that the second one predicts, but the original's models have it.
        heads=Named(expression=config.heads.get("expression", MixtureRegressorConfig()), bins=config.heads.get("bins")),
        tokenizer=screen_tokenizer(bins),
    )


def as_perturbation(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    head: HeadConfig | None = None,
    dropout: float | None = None,
    flag: int | None = None,
) -> ModelConfig:
    """Describe the model of perturbations that a model becomes, its embedding of values and its regressor included."""
    if head is not None:
        raise ValueError(f"Expected no head of expression for DeepSC, which has its own, found {head!r}.")
    trained = config.perturbation_flags or (() if config.perturbation is None else (PERTURBED,))
    return replace(
        with_flags(config, dropout=dropout),
        perturbation_flags=config.perturbation_flags if flag is None else tuple(sorted({*trained, flag})),
    )


def as_classifier(config: ModelConfig) -> ModelConfig:
    """Describe the model that classifies cells as the original does, from both streams together."""
    return replace(config, encoder=replace(streams_of(config), pooled="fused"))


DEEPSC = Family(
    name="deepsc",
    config=deepsc,
    key="X_DeepSC",
    # As in the original's tables, whose rows of genes stand between both.
    specials=(PAD,),
    last=(CLS,),
    perturbation=as_perturbation,
    annotation=as_classifier,
    original="deepsc",
    # Of the authors' own fine-tuning; others are the task's.
    finetuning={"perturb": {"dropout": 0.1, "cells_per_mean": 1, "epochs": 10, "lr": 1e-4}, "annotate": {"lr": 3e-4}},
    pretraining={
        "masked_bins_and_expression": Pretraining(
            objectives=(
                {"name": "masked_bins", "balance": "bins"},
                {"name": "masked_expression", "loss": "huber", "weight": 3.0},
            )
        )
    },
)
DEEPSC_PERTURBATION = replace(DEEPSC, name="deepsc_perturbation", config=deepsc_perturbation, pretraining={})
