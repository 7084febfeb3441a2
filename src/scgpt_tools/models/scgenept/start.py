"""A model of scGenePT from one of scGPT and embeddings of texts about genes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_seed, check_choice, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.gene_embeddings import SOURCES, GeneEmbeddings, Missing, warn_of_coverage
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import LanguageConfig, TransformerConfig
from scgpt_tools.models.families.scgenept import scgenept
from scgpt_tools.models.families.scgpt import SCGPT, SCGPT_MULTIOMIC, SCGPT_PERTURBATION
from scgpt_tools.models.scgenept.names import ModelType, parse_model_type
from scgpt_tools.models.transfer import copy_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools._types import RngLike
    from scgpt_tools.models.config import PartConfig

logger = logging.getLogger(__name__)

Given: TypeAlias = GeneEmbeddings | Mapping[str, Any] | str | PathLike[str]

_TAKEN = ("embedder.genes.", "embedder.values.", "encoder.")
_OF_ATTENTION = "encoder."
_BASES = tuple(family.name for family in (SCGPT, SCGPT_PERTURBATION, SCGPT_MULTIOMIC))


def to_scgenept(
    model: CellModel | str | PathLike[str],
    model_type: str | ModelType = "scgenept_ncbi_gpt",
    gene_embeddings: Given | None = None,
    *,
    missing: Missing = "mask",
    frozen: bool = False,
    rank: int = 0,
    genes: Sequence[str] | None = None,
    compat: Literal["upstream"] | None = None,
    rng: RngLike = 0,
) -> CellModel:
    """Start a model of scGenePT from scGPT, for :func:`~scgpt_tools.train.finetune` :cite:p:`Istrate2024`.

    As in the original, gene table, value embedding and transformer are taken over where the model has them and their
    shapes agree; flags, norm of the sum, decoder and the maps of the texts start from scratch.  ``transfer`` of the result
    has all names.

    Parameters
    ----------
    model
        A model of scGPT, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes; it stays as it is.
    model_type
        A name that :func:`~scgpt_tools.models.parse_model_type` reads, or :class:`~scgpt_tools.models.ModelType`.
    gene_embeddings
        :class:`~scgpt_tools.data.gene_embeddings.GeneEmbeddings`, a file of them, or a folder in which those of the model
        type are found by name; with two streams of texts a mapping of ``"text"`` and ``"go"`` to such, or one folder.
        ``None`` for a model type without texts, as those are that the original builds without.
    missing
        Genes without a text: ``"mask"`` has the stream add nothing to them; ``"draw"`` gives them random rows, as the
        original.
    frozen
        Hold the tables of texts and train their map alone; the original trains all.
    rank
        With ``frozen``: train a correction of this rank to the tables.
    genes
        Genes that get their texts; ``None`` for the whole vocabulary, so that the model can be used on other tables.
    compat
        ``"upstream"`` builds what the original builds under the name, with its tables: texts for ``genes`` alone, random
        rows for the others, and that of padding overwritten by genes outside of the vocabulary.
    rng
        Whole number, generator or ``None`` (fresh entropy) for what starts from scratch.

    Returns
    -------
    The model, in eval mode.

    Raises
    ------
    FileNotFoundError
        If a folder has no file of the embeddings; the message lists the names that were looked for.
    TypeError
        If a stream of texts has no embeddings.
    ValueError
        If the model is none of scGPT, there is no such model type, a file holds anything but vectors or those of other
        texts of the release than the model type names, or no gene of it is in the vocabulary.

    Warns
    -----
    UserWarning
        If fewer than a tenth of the genes have a text, or ``compat="upstream"`` builds a model that reads none of those
        given.

    Examples
    --------
    >>> import numpy as np
    >>> import scgpt_tools as sct
    >>> base = sct.CellModel.from_pretrained("scgpt-demo")
    >>> texts = {gene: np.random.default_rng(0).normal(size=8) for gene in list(base.vocabulary)[:1000]}
    >>> model = sct.models.to_scgenept(base, "scgenept_ncbi_gpt", texts)
    >>> list(model.config.embedder.parts)
    ['genes', 'values', 'text', 'perturbation']
    """
    check_arguments(to_scgenept, locals())
    check_type("model_type", model_type, (str, ModelType))
    check_choice("missing", missing, ("mask", "draw"))
    if compat is not None:
        check_choice("compat", compat, ("upstream",))
    check_type("model", model, (CellModel, str, PathLike))
    seed = as_seed(rng)
    asked = parse_model_type(model_type) if isinstance(model_type, str) else model_type
    kind = asked if compat is None else asked.upstream
    if gene_embeddings is not None and asked.sources and not kind.sources:
        # The original loads them, and its network has no stream for them.
        warn_user(
            f"The texts of {asked.name!r} are not read with compat='upstream': the original builds {kind.name!r} under this "
            "name. Pass compat=None for what the name says."
        )
        gene_embeddings = None
    found = _embeddings(kind, gene_embeddings, asked.name)
    base = model if isinstance(model, CellModel) else CellModel.from_pretrained(model)
    if base.config.family not in _BASES or not isinstance(base.config.encoder, TransformerConfig):
        raise ValueError(
            f"Expected a model of scGPT, found {base.config.family!r} with the encoder {base.config.encoder.kind!r}. Start "
            "from one of scGPT, such as 'scgpt-human'."
        )
    tables = _tables(base, found, missing=missing, genes=genes, compat=compat, seed=seed)
    config = scgenept(
        base.vocabulary,
        model_type=kind,
        dim=base.dim,
        width={name: embeddings.width for name, embeddings in found.items()},
        frozen=frozen,
        rank=rank,
        masked=missing == "mask" and compat is None,
    )
    parts: dict[str, PartConfig] = {}
    for name, embeddings in found.items():
        part = config.embedder.parts.find(name, LanguageConfig)
        if part is not None:
            parts[name] = replace(part, source=_source(kind, name, embeddings))
    config = replace(
        config,
        embedder=replace(config.embedder, parts=config.embedder.parts.replace(**parts)),
        encoder=base.config.encoder,
        n_tokens=base.config.n_tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        started = CellModel(config, base.vocabulary, name=f"{base.name} ({kind.name})")
    with torch.no_grad():
        for name, table in tables.items():
            started.state_dict()[f"embedder.{name}.table.weight"][: len(table)] = torch.from_numpy(table)
        # The third flag has no meaning until a screen of another direction is learnt.
        started.state_dict()["embedder.perturbation.weight"][2] = 0
    taken = _TAKEN if kind.pretrained_attention else tuple(name for name in _TAKEN if name != _OF_ATTENTION)
    source = {name: tensor for name, tensor in base.state_dict().items() if name.startswith(taken)}
    sizes = (base.config.n_tokens, config.n_tokens)
    transfer = copy_weights(source, started.state_dict(), rows=sizes)
    others = {name: "not taken over by scGenePT" for name in base.state_dict() if name not in source}
    started.transfer = replace(transfer, dropped={**transfer.dropped, **others})
    logger.info("%s", started.transfer)
    return started.to(base.device).eval()


def _embeddings(kind: ModelType, given: Given | None, called: str) -> dict[str, GeneEmbeddings]:
    """Embeddings of each stream of texts by its name."""
    sources = kind.sources
    if not sources:
        if given is not None:
            raise TypeError(
                f"Expected no `gene_embeddings` for the model type {called!r}, which has no texts, found some."
            )
        return {}
    if given is None:
        raise TypeError(
            f"Expected `gene_embeddings` for the texts of the model type {called!r}, found None. Pass a file, a folder "
            "with the files of scGenePT's release, or what `sct.pp.embed_gene_texts` returns."
        )
    by_stream = isinstance(given, Mapping) and set(given) <= {"text", "go"}
    if by_stream and isinstance(given, Mapping) and (unread := [name for name in given if name not in sources]):
        raise TypeError(
            f"Expected gene_embeddings of {list(sources)} alone for the model type {called!r}, found {unread[0]!r}, which it "
            "has no stream for."
        )
    found = {}
    for name, source in sources.items():
        own = given.get(name) if by_stream and isinstance(given, Mapping) else given
        if own is None:
            raise TypeError(f"Expected embeddings of {source!r} as gene_embeddings[{name!r}], found none.")
        if not by_stream and len(sources) > 1 and not _is_folder(own):
            raise TypeError(
                "Expected `gene_embeddings` to map 'text' and 'go' to embeddings, or to be a folder with the files of both, "
                f"for the model type {called!r}, found {type(own).__name__}."
            )
        found[name] = _read(own, source)
        said = found[name].provenance.get("source")
        if said in SOURCES and said != source:
            raise ValueError(
                f"Expected embeddings of {source!r} for the model type {called!r}, found those of {said!r}. Name the model "
                "type after its texts, or pass those that it names."
            )
    return found


def _is_folder(given: Any) -> bool:
    return isinstance(given, str | PathLike) and Path(given).expanduser().is_dir()


def _read(given: Given, source: str) -> GeneEmbeddings:
    if isinstance(given, GeneEmbeddings):
        return given
    if isinstance(given, Mapping):
        return GeneEmbeddings.from_mapping(given)
    if isinstance(given, str | PathLike):
        return GeneEmbeddings.read(given, source=source if _is_folder(given) else None)
    raise TypeError(f"Expected `gene_embeddings` to be embeddings, a file or a folder, found {type(given).__name__}.")


def _source(kind: ModelType, name: str, found: GeneEmbeddings) -> str:
    """Of own texts what they are called, else what the model type says."""
    said = found.provenance.get("source")
    return said if name == "text" and isinstance(said, str) else kind.sources[name]


def _tables(
    base: CellModel,
    found: Mapping[str, GeneEmbeddings],
    *,
    missing: Missing,
    genes: Sequence[str] | None,
    compat: Literal["upstream"] | None,
    seed: int,
) -> dict[str, Any]:
    # One generator for all, the text before GO.
    rng = np.random.RandomState(seed) if compat else np.random.default_rng(seed)
    tables = {}
    for name, embeddings in found.items():
        rows = embeddings.rows(base.vocabulary, missing=missing, rng=rng, genes=genes, compat=compat)
        warn_of_coverage(embeddings, base.vocabulary, genes or ())
        lacking = [gene for gene in embeddings.genes if gene not in base.vocabulary]
        if lacking and compat is None:
            logger.info(
                "Texts of %s of %s genes are not read, for the vocabulary lacks them: %s%s. Such genes need tokens before they "
                "get texts: model.adapt(vocabulary=model.vocabulary.extended(genes)).",
                f"{len(lacking):,}",
                f"{len(embeddings):,}",
                ", ".join(lacking[:5]),
                ", ..." if len(lacking) > 5 else "",
            )
        tables[name] = rows.astype(np.float32)
    return tables
