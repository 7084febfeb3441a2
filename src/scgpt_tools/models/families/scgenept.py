"""scGenePT: scGPT's model of perturbations with embeddings of texts about genes added to each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from scgpt_tools._lookup import absent
from scgpt_tools.models.config import (
    ContinuousConfig,
    EmbedderConfig,
    ExpressionConfig,
    GenesConfig,
    LanguageConfig,
    ModelConfig,
    Named,
    PerturbationConfig,
    TransformerConfig,
)
from scgpt_tools.models.families.base import Family
from scgpt_tools.models.families.scgpt import scgpt_perturbation
from scgpt_tools.models.scgenept.names import ModelType, parse_model_type

if TYPE_CHECKING:
    from scgpt_tools.vocabulary import Vocabulary

NAME = "scgenept"
WIDTH = 1536
"""Of text-embedding-ada-002, whose embeddings the original has."""


def scgenept(
    vocabulary: Vocabulary,
    *,
    model_type: str | ModelType = "scgenept_ncbi_gpt",
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int = 512,
    dropout: float = 0.2,
    width: int | Mapping[str, int] = WIDTH,
    frozen: bool = False,
    rank: int = 0,
    masked: bool = False,
    flag_pad: int | None = None,
) -> ModelConfig:
    """Describe scGenePT: what a gene is, its expression, texts about it and its flag, added and normed :cite:p:`Istrate2024`.

    Parameters
    ----------
    vocabulary
        Genes of the model; its special tokens included.
    model_type
        Which streams there are: a name that :func:`~scgpt_tools.models.parse_model_type` reads, or
        :class:`~scgpt_tools.models.ModelType`.
    dim, layers, heads, hidden, dropout
        Sizes; the defaults are those of the released models, and of their training.
    width
        Of the text embeddings, or one for each stream, ``"text"`` and ``"go"``.
    frozen, rank, masked
        Whether the tables of texts are held, the rank of a trained correction to held ones, and whether genes without a
        text add nothing; see :class:`~scgpt_tools.nn.language.LanguageConfig`.
    flag_pad
        Flag that is never trained, 2 in the original; ``None`` leaves both flags to be trained.
    """
    kind = parse_model_type(model_type) if isinstance(model_type, str) else model_type
    if isinstance(width, Mapping):
        for name in kind.sources:
            if name not in width:
                raise ValueError(absent(name, width, "width of a stream named"))
    languages = {
        name: LanguageConfig(
            width=width[name] if isinstance(width, Mapping) else width,
            source=source,
            frozen=frozen,
            rank=rank,
            masked=masked,
        )
        for name, source in kind.sources.items()
    }
    plain = scgpt_perturbation(vocabulary)
    return ModelConfig(
        family=NAME,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=EmbedderConfig(
            parts=Named(
                genes=GenesConfig() if kind.token else None,
                values=ContinuousConfig() if kind.count else None,
                **languages,
                perturbation=PerturbationConfig(rows=3, pad=flag_pad),
            ),
            norm="layer",
        ),
        encoder=TransformerConfig(layers=layers, heads=heads, hidden=hidden, dropout=dropout),
        pooling="mean",
        heads=Named(expression=ExpressionConfig()),
        tokenizer=plain.tokenizer,
    )


def as_perturbation(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    head: ExpressionConfig | None = None,
    dropout: float | None = None,
    flag: int | None = None,
) -> ModelConfig:
    """Describe the same model, which knows perturbations already, with another head, dropout or flag."""
    return replace(
        config,
        encoder=config.encoder if dropout is None else replace(config.encoder, dropout=dropout),
        heads=config.heads if head is None else config.heads.replace(expression=head),
        tokenizer=scgpt_perturbation(vocabulary).tokenizer,
        perturbation_flags=config.perturbation_flags
        if flag is None
        else tuple(sorted({*config.perturbation_flags, flag})),
    )


SCGENEPT = Family(
    name=NAME,
    config=scgenept,
    key="X_scGenePT",
    perturbation=as_perturbation,
    original="scgenept",
    finetuning={
        "perturb": {
            "dropout": 0.2,
            "cells_per_mean": 1,
            "epochs": 20,
            "schedule": "step",
            "step_factor": 0.9,
            "step_epochs": 1,
            "lr": 1e-4,
        }
    },
)
