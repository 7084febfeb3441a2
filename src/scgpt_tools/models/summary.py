"""What a model is, in a few lines, for those who print one."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Protocol

from scgpt_tools.nn.heads import AffineConfig, ClassifierConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import torch

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.transfer import Transfer
    from scgpt_tools.vocabulary import Vocabulary


class Described(Protocol):
    """What of a model is told."""

    config: ModelConfig
    name: str
    transfer: Transfer | None
    history: pd.DataFrame | None

    @property
    def vocabulary(self) -> Vocabulary:
        """Genes and their ids."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All weights."""


# A summary is to be read; the configuration has all names.
_SHOWN = 6


def summary_of(model: Described) -> list[tuple[str, str]]:
    """Lines about a model: what each is about, and what there is to say."""
    config = model.config
    n_layers = getattr(config.encoder, "layers", None)
    size = f"{sum(weights.numel() for weights in model.parameters()):,} parameters, {config.dim} dimensions"
    lines = [
        ("family", config.family),
        ("size", size if n_layers is None else f"{size}, {n_layers} layers"),
        ("genes", _genes(model)),
        ("reads", _reads(model)),
        ("predicts", _predicts(model)),
    ]
    if config.trained_genes is not None:
        lines.insert(3, ("trained on", f"{len(config.trained_genes):,} genes{_named(config.trained_genes)}"))
    for name, head in config.heads.items():
        if isinstance(head, ClassifierConfig):
            lines.append(("classes", f"{head.classes} of {name}{_named(head.names)}"))
    if n_batches := config.domains or config.context.batches:
        how = "each normalised by itself" if config.domains else "known to the heads"
        lines.append(("batches", f"{n_batches}, {how}{_named(config.batch_names)}"))
    lines += [
        ("weights", _provenance(model)),
        ("place", f"{model.device}, {str(next(model.parameters()).dtype).removeprefix('torch.')}"),
    ]
    return lines


def as_text(model: Described) -> str:
    """The summary for a terminal."""
    lines = [f"  {label:<10} {text}" for label, text in summary_of(model)]
    return "\n".join([f"CellModel {model.name!r}", *lines])


def as_html(model: Described) -> str:
    """The summary for a notebook."""
    style = "text-align: left"
    rows = (
        f'<tr><th style="{style}">{escape(label)}</th><td style="{style}">{escape(text)}</td></tr>'
        for label, text in summary_of(model)
    )
    return f"<p><b>CellModel {escape(repr(model.name))}</b></p><table>{''.join(rows)}</table>"


def _genes(model: Described) -> str:
    try:
        vocabulary = model.vocabulary
    except ValueError:  # a bare network
        return f"{model.config.n_tokens:,} tokens without names"
    specials = set(vocabulary.specials)
    known = [token for token in vocabulary.tokens if token not in specials]
    return f"{len(known):,} in the vocabulary{_named(tuple(known))}"


def _reads(model: Described) -> str:
    tokenizer = model.config.tokenizer
    if tokenizer.parts:
        return "modalities " + ", ".join(f"{part.name} ({part.values})" for part in tokenizer.parts)
    values = f"{tokenizer.bins} bins" if tokenizer.values == "binned" else f"{tokenizer.values} values"
    which = "all genes that it knows" if tokenizer.genes == "all" else f"{tokenizer.genes} genes"
    most = "" if tokenizer.length is None else f", at most {tokenizer.length:,} tokens a cell"
    return f"{values} of {which}{most}"


def _predicts(model: Described) -> str:
    heads = model.config.heads
    if not heads:
        return "embeddings of cells and genes"
    if model.config.perturbation is not None and any(isinstance(head, AffineConfig) for head in heads.values()):
        return f"expression after a perturbation (heads {', '.join(heads)})"
    return f"embeddings; heads {', '.join(heads)}"


def _provenance(model: Described) -> str:
    if model.transfer is None:
        return "untrained" if model.history is None else f"trained from scratch for {len(model.history)} epochs"
    scratch = f", {len(model.transfer.missing)} tensors from scratch" if model.transfer.missing else ""
    trained = f", then {len(model.history)} epochs of training" if model.history is not None else ""
    return f"{len(model.transfer.used)} tensors taken over{scratch}{trained}"


def _named(names: tuple[str, ...] | None) -> str:
    if not names:
        return ""
    return f": {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
