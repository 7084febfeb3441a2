"""What every task that runs a model over cells does first and last: read the arguments, walk, keep a record."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgpt_tools._types import Attention
from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.config import to_dict
from scgpt_tools.data.binned import read_binned
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.embedding import RowPlan, computed_rows
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import Precision, resolve_precision
from scgpt_tools.settings import settings
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.orders import seed_of
from scgpt_tools.tokens.units import warn_about_units

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments that tasks on cells share; :func:`scgpt_tools.tl.embed` describes them."""

    layer: str | None = None
    tokens: str | None = None
    genes: str | None = None
    symbols: NameTable | str | None = None
    aliases: NameTable | None = None
    ignore_case: bool = False
    duplicates: Duplicates = "first"
    modality: str | None = None
    batch: str | None = None
    length: int | None = None
    batch_size: int = 64
    device: str | torch.device | None = None
    precision: Precision = "auto"
    attention: Attention | None = None
    rng: int = 0
    copy: bool = False

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size)
        check_integer("rng", self.rng, least=0)
        if self.attention is not None:
            check_choice("attention", self.attention, get_args(Attention))
        # Bins come with the matching of genes that they were made with.
        given = [name for name in ("layer", "genes", "symbols", "aliases") if getattr(self, name) is not None]
        if self.tokens is not None and given:
            listing = ", ".join(f"`{name}`" for name in given)
            raise ValueError(f"Expected `tokens` without {listing}, found {self.tokens!r} too.")


@dataclass(frozen=True, eq=False)
class Cells:
    """A table opened for a model."""

    model: CellModel
    source: RowSource
    plan: RowPlan
    request: Request

    @property
    def attention(self) -> Attention | None:
        """Attention backend: the one asked for, else the setting; ``None`` for the fastest."""
        return self.request.attention or settings.attention

    def compute(
        self, function: Callable[[TokenBatch], Tensor], *, width: int, show_progress: bool | None
    ) -> NDArray[np.float32]:
        """Run a function over all cells; returns (cells, width) in the order of the table."""
        results = np.empty((len(self.source), width), dtype=np.float32)
        total = len(self.source)
        with evaluating(self.model), settings.progress((), total=total, unit="cell", show=show_progress) as bar:
            for rows, values in computed_rows(self.model, self.source, self.plan, function):
                results[rows] = values
                bar.update(len(rows))
        return results

    def provenance(self, **params: Any) -> dict[str, Any]:
        """How a result was made: scalars and strings only, which every version of every file format keeps.

        Parameters
        ----------
        **params
            What the task was told beside the arguments that all share.
        """
        model, request = self.model, self.request
        tokenizer = {
            key: "none" if value is None else ",".join(value) if isinstance(value, list) else value
            for key, value in to_dict(self.plan.tokenizer.config).items()
        }
        return {
            "params": {
                "layer": request.layer or "X",
                "tokens": request.tokens or "",
                "genes": request.genes or "var_names",
                "batch": request.batch or "",
                **params,
                "rng": self.plan.seed,
                "precision": self.plan.precision,
                "attention": self.attention or "auto",
            },
            "model": {
                "name": model.name,
                "checksum": model.checksum,
                "family": model.config.family,
                "dim": model.dim,
            },
            "tokenizer": tokenizer,
            "genes": self.plan.features.coverage.to_dict(),
        }


def open_cells(adata: AnnData | MuData, model: CellModel | str | PathLike[str], request: Request) -> Cells:
    """Load the model, match genes and look at the values, before anything is computed or changed.

    Parameters
    ----------
    adata
        The table.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    request
        The arguments that tasks share.

    Returns
    -------
    Everything that a walk needs.
    """
    layer = request.layer if request.tokens is None else request.tokens
    source = RowSource(adata, layer=layer, modality=request.modality)
    check_writable(adata, source.adata, copy=request.copy)
    loaded = model if isinstance(model, CellModel) else CellModel.from_pretrained(model, device=request.device)
    tokenizer = _with_length(loaded.tokenizer, request.length)
    features = _features(source, loaded, tokenizer, request)
    logger.info("Genes: %s.", features.coverage.headline())
    batch = _batch_codes(source, loaded, request.batch)
    if request.tokens is None and len(source):
        warn_about_units(source.sample(), tokenizer.config.expects)
    plan = RowPlan(
        tokenizer=tokenizer,
        features=features,
        batch_size=request.batch_size,
        seed=int(seed_of(request.rng)),
        precision=resolve_precision(request.precision, loaded.device),
        prebinned=request.tokens is not None,
        batch=batch,
    )
    return Cells(loaded, source, plan, request)


def _features(source: RowSource, model: CellModel, tokenizer: Tokenizer, request: Request) -> FeatureTable:
    if request.tokens is not None:
        return read_binned(source.adata, model.vocabulary, tokenizer.config, key=request.tokens).features
    return FeatureTable.from_var(
        source.var,
        model.vocabulary,
        column=request.genes,
        symbols=request.symbols,
        aliases=request.aliases,
        ignore_case=request.ignore_case,
        duplicates=request.duplicates,
    )


def _batch_codes(source: RowSource, model: CellModel, key: str | None) -> NDArray[np.int64] | None:
    """Batch of each cell for a model that normalises each by itself; others do not look."""
    if not model.config.domains:
        if key is not None:
            raise ValueError(f"Expected no `batch` for a model that treats all batches alike, found {key!r}.")
        return None
    names = model.config.batch_names
    if key is None:
        listing = "" if names is None else f": {', '.join(names)}"
        raise ValueError(
            f"Expected `batch`, the column of `obs` with the technical batch of each cell, found None. This model "
            f"normalises each of its {model.config.domains} batches by itself{listing}."
        )
    # A foreign checkpoint keeps no names; its numbers are used as they are.
    known = names or tuple(str(number) for number in range(model.config.domains))
    return read_classes(source.obs, key, names=known).codes


def check_writable(adata: AnnData | MuData, table: AnnData, *, copy: bool) -> None:
    """What anndata could not write or copy is refused before any work is done."""
    backed = bool(getattr(adata, "isbacked", False)) or table.isbacked
    if backed and (copy or table.is_view):
        what = "a backed one" if copy else "a view of a backed one"
        raise ValueError(f"Expected a table that can be changed or copied, found {what}. Pass `adata.to_memory()`.")


def _with_length(tokenizer: Tokenizer, length: int | None) -> Tokenizer:
    if length is None:
        return tokenizer
    return type(tokenizer)(replace(tokenizer.config, length=length), tokenizer.vocabulary)
