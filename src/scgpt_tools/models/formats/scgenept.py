"""scGenePT's checkpoints: a bare state dict, with scGPT's ``vocab.json`` beside it.

Sizes and streams are read off the tensors.  They do not tell the number of attention heads, which is 8 in all released
files and may stand in ``args.json``, nor where a text came from: all axes of GO together are stored under the name of
molecular functions (``gopt_encoder_f``), and NCBI's summaries under that of NCBI's and UniProt's.

The original cannot leave genes without a text out of a stream.  They are written with a row of texts that its map and its
norm turn into one number for all places of the vector, which the norm of the sum takes away again.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from scgpt_tools._files import placed, written_together
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import (
    ClassifierConfig,
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
from scgpt_tools.models.families.scgenept import NAME
from scgpt_tools.models.families.scgpt import scgpt_perturbation
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.base import as_float, checksums, read_settings, save_tensors
from scgpt_tools.models.formats.format import Checkpoint, Format, Source, share_known
from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.models.formats.scgpt import ARGS, ATTENTION_NAMES, OTHER_NAMES, VOCABULARY
from scgpt_tools.models.formats.scgpt_config import (
    CHECKSUMS,
    OWN,
    Settings,
    check_layers,
    check_matrices,
    checksums_in,
    from_cell_of,
    transformer_of,
)
from scgpt_tools.nn.heads import ClassifierHead
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import HeadConfig, PartConfig

logger = logging.getLogger(__name__)

# The first is what its training writes, the others are the released ones.
WEIGHTS = (
    "best_model.pt",
    "best_model_seed_42.pt",
    "best_model_gpt3.5_ada_rnd_seed_42.pt",
    "best_model_gpt3.5_ada_rnd_seed_42_concat.pt",
)
LAYOUT = FolderLayout("scGenePT's format", ARGS, WEIGHTS, VOCABULARY, settings_needed=False)
HEADS, HEADS_AT_WIDTH = 8, 512
WITHOUT = "row_without_text"
"""Setting: by stream, one of the rows that are written for genes without a text."""

_LEAST_FLAGS = 2

EPSILON = 1e-5
"""Of the original's norms, and of ours."""
TOLERANCE = 5e-5
"""Largest deviation of what a row for genes without a text adds; vectors of a stream have numbers of about one."""

_AXES = ("c", "f", "p")
_GO = {axis: f"gopt_encoder_{axis}." for axis in _AXES}
_TEXT_NAMES = (
    Rule("genept_encoder.embedding.", "embedder.text.table."),
    Rule("genept_encoder.proj_layer.", "embedder.text.projection."),
    Rule("genept_encoder.enc_norm.", "embedder.text.norm."),
)


def _go_names(prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{prefix}embedding.", "embedder.go.table."),
        Rule(f"{prefix}fc.", "embedder.go.projection."),
        Rule(f"{prefix}enc_norm.", "embedder.go.norm."),
    )


# The classifier is in every file and nothing reads it; it is no annotator.
_OWN_NAMES = (
    Rule("ln.", "embedder.norm."),
    Rule("cls_decoder._decoder.", "heads.cls.hidden."),
    Rule("cls_decoder.out_layer.", "heads.cls.out."),
)
_OF_SCGPT = (
    "encoder.embedding.",
    "encoder.enc_norm.",
    "value_encoder.linear1.",
    "value_encoder.linear2.",
    "value_encoder.norm.",
    "pert_encoder.",
    "transformer_encoder.",
    "decoder.fc.",
    "decoder.zero_logit.",
    "mvc_decoder.",
)
_SHARED_NAMES = tuple(rule for rule in OTHER_NAMES if rule.theirs.startswith(_OF_SCGPT))
_NAMES = (*_OWN_NAMES, *_TEXT_NAMES, *_SHARED_NAMES)
_ALL_NAMES = (
    *(rule for rules in ATTENTION_NAMES.values() for rule in rules),
    *(rule for prefix in _GO.values() for rule in _go_names(prefix)),
    *_NAMES,
)


def recognise(source: Source) -> float:
    """Tell by the norm of the sum, the flags and the plain decoder, without which it is another's."""
    theirs = source.contents.weights
    needed = ("ln.weight", "pert_encoder.weight", "decoder.fc.0.weight")
    return share_known(source, _ALL_NAMES) if all(name in theirs for name in needed) else 0.0


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
    """Read a checkpoint as it was released, or as training wrote it."""
    theirs = source.contents.weights
    if theirs["ln.weight"].dim() != 1:
        raise ValueError(
            f"Expected `ln.weight` of the checkpoint to be a vector, found {tuple(theirs['ln.weight'].shape)}."
        )
    args = source.settings
    dim = theirs["ln.weight"].shape[0]
    if args is None:
        args = {"nheads": HEADS} if dim == HEADS_AT_WIDTH else source.settings_or({"nheads": HEADS})
    elif dim != HEADS_AT_WIDTH and not {"nheads", "nhead"} & set(args):
        warn_user(
            f"Expected `nheads` in the settings of {str(source.weights)!r}, found none: {HEADS} is taken, which tensors do not "
            "tell. If the model was made otherwise its results are wrong; pass settings={'nheads': ...}."
        )
    source.check_content(checksums_in(args))
    vocabulary = source.vocabulary(Vocabulary.from_file)
    axes = [axis for axis, prefix in _GO.items() if any(name.startswith(prefix) for name in theirs)]
    if len(axes) > 1:
        raise ValueError(f"Expected one table of GO texts in {str(source.weights)!r}, found those of {axes}.")
    weights, transfer = read_names(theirs, _ALL_NAMES)
    weights = as_float(weights)
    check_matrices(weights)
    _silence(weights, Settings(args))
    rows = {key: len(tensor) for key, tensor in weights.items() if key.endswith(_TABLES)}
    own = OWN in args
    vocabulary = _fit(vocabulary, rows, own=own)
    texts = ["text"] if "embedder.text.table.weight" in weights else []
    sources = _sources(texts, axes, str((source.weights or source.folder).absolute()), own=own)
    config = _config(Settings(args), weights, vocabulary, sources=sources, rows=rows)
    return Checkpoint(config, vocabulary, weights, transfer, args)


def _fit(vocabulary: Vocabulary, rows: Mapping[str, int], *, own: bool) -> Vocabulary:
    """The vocabulary with the special tokens that the original appends where a file lacks them."""
    whole = vocabulary.with_specials()
    if not rows:
        return whole
    most = max(rows.values())
    if len(whole) > most:
        whole = vocabulary
    # Tokens that are appended are those of the last rows, or nobody knows of which.
    if len(whole) > most or min(rows.values()) < most or (len(whole) < most and vocabulary.pad not in vocabulary):
        raise ValueError(
            f"Expected {len(whole)} rows, one for each token of {VOCABULARY} and each special token, and as many in each "
            f"table, found {dict(rows)}: the vocabulary does not belong to these weights."
        )
    if len(whole) < most and not own:
        warn_user(
            f"Expected a token in {VOCABULARY} for each of the {most} rows of the tables, found {len(whole)}. If it is of other "
            "weights, genes are read from rows of others; get the file that belongs to these."
        )
    return whole


_TABLES = ("genes.table.weight", "text.table.weight", "go.table.weight")


def _sources(texts: list[str], axes: list[str], path: str, *, own: bool) -> dict[str, str]:
    """What the texts were, as far as the tensors and the names of file and folders tell; the nearest to the file counts.

    The original trains to ``<dataset>/<model_type>/seed_<n>/models/best_model.pt``.
    """
    last = path.lower().replace("\\", "/").split("/")[:-6:-1]

    def nearest(pattern: str) -> str:
        return next((match[0] for name in last if (match := re.search(pattern, name))), "")

    said, axis = nearest(r"ncbi(\+uniprot)?"), nearest(r"go_(f|all)(?![a-z])")
    found = {"text": said or "ncbi"}
    if texts and not said and not own:
        logger.info("The file does not tell NCBI's summaries from those with UniProt's; taken for the first.")
    if axes:
        pooling = nearest(r"(?<![a-z])(concat|avg)(?![a-z])")
        found["go"] = "_".join(
            filter(None, ("go_all" if axes == ["f"] and axis == "go_all" else f"go_{axes[0]}", pooling))
        )
        if axes == ["f"] and not axis and not own:
            logger.info("The file does not tell GO's molecular functions from all axes; taken for the first.")
    return found


def _config(
    settings: Settings,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    *,
    sources: Mapping[str, str],
    rows: Mapping[str, int],
) -> ModelConfig:
    dim = weights["embedder.norm.weight"].shape[0]
    blocks = [int(key.split(".")[2]) for key in weights if key.startswith("encoder.blocks.")]
    expand = weights.get("encoder.blocks.0.feed_forward.expand.weight")
    if expand is None:
        raise ValueError(f"Expected the layers of a transformer, found {len(blocks)} tensors, none of the first layer.")
    heads = settings.whole("nheads", least=1) or settings.whole("nhead", least=1) or HEADS
    own = settings.within(OWN)
    parts: dict[str, PartConfig | None] = {
        "genes": GenesConfig() if "embedder.genes.table.weight" in weights else None,
        "values": ContinuousConfig() if "embedder.values.first.weight" in weights else None,
    }
    for name in ("text", "go"):
        table = weights.get(f"embedder.{name}.table.weight")
        if table is not None:
            said = own.within("languages").mapping(name)
            plain = {"width": table.shape[1], "source": sources[name]}
            parts[name] = from_dict(LanguageConfig, {**plain, **said}, where=f"{ARGS}: {OWN}.languages.{name}")
    flags = weights["embedder.perturbation.weight"]
    if len(flags) < _LEAST_FLAGS:
        raise ValueError(
            f"Expected rows of `pert_encoder.weight` for genes that are perturbed and for others, found {len(flags)}."
        )
    # The flag of padding starts as zeros and is never trained.
    silent = (~flags.any(dim=1)).nonzero().flatten().tolist()
    parts["perturbation"] = PerturbationConfig(rows=len(flags), pad=silent[-1] if silent else None)
    plain_tokenizer = to_dict(scgpt_perturbation(vocabulary).tokenizer)
    tokenizer = {**plain_tokenizer, **own.mapping("tokenizer")}
    return ModelConfig(
        family=NAME,
        n_tokens=max(rows.values(), default=len(vocabulary)),
        pad_id=vocabulary.pad_id,
        dim=dim,
        embedder=EmbedderConfig(parts=Named(parts), norm="layer"),
        encoder=TransformerConfig(
            layers=1 + max(blocks), heads=heads, hidden=len(expand), dropout=settings.number("dropout", 0.0)
        ),
        pooling="mean",
        heads=_heads(settings, weights, dim),
        tokenizer=from_dict(TokenizerConfig, tokenizer, where=f"{ARGS}: {OWN}.tokenizer"),
        perturbation_flags=settings.rows("perturbation_flags"),
    )


def _heads(settings: Settings, weights: Mapping[str, Tensor], dim: int) -> Named[HeadConfig]:
    out = weights.get("heads.cls.out.weight")
    depth = 1 + sum(tensor.dim() == 2 for key, tensor in weights.items() if key.startswith("heads.cls.hidden."))
    return Named(
        expression=ExpressionConfig(nonzero="heads.expression.nonzero.0.weight" in weights),
        expression_from_cell=from_cell_of(settings, weights, dim),
        cls=None if out is None else ClassifierConfig(classes=len(out), layers=depth),
    )


def write(
    folder: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    *,
    attention_names: str = "torch",
    file: str = WEIGHTS[0],
) -> None:
    """Write a folder whose state dict the original loads, text tables in float32."""
    languages = {name: part for name, part in config.embedder.parts.items() if isinstance(part, LanguageConfig)}
    if config.family != NAME or not set(languages) <= {"text", "go"}:
        raise ValueError(
            f"Expected a model of scGenePT to write in its format, found {config.family!r} with {list(languages)}."
        )
    check_layers(transformer_of(config))
    tensors = _merged({key: tensor.detach().cpu() for key, tensor in weights.items()}, languages)
    without = _fill_rows(tensors, languages)
    if "heads.cls.out.weight" not in tensors:
        # The same numbers each time, and none of the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unused = ClassifierHead(config.dim, 1).state_dict()
        tensors |= {f"heads.cls.{key}": value.detach() for key, value in unused.items()}
    go = languages.get("go")
    axis = "c" if go is None else go.source.removeprefix("go_").split("_")[0]
    prefix = _GO.get(axis, _GO["f"])
    rules = (*ATTENTION_NAMES[attention_names], *_go_names(prefix), *_NAMES)
    theirs = {key: tensor.contiguous() for key, tensor in write_names(tensors, rules).items()}
    args: dict[str, Any] = {
        "nheads": config.encoder.heads,
        "dropout": config.encoder.dropout,
        "perturbation_flags": list(config.perturbation_flags),
        OWN: {
            "family": NAME,
            "languages": {name: to_dict(part) | {"rank": 0} for name, part in languages.items()},
            WITHOUT: without,
            "tokenizer": to_dict(config.tokenizer),
        },
    }
    for said in args[OWN]["languages"].values():
        said.pop("kind", None)
    with written_together(folder, instead_of=WEIGHTS) as aside:
        save_tensors(lambda: torch.save(theirs, aside / file), aside / file)
        vocabulary.save(aside / VOCABULARY)
        args[OWN][CHECKSUMS] = checksums(aside, (VOCABULARY, file))
        (aside / ARGS).write_text(json.dumps(args, indent=2) + "\n", encoding="utf-8")


def _merged(weights: dict[str, Tensor], languages: Mapping[str, LanguageConfig]) -> dict[str, Tensor]:
    """Add low-rank corrections to the tables that they correct."""
    for name, part in languages.items():
        if part.rank:
            prefix = f"embedder.{name}.table."
            change, basis = (weights.pop(f"{prefix}{key}") for key in ("change", "basis"))
            weights[f"{prefix}weight"] = weights[f"{prefix}weight"] + change @ basis
    return weights


def _fill_rows(weights: dict[str, Tensor], languages: Mapping[str, LanguageConfig]) -> dict[str, int]:
    """Give genes that a stream masks a row that adds nothing in the original; one such row of each stream."""
    found = {}
    for name, part in languages.items():
        table = weights[f"embedder.{name}.table.weight"]
        empty = ~table.any(dim=1)
        if not part.masked or not empty.any():
            continue
        row = _silent_row(
            *(weights[f"embedder.{name}.{key}"] for key in ("projection.weight", "projection.bias")),
            *(weights[f"embedder.{name}.{key}"] for key in ("norm.weight", "norm.bias")),
        )
        if row is None:
            raise ValueError(
                "Expected a model in which genes without a text have rows of their own, or whose texts are wide enough for a "
                f"row that adds nothing to them, found one that masks them, with {part.width} numbers of the stream {name!r} "
                f"for {len(weights['embedder.norm.weight'])} of the model: the original would predict other numbers. Train "
                "with missing='draw' to exchange models with it, or keep this one with `save`."
            )
        weights[f"embedder.{name}.table.weight"] = torch.where(empty[:, None], row, table)
        found[name] = int(empty.nonzero()[0])
    return found


def _silent_row(weight: Tensor, bias: Tensor, scale: Tensor, offset: Tensor) -> Tensor | None:
    """A row of texts whose vector is the same in every place after map and norm, if there is one.

    ``weight`` (D, E) and ``bias`` are of the map, ``scale`` and ``offset`` of its layer norm.  The norm of the sum of all
    streams subtracts the mean of a vector, and with it what such a row adds.
    """
    W, b, gamma, beta = (tensor.double() for tensor in (weight, bias, scale, offset))
    level = (beta / gamma).sum() / (1 / gamma).sum()
    # What the norm has to have before its scale and offset.  Its mean is zero by the choice of the level, and its mean
    # square is below one for every input, because of epsilon.
    normed = (level - beta) / gamma
    share = normed.square().mean()
    if not share < 1:
        return None
    wanted = normed * (EPSILON / (1 - share)).sqrt()
    row = (torch.linalg.pinv(W) @ (wanted - b)).float()
    added = F.layer_norm(
        F.linear(row, weight.float(), bias.float()), scale.shape, scale.float(), offset.float(), EPSILON
    )
    return row if (added - level).abs().max() <= TOLERANCE else None


def _silence(weights: dict[str, Tensor], settings: Settings) -> None:
    """Take the rows out again that were written for genes without a text."""
    own = settings.within(OWN).within(WITHOUT)
    for name in ("text", "go"):
        table, place = weights.get(f"embedder.{name}.table.weight"), own.whole(name)
        if table is not None and place is not None and place < len(table):
            weights[f"embedder.{name}.table.weight"] = table * (table != table[place]).any(dim=1, keepdim=True)


SCGENEPT = Format(
    layout=LAYOUT,
    recognise=recognise,
    example="tensors such as ln.weight, pert_encoder.weight and decoder.fc.0.weight",
    read=read,
    write=write,
    ours=ours,
)
