"""scGPT's ``args.json`` and tensor shapes to our configuration, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ContextConfig,
    EmbedderConfig,
    EncoderConfig,
    ExpressionConfig,
    FromCellConfig,
    HeadsConfig,
    ModelConfig,
)
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import CLS, PAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgpt_tools._types import Values
    from scgpt_tools.models.config import EmbedderNorm, FromCellStyle, Pooling, ValueStyle
    from scgpt_tools.vocabulary import Vocabulary

    Weights = Mapping[str, Tensor]

# Where scGPT and the wrapper around it spell a setting differently, the first one present counts.
_SPELLINGS = {
    "dim": ("embsize", "d_model"),
    "heads": ("nheads", "nhead"),
    "layers": ("nlayers",),
    "hidden": ("d_hid",),
}
POOLINGS: dict[str, Pooling] = {"cls": "cls", "avg-pool": "mean_with_padding", "w-pool": "weighted"}
FROM_CELL_STYLES: dict[str, FromCellStyle] = {
    "inner product": "inner",
    "inner product, detach": "inner_detached",
    "concat query": "concat",
    "sum query": "sum",
}
VALUE_STYLES: dict[str, ValueStyle] = {"continuous": "continuous", "category": "binned", "scaling": "scale"}
_VALUES: dict[str, Values] = {"binned": "binned", "log1p": "log1p", "normed_raw": "raw"}


def config_from(args: Mapping[str, Any], weights: Weights, vocabulary: Vocabulary, *, fused: bool) -> ModelConfig:
    """Describe a model by its settings and its tensors.

    Raises
    ------
    ValueError
        If a setting that tensors cannot tell is absent, or contradicts them.
    """
    n_tokens, dim = weights["embedder.genes.table.weight"].shape
    blocks = [key for key in weights if key.startswith("encoder.blocks.")]
    first = weights.get("encoder.blocks.0.feed_forward.expand.weight")
    if first is None:
        raise ValueError(f"Expected the layers of a transformer, found {len(blocks)} tensors, none of the first layer.")
    layers, hidden = 1 + max(int(key.split(".")[2]) for key in blocks), len(first)
    for name, seen in (("dim", dim), ("layers", layers), ("hidden", hidden)):
        said = _setting(args, name)
        if said is not None and said != seen:
            raise ValueError(f"args.json says {_SPELLINGS[name][0]} = {said}, but the tensors have {seen}.")
    heads = _setting(args, "heads")
    if heads is None:
        raise ValueError("Expected the number of attention heads as `nheads` in args.json, found none.")
    affine = "heads.expression.slope.0.weight" in weights
    modality = "context.modality.table.weight" in weights
    family = "scgpt_perturbation" if affine else "scgpt_multiomic" if modality else "scgpt"
    norm, domains = _norm(weights)
    own = _own(args)
    return ModelConfig(
        family=own.get("family", family),
        n_tokens=n_tokens,
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=_embedder(args, weights, own.get("norm", norm)),
        encoder=EncoderConfig(
            layers=layers,
            heads=heads,
            hidden=hidden,
            dropout=args.get("dropout", 0.2),
            # Only fused layers ever looked at the flag.
            norm="replace" if fused and args.get("pre_norm") else "post",
        ),
        pooling=own.get("pooling", lookup(POOLINGS, args.get("cell_emb_style", "cls"), "cell_emb_style")),
        context=ContextConfig(
            batches=_rows(weights, "context.batch.table.weight"),
            modalities=_rows(weights, "context.modality.table.weight"),
            modality_pad=args.get("modality_pad"),
        ),
        heads=_heads(args, weights, dim),
        tokenizer=_tokenizer(args, affine=affine),
        domains=domains,
        batch_names=_names(args, "batch_names"),
    )


def special_tokens(args: Mapping[str, Any]) -> dict[str, str]:
    """Names of the padding and of the cell token."""
    return {"pad": args.get("pad_token", PAD), "cls": _own(args).get("cls_token", CLS)}


def _own(args: Mapping[str, Any]) -> dict[str, Any]:
    """What scGPT has no words for; :func:`settings_of` writes it and the original does not read it."""
    return args.get("scgpt_tools", {})


def _setting(args: Mapping[str, Any], name: str) -> Any:
    return next((args[key] for key in _SPELLINGS[name] if args.get(key) is not None), None)


def _rows(weights: Weights, key: str) -> int:
    return len(weights[key]) if key in weights else 0


def _names(args: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    return tuple(args[key]) if args.get(key) else None


def _norm(weights: Weights) -> tuple[EmbedderNorm, int]:
    domains = sum(key.startswith("embedder.norm.domains.") and key.endswith(".running_mean") for key in weights)
    return ("domain", domains) if domains else ("batch" if "embedder.norm.running_mean" in weights else "none", 0)


def _embedder(args: Mapping[str, Any], weights: Weights, norm: EmbedderNorm) -> EmbedderConfig:
    binned = "embedder.values.table.weight" in weights
    values: ValueStyle = "binned" if binned else "continuous" if "embedder.values.first.weight" in weights else "scale"
    # Tensors tell their style; having none does not, so scaling has to be said.
    said = args.get("input_emb_style", "continuous" if values == "scale" else None)
    if said is not None and lookup(VALUE_STYLES, said, "input_emb_style") != values:
        raise ValueError(f"args.json says input_emb_style = {said!r}, but the tensors are those of {values!r} values.")
    flags = weights.get("embedder.perturbation.weight")
    # The flag of padding starts as zeros and is never trained; the file does not name it.
    silent = [] if flags is None else [row for row in range(len(flags)) if not flags[row].any()]
    return EmbedderConfig(
        values=values,
        value_rows=_rows(weights, "embedder.values.table.weight") if binned else None,
        value_pad=_value_pad(args, weights) if binned else None,
        perturbation_rows=0 if flags is None else len(flags),
        # Wrappers write the setting of models without flags too.
        perturbation_pad=None if flags is None else args.get("pert_pad_id", silent[0] if silent else None),
        generation="embedder.generation.weight" in weights,
        norm=norm,
    )


def _value_pad(args: Mapping[str, Any], weights: Weights) -> int | None:
    """The row that padding reads; a marker such as -2 has none."""
    pad = _own(args).get("value_pad", args.get("pad_value"))
    return pad if pad is not None and 0 <= pad < _rows(weights, "embedder.values.table.weight") else None


def _heads(args: Mapping[str, Any], weights: Weights, dim: int) -> HeadsConfig:
    expression = None
    nonzero = "heads.expression.nonzero.0.weight" in weights
    if "heads.expression.slope.0.weight" in weights:
        expression = ExpressionConfig(
            style="affine",
            nonzero=nonzero,
            activation=args.get("decoder_activation"),
            adaptive_offset=args.get("decoder_adaptive_bias", False),
        )
    elif "heads.expression.value.0.weight" in weights:
        expression = ExpressionConfig(nonzero=nonzero)
    return HeadsConfig(
        expression=expression,
        expression_from_cell=_from_cell(args, weights, dim),
        cell_type=_classifier(args, weights),
        batch=AdversaryConfig(classes=_rows(weights, "heads.batch.out.weight"), layers=_depth(weights, "heads.batch"))
        if "heads.batch.out.weight" in weights
        else None,
    )


def _from_cell(args: Mapping[str, Any], weights: Weights, dim: int) -> FromCellConfig | None:
    prefix = "heads.expression_from_cell."
    query = weights.get(f"{prefix}query.weight")
    if query is None:
        return None
    expand = weights.get(f"{prefix}expand.weight")
    if expand is None:
        said = args.get("mvc_decoder_style", "inner product")
        style: FromCellStyle = lookup(FROM_CELL_STYLES, said, "mvc_decoder_style")
        if not style.startswith("inner"):
            raise ValueError(f"args.json says mvc_decoder_style = {said!r}, but the tensors are of an inner product.")
    else:
        style = "sum" if expand.shape[1] == query.shape[0] else "concat"
    return FromCellConfig(
        style=style,
        nonzero=f"{prefix}nonzero.weight" in weights,
        context_in_query=query.shape[1] == 2 * dim,
    )


def _classifier(args: Mapping[str, Any], weights: Weights) -> ClassifierConfig | None:
    classes = _rows(weights, "heads.cell_type.out.weight")
    if not classes:
        return None
    layers = _depth(weights, "heads.cell_type")
    return ClassifierConfig(classes=classes, layers=layers, names=_names(args, "class_names"))


def _depth(weights: Weights, head: str) -> int:
    """Layers of a classifier: the linear maps before the last one are matrices among its hidden parts."""
    hidden = (key for key in weights if key.startswith(f"{head}.hidden.") and key.endswith(".weight"))
    return 1 + sum(weights[key].dim() == 2 for key in hidden)


def _tokenizer(args: Mapping[str, Any], *, affine: bool) -> TokenizerConfig:
    said = to_dict(_tokenizer_in_their_words(args, affine=affine))
    return from_dict(TokenizerConfig, said | _own(args).get("tokenizer", {}))


def _tokenizer_in_their_words(args: Mapping[str, Any], *, affine: bool) -> TokenizerConfig:
    if affine:
        return TokenizerConfig(
            genes="all", values="raw", bins=None, length=None, cls=False, pad_value=0.0, expects="log1p"
        )
    values = lookup(_VALUES, args.get("input_style", "binned"), "input_style")
    pad_value = float(args.get("pad_value", -2))
    return TokenizerConfig(
        values=values,
        bins=(args.get("n_bins") or 51) if values == "binned" else None,
        length=args.get("max_seq_len") or 1200,
        cls_value=pad_value,
        pad_value=pad_value,
        mask_value=float(args.get("mask_value", -1)),
    )


def settings_of(config: ModelConfig, vocabulary: Vocabulary, *, fused: bool) -> dict[str, Any]:
    """Settings in scGPT's spelling; :func:`config_from` reads them back."""
    heads, tokenizer = config.heads, config.tokenizer
    theirs_of = {ours: theirs for theirs, ours in FROM_CELL_STYLES.items()}
    affine = heads.expression is not None and heads.expression.style == "affine"
    value_styles = {ours: theirs for theirs, ours in VALUE_STYLES.items()}
    input_styles = {ours: theirs for theirs, ours in _VALUES.items()}
    value_pad = config.embedder.value_pad
    settings: dict[str, Any] = {
        "embsize": config.dim,
        "nheads": config.encoder.heads,
        "d_hid": config.encoder.hidden,
        "nlayers": config.encoder.layers,
        "n_layers_cls": heads.cell_type.layers if heads.cell_type else 3,
        "dropout": config.encoder.dropout,
        "pad_token": vocabulary.pad,
        "pad_value": _number(tokenizer.pad_value) if value_pad is None else value_pad,
        "mask_value": _number(tokenizer.mask_value),
        "input_style": input_styles[tokenizer.values],
        "input_emb_style": value_styles[config.embedder.values],
        "n_bins": tokenizer.bins,
        "max_seq_len": tokenizer.length,
        "cell_emb_style": {ours: theirs for theirs, ours in POOLINGS.items()}.get(config.pooling, "avg-pool"),
        "fast_transformer": fused,
        "pre_norm": config.encoder.norm == "replace",
        "MVC": heads.expression_from_cell is not None,
        "USE_GENERATIVE_TRAINING": config.embedder.generation,
    }
    if heads.expression_from_cell is not None:
        settings["mvc_decoder_style"] = theirs_of[heads.expression_from_cell.style]
    if heads.cell_type is not None and heads.cell_type.names is not None:
        settings["class_names"] = list(heads.cell_type.names)
    if config.batch_names is not None:
        settings["batch_names"] = list(config.batch_names)
    if config.context.modality_pad is not None:
        settings["modality_pad"] = config.context.modality_pad
    if config.embedder.perturbation_rows:
        settings["pert_pad_id"] = config.embedder.perturbation_pad
    if affine and heads.expression is not None:
        settings |= {
            "decoder_activation": heads.expression.activation,
            "decoder_adaptive_bias": heads.expression.adaptive_offset,
        }
    return settings | {"scgpt_tools": _in_our_words(config, vocabulary, settings, affine=affine)}


def _in_our_words(
    config: ModelConfig, vocabulary: Vocabulary, settings: Mapping[str, Any], *, affine: bool
) -> dict[str, Any]:
    """What :func:`config_from` would not find in the settings; each fact has one place, theirs if there is one."""
    said = to_dict(_tokenizer_in_their_words(settings, affine=affine))
    words: dict[str, Any] = {
        "family": config.family,
        "norm": config.embedder.norm,
        "cls_token": vocabulary.cls,
        "tokenizer": {key: value for key, value in to_dict(config.tokenizer).items() if value != said[key]},
    }
    if config.pooling not in POOLINGS.values():
        words["pooling"] = config.pooling
    if config.embedder.values == "binned":
        words["value_pad"] = config.embedder.value_pad
    return words


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
