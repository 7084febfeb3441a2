"""scGPT's ``args.json`` and tensor shapes to our configuration, and back."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from scgpt_tools._lookup import lookup
from scgpt_tools._validate import check_choice, check_flag, check_integer, check_number, check_text, check_type
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ContextConfig,
    EmbedderNorm,
    ExpressionConfig,
    FromCellConfig,
    ModelConfig,
    Named,
    Pooling,
    TransformerConfig,
    scgpt_embedder,
)
from scgpt_tools.tokens.modalities import SPECIALS, default_modality
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import CLS, PAD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from scgpt_tools._types import TokenValues
    from scgpt_tools.models.config import EmbedderConfig, FromCellStyle, HeadConfig, ValueStyle
    from scgpt_tools.vocabulary import Vocabulary

    Weights = Mapping[str, Tensor]

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

# Rows of the modality table in scGPT's tutorial.
_TUTORIAL = ("prot", "rna", *SPECIALS)

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
_MOST = 2**31 - 1
_MATRICES = ("table.weight", "perturbation.weight", "out.weight", "query.weight", "expand.weight")
OWN, CHECKSUMS = "scgpt_tools", "checksums"
"""Setting with what scGPT has no words for, and the one in it with the checksums of the other files."""
_VALUES: dict[str, TokenValues] = {"binned": "binned", "log1p": "log1p", "normed_raw": "raw"}


class Settings:
    """Settings of a file that others may have written: every value is of the kind that is asked for, or refused by name.

    Parameters
    ----------
    content
        Values by name.
    where
        Where they are, for messages.
    """

    def __init__(self, content: Mapping[str, Any], where: str = "args.json") -> None:
        self._content, self._where = content, where

    def get(self, key: str, check: Callable[[str, Any], Value], default: Value) -> Value:
        """A value that passes a check, or the default where it is absent; ``null`` counts as absent if that is ``None``."""
        value = self._content.get(key, default)
        if value is None and default is None:
            return default
        # Messages put the name in backticks.
        return check(f"{key}` in `{self._where}", value)

    def has(self, key: str) -> bool:
        """Whether there is such a setting, be it ``null``."""
        return key in self._content

    def whole(self, key: str, *, least: int = 0) -> int | None:
        """A whole number that a size can be."""
        value = self.get(key, partial(check_integer, least=least), None)
        if value is not None and value > _MOST:
            raise ValueError(f"Expected `{key}` in `{self._where}` to be at most {_MOST:,}.")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        return self.get(key, check_number, default)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        return self.get(key, check_flag, default)

    def text(self, key: str, default: str) -> str:
        """A text."""
        return self.get(key, check_text, default)

    def maybe_text(self, key: str) -> str | None:
        """A text, or ``None``."""
        return self.get(key, check_text, None)

    def names(self, key: str) -> tuple[str, ...] | None:
        """Texts; ``None`` for none."""
        return self.get(key, _check_names, None) or None

    def rows(self, key: str) -> tuple[int, ...]:
        """Rows of a table, none by default."""
        return self.get(key, _check_rows, ())

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object."""
        return self.get(key, lambda name, value: check_type(name, value, dict), {})

    def within(self, key: str) -> Settings:
        """The settings in an object."""
        return Settings(self.mapping(key), f"{self._where}: {key}")


def _check_names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"Expected `{name}` to be a list of texts, found {str(value)[:80]!r}.")
    return tuple(value)


def _check_rows(name: str, value: Any) -> tuple[int, ...]:
    entries = check_type(name, value, (list, tuple))
    return tuple(check_integer(f"{name}[{place}]", entry, least=0) for place, entry in enumerate(entries))


def config_from(args: Mapping[str, Any], weights: Weights, vocabulary: Vocabulary, *, fused: bool) -> ModelConfig:
    """Describe a model by its settings and its tensors."""
    settings = Settings(args)
    n_tokens, dim = weights["embedder.genes.table.weight"].shape
    blocks = [key for key in weights if key.startswith("encoder.blocks.")]
    first = weights.get("encoder.blocks.0.feed_forward.expand.weight")
    if first is None:
        raise ValueError(f"Expected the layers of a transformer, found {len(blocks)} tensors, none of the first layer.")
    layers, hidden = 1 + max(int(key.split(".")[2]) for key in blocks), len(first)
    for name, seen in (("dim", dim), ("layers", layers), ("hidden", hidden)):
        said = _size(settings, name)
        if said is not None and said != seen:
            raise ValueError(f"args.json says {_SPELLINGS[name][0]} = {said}, but the tensors have {seen}.")
    heads = _size(settings, "heads")
    if heads is None:
        raise ValueError("Expected the number of attention heads as `nheads` in args.json, found none.")
    affine = "heads.expression.slope.0.weight" in weights
    modality = "context.modality.table.weight" in weights
    family = "scgpt_perturbation" if affine else "scgpt_multiomic" if modality else "scgpt"
    norm, domains = _norm(weights)
    own = settings.within(OWN)
    pooling = lookup(POOLINGS, settings.text("cell_emb_style", "cls"), "cell_emb_style")
    # Only fused layers ever looked at the flag.
    replaced = settings.flag("pre_norm") and fused
    tokenizer = _tokenizer(settings, affine=affine)
    if modality and OWN not in args:
        tokenizer = _of_modalities(tokenizer, settings, vocabulary, _rows(weights, "context.modality.table.weight"))
    pad, said_pad = (
        tokenizer.modalities.index("<pad>") if tokenizer.modalities else None,
        settings.whole("modality_pad"),
    )
    return ModelConfig(
        family=own.text("family", family),
        n_tokens=n_tokens,
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=_embedder(settings, weights, own.get("norm", partial(_one_of, get_args(EmbedderNorm)), norm)),
        encoder=TransformerConfig(
            layers=layers,
            heads=heads,
            hidden=hidden,
            dropout=settings.number("dropout", 0.2),
            norm="replace" if replaced else "post",
        ),
        pooling=own.get("pooling", partial(_one_of, get_args(Pooling)), pooling),
        context=ContextConfig(
            batches=_rows(weights, "context.batch.table.weight"),
            modalities=_rows(weights, "context.modality.table.weight"),
            modality_pad=pad if said_pad is None else said_pad,
        ),
        heads=_heads(settings, weights, dim),
        tokenizer=tokenizer,
        domains=domains,
        batch_names=settings.names("batch_names"),
        perturbation_flags=settings.rows("perturbation_flags"),
    )


def check_matrices(weights: Weights) -> None:
    """Refuse other tensors where sizes are read off matrices."""
    for key in (key for key in weights if key.endswith(_MATRICES)):
        if weights[key].dim() != 2:
            raise ValueError(f"Expected `{key}` of the checkpoint to be a matrix, found {tuple(weights[key].shape)}.")


def _one_of(choices: tuple[Value, ...], name: str, value: Value) -> Value:
    return check_choice(name, value, choices)


def special_tokens(args: Mapping[str, Any]) -> dict[str, str]:
    """Names of the padding and of the cell token."""
    settings = Settings(args)
    return {"pad": settings.text("pad_token", PAD), "cls": settings.within(OWN).text("cls_token", CLS)}


def checksums_in(args: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of the files beside ``args.json`` by their names; empty if another package wrote it."""
    found = Settings(args).within(OWN).mapping(CHECKSUMS)
    return {name: check_text(f"{CHECKSUMS}: {name}", value) for name, value in found.items()}


def _size(settings: Settings, name: str) -> int | None:
    return next((said for key in _SPELLINGS[name] if (said := settings.whole(key)) is not None), None)


def _rows(weights: Weights, key: str) -> int:
    return len(weights[key]) if key in weights else 0


def _norm(weights: Weights) -> tuple[EmbedderNorm, int]:
    domains = sum(key.startswith("embedder.norm.domains.") and key.endswith(".running_mean") for key in weights)
    return ("domain", domains) if domains else ("batch" if "embedder.norm.running_mean" in weights else "none", 0)


def _embedder(settings: Settings, weights: Weights, norm: EmbedderNorm) -> EmbedderConfig:
    binned = "embedder.values.table.weight" in weights
    values: ValueStyle = "binned" if binned else "continuous" if "embedder.values.first.weight" in weights else "scale"
    # Tensors tell their style; having none does not, so scaling has to be said.
    said = settings.maybe_text("input_emb_style") or ("continuous" if values == "scale" else None)
    if said is not None and lookup(VALUE_STYLES, said, "input_emb_style") != values:
        raise ValueError(f"args.json says input_emb_style = {said!r}, but the tensors are those of {values!r} values.")
    flags = weights.get("embedder.perturbation.weight")
    flag_pad = settings.whole("pert_pad_id")
    # The flag of padding starts as zeros and is never trained; the file does not name it.
    silent = [] if flags is None else (~flags.any(dim=1)).nonzero().flatten().tolist()
    return scgpt_embedder(
        values=values,
        value_rows=_rows(weights, "embedder.values.table.weight") if binned else None,
        value_pad=_value_pad(settings, weights) if binned else None,
        perturbation_rows=0 if flags is None else len(flags),
        # Wrappers write the setting of models without flags too.
        perturbation_pad=None
        if flags is None
        else flag_pad
        if settings.has("pert_pad_id")
        else next(iter(silent), None),
        generation="embedder.generation.weight" in weights,
        norm=norm,
    )


def _value_pad(settings: Settings, weights: Weights) -> int | None:
    """The row that padding reads; a marker such as -2 has none."""
    own = settings.within(OWN)
    if own.has("value_pad"):
        return own.whole("value_pad")
    pad = settings.number("pad_value", -2)
    return int(pad) if pad.is_integer() and 0 <= pad < _rows(weights, "embedder.values.table.weight") else None


def _heads(settings: Settings, weights: Weights, dim: int) -> Named[HeadConfig]:
    expression: ExpressionConfig | None = None
    nonzero = "heads.expression.nonzero.0.weight" in weights
    if "heads.expression.slope.0.weight" in weights:
        expression = AffineConfig(
            nonzero=nonzero,
            activation=settings.maybe_text("decoder_activation"),
            adaptive_offset=settings.flag("decoder_adaptive_bias"),
        )
    elif "heads.expression.value.0.weight" in weights:
        expression = ExpressionConfig(nonzero=nonzero)
    return Named(
        {},
        expression=expression,
        expression_from_cell=from_cell_of(settings, weights, dim),
        cell_type=_classifier(settings, weights),
        batch=AdversaryConfig(classes=_rows(weights, "heads.batch.out.weight"), layers=_depth(weights, "heads.batch"))
        if "heads.batch.out.weight" in weights
        else None,
    )


def from_cell_of(settings: Settings, weights: Weights, dim: int) -> FromCellConfig | None:
    """The head that reads the cell embedding, whose style the tensors tell but for that of an inner product."""
    prefix = "heads.expression_from_cell."
    query = weights.get(f"{prefix}query.weight")
    if query is None:
        return None
    expand = weights.get(f"{prefix}expand.weight")
    if expand is None:
        said = settings.text("mvc_decoder_style", "inner product")
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


def _classifier(settings: Settings, weights: Weights) -> ClassifierConfig | None:
    classes = _rows(weights, "heads.cell_type.out.weight")
    if not classes:
        return None
    layers = _depth(weights, "heads.cell_type")
    return ClassifierConfig(classes=classes, layers=layers, names=settings.names("class_names"))


def _depth(weights: Weights, head: str) -> int:
    """Layers of a classifier: the linear maps before the last one are matrices among its hidden parts."""
    hidden = (key for key in weights if key.startswith(f"{head}.hidden.") and key.endswith(".weight"))
    return 1 + sum(weights[key].dim() == 2 for key in hidden)


def _tokenizer(settings: Settings, *, affine: bool) -> TokenizerConfig:
    said = to_dict(_tokenizer_in_their_words(settings, affine=affine))
    own = settings.within(OWN).mapping("tokenizer")
    return from_dict(TokenizerConfig, {**said, **own}, where=f"args.json: {OWN}.tokenizer")


def _tokenizer_in_their_words(settings: Settings, *, affine: bool) -> TokenizerConfig:
    if affine:
        return TokenizerConfig(
            genes="all", values="raw", bins=None, length=None, cls=False, pad_value=0.0, expects="log1p"
        )
    values = lookup(_VALUES, settings.text("input_style", "binned"), "input_style")
    pad_value = settings.number("pad_value", -2)
    return TokenizerConfig(
        values=values,
        bins=settings.get("n_bins", partial(check_integer, least=2), 51) if values == "binned" else None,
        length=settings.whole("max_seq_len", least=1) or 1200,
        cls_value=pad_value,
        pad_value=pad_value,
        mask_value=settings.number("mask_value", -1),
    )


def _of_modalities(
    tokenizer: TokenizerConfig, settings: Settings, vocabulary: Vocabulary, rows: int
) -> TokenizerConfig:
    """How cells measured in several modalities become tokens, as scGPT's own tutorial makes them.

    Its files hold a row for each modality and no names.  The tutorial has proteins, whose tokens begin with ``p_``, and
    RNA, in the order of their names; another file can name its rows by ``modalities`` in ``args.json``.
    """
    names = settings.names("modalities")
    if names is None and rows == len(_TUTORIAL) and any(token.startswith("p_") for token in vocabulary):
        names = _TUTORIAL
    if names is None:
        logger.info(
            "args.json does not name the %d rows of the modality table, so tables of one modality can be embedded only; "
            'name them by "modalities", such as %s.', rows, list(_TUTORIAL)
        )  # fmt: skip
        return tokenizer
    if len(names) != rows:
        raise ValueError(f"Expected `modalities` of args.json to name {rows} rows of the table, found {list(names)}.")
    parts = []
    for name in names:
        if name in SPECIALS:
            continue
        part = default_modality(name, values="binned", bins=tokenizer.bins or 51, genes="expressed")
        known = any(token.startswith(part.prefix) for token in vocabulary)
        prefix = part.prefix if known else ""
        parts.append(replace(part, extend=bool(prefix), most=None, length=tokenizer.length, prefix=prefix))
    parts.sort(key=lambda part: part.prefix != "")  # RNA first
    return replace(tokenizer, modalities=names, parts=tuple(parts), length=None, cls_value=0.0)


def settings_of(config: ModelConfig, vocabulary: Vocabulary, *, fused: bool) -> dict[str, Any]:
    """Settings in scGPT's spelling; :func:`config_from` reads them back."""
    heads, tokenizer = config.heads, config.tokenizer
    theirs_of = {ours: theirs for theirs, ours in FROM_CELL_STYLES.items()}
    affine = heads.find("expression", AffineConfig)
    classifier, from_cell = (
        heads.find("cell_type", ClassifierConfig),
        heads.find("expression_from_cell", FromCellConfig),
    )
    encoder = transformer_of(config)
    value_styles = {ours: theirs for theirs, ours in VALUE_STYLES.items()}
    input_styles = {ours: theirs for theirs, ours in _VALUES.items()}
    value_pad = None if config.bins is None else config.bins.pad
    settings: dict[str, Any] = {
        "embsize": config.dim,
        "nheads": encoder.heads,
        "d_hid": encoder.hidden,
        "nlayers": encoder.layers,
        "n_layers_cls": classifier.layers if classifier else 3,
        "dropout": encoder.dropout,
        "pad_token": vocabulary.pad,
        "pad_value": _number(tokenizer.pad_value) if value_pad is None else value_pad,
        "mask_value": _number(tokenizer.mask_value),
        "input_style": input_styles[tokenizer.values],
        "input_emb_style": value_styles[value_style(config)],
        "n_bins": tokenizer.bins,
        "max_seq_len": tokenizer.length,
        "cell_emb_style": {ours: theirs for theirs, ours in POOLINGS.items()}.get(config.pooling, "avg-pool"),
        "fast_transformer": fused,
        "pre_norm": encoder.norm == "replace",
        "MVC": from_cell is not None,
        "USE_GENERATIVE_TRAINING": "generation" in config.embedder.parts,
    }
    if from_cell is not None:
        settings["mvc_decoder_style"] = theirs_of[from_cell.style]
    if classifier is not None and classifier.names is not None:
        settings["class_names"] = list(classifier.names)
    if config.batch_names is not None:
        settings["batch_names"] = list(config.batch_names)
    if config.perturbation_flags:
        settings["perturbation_flags"] = list(config.perturbation_flags)
    if config.context.modality_pad is not None:
        settings["modality_pad"] = config.context.modality_pad
    if config.perturbation is not None:
        settings["pert_pad_id"] = config.perturbation.pad
    if affine is not None:
        settings |= {"decoder_activation": affine.activation, "decoder_adaptive_bias": affine.adaptive_offset}
    return settings | {OWN: _in_our_words(config, vocabulary, settings, affine=affine is not None)}


def value_style(config: ModelConfig) -> ValueStyle:
    """Our name of how the model reads values."""
    if config.bins is not None:
        return "binned"
    return "scale" if config.embedder.parts["values"].kind == "scale" else "continuous"


def transformer_of(config: ModelConfig) -> TransformerConfig:
    """The encoder, if scGPT has one like it."""
    if not isinstance(config.encoder, TransformerConfig):
        raise ValueError(f"Expected a model with a transformer to write it as scGPT, found {config.encoder.kind!r}.")
    return config.encoder


def check_layers(encoder: TransformerConfig, *, norms: tuple[str, ...] = ("post",)) -> None:
    """Refuse an encoder whose layers the original would run otherwise, as no setting of its names them."""
    usual: dict[str, tuple[Any, ...]] = {
        "norm": norms,
        "activation": ("relu",),
        "final_norm": (False,),
        "eps": (1e-5,),
        "causal": (False,),
        "sees_hidden": (True,),
        "padding_mask": (True,),
    }
    others = [f"{name}={value!r}" for name, known in usual.items() if (value := getattr(encoder, name)) not in known]
    if others:
        raise ValueError(
            f"Expected an encoder such as the original's to write it in its format, found one with {', '.join(others)}: the "
            "original would compute other numbers. Keep the model with `save`."
        )


def _in_our_words(
    config: ModelConfig, vocabulary: Vocabulary, settings: Mapping[str, Any], *, affine: bool
) -> dict[str, Any]:
    """What :func:`config_from` would not find in the settings; each fact has one place, theirs if there is one."""
    said = to_dict(_tokenizer_in_their_words(Settings(settings), affine=affine))
    words: dict[str, Any] = {
        "family": config.family,
        "norm": config.embedder.norm,
        "cls_token": vocabulary.cls,
        "tokenizer": {key: value for key, value in to_dict(config.tokenizer).items() if value != said[key]},
    }
    if config.pooling not in POOLINGS.values():
        words["pooling"] = config.pooling
    if config.bins is not None:
        words["value_pad"] = config.bins.pad
    return words


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
