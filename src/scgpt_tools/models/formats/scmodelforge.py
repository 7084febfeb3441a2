"""scModelForge's checkpoints: folders of ``save_pretrained``, and files of its training.

A folder holds ``config.json``, ``gene_vocab.json`` (genes only; ids below 4 are special) and ``model.safetensors`` or
``model.pt``.  A checkpoint of Lightning has the same tensors, and its settings among its hyper-parameters; a fine-tuned one
has a head and the rest as its backbone; one with low-rank adapters is read with these added to their maps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from scgpt_tools._files import placed, read_json, written_together
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import (
    ClassifierConfig,
    DecoderConfig,
    LinearConfig,
    ModelConfig,
    Named,
    RegressorConfig,
    TokenClassesConfig,
    TransformerConfig,
)
from scgpt_tools.models.families.scmodelforge import (
    AUTOENCODER,
    CAUSAL,
    ENCODER,
    SPECIALS,
    embedder,
    scmodelforge_tokens,
)
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.base import as_float, checksums, read_settings, save_tensors
from scgpt_tools.models.formats.format import Checkpoint, Format, Source
from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.models.formats.scgpt_config import CHECKSUMS, OWN, Settings, checksums_in
from scgpt_tools.nn.token_classes import EPS
from scgpt_tools.nn.transformer import ACTIVATIONS
from scgpt_tools.tokens.edges import uniform_edges
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import HeadConfig

SETTINGS, VOCABULARY, WEIGHTS = "config.json", "gene_vocab.json", ("model.safetensors", "model.pt")
LAYOUT = FolderLayout("scModelForge's format", SETTINGS, WEIGHTS, VOCABULARY)
TYPES = {"transformer_encoder": ENCODER, "autoregressive_transformer": CAUSAL, "masked_autoencoder": AUTOENCODER}

HEADS, ALPHA = 8, 16.0
_DEEPEST = 6
_BACKBONE = "backbone."


def _blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Names of torch's transformer layers."""
    their, our = f"{theirs}.layers.{{i}}.", f"{ours}.blocks.{{i}}."
    stacked = tuple(
        Rule(f"{their}self_attn.in_proj_{end}", tuple(f"{our}attention.{name}.{end}" for name in _PROJECTIONS))
        for end in ("weight", "bias")
    )
    plain = {
        "self_attn.out_proj": "attention.out",
        "linear1": "feed_forward.expand",
        "linear2": "feed_forward.contract",
        "norm1": "attention_norm",
        "norm2": "feed_forward_norm",
    }
    return (*stacked, *(Rule(f"{their}{name}.", f"{our}{own}.") for name, own in plain.items()))


_PROJECTIONS = ("query", "key", "value")
_SHARED = (
    Rule("embedding.gene_embedding.", "embedder.genes.table."),
    Rule("embedding.position_embedding.", "embedder.positions.table."),
    Rule("embedding.expression_proj.", "embedder.values."),
    Rule("embedding.layer_norm.", "embedder.norm."),
    *_blocks("encoder", "encoder"),
)


def _classes(theirs: str, ours: str) -> tuple[Rule, ...]:
    parts = {"dense": "dense", "layer_norm": "norm", "decoder": "out"}
    return tuple(Rule(f"{theirs}.{name}.", f"heads.{ours}.{own}.") for name, own in parts.items())


# A fine-tuned head is a list of layers, of which the linear ones have weights: one, or two with an activation between.
def _tuned(head: str, depth: int) -> tuple[Rule, ...]:
    if depth == 1:
        return (Rule("net.1.", f"heads.{head}.out."), Rule("net.0.", f"heads.{head}.out."))
    return (Rule("net.0.", f"heads.{head}.hidden.0."), Rule("net.3.", f"heads.{head}.out.")) if depth == 2 else ()


_TUNED = {"classification": "cell_type", "regression": "targets"}
"""Our head for each of their tasks."""
NAMES: dict[str, tuple[Rule, ...]] = {
    ENCODER: (*_SHARED, *_classes("head", "genes")),
    CAUSAL: (*_SHARED, *_classes("gene_head", "genes"), *_classes("expression_head", "bins")),
    AUTOENCODER: (
        *_SHARED,
        Rule("mask_token", "heads.expression.missing"),
        Rule("enc_to_dec.", "heads.expression.narrow."),
        Rule("decoder_position_embedding.", "heads.expression.positions."),
        *_blocks("decoder", "heads.expression.transformer"),
        Rule("expression_head.dense.", "heads.expression.dense."),
        Rule("expression_head.output.", "heads.expression.out."),
    ),
}
_EVERY_NAME = tuple(rule for rules in NAMES.values() for rule in rules)


def _bare(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone without what was put around its maps, and those of a fine-tuned head, by bare names."""
    tuned = any(name.startswith(_BACKBONE) for name in weights)
    backbone = {
        name.removeprefix(_BACKBONE).replace("base_model.model.", ""): tensor
        for name, tensor in weights.items()
        if not tuned or name.startswith(_BACKBONE)
    }
    head = {
        name.removeprefix("head."): tensor for name, tensor in weights.items() if tuned and name.startswith("head.")
    }
    return backbone, head


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def recognise(source: Source) -> float:
    """Tell by the names of the tensors; the embedding of genes has to be there."""
    backbone, _ = _bare(source.contents.weights)
    if "embedding.gene_embedding.weight" not in backbone:
        return 0.0
    plain = [_plain_name(name) for name in backbone if ".lora_" not in name]
    return sum(any(rule.read(name) is not None for rule in _EVERY_NAME) for name in plain) / len(plain)


def ours(folder: Path) -> bool:
    """Whether none of the files that :func:`write` replaces is somebody else's."""
    if placed(folder, SETTINGS) is None:
        return not any(placed(folder, name) for name in (VOCABULARY, *WEIGHTS))
    try:
        return OWN in read_settings(folder / SETTINGS)
    except (OSError, ValueError):
        return False


def read_vocabulary(path: Path) -> Vocabulary:
    """Read ``gene_vocab.json``: ids of genes, of which none is special; ids that no gene has get a name of their own."""
    ids = {
        gene: number for gene, number in read_json(path, what="one object, gene to id").items() if gene not in SPECIALS
    }
    wrong = {gene: number for gene, number in ids.items() if type(number) is not int or number < len(SPECIALS)}
    if wrong:
        raise ValueError(
            f"Expected whole numbers from {len(SPECIALS)} on as ids of genes, found {dict(list(wrong.items())[:5])}."
        )
    ids |= {name: number for number, name in enumerate(SPECIALS)}
    taken = set(ids.values())
    ids |= {f"<unused {number}>": number for number in range(max(taken) + 1) if number not in taken}
    return Vocabulary.from_mapping(ids)


def read(source: Source) -> Checkpoint:
    """Read a folder or a file of weights.

    Raises
    ------
    FileNotFoundError
        If there is no vocabulary.
    ValueError
        If a tensor is unknown, or the settings contradict the tensors.
    """
    settings = _settings(source)
    source.check_content(checksums_in(settings))
    vocabulary = source.vocabulary(read_vocabulary)
    backbone, head = _bare(source.contents.weights)
    beside = source.contents.beside
    adapted = any(".lora_A." in name for name in backbone)
    backbone = _merged(as_float(backbone), _alpha(settings, beside) if adapted else ALPHA)
    family = _family(settings, backbone)
    rules = NAMES[family]
    tuned: tuple[Rule, ...] = ()
    task = _said(settings, "task", str) or _said(beside, "task", str) or "classification"
    dropped: dict[str, str] = {}
    if head and task not in _TUNED:
        dropped = {f"head.{name}": f"the head of a {task}" for name in head}
        warn_user(
            f"Expected a fine-tuned head for {' or '.join(_TUNED)}, found one of the task {task!r}: it is left out. Take "
            "the rest for embeddings, or fine-tune it anew."
        )
        head = {}
    if head:
        depth = sum(tensor.dim() == 2 for tensor in head.values())
        tuned = _tuned(_TUNED[task], depth)
    weights, transfer = read_names({**backbone, **as_float(head)}, (*tuned, *rules))
    transfer = replace(transfer, dropped={**transfer.dropped, **dropped})
    if "heads.expression.missing" in weights:
        weights["heads.expression.missing"] = weights["heads.expression.missing"].flatten()
    return Checkpoint(_config(settings, weights, vocabulary, family), vocabulary, weights, transfer, settings)


def _settings(source: Source) -> dict[str, Any]:
    """What ``config.json`` holds, or the hyper-parameters beside the weights of a checkpoint."""
    if source.settings is not None:
        return source.settings
    found = _find(source.contents.beside)
    return found if found is not None else source.settings_or({"model_config": {"num_heads": HEADS, "pooling": "cls"}})


def _find(beside: Any, depth: int = 0) -> dict[str, Any] | None:
    """Settings among what lies beside weights, under the names of ``config.json``."""
    if not isinstance(beside, Mapping) or depth > 4:
        return None
    if "num_heads" in beside:
        return {"model_config": dict(beside)}
    for name, value in beside.items():
        if (found := _find(value, depth + 1)) is not None:
            if name != "model_config" and isinstance(beside.get("tokenizer"), Mapping):
                found.setdefault("tokenizer_config", dict(beside["tokenizer"]))
            if isinstance(beside.get("tokenizer_config"), Mapping):
                found.setdefault("tokenizer_config", dict(beside["tokenizer_config"]))
            return found
    return None


def _said(place: Any, name: str, kind: type, depth: int = 0) -> Any:
    """The first value of a kind that has a name among settings and those within them, or ``None``."""
    if not isinstance(place, Mapping) or depth > _DEEPEST:
        return None
    if isinstance(place.get(name), kind):
        return place[name]
    return next((found for value in place.values() if (found := _said(value, name, kind, depth + 1)) is not None), None)


def _alpha(settings: Mapping[str, Any], beside: Mapping[str, Any]) -> float:
    """Scale of the adapters, which the tensors do not tell."""
    for place in (settings, beside):
        lora = Settings(_said(place, "lora", dict) or {}, f"{SETTINGS}: lora")
        if lora.has("alpha"):
            return lora.number("alpha", ALPHA)
    warn_user(
        f"Expected `lora.alpha`, the scale of the adapters, among the settings of the checkpoint, found none: {ALPHA:g} is "
        f"taken. If it was trained with another its results are wrong; name it in {SETTINGS}."
    )
    return ALPHA


def _merged(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Add low-rank adapters to the maps that they stand beside."""
    plain = {_plain_name(name): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        before, found, after = name.partition(".lora_A.")
        if not found:
            continue
        up = weights.get(f"{before}.lora_B.{after}")
        if up is None or f"{before}.weight" not in plain:
            raise ValueError(f"Expected both parts of the adapter beside a map, found {name!r} alone.")
        plain[f"{before}.weight"] = plain[f"{before}.weight"] + alpha / len(down) * (up @ down)
    return plain


def _family(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """By the tensors, which the settings must not contradict."""
    family = AUTOENCODER if "mask_token" in weights else CAUSAL if "gene_head.dense.weight" in weights else ENCODER
    said = settings.get("model_type") or Settings(settings).mapping("model_config").get("architecture")
    if said is not None and TYPES.get(said) != family:
        own = next(name for name, other in TYPES.items() if other == family)
        raise ValueError(f"Expected `model_type` {own!r}, which the tensors are of, found {said!r}.")
    return family


def _config(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], vocabulary: Vocabulary, family: str
) -> ModelConfig:
    said = Settings(settings).within("model_config")
    tokens = weights["embedder.genes.table.weight"]
    n_tokens, dim = tokens.shape
    if n_tokens < len(vocabulary):
        raise ValueError(
            f"Expected at most {n_tokens} tokens, the rows of the table of genes, found {len(vocabulary)}."
        )
    rows = len(weights["embedder.positions.table.weight"])
    dropout = said.number("dropout", 0.1)
    own = Settings(settings).within(OWN)
    n_heads = said.whole("num_heads", least=1) or said.whole("encoder_heads", least=1)
    if n_heads is None:
        warn_user(
            f"Expected `num_heads` in `model_config` of {SETTINGS}, found none: {HEADS} is taken, which tensors do not tell. "
            "If the model was made otherwise its results are wrong; add the number."
        )
        n_heads = HEADS
    tokenizer = _tokenizer(settings, rows, len(weights["heads.bins.out.weight"]) if family == CAUSAL else None)
    binning = Settings(settings).within("tokenizer_config").text("binning_method", "uniform")
    if tokenizer.edges is not None and binning != "uniform" and not own.has("tokenizer"):
        warn_user(
            f"Expected `binning_method` 'uniform' in `tokenizer_config` of {SETTINGS}, found {binning!r}, whose edges no file "
            "has: edges of equal width are taken. Bins mean other values here; set `edges` of the tokenizer if you have them."
        )
    values = LinearConfig() if "embedder.values.weight" in weights else None
    parts = embedder(tokenizer, dropout=dropout, rows=rows, values=values)
    return ModelConfig(
        family=family,
        n_tokens=n_tokens,
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=parts,
        encoder=TransformerConfig(
            layers=_layers(weights, "encoder.blocks."),
            heads=n_heads,
            hidden=len(weights["encoder.blocks.0.feed_forward.expand.weight"]),
            dropout=dropout,
            activation=_choice(said, "activation", ACTIVATIONS, "gelu"),
            norm="pre",
            eps=EPS,
            causal=family == CAUSAL,
            both_ways_for_cells=family == CAUSAL,
            sees_hidden=family != AUTOENCODER,
        ),
        pooling=_choice(said, "pooling", ("cls", "mean"), "cls"),
        heads=_heads(said, weights, family, n_heads, dropout),
        tokenizer=from_dict(TokenizerConfig, own.mapping("tokenizer"), where=f"{SETTINGS}: {OWN}.tokenizer")
        if own.has("tokenizer")
        else tokenizer,
    )


def _choice(said: Settings, name: str, choices: Iterable[str], usual: str) -> Any:
    """A text of a few."""
    return check_choice(f"{name}` of `{SETTINGS}", said.text(name, usual), tuple(choices))


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    depth = prefix.count(".")
    return 1 + max((int(name.split(".")[depth]) for name in weights if name.startswith(prefix)), default=0)


def _heads(
    said: Settings, weights: Mapping[str, Tensor], family: str, n_heads: int, dropout: float
) -> Named[HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    if family == AUTOENCODER:
        width = weights["heads.expression.narrow.weight"].shape[0]
        heads["expression"] = DecoderConfig(
            dim=width,
            layers=_layers(weights, "heads.expression.transformer.blocks."),
            heads=said.whole("decoder_heads", least=1) or n_heads,
            hidden=len(weights["heads.expression.transformer.blocks.0.feed_forward.expand.weight"]),
            dropout=dropout,
            activation=_choice(said, "activation", ACTIVATIONS, "gelu"),
            eps=EPS,
            genes=False,
            positions=len(weights["heads.expression.positions.weight"]),
        )
    else:
        heads["genes"] = TokenClassesConfig()
    if family == CAUSAL:
        heads["bins"] = TokenClassesConfig(classes=len(weights["heads.bins.out.weight"]))
    for name in _TUNED.values():
        if (out := weights.get(f"heads.{name}.out.weight")) is not None:
            hidden = weights.get(f"heads.{name}.hidden.0.weight")
            heads[name] = _tuned_head(name, len(out), None if hidden is None else len(hidden))
    return Named(heads)


def _tuned_head(name: str, outputs: int, width: int | None) -> HeadConfig:
    """The head of a fine-tuned checkpoint; its files keep no names, and numbers as they were learnt."""
    options: dict[str, Any] = {
        "layers": 1 if width is None else 2,
        "width": width,
        "activation": "gelu",
        "norm": False,
        "dropout": 0.1,
    }
    if name == "cell_type":
        return ClassifierConfig(classes=outputs, **options)
    names = tuple(str(number) for number in range(outputs))
    return RegressorConfig(names=names, centre=(0.0,) * outputs, scale=(1.0,) * outputs, **options)


def _tokenizer(settings: Mapping[str, Any], rows: int, bins: int | None) -> TokenizerConfig:
    """What their tokenizer is here; the values of hidden genes stay visible only where a corruption is asked for that."""
    said = Settings(settings).within("tokenizer_config")
    style = said.text("strategy", "rank_value")
    if style == "gene_embedding":
        style = "continuous_projection"
    length = min(said.whole("max_genes", least=2) or rows, rows)
    n_bins = said.whole("n_bins", least=1) or bins or 51
    tokenizer = scmodelforge_tokens(style, length=length, bins=n_bins)  # type: ignore[arg-type]
    if bins is not None:
        # The causal model predicts bins, whatever else its tokens have.
        tokenizer = replace(tokenizer, edges=uniform_edges(bins))
    return replace(tokenizer, positions=True, cls=said.flag("prepend_cls", default=True))


def write(
    folder: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    *,
    attention_names: str = "torch",
) -> None:
    """Write a folder of ``save_pretrained`` that the original loads.

    Raises
    ------
    ValueError
        If the model has what the original has no words for.
    """
    family = config.family
    original = next((name for name, own in TYPES.items() if own == family), None)
    decoder = config.heads.find("expression", DecoderConfig)
    encoder = config.encoder
    if not isinstance(encoder, TransformerConfig):
        raise ValueError(f"Expected a transformer to write in scModelForge's format, found {encoder!r}.")
    foreign = [
        what
        for what, there in {
            "a norm after the last layer": encoder.final_norm,
            f"norm={encoder.norm!r}": encoder.norm != "pre",
            f"eps={encoder.eps!r}": encoder.eps != EPS or (decoder is not None and decoder.eps != EPS),
            f"causal={encoder.causal}": encoder.causal != (family == CAUSAL),
            # The original embeds cells with all tokens in sight, whatever it was trained with.
            "both_ways_for_cells=False": family == CAUSAL and not encoder.both_ways_for_cells,
            f"sees_hidden={encoder.sees_hidden}": encoder.sees_hidden != (family != AUTOENCODER),
            "padding_mask=False": not encoder.padding_mask,
            "values as a bias of attention": encoder.count_bias != "none",
            "zeros that are not encoded": not encoder.sees_zeros,
            "no table of positions": "positions" not in config.embedder.parts,
            "no `cls` or `mean` pooling": config.pooling not in ("cls", "mean"),
            "a decoder that knows genes": decoder is not None and decoder.genes,
            "other special tokens": vocabulary.tokens[: len(SPECIALS)] != SPECIALS,
            "another spelling of attention": attention_names != "torch",
        }.items()
        if there
    ]
    if original is None or foreign:
        raise ValueError(
            f"Expected a model of scModelForge to write in its format, found {family!r} with {', '.join(foreign) or 'other parts'}. "
            "Keep it with `save`."
        )
    tensors = {key: tensor.detach().cpu() for key, tensor in weights.items()}
    if "heads.expression.missing" in tensors:
        tensors["heads.expression.missing"] = tensors["heads.expression.missing"].view(1, 1, -1)
    theirs = {key: tensor.contiguous() for key, tensor in write_names(tensors, NAMES[family]).items()}
    model = {
        "architecture": original,
        "hidden_dim": config.dim,
        "num_layers": encoder.layers,
        "num_heads": encoder.heads,
        "ffn_dim": encoder.hidden,
        "dropout": encoder.dropout,
        "max_seq_len": len(tensors["embedder.positions.table.weight"]),
        "pooling": config.pooling,
        "activation": encoder.activation,
        "use_expression_values": "values" in config.embedder.parts,
        "vocab_size": config.n_tokens,
    }
    bins = config.heads.find("bins", TokenClassesConfig)
    if bins is not None:
        model["n_bins"] = bins.classes
    if decoder is not None:
        model |= {
            "decoder_dim": config.dim // 2 if decoder.dim is None else decoder.dim,
            "decoder_layers": decoder.layers,
            "decoder_heads": decoder.heads,
        }
    tokenizer = config.tokenizer
    strategy = (
        "rank_value"
        if tokenizer.order == "rank"
        else "binned_expression"
        if tokenizer.edges
        else "continuous_projection"
    )
    content: dict[str, Any] = {
        "scmodelforge_version": "0.1.0",
        "model_type": original,
        "model_config": model,
        "tokenizer_config": {
            "strategy": strategy,
            "max_genes": tokenizer.length or model["max_seq_len"],
            "prepend_cls": tokenizer.cls,
            "n_bins": 51 if tokenizer.edges is None else len(tokenizer.edges) - 1,
        },
        OWN: {"tokenizer": to_dict(tokenizer)},
    }
    genes = {token: number for number, token in enumerate(vocabulary.tokens) if number >= len(SPECIALS)}
    with written_together(folder, instead_of=WEIGHTS) as aside:
        save_tensors(lambda: save_file(theirs, aside / WEIGHTS[0]), aside / WEIGHTS[0])
        (aside / VOCABULARY).write_text(json.dumps(genes, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        content[OWN][CHECKSUMS] = checksums(aside, (VOCABULARY, WEIGHTS[0]))
        (aside / SETTINGS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


SCMODELFORGE = Format(
    layout=LAYOUT,
    recognise=recognise,
    example="tensors such as embedding.gene_embedding.weight and embedding.expression_proj.weight",
    read=read,
    read_vocabulary=read_vocabulary,
    write=write,
    ours=ours,
)
