"""scGPT's folders: ``args.json``, ``vocab.json`` and ``best_model.pt`` or ``model.pt``.

Three spellings of the attention tensors are in circulation: torch's, the fused one of releases up to 0.2.4 (the released
checkpoints) and the wrapped one of 0.2.5.  The tensors are the same, so reading and writing are renaming.  Sizes and
parts are read off the tensors; ``args.json`` adds what tensors cannot tell, such as the number of heads.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._files import placed, written_together
from scgpt_tools._lookup import lookup
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.base import (
    as_float,
    checksums,
    read_settings,
    save_tensors,
)
from scgpt_tools.models.formats.format import Checkpoint, Format, Source, share_known
from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.models.formats.scgpt_config import (
    CHECKSUMS,
    OWN,
    check_layers,
    check_matrices,
    checksums_in,
    config_from,
    settings_of,
    special_tokens,
    transformer_of,
)
from scgpt_tools.vocabulary import CLS, PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.transfer import Transfer

logger = logging.getLogger(__name__)

ARGS, VOCABULARY, WEIGHTS = "args.json", "vocab.json", ("best_model.pt", "model.pt")
LAYOUT = FolderLayout("scGPT's format", ARGS, WEIGHTS, VOCABULARY)
# What no tensor tells, as all released models have it.
_USUAL = {"nheads": 8}

_LAYER, _BLOCK = "transformer_encoder.layers.{i}.", "encoder.blocks.{i}."
_QKV = tuple(f"{_BLOCK}attention.{part}." for part in ("query", "key", "value"))


def _attention(qkv: str, out: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"{_LAYER}{qkv}{kind}", tuple(part + kind for part in _QKV)) for kind in ("weight", "bias")),
        Rule(f"{_LAYER}{out}", f"{_BLOCK}attention.out."),
    )


ATTENTION_NAMES = {
    "torch": _attention("self_attn.in_proj_", "self_attn.out_proj."),
    "fused": _attention("self_attn.Wqkv.", "self_attn.out_proj."),
    "wrapped": _attention("self_attn._impl.Wqkv.", "self_attn._impl.out_proj."),
}

_UNUSED_ZERO = "the bias decoder's zero probability, which the original computes nowhere"

OTHER_NAMES = (
    Rule("encoder.embedding.", "embedder.genes.table."),
    Rule("encoder.enc_norm.", "embedder.genes.norm."),
    Rule("flag_encoder.", "embedder.generation."),
    Rule("value_encoder.linear1.", "embedder.values.first."),
    Rule("value_encoder.linear2.", "embedder.values.second."),
    Rule("value_encoder.embedding.", "embedder.values.table."),
    Rule("value_encoder.enc_norm.", "embedder.values.norm."),
    Rule("value_encoder.norm.", "embedder.values.norm."),
    Rule("pert_encoder.", "embedder.perturbation."),
    Rule("batch_encoder.embedding.", "context.batch.table."),
    Rule("batch_encoder.enc_norm.", "context.batch.norm."),
    Rule("mod_encoder.embedding.", "context.modality.table."),
    Rule("mod_encoder.enc_norm.", "context.modality.norm."),
    Rule("dsbn.bns.", "embedder.norm.domains."),
    Rule("bn.", "embedder.norm."),
    Rule(f"{_LAYER}linear1.", f"{_BLOCK}feed_forward.expand."),
    Rule(f"{_LAYER}linear2.", f"{_BLOCK}feed_forward.contract."),
    Rule(f"{_LAYER}norm1.", f"{_BLOCK}attention_norm."),
    Rule(f"{_LAYER}norm2.", f"{_BLOCK}feed_forward_norm."),
    Rule("decoder.fc.", "heads.expression.value."),
    Rule("decoder.zero_logit.", "heads.expression.nonzero."),
    Rule("decoder.coeff_decoder.fc.", "heads.expression.slope."),
    Rule("decoder.coeff_decoder.zero_logit.", "heads.expression.nonzero."),
    Rule("decoder.bias_decoder.fc.", "heads.expression.offset."),
    Rule("decoder.bias_decoder.zero_logit.", None, _UNUSED_ZERO),
    Rule("cls_decoder._decoder.", "heads.cell_type.hidden."),
    Rule("cls_decoder.out_layer.", "heads.cell_type.out."),
    Rule("mvc_decoder.gene2query.", "heads.expression_from_cell.query."),
    Rule("mvc_decoder.W.", "heads.expression_from_cell.product."),
    Rule("mvc_decoder.W_zero_logit.", "heads.expression_from_cell.nonzero."),
    Rule("mvc_decoder.fc1.", "heads.expression_from_cell.expand."),
    Rule("mvc_decoder.fc2.", "heads.expression_from_cell.contract."),
    Rule("mvc_decoder.hidden_activation.", "heads.expression_from_cell.activation."),
    Rule("grad_reverse_discriminator._decoder.", "heads.batch.hidden."),
    Rule("grad_reverse_discriminator.out_layer.", "heads.batch.out."),
)

# The value encoder's norm has two foreign names, one a style; which one to write depends on the style.
_TABLE_NORM = Rule("value_encoder.enc_norm.", "embedder.values.norm.")
_MLP_NORM = Rule("value_encoder.norm.", "embedder.values.norm.")


ALL_NAMES = (*(rule for rules in ATTENTION_NAMES.values() for rule in rules), *OTHER_NAMES)


def from_scgpt(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Transfer]:
    """Translate a state dict of scGPT, in any spelling, to our names; see :func:`~.rename.read_names`."""
    return read_names(weights, ALL_NAMES)


def to_scgpt(weights: Mapping[str, Tensor], attention_names: str = "torch") -> dict[str, Tensor]:
    """Translate our state dict to scGPT's names."""
    written = write_names(
        weights, (*lookup(ATTENTION_NAMES, attention_names, "spelling of attention"), *_other_names(weights))
    )
    # The original's bias decoder owns a zero probability that it never reads, and its loader wants the tensors.
    unread = {
        key.replace("coeff_decoder", "bias_decoder"): tensor.clone()
        for key, tensor in written.items()
        if key.startswith("decoder.coeff_decoder.zero_logit.")
    }
    return written | unread


def module_names(modules: Iterable[str]) -> dict[str, str]:
    """Translate names of modules that hold tensors, of all parts of a network but attention, to scGPT's names."""
    modules = tuple(f"{name}." for name in modules)
    rules = _other_names(modules)
    return {ours[:-1]: next(found[0][:-1] for rule in rules if (found := rule.write(ours))) for ours in modules}


def _other_names(names: Iterable[str]) -> tuple[Rule, ...]:
    """Rules to write names other than those of attention; where two are possible, a network's other parts tell."""
    names = tuple(names)
    affine = any(name.startswith("heads.expression.slope.") for name in names)
    table = any(name.startswith("embedder.values.table.") for name in names)
    shadowed = {"decoder.zero_logit." if affine else "decoder.coeff_decoder.zero_logit."}
    rules = tuple(rule for rule in OTHER_NAMES if rule.theirs not in shadowed)
    return (_TABLE_NORM if table else _MLP_NORM, *rules)


def recognise(source: Source) -> float:
    """Tell by the names of the tensors."""
    return share_known(source, ALL_NAMES)


def ours(folder: Path) -> bool:
    """Whether none of the files that :func:`write` replaces is somebody else's."""
    args = placed(folder, ARGS)
    if args is None:
        return not any(placed(folder, name) for name in (VOCABULARY, *WEIGHTS))
    try:
        return OWN in read_settings(args)
    except (OSError, ValueError):
        return False


def read(source: Source) -> Checkpoint:
    """Read a checkpoint of scGPT or of the wrappers that use its layout."""
    args = source.settings_or(_USUAL)
    names = partial(Vocabulary.from_file, **special_tokens(args))
    source.check_content(checksums_in(args))
    theirs, where = source.contents.weights, str(source.weights)
    weights, transfer = from_scgpt(theirs)
    weights = as_float(weights)
    check_matrices(weights)
    vocabulary = source.vocabulary(names)
    for said, usual in ((vocabulary.pad, PAD), (vocabulary.cls, CLS)):
        if said not in vocabulary and usual in vocabulary:
            raise ValueError(f"{ARGS} says that a special token is {said!r}, but {VOCABULARY} has {usual!r} instead.")
    vocabulary = _fit(vocabulary, weights, where)
    fused = any("Wqkv" in key for key in transfer.used)
    for key, reason in transfer.dropped.items():
        logger.info("Not used from %s: %s (%s).", where, key, reason)
    return Checkpoint(config_from(args, weights, vocabulary, fused=fused), vocabulary, weights, transfer, args)


def write(
    folder: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    *,
    attention_names: str = "torch",
    file: str = WEIGHTS[0],
    amend: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Write a folder that the original loads.

    ``file``: name of the file of weights; one of the other name that is there is removed, lest it be read instead.
    """
    if transformer_of(config).norm == "replace" and attention_names == "torch":
        raise ValueError(
            "Expected `attention_names` to be 'fused' or 'wrapped' for a model with encoder.norm='replace', found "
            "'torch': the original's layers of that spelling know no such norm and would compute other numbers."
        )
    check_layers(transformer_of(config), norms=("post", "replace"))
    theirs = to_scgpt({key: tensor.detach().cpu() for key, tensor in weights.items()}, attention_names)
    theirs = {key: tensor.contiguous() for key, tensor in theirs.items()}
    args = settings_of(config, vocabulary, fused=attention_names != "torch")
    if amend is not None:
        args = amend(args)
    with written_together(folder, instead_of=WEIGHTS) as aside:
        save_tensors(lambda: torch.save(theirs, aside / file), aside / file)
        vocabulary.save(aside / VOCABULARY)
        args[OWN] |= {CHECKSUMS: checksums(aside, (VOCABULARY, file))}
        (aside / ARGS).write_text(json.dumps(args, indent=2) + "\n", encoding="utf-8")


def _fit(vocabulary: Vocabulary, weights: dict[str, Tensor], source: str) -> Vocabulary:
    """Add special tokens that the file lacks; the gene table gets rows for those that a model cannot do without."""
    key = "embedder.genes.table.weight"
    if key not in weights:
        raise ValueError(f"Expected a gene table (encoder.embedding.weight) in {source}, found none.")
    if not any(not vocabulary.is_special(token) for token in vocabulary):
        raise ValueError(f"Expected genes in the {VOCABULARY} beside {source}, found none.")
    rows, whole = len(weights[key]), vocabulary.with_specials()
    if len(whole) > rows:
        whole = vocabulary.extended((vocabulary.pad, vocabulary.cls))
    if len(vocabulary) > rows:
        raise ValueError(
            f"Expected at most {rows} tokens in the vocabulary, the rows of the gene table in {source}, found "
            f"{len(vocabulary)}: the two files do not belong together."
        )
    # Tokens that are appended are those of the last rows, or nobody knows of which.
    if len(whole) < rows and not (vocabulary.pad in vocabulary and vocabulary.cls in vocabulary):
        raise ValueError(
            f"Expected the special tokens in the vocabulary, or as many genes as leave the last of the {rows} rows of the gene "
            f"table in {source} for them, found {len(vocabulary)} tokens: the two files do not belong together."
        )
    if len(whole) > rows:
        logger.warning("%s has no trained row for %s; it is zero.", source, ", ".join(whole.tokens[rows:]))
        weights[key] = torch.cat((weights[key], torch.zeros(len(whole) - rows, weights[key].shape[1])))
    return whole


SCGPT = Format(
    layout=LAYOUT,
    recognise=recognise,
    example="tensors such as encoder.embedding.weight and transformer_encoder.layers.0.linear1.weight",
    read=read,
    write=write,
    ours=ours,
)
