"""PerturbLab's settings of a model: their names, their defaults, and what a checkpoint says about them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from scgpt_tools._validate import check_fraction, check_integer, check_number
from scgpt_tools.config import from_dict, settle_fields, to_dict
from scgpt_tools.models.config import AdversaryConfig, AffineConfig, ClassifierConfig, ExpressionConfig, FromCellConfig
from scgpt_tools.models.formats.scgpt_config import (
    FROM_CELL_STYLES,
    OWN,
    POOLINGS,
    VALUE_STYLES,
    Settings,
    transformer_of,
    value_style,
)
from scgpt_tools.vocabulary import PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgpt_tools.models.config import ModelConfig

BINS = 51
"""Bins of the released models."""


@dataclass(frozen=True, kw_only=True)
class scGPTConfig:
    """Settings of a model under PerturbLab's names; never change, see :func:`dataclasses.replace`.

    Examples
    --------
    >>> config = scGPTConfig(d_model=64, nhead=4, nlayers=2, do_mvc=True)
    >>> config.d_hid, config.dropout
    (512, 0.2)
    """

    ntoken: int | None = None
    """Rows of the gene table; ``None`` for as many as the vocabulary has, special tokens included."""
    d_model: int = 512
    """Width."""
    nhead: int = 8
    """Attention heads."""
    d_hid: int = 512
    """Width of the feed-forward part."""
    nlayers: int = 12
    """Transformer layers."""
    nlayers_cls: int = 3
    """Layers of the classifier."""
    n_cls: int = 1
    """Classes of the classifier; with 1 no labels are read."""
    dropout: float = 0.2
    pad_token: str = PAD
    """Token that fills short cells."""
    pad_value: int = 0
    """Value at padding and of the cell token; -2 in the released models."""
    specials: tuple[str, ...] | None = None
    """Special tokens to number together with a gene list; ``<pad>`` and ``<cls>`` are appended where they are absent."""
    special_first: bool = True
    """Put ``specials`` before the genes."""
    use_default_gene_vocab: bool = True
    """Has no effect: a vocabulary comes from a gene list or a checkpoint, and no other one is taken in its place."""
    do_mvc: bool = False
    """Build the head that predicts values from the cell embedding (MVC, GEPC)."""
    do_dab: bool = False
    """Build the batch discriminator behind a gradient reversal (DAB)."""
    use_batch_labels: bool = False
    """Show the batch to the heads of expression."""
    num_batch_labels: int | None = None
    """Number of batches, where a part needs it."""
    domain_spec_batchnorm: bool | str = False
    """``True`` or ``"dsbn"`` for a norm of each batch, ``"batchnorm"`` for one."""
    input_emb_style: str = "continuous"
    """``"continuous"``, ``"category"`` or ``"scaling"``."""
    n_input_bins: int | None = None
    """Bins of the values, zero included; ``None`` for 51.  With ``"category"`` the rows of the value table, of which the
    last two are no bins, so that padding and masks have a row."""
    cell_emb_style: str = "cls"
    """``"cls"``, ``"avg-pool"`` or ``"w-pool"``."""
    mvc_decoder_style: str = "inner product"
    ecs_threshold: float = 0.3
    """Threshold of the elastic cell similarity."""
    explicit_zero_prob: bool = False
    """Also predict the probability that a value is not zero."""
    use_fast_transformer: bool = False
    """Has no effect but with ``pre_norm``: attention takes the fastest backend by itself."""
    fast_transformer_backend: str = "flash"
    pre_norm: bool = False
    use_generative_training: bool = False
    """Keep the vector that stands for values to be generated, which the released models have."""
    pert_pad_id: int = 2
    """Perturbation flag that is never trained."""
    decoder_activation: str | None = None
    decoder_adaptive_bias: bool = False
    max_seq_len: int | None = None
    """Most tokens of a cell, drawn by seed from longer cells; ``None`` keeps all.  Perturbation models train on so many
    genes at a time and predict all."""
    batch_label_key: str = "batch"
    """Column of ``obs`` with technical batches."""
    label_key: str = "cell_type"
    """Column of ``obs`` with the classes of the classifier."""
    dab_weight: float = 1.0
    """Weight of the batch discriminator in the loss."""
    ecs_loss_weight: float = 10.0
    """Weight of the elastic cell similarity in the loss."""
    perturbation_delimiter: str = "+"
    """Text between the genes of a condition."""
    known_classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers, as many as data have shown so far; kept by the model."""
    known_batches: tuple[str, ...] | None = None
    """The same of technical batches."""
    scgpt_mode: str = "perturbation"
    """Kept and saved, without effect, as the four names below."""
    name: str | None = None
    model_name: str | None = None
    model_series: str | None = None
    model_type: str | None = None
    vocab: Vocabulary | None = field(default=None, repr=False)
    """Genes of the checkpoint that these settings are of; a model made with them has the same."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("d_model", "nhead", "d_hid", "nlayers", "nlayers_cls", "n_cls"):
            check_integer(name, getattr(self, name))
        for name in ("ntoken", "num_batch_labels", "max_seq_len"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.n_input_bins is not None:
            check_integer("n_input_bins", self.n_input_bins, least=0)
        for name, most in _MOST.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"Expected `{name}` to be at most {most:,}, found {getattr(self, name)}.")
        check_fraction("dropout", self.dropout, one=False)
        check_fraction("ecs_threshold", self.ecs_threshold)
        for name in ("dab_weight", "ecs_loss_weight"):
            check_number(name, getattr(self, name), least=0)
        for name, room in (("known_classes", self.n_cls), ("known_batches", self.num_batch_labels)):
            known = getattr(self, name) or ()
            if len(set(known)) < len(known) or (room is not None and len(known) > room):
                raise ValueError(f"Expected `{name}` to hold at most {room} different names, found {list(known)}.")

    @property
    def needs_batches(self) -> bool:
        """Whether some part of the model looks at technical batches."""
        return bool(self.do_dab or self.use_batch_labels or self.domain_spec_batchnorm)


ARGS_NAMES = {
    "d_model": "embsize",
    "nhead": "nheads",
    "nlayers_cls": "n_layers_cls",
    "do_mvc": "MVC",
    "do_dab": "DAB",
    "use_fast_transformer": "fast_transformer",
    "use_generative_training": "USE_GENERATIVE_TRAINING",
}
"""Settings that ``args.json`` calls otherwise."""

FIXED = (
    *("ntoken", "d_model", "nhead", "d_hid", "nlayers", "pad_token", "pad_value", "input_emb_style", "n_input_bins"),
    *("use_fast_transformer", "pre_norm", "use_generative_training", "specials", "special_first", "vocab"),
)
"""Settings that belong to trained weights."""

_FROM_ARGS = (
    *("nlayers_cls", "mvc_decoder_style", "ecs_threshold", "use_fast_transformer", "fast_transformer_backend"),
    *("pert_pad_id", "batch_label_key", "label_key", "dab_weight", "ecs_loss_weight", "perturbation_delimiter"),
    *("scgpt_mode", "use_default_gene_vocab", "name", "model_name", "model_series", "model_type"),
)
_RECORD = "wrapper"
_SIZES = ("ntoken", "d_model", "nhead", "d_hid", "nlayers")
_MOST = {
    "nlayers": 10_000,
    "nlayers_cls": 1_000,
    "n_cls": 100_000,
    "num_batch_labels": 100_000,
    "n_input_bins": 100_000,
}
"""Largest numbers of parts, and of rows of tables that no gene is in."""


def config_of(model: ModelConfig, vocabulary: Vocabulary, args: Mapping[str, Any]) -> scGPTConfig:
    """Settings of a checkpoint, which was saved by one of the wrappers or not.

    ``args``: content of its ``args.json``; empty if it has none.  Returns the settings; where a file contradicts the
    tensors, the tensors count.
    """
    record, known = _record(args), _of_model(model, vocabulary)
    if record.config is not None:
        config = from_dict(scGPTConfig, record.config, where=f"args.json: {_RECORD}")
        for name in _SIZES:
            if getattr(config, name) != known[name]:
                raise ValueError(
                    f"args.json says {name} = {getattr(config, name)}, but the tensors have {known[name]}."
                )
        return replace(config, vocab=vocabulary)
    said = {name: args[key] for name in _FROM_ARGS if args.get(key := ARGS_NAMES.get(name, name)) is not None}
    return replace(from_dict(scGPTConfig, said | known, where="args.json"), vocab=vocabulary)


def genes_of(args: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Genes that a saved wrapper reads, ``None`` for all."""
    return _record(args).genes


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a wrapper adds to ``args.json`` for itself."""

    config: dict[str, Any] | None = None
    genes: tuple[str, ...] | None = None


def _record(args: Mapping[str, Any]) -> _Record:
    return from_dict(_Record, Settings(args).within(OWN).mapping(_RECORD), where=f"args.json: {_RECORD}")


def args_with(args: Mapping[str, Any], config: scGPTConfig, genes: tuple[str, ...] | None) -> dict[str, Any]:
    """Add settings to the content of an ``args.json``.

    ``config``: settings, of which those are added that are not there, by the names that PerturbLab reads; ``genes``:
    genes that the wrapper reads, ``None`` for all.  Returns the new content, from which :func:`config_of` gives the
    same settings again.
    """
    plain = to_dict(replace(config, vocab=None))
    del plain["vocab"]
    theirs = {ARGS_NAMES.get(name, name): value for name, value in plain.items()}
    ours = {**args.get(OWN, {}), _RECORD: {"config": plain, "genes": genes}}
    return {**theirs, **args, OWN: ours}


def changed(config: scGPTConfig, changes: Mapping[str, Any]) -> scGPTConfig:
    """Settings with some changed; another number of classes or batches begins without names."""
    fresh = {
        names: None
        for names, number in (("known_classes", "n_cls"), ("known_batches", "num_batch_labels"))
        if number in changes and changes[number] != getattr(config, number)
    }
    return replace(config, **{**fresh, **changes})


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse changes of settings that trained weights depend on."""
    if fixed := [name for name in changes if name in FIXED]:
        free = [each.name for each in fields(scGPTConfig) if each.name not in FIXED]
        raise ValueError(f"Expected changes among {free}, found {fixed}, which belong to the checkpoint.")


def _of_model(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the description of a network says; parts that are absent say nothing of their kind."""
    heads, embedder, tokenizer = model.heads, model.embedder, model.tokenizer
    domains = embedder.norm.startswith("domain")
    bins = model.bins
    pad = tokenizer.pad_value if bins is None or bins.pad is None else bins.pad
    encoder = transformer_of(model)
    replaced = encoder.norm == "replace"
    classifier, expression = heads.find("cell_type", ClassifierConfig), heads.find("expression", ExpressionConfig)
    from_cell, adversary = heads.find("expression_from_cell", FromCellConfig), heads.find("batch", AdversaryConfig)
    batches = model.context.batches or model.domains or (adversary.classes if adversary else None)
    known: dict[str, Any] = {
        "ntoken": model.n_tokens,
        "d_model": model.dim,
        "nhead": encoder.heads,
        "d_hid": encoder.hidden,
        "nlayers": encoder.layers,
        "dropout": encoder.dropout,
        "pad_token": vocabulary.pad,
        "pad_value": int(pad),
        "do_mvc": from_cell is not None,
        "do_dab": adversary is not None,
        "use_batch_labels": model.context.batches > 0,
        "num_batch_labels": batches,
        "domain_spec_batchnorm": "dsbn" if domains else "batchnorm" if embedder.norm == "batch" else False,
        "input_emb_style": _theirs(VALUE_STYLES, value_style(model)),
        "n_input_bins": tokenizer.bins if bins is None else bins.rows,
        "cell_emb_style": _theirs(POOLINGS, "mean_with_padding" if model.pooling == "mean" else model.pooling),
        "explicit_zero_prob": expression is not None and expression.nonzero,
        "pre_norm": replaced,
        "use_generative_training": "generation" in embedder.parts,
        "max_seq_len": tokenizer.length,
    }
    if replaced:
        known["use_fast_transformer"] = True
    if classifier is not None:
        known |= {"n_cls": classifier.classes, "nlayers_cls": classifier.layers, "known_classes": classifier.names}
    if model.batch_names is not None and len(model.batch_names) == batches:
        known["known_batches"] = model.batch_names
    if from_cell is not None:
        known["mvc_decoder_style"] = _theirs(FROM_CELL_STYLES, from_cell.style)
    if model.perturbation is not None and model.perturbation.pad is not None:
        known["pert_pad_id"] = model.perturbation.pad
    if isinstance(expression, AffineConfig):
        known |= {"decoder_activation": expression.activation, "decoder_adaptive_bias": expression.adaptive_offset}
    return known


def _theirs(table: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, name in table.items() if name == ours)
