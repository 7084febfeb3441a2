"""DeepSC's checkpoints: a file of weights, ``deepsc.json`` with the constructor's arguments and ``gene_map.csv``.

The original saves a state dict, bare or within the checkpoint of a training, and keeps arguments and table of genes
elsewhere.  Which generation the weights are of, and all sizes, are read off the tensors; heads, dropout and layouts of
cross-attention are what tensors do not tell.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._files import placed, written_together
from scgpt_tools._lookup import lookup
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.models.config import BinAndNumberConfig, ClassifierConfig, EarlierStreamConfig
from scgpt_tools.models.families.deepsc import streams_of
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.base import as_float, checksums, read_settings, save_tensors
from scgpt_tools.models.formats.deepsc_config import (
    POOLINGS,
    arguments_from,
    config_of,
    generation_of,
    own_facts,
    said_of,
    unsaid,
    with_own_facts,
)
from scgpt_tools.models.formats.format import Checkpoint, Format
from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.tokens.gene_tables import read_gene_table, write_gene_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.formats.format import Source
    from scgpt_tools.models.transfer import Transfer
    from scgpt_tools.vocabulary import Vocabulary

SETTINGS, GENES, WEIGHTS = "deepsc.json", "gene_map.csv", ("best_model.pt", "latest_checkpoint.ckpt", "model.pt")
LAYOUT = FolderLayout("DeepSC's format", SETTINGS, WEIGHTS, GENES)
OWN = "scgpt_tools"
# What no tensor tells, as the authors configure it.
_USUAL = {"num_heads": 8, "cross_attention_architecture": "A", "attn_dropout": 0.1, "ffn_dropout": 0.1}

_ATTENTION = {"W_Q": "query", "W_K": "key", "W_V": "value", "out_proj": "out"}
_EXPERT = {"w1": "gate", "w2": "back", "w3": "forth"}
# A feed-forward part of more maps is not in use; its middle ones are numbered from 1.
_DEEPEST = 16


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{theirs}{name}.", f"{ours}{own}.") for name, own in _ATTENTION.items())


def _feed_forward(theirs: str, ours: str, depth: int) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}layers.0.0.", f"{ours}expand."),
        *(Rule(f"{theirs}layers.{k}.0.", f"{ours}middle.{k - 1}.") for k in range(1, depth - 1)),
        Rule(f"{theirs}layers.{depth - 1}.0.", f"{ours}contract."),
    )


def _experts(theirs: str, ours: str, experts: int) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}gate.proj.", f"{ours}router.score."),
        Rule(f"{theirs}gate.expert_usage_count", f"{ours}router.picks"),
        Rule(f"{theirs}gate.total_tokens", f"{ours}router.total"),
        *(
            Rule(f"{theirs}{group}.{name}.", f"{ours}{own}.{part}.")
            for group, own in [
                *((f"experts.{q}", f"experts.{q}") for q in range(experts)),
                ("shared_experts", "shared"),
            ]
            for name, part in _EXPERT.items()
        ),
    )


def _self_block(theirs: str, ours: str, depth: int, experts: int = 0) -> tuple[Rule, ...]:
    return (
        *_attention(f"{theirs}expr_attn.", f"{ours}attention."),
        Rule(f"{theirs}expr_attn.fused_emb_proj.", f"{ours}attention.fuse."),
        Rule(f"{theirs}norm_expr1.", f"{ours}norm."),
        Rule(f"{theirs}norm_expr2.", f"{ours}feed_norm."),
        *_feed_forward(f"{theirs}ffn_expr.", f"{ours}feed_forward.", depth),
        *_experts(f"{theirs}ffn_expr.", f"{ours}feed_forward.", experts),
    )


def _dual_block(theirs: str, ours: str, depth: int, *, earlier: bool) -> tuple[Rule, ...]:
    if earlier:
        genes, values = (f"{ours}{stream}_" for stream in ("gene", "value"))
        norms = {"norm_gene1": f"{genes}norm", "norm_gene2": f"{genes}feed_norm"}
        norms |= {"norm_expr1": f"{values}norm", "norm_expr2": f"{values}feed_norm"}
    else:
        genes, values = (f"{ours}{stream}." for stream in ("genes", "values"))
        norms = {"norm_gene1": f"{genes}norm", "norm_gene2": f"{genes}feed_norm", "norm_gene3": f"{values}gene_norm"}
        norms |= {"norm_expr1": f"{values}norm", "norm_expr2": f"{values}feed_norm"}
    return (
        *_attention(f"{theirs}gene_attn.", f"{genes}attention."),
        *_attention(f"{theirs}expr_attn.", f"{values}attention."),
        *(Rule(f"{theirs}{name}.", f"{own}.") for name, own in norms.items()),
        *_feed_forward(f"{theirs}ffn_gene.", f"{genes}feed_forward.", depth),
        *_feed_forward(f"{theirs}ffn_expr.", f"{values}feed_forward.", depth),
    )


def _cross_block(theirs: str, ours: str, depth: int) -> tuple[Rule, ...]:
    norms = {"gene_norm": "gene_norm", "norm1": "norm", "norm2": "feed_norm"}
    return (
        *_attention(f"{theirs}attn.", f"{ours}attention."),
        *(Rule(f"{theirs}{name}.", f"{ours}{own}.") for name, own in norms.items()),
        *_feed_forward(f"{theirs}ffn_expr.", f"{ours}feed_forward.", depth),
    )


def _regressor(experts: int, *, mixed: bool, earlier: bool) -> tuple[Rule, ...]:
    ours = "heads.expression."
    if not mixed:
        return (Rule("regressor.{i}.", f"{ours}layers.{{i}}."),)
    parts = {"fc1": "expand", "fc2": "contract", "fc3": "out", "norm1": "norm"}
    if earlier:
        parts = {"{i}": "{i}"}
    return (
        Rule("regressor.gate.{i}.", f"{ours}gate.{{i}}."),
        *(
            Rule(f"regressor.experts.{e}.{name}.", f"{ours}experts.{e}.{own}.")
            for e in range(experts)
            for name, own in parts.items()
        ),
    )


def rules_of(
    *,
    depth: int = 2,
    experts: int = 0,
    regressors: int = 0,
    mixed: bool = True,
    value: str = "number",
    earlier: bool = False,
) -> tuple[Rule, ...]:
    """Names of a model's tensors.

    Parameters
    ----------
    depth
        Maps of a feed-forward part.
    experts, regressors
        Experts of feed-forward parts and of the regressor.
    mixed
        Whether the regressor has experts.
    value
        How numbers are embedded: ``"number"`` by a map, ``"vector"`` by a vector, ``"network"`` by a network of them alone.
    earlier
        Whether layers of both streams are those of the first generations.
    """
    embedding = {
        "number": (
            Rule("expr_embedding.bin_embedding.", "embedder.values.bins.table."),
            Rule("expr_embedding.continuous_projection.", "embedder.values.number."),
        ),
        "vector": (
            Rule("expr_embedding.bin_embedding.", "embedder.values.bins.table."),
            Rule("expr_embedding.continuous_projection", "embedder.values.vector"),
        ),
        "network": (
            Rule("expr_embedding.linear1.", "embedder.values.first."),
            Rule("expr_embedding.linear2.", "embedder.values.second."),
            Rule("expr_embedding.norm.", "embedder.values.norm."),
        ),
    }
    return (
        Rule("gene_embedding.gene_embedding.", "embedder.genes.table."),
        *embedding[value],
        Rule("pert_encoder.", "embedder.perturbation."),
        *_dual_block("layers.{i}.", "encoder.cross_blocks.{i}.", depth, earlier=earlier),
        *_self_block("gene_self_attention_layers.{i}.", "encoder.gene_blocks.{i}.", depth),
        *_cross_block("cross_attention_layers.{i}.", "encoder.cross_blocks.{i}.", depth),
        *_self_block("expression_layers.{i}.", "encoder.value_blocks.{i}.", depth, experts),
        Rule("gumbel_softmax.gumbel_softmax_reparametrization.0.", "encoder.gates.hidden."),
        Rule("gumbel_softmax.gumbel_softmax_reparametrization.2.", "encoder.gates.out."),
        Rule("fused_emb_proj.", "encoder.fuse."),
        Rule("classifier.{i}.", "heads.bins.layers.{i}."),
        *_regressor(regressors, mixed=mixed, earlier=value == "vector"),
        Rule("cls_decoder._decoder.", "heads.cell_type.hidden."),
        Rule("cls_decoder.out_layer.", "heads.cell_type.out."),
    )


def rules_for(config: ModelConfig) -> tuple[Rule, ...]:
    """Names of the tensors of a configuration."""
    encoder, values = config.encoder, config.embedder.parts["values"]
    regressor: Any = config.heads.get("expression")
    mixture = getattr(encoder, "mixture", None)
    value = "network"
    if isinstance(values, BinAndNumberConfig):
        value = "number" if values.factor is None else "vector"
    return rules_of(
        depth=getattr(encoder, "depth", 2),
        experts=0 if mixture is None else mixture.experts,
        regressors=getattr(regressor, "experts", 0),
        mixed=hasattr(regressor, "experts"),
        value=value,
        earlier=isinstance(encoder, EarlierStreamConfig),
    )


def unwrap(content: Mapping[str, Any]) -> dict[str, Any]:
    """Take a state dict out of a checkpoint of a training as DeepSC does: out of ``model``, else out of ``state_dict``.

    One ``model.`` or ``module.`` in front of the names is taken off, if any name has it.
    """
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not any(name.startswith(("model.", "module.")) for name in content):
        return dict(content)
    return {
        name.split(".", 1)[1] if name.startswith(("model.", "module.")) else name: entry
        for name, entry in content.items()
    }


def without_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a classifier's tensors without the ``encoder.`` of its model."""
    return {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}


def with_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put ``encoder.`` before every name but those of a classifier, unless one has it."""
    if any(name.startswith("encoder.") for name in weights):
        return dict(weights)
    return {name if name.startswith("cls_decoder.") else f"encoder.{name}": tensor for name, tensor in weights.items()}


def from_deepsc(weights: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], Transfer]:
    """Translate a state dict of DeepSC, of a model or a classifier, to our names."""
    return read_names(without_encoder(weights), rules_for(config))


def to_deepsc(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Translate our state dict to DeepSC's names; those of a classifier begin with ``encoder.``."""
    single = getattr(config.encoder, "streams", "dual") == "single"
    rules = [
        rule for rule in rules_for(config) if not rule.theirs.startswith("layers." if single else "cross_attention")
    ]
    theirs = write_names(weights, rules)
    return with_encoder(theirs) if "cell_type" in config.heads else theirs


def recognise(source: Source) -> float:
    """Tell by the names of the tensors, those of a classifier without their ``encoder.``."""
    names = [name.removeprefix("encoder.") for name in source.contents.weights]
    return sum(any(rule.read(name) is not None for rule in _ALL) for name in names) / max(len(names), 1)


def ours(folder: Path) -> bool:
    """Whether none of the files that :func:`write` replaces is somebody else's."""
    settings = placed(folder, SETTINGS)
    if settings is None:
        return not any(placed(folder, name) for name in (GENES, *WEIGHTS))
    try:
        return OWN in read_settings(settings)
    except (OSError, ValueError):
        return False


def read(source: Source) -> Checkpoint:
    """Read a checkpoint of any generation.

    Raises
    ------
    FileNotFoundError
        If there is no table of genes: without it the rows of the model have no names.
    ValueError
        If a tensor is unknown, or the settings contradict the tensors.
    """
    said = source.settings_or(_USUAL)
    own = said.pop(OWN, {})
    own = own if isinstance(own, dict) else {}
    source.check_content(own.get("checksums", {}))
    theirs = as_float(without_encoder(source.contents.weights))
    generation = generation_of(theirs)
    classifier = said.pop("classifier", {})
    if missing := unsaid(theirs, said, generation):
        taken = ", ".join(f"{name} = {value!r}" for name, value in missing.items())
        warn_user(
            f"Expected settings that say {', '.join(missing)}, which tensors do not tell, found none: {taken} is taken. If the "
            "model was made otherwise its results are wrong; pass `settings=` with its own values."
        )
    arguments = arguments_from(theirs, {**_USUAL, **said}, generation)
    config = config_of(arguments, generation)
    if "cls_decoder.out_layer.weight" in theirs:
        config = _with_classifier(config, theirs, {**dict(source.contents.beside), **classifier})
    config = with_own_facts(config, own, f"{SETTINGS}: {OWN}")
    weights, transfer = read_names(theirs, rules_for(config))
    vocabulary = source.vocabulary(lambda path: read_gene_table(path, genes=arguments.num_genes))
    return Checkpoint(config, vocabulary, weights, transfer, said)


def _with_classifier(config: ModelConfig, weights: Mapping[str, Tensor], said: Mapping[str, Any]) -> ModelConfig:
    classes = len(weights["cls_decoder.out_layer.weight"])
    layers = 1 + sum(name.startswith("cls_decoder._decoder.") and tensor.dim() == 2 for name, tensor in weights.items())
    names = said.get("id2type")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    names = tuple(map(str, names)) if names and len(names) == classes else None
    return replace(
        config,
        pooling=lookup(POOLINGS, said.get("cell_emb_style", "avg-pool"), "cell_emb_style"),
        encoder=replace(streams_of(config), pooled="fused"),
        heads=config.heads.replace(cell_type=ClassifierConfig(classes=classes, layers=layers, names=names)),
    )


def write(
    folder: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    *,
    attention_names: str = "torch",
) -> None:
    """Write a folder that DeepSC loads: its state dict, its arguments and its table of genes.

    Raises
    ------
    ValueError
        If the model or its vocabulary is none that DeepSC has.
    """
    check_choice("attention_names", attention_names, ("torch",))
    theirs = to_deepsc({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, config)
    said, file = said_of(config), WEIGHTS[0]
    with written_together(folder, instead_of=WEIGHTS) as aside:
        save_tensors(lambda: torch.save(theirs, aside / file), aside / file)
        write_gene_table(vocabulary, aside / GENES)
        said[OWN] = own_facts(config) | {"checksums": checksums(aside, (GENES, file))}
        (aside / SETTINGS).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


_ALL = tuple(
    rule
    for value in ("number", "vector", "network")
    for mixed in (True, False)
    for earlier in (True, False)
    for rule in rules_of(
        depth=_DEEPEST, experts=_DEEPEST, regressors=_DEEPEST, mixed=mixed, value=value, earlier=earlier
    )
)

DEEPSC = Format(
    layout=LAYOUT,
    recognise=recognise,
    example="tensors such as gene_embedding.gene_embedding.weight and expression_layers.0.expr_attn.W_Q.weight",
    read=read,
    read_vocabulary=read_gene_table,
    write=write,
    ours=ours,
)
