"""scGPT in its three forms: of one modality, of perturbations, of several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scgpt_tools.models.config import (
    AffineConfig,
    ContextConfig,
    ExpressionConfig,
    FromCellConfig,
    GenerationConfig,
    ModelConfig,
    Named,
    ScaleConfig,
    TransformerConfig,
    scgpt_embedder,
)
from scgpt_tools.models.families.base import Family, Pretraining
from scgpt_tools.tokens.modalities import default_modality, modality_names
from scgpt_tools.tokens.perturbations import PERTURBED
from scgpt_tools.tokens.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools.tokens.modalities import ModalityConfig
    from scgpt_tools.vocabulary import Vocabulary


def scgpt(
    vocabulary: Vocabulary,
    *,
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int = 512,
    dropout: float = 0.2,
    generation: bool = True,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe scGPT as it was pre-trained: expression from tokens and from the cell :cite:p:`Cui2024`.

    Parameters
    ----------
    vocabulary
        Genes of the model; its special tokens included.
    dim, layers, heads, hidden, dropout
        Sizes; the defaults are those of the released models.
    generation
        Have the vector that stands for values to be generated.
    tokenizer
        How cells become tokens; ``None`` takes 51 bins and 1200 tokens.
    """
    return ModelConfig(
        family="scgpt",
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=scgpt_embedder(generation=generation),
        encoder=TransformerConfig(layers=layers, heads=heads, hidden=hidden, dropout=dropout),
        heads=Named(expression=ExpressionConfig(), expression_from_cell=FromCellConfig()),
        tokenizer=tokenizer or TokenizerConfig(),
    )


def scgpt_perturbation(
    vocabulary: Vocabulary,
    *,
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int = 512,
    dropout: float = 0.0,
    flags: int = 3,
    flag_pad: int = 0,
) -> ModelConfig:
    """Describe scGPT's generator: expression after a perturbation as an affine map of the input :cite:p:`Cui2024`.

    Parameters
    ----------
    vocabulary
        Genes of the model; its special tokens included.
    dim, layers, heads, hidden, dropout
        Sizes; dropout 0 as in the original's fine-tuning.
    flags, flag_pad
        Rows of the table of perturbation flags and the one that is never trained; with 0, "not perturbed" adds nothing.
    """
    return ModelConfig(
        family="scgpt_perturbation",
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=scgpt_embedder(perturbation_rows=flags, perturbation_pad=flag_pad),
        encoder=TransformerConfig(layers=layers, heads=heads, hidden=hidden, dropout=dropout),
        heads=Named(expression=AffineConfig()),
        tokenizer=TokenizerConfig(
            genes="all", values="raw", bins=None, length=None, cls=False, pad_value=0.0, expects="log1p"
        ),
    )


def scgpt_multiomic(
    vocabulary: Vocabulary,
    *,
    modalities: int | Sequence[ModalityConfig | str],
    modality_pad: int | None = None,
    batches: int = 0,
    dim: int = 512,
    layers: int = 4,
    heads: int = 8,
    hidden: int = 512,
    dropout: float = 0.2,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe scGPT for several modalities, whose heads are conditioned on the modality :cite:p:`Cui2024`.

    Parameters
    ----------
    vocabulary
        Features of all modalities; special tokens included.
    modalities
        How each modality becomes tokens, or its name for the defaults
        (:func:`~scgpt_tools.tokens.modalities.default_modality`); the tokenizer has them then.  Or the number of rows
        of the modality table, special ones included, for token batches made by hand.
    modality_pad
        Row that padding reads; known where modalities are named.
    batches
        Number of batch labels; 0 for none.
    dim, layers, heads, hidden, dropout
        Sizes.
    tokenizer
        How cells become tokens; ``None`` takes 51 bins and 1200 tokens, and all tokens of named modalities.
    """
    if not isinstance(modalities, int):
        parts = tuple(default_modality(part) if isinstance(part, str) else part for part in modalities)
        names = modality_names(parts)
        tokenizer = replace(tokenizer or TokenizerConfig(length=None), modalities=names, parts=parts)
        modalities, modality_pad = len(names), names.index("<pad>")
    return ModelConfig(
        family="scgpt_multiomic",
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        encoder=TransformerConfig(layers=layers, heads=heads, hidden=hidden, dropout=dropout),
        context=ContextConfig(batches=batches, modalities=modalities, modality_pad=modality_pad),
        heads=Named(expression=ExpressionConfig(), expression_from_cell=FromCellConfig(context_in_query=True)),
        tokenizer=tokenizer or TokenizerConfig(),
    )


def as_perturbation(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    head: ExpressionConfig | None = None,
    dropout: float | None = None,
    flag: int | None = None,
) -> ModelConfig:
    """Describe scGPT's generator in the sizes of another model; one that is a generator already keeps its flags."""
    plain = scgpt_perturbation(vocabulary, dim=config.dim, heads=config.encoder.heads)
    embedder = plain.embedder if config.perturbation is None else config.embedder
    # Generators that do not say which flags they were trained with come from the originals, which have one.
    trained = config.perturbation_flags or (() if config.perturbation is None else (PERTURBED,))
    return replace(
        config,
        family=plain.family,
        embedder=embedder,
        encoder=config.encoder if dropout is None else replace(config.encoder, dropout=dropout),
        pooling="cls",
        context=ContextConfig(),
        heads=Named(expression=head or AffineConfig()),
        tokenizer=plain.tokenizer,
        domains=0,
        batch_names=None,
        perturbation_flags=config.perturbation_flags if flag is None else tuple(sorted({*trained, flag})),
    )


def as_multiomic(config: ModelConfig, tokenizer: TokenizerConfig) -> ModelConfig:
    """Describe a model with parts for modalities, whose gene query is given the modality too."""
    names, embedder, heads = tokenizer.modalities, config.embedder, config.heads
    if not isinstance(embedder.parts.get("values"), ScaleConfig):
        # What stands for the values of a modality that is not there.
        embedder = replace(embedder, parts=embedder.parts.replace(generation=GenerationConfig()))
    if (from_cell := heads.find("expression_from_cell", FromCellConfig)) is not None:
        heads = heads.replace(expression_from_cell=replace(from_cell, context_in_query=True))
    return replace(
        config,
        family="scgpt_multiomic",
        embedder=embedder,
        context=replace(config.context, modalities=len(names), modality_pad=names.index("<pad>")),
        heads=heads,
        tokenizer=tokenizer,
    )


SCGPT_PERTURBATION = Family(
    name="scgpt_perturbation",
    config=scgpt_perturbation,
    key="X_scGPT",
    perturbation=as_perturbation,
    modalities=as_multiomic,
)
SCGPT_MULTIOMIC = replace(SCGPT_PERTURBATION, name="scgpt_multiomic", config=scgpt_multiomic)
SCGPT = replace(
    SCGPT_PERTURBATION,
    name="scgpt",
    config=scgpt,
    pretraining={
        "masked_expression": Pretraining(
            objectives=({"name": "masked_expression"}, {"name": "masked_expression_from_cell"})
        )
    },
)
