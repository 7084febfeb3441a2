"""scModelForge's three architectures: an encoder that reads both ways, a causal decoder and a masked autoencoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from scgpt_tools._lookup import lookup
from scgpt_tools.models.config import (
    DecoderConfig,
    EmbedderConfig,
    ExpressionConfig,
    GenerationConfig,
    GenesConfig,
    LinearConfig,
    ModelConfig,
    Named,
    Pooling,
    TableConfig,
    TokenClassesConfig,
    TransformerConfig,
)
from scgpt_tools.models.families.base import Family
from scgpt_tools.nn.token_classes import EPS
from scgpt_tools.tokens.edges import uniform_edges
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import CLS, PAD

if TYPE_CHECKING:
    from scgpt_tools.models.config import HeadConfig
    from scgpt_tools.nn.transformer import Activation
    from scgpt_tools.vocabulary import Vocabulary

ENCODER, CAUSAL, AUTOENCODER = "scmodelforge", "scmodelforge_causal", "scmodelforge_autoencoder"
SPECIALS = (PAD, "<unk>", "<mask>", CLS)
"""Tokens that are no genes, in the order of their ids."""
SPREAD = 1.0
"""Of fresh rows of tables."""

Task: TypeAlias = Literal["masked_gene_prediction", "expression_reconstruction", "dual"]
TokenStyle: TypeAlias = Literal["rank_value", "binned_expression", "continuous_projection"]

TASKS: dict[str, tuple[str, ...]] = {
    "masked_gene_prediction": ("genes",),
    "expression_reconstruction": ("expression",),
    "dual": ("genes", "expression"),
}
"""Heads of the encoder by what it is pre-trained for."""


def scmodelforge_tokens(
    style: TokenStyle = "rank_value", *, length: int | None = 2048, bins: int = 51
) -> TokenizerConfig:
    """Describe how scModelForge makes tokens: expressed genes, counts of 10,000 a cell and their logarithm.

    Parameters
    ----------
    style
        ``"rank_value"`` puts genes of high expression first and numbers them; ``"binned_expression"`` adds bins of equal
        width between 0 and 10; ``"continuous_projection"`` has the values alone.
    length
        Most tokens of a cell, the cell token included.
    bins
        Number of bins.
    """
    plain = TokenizerConfig(
        values="log1p",
        bins=None,
        target_sum=1e4,
        length=length,
        overflow="first",
        cls_value=0.0,
        pad_value=0.0,
        expects="counts",
    )
    styles: dict[str, dict[str, Any]] = {
        "rank_value": {"order": "rank", "positions": True},
        "binned_expression": {"edges": uniform_edges(bins)},
        "continuous_projection": {},
    }
    return replace(plain, **lookup(styles, style, "way to make tokens"))


def embedder(config: TokenizerConfig, *, dropout: float, rows: int | None, generation: bool = False) -> EmbedderConfig:
    """Gene, perhaps position, and value, added and normed; ``rows`` of positions, ``None`` for those of the tokenizer."""
    if rows is None and config.positions:
        rows = config.length or 2048
    return EmbedderConfig(
        parts=Named(
            genes=GenesConfig(norm=False, draw="normal"),
            positions=TableConfig(rows=rows, field="positions", norm=False, spread=SPREAD) if rows else None,
            values=LinearConfig(),
            generation=GenerationConfig() if generation else None,
        ),
        norm="layer",
        dropout=dropout,
        eps=EPS,
    )


def scmodelforge(
    vocabulary: Vocabulary,
    *,
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    activation: Activation = "gelu",
    pooling: Pooling = "cls",
    final_norm: bool = True,
    pretraining_task: Task = "masked_gene_prediction",
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe the encoder, which predicts hidden genes, hidden values, or both.

    Parameters
    ----------
    vocabulary
        Genes of the model, and ``<mask>`` to hide genes with.
    dim, layers, heads, hidden, dropout, activation
        Sizes and parts of the transformer; ``hidden`` is four times ``dim`` by default.
    pooling
        The cell token or the mean.
    final_norm
        Norm after the last layer, which scModelForge has not.
    pretraining_task
        Which heads there are.
    generation
        Have the vector that stands for values to be generated.
    tokenizer
        How cells become tokens; ``None`` ranks genes, see :func:`scmodelforge_tokens`.
    """
    tokenizer = tokenizer or scmodelforge_tokens()
    kinds: dict[str, HeadConfig] = {"genes": TokenClassesConfig(), "expression": ExpressionConfig()}
    return ModelConfig(
        family=ENCODER,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
        ),
        pooling=pooling,
        heads=Named({name: kinds[name] for name in lookup(TASKS, pretraining_task, "pre-training task")}),
        tokenizer=tokenizer,
    )


def scmodelforge_causal(
    vocabulary: Vocabulary,
    *,
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    activation: Activation = "gelu",
    final_norm: bool = True,
    bins: int = 51,
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe the causal decoder, which predicts the next gene and its bin from those before; cells are their mean.

    Parameters
    ----------
    vocabulary
        Genes of the model.
    dim, layers, heads, hidden, dropout, activation, final_norm, generation
        As of :func:`scmodelforge`.
    bins
        Number of bins of the tokenizer that is taken without one.
    tokenizer
        How cells become tokens; ``None`` ranks genes, so that the next is the next lower one, and bins them.
    """
    tokenizer = tokenizer or replace(scmodelforge_tokens("rank_value"), edges=uniform_edges(bins))
    classes = None if tokenizer.edges is None else TokenClassesConfig(classes=len(tokenizer.edges) - 1)
    return ModelConfig(
        family=CAUSAL,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
            causal=True,
        ),
        pooling="mean",
        heads=Named(genes=TokenClassesConfig(), bins=classes),
        tokenizer=tokenizer,
    )


def scmodelforge_autoencoder(
    vocabulary: Vocabulary,
    *,
    dim: int = 512,
    layers: int = 12,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    activation: Activation = "gelu",
    pooling: Pooling = "cls",
    final_norm: bool = True,
    decoder_dim: int | None = None,
    decoder_layers: int = 4,
    decoder_heads: int | None = None,
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe the masked autoencoder: visible tokens are encoded, and a decoder that knows the genes fills in the others.

    Parameters
    ----------
    vocabulary
        Genes of the model.
    dim, layers, heads, hidden, dropout, activation, pooling, final_norm, generation
        As of :func:`scmodelforge`.
    decoder_dim, decoder_layers, decoder_heads
        Sizes of the decoder; half of ``dim`` and as many heads by default.
    tokenizer
        How cells become tokens; ``None`` takes the values of expressed genes.
    """
    tokenizer = tokenizer or scmodelforge_tokens("continuous_projection")
    return ModelConfig(
        family=AUTOENCODER,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
            sees_hidden=False,
        ),
        pooling=pooling,
        heads=Named(
            expression=DecoderConfig(
                dim=decoder_dim,
                layers=decoder_layers,
                heads=decoder_heads or heads,
                dropout=dropout,
                activation=activation,
            )
        ),
        tokenizer=tokenizer,
    )


SCMODELFORGE = Family(
    name=ENCODER,
    config=scmodelforge,
    key="X_scModelForge",
    original="scmodelforge",
    specials=SPECIALS,
    objectives={"pretrain": ({"name": "masked_genes"},)},
)
SCMODELFORGE_CAUSAL = Family(
    name=CAUSAL,
    config=scmodelforge_causal,
    key="X_scModelForge",
    original="scmodelforge",
    specials=SPECIALS,
    objectives={"pretrain": ({"name": "masked_genes"}, {"name": "masked_bins"})},
)
SCMODELFORGE_AUTOENCODER = Family(
    name=AUTOENCODER,
    config=scmodelforge_autoencoder,
    key="X_scModelForge",
    original="scmodelforge",
    specials=SPECIALS,
    objectives={"pretrain": ({"name": "masked_expression"},)},
)
