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
    SoftBinsConfig,
    TableConfig,
    TokenClassesConfig,
    TransformerConfig,
)
from scgpt_tools.models.families.base import Family, Pretraining
from scgpt_tools.nn.token_classes import EPS
from scgpt_tools.tokens.edges import uniform_edges
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import CLS, PAD

if TYPE_CHECKING:
    from scgpt_tools.models.config import HeadConfig, PartConfig
    from scgpt_tools.nn.transformer import Activation, CountBias
    from scgpt_tools.vocabulary import Vocabulary

ENCODER, CAUSAL, AUTOENCODER = "scmodelforge", "scmodelforge_causal", "scmodelforge_autoencoder"
SPECIALS = (PAD, "<unk>", "<mask>", CLS)
"""Tokens that are no genes, in the order of their ids."""
SPREAD = 1.0
"""Of fresh rows of tables."""

Task: TypeAlias = Literal["masked_gene_prediction", "expression_reconstruction", "dual"]
TokenStyle: TypeAlias = Literal["rank_value", "binned_expression", "continuous_projection"]
Values: TypeAlias = Literal["embedded", "attention_bias", "none"]
"""How the network gets to know values: by a vector; by their logarithms, added to what attention gives to a token, as
TranscriptFormer has it; or not at all, as Geneformer, which knows ranks."""
Form: TypeAlias = Literal["scmodelforge", "scfoundation"]
"""Of the masked autoencoder."""

BINS = 51

TASKS: dict[str, tuple[str, ...]] = {
    "masked_gene_prediction": ("genes",),
    "expression_reconstruction": ("expression",),
    "dual": ("genes", "bins"),
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


def scfoundation_tokens(*, length: int | None = 2048) -> TokenizerConfig:
    """Describe the tokens of scFoundation's form of the autoencoder: all genes, zeros among them, as logarithms.

    Parameters
    ----------
    length
        Most tokens of a cell, the cell token included; of more genes some are drawn for each cell and epoch.  ``None`` for
        all.
    """
    return TokenizerConfig(
        genes="all", values="log1p", bins=None, target_sum=1e4, length=length, pad_value=0.0, expects="counts"
    )


def with_bins(config: TokenizerConfig, bins: int = BINS) -> TokenizerConfig:
    """A tokenizer that gives bins beside values: its own edges, those of its bins, or edges of equal width."""
    if config.edges is not None:
        return config
    if config.bins is not None:
        return replace(config, edges=tuple(number - 0.5 for number in range(config.bins + 1)))
    return replace(config, edges=uniform_edges(bins))


def embedder(
    config: TokenizerConfig,
    *,
    dropout: float,
    rows: int | None,
    generation: bool = False,
    values: PartConfig | None = None,
) -> EmbedderConfig:
    """Gene, perhaps position, and value, added and normed; ``rows`` of positions, ``None`` for those of the tokenizer."""
    if rows is None and config.positions:
        rows = config.length or 2048
    return EmbedderConfig(
        parts=Named(
            genes=GenesConfig(norm=False, draw="normal"),
            positions=TableConfig(rows=rows, field="positions", norm=False, spread=SPREAD) if rows else None,
            values=values,
            generation=GenerationConfig() if generation and values is not None else None,
        ),
        norm="layer",
        dropout=dropout,
        eps=EPS,
    )


def _values(values: Values, config: TokenizerConfig) -> tuple[PartConfig | None, CountBias]:
    """The part of the embedder that reads values, and what attention adds."""
    known: dict[str, tuple[PartConfig | None, CountBias]] = {
        "embedded": (LinearConfig(), "none"),
        # Of numbers that are no logarithms yet.
        "attention_bias": (None, "values" if config.values == "log1p" else "log1p"),
        "none": (None, "none"),
    }
    return lookup(known, values, "way to read values")


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
    values: Values = "embedded",
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
    values
        How the network gets to know them: ``"embedded"``, as an ``"attention_bias"``, or ``"none"``.
    pretraining_task
        Which heads there are; ``"dual"`` needs bins, and gives the tokenizer 51 of equal width if it has none.
    generation
        Have the vector that stands for values to be generated.
    tokenizer
        How cells become tokens; ``None`` ranks genes, see :func:`scmodelforge_tokens`.
    """
    tokenizer = tokenizer or scmodelforge_tokens()
    names = lookup(TASKS, pretraining_task, "pre-training task")
    if "bins" in names:
        tokenizer = with_bins(tokenizer)
    kinds: dict[str, HeadConfig] = {"genes": TokenClassesConfig(), "expression": ExpressionConfig()}
    if tokenizer.edges is not None:
        kinds["bins"] = TokenClassesConfig(classes=len(tokenizer.edges) - 1)
    part, bias = _values(values, tokenizer)
    return ModelConfig(
        family=ENCODER,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation, values=part),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
            eps=EPS,
            count_bias=bias,
        ),
        pooling=pooling,
        heads=Named({name: kinds[name] for name in names}),
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
    values: Values = "embedded",
    bins: int | None = BINS,
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe the causal decoder, which predicts the next gene and its bin from those before; cells are their mean.

    Parameters
    ----------
    vocabulary
        Genes of the model.
    dim, layers, heads, hidden, dropout, activation, final_norm, values, generation
        As of :func:`scmodelforge`.
    bins
        Number of bins of equal width, where the tokenizer has none; ``None`` predicts no bins.
    tokenizer
        How cells become tokens; ``None`` ranks genes, so that the next is the next lower one.
    """
    tokenizer = tokenizer or scmodelforge_tokens("rank_value")
    if bins is not None:
        tokenizer = with_bins(tokenizer, bins)
    part, bias = _values(values, tokenizer)
    classes = None if bins is None or tokenizer.edges is None else TokenClassesConfig(classes=len(tokenizer.edges) - 1)
    return ModelConfig(
        family=CAUSAL,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation, values=part),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
            eps=EPS,
            causal=True,
            count_bias=bias,
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
    form: Form = "scmodelforge",
    depth: bool = False,
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
    form
        ``"scfoundation"`` reads all genes: values are embedded by learned soft bins, the encoder sees visible genes above
        zero, and the decoder all, with one vector for zeros and one for hidden values :cite:p:`Hao2024`.
    depth
        Give cells two tokens with their number of molecules, as scFoundation does: of the values to predict, and of those
        that are shown.  Trained with the corruption ``"mask_downsampled"`` a network learns to go from one to the other.
    tokenizer
        How cells become tokens; ``None`` takes the values of expressed genes, or of all for ``"scfoundation"``.
    """
    everything = lookup({"scmodelforge": False, "scfoundation": True}, form, "form of the autoencoder")
    tokenizer = tokenizer or (scfoundation_tokens() if everything else scmodelforge_tokens("continuous_projection"))
    if depth:
        tokenizer = replace(tokenizer, depth=True)
    part: PartConfig = SoftBinsConfig() if everything else LinearConfig()
    return ModelConfig(
        family=AUTOENCODER,
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=embedder(tokenizer, dropout=dropout, rows=None, generation=generation, values=part),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden or 4 * dim,
            dropout=dropout,
            activation=activation,
            norm="pre",
            final_norm=final_norm,
            eps=EPS,
            sees_hidden=False,
            sees_zeros=not everything,
        ),
        pooling=pooling,
        heads=Named(
            expression=DecoderConfig(
                dim=decoder_dim,
                layers=decoder_layers,
                heads=decoder_heads or heads,
                dropout=dropout,
                activation=activation,
                eps=EPS,
                zeros=everything,
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
    pretraining={
        "masked_gene_prediction": Pretraining(
            objectives=({"name": "masked_genes"},),
            corruption={"name": "mask_genes"},
            options={"pretraining_task": "masked_gene_prediction"},
        ),
        "expression_reconstruction": Pretraining(
            objectives=({"name": "masked_expression"},),
            corruption={"name": "mask_values", "ratio": 0.15},
            options={"pretraining_task": "expression_reconstruction"},
        ),
        "dual": Pretraining(
            objectives=({"name": "masked_genes"}, {"name": "masked_bins"}),
            corruption={"name": "mask_genes"},
            options={"pretraining_task": "dual"},
        ),
    },
)
SCMODELFORGE_CAUSAL = Family(
    name=CAUSAL,
    config=scmodelforge_causal,
    key="X_scModelForge",
    original="scmodelforge",
    specials=SPECIALS,
    pretraining={
        "next_gene_and_bin": Pretraining(
            objectives=({"name": "masked_genes"}, {"name": "masked_bins"}), corruption={"name": "next_tokens"}
        ),
        "next_gene": Pretraining(
            objectives=({"name": "masked_genes"},), corruption={"name": "next_tokens"}, options={"bins": None}
        ),
        # What the original asks of it, with all that it leaves in sight; for comparison only.
        "masked_gene_and_bin": Pretraining(
            objectives=({"name": "masked_genes"}, {"name": "masked_bins"}),
            corruption={"name": "mask_genes", "compat": True},
        ),
    },
)
SCMODELFORGE_AUTOENCODER = Family(
    name=AUTOENCODER,
    config=scmodelforge_autoencoder,
    key="X_scModelForge",
    original="scmodelforge",
    specials=SPECIALS,
    pretraining={
        "expression_reconstruction": Pretraining(
            objectives=({"name": "masked_expression"},), corruption={"name": "mask_values", "ratio": 0.5}
        ),
        # scFoundation's, from cells with fewer molecules.
        "read_depth": Pretraining(
            objectives=({"name": "masked_expression"},),
            corruption={"name": "mask_downsampled"},
            options={"form": "scfoundation", "depth": True},
        ),
    },
)
