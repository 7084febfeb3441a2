"""What every task that runs a model over cells does first and last: read the arguments, walk, keep a record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgpt_tools._types import Attention
from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.config import to_dict
from scgpt_tools.data.binned import read_all_binned, read_binned
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.modalities import ModalityRows, has_modalities
from scgpt_tools.data.opening import Matching, match_rows, open_rows, warn_about_rows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.embedding import RowPlan, computed_rows
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import Precision, resolve_precision
from scgpt_tools.settings import settings
from scgpt_tools.tokens.modalities import summary
from scgpt_tools.tokens.orders import seed_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools._types import Layers
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments that tasks on cells share; :func:`scgpt_tools.tl.embed` describes them."""

    layer: Layers = None
    tokens: str | None = None
    genes: str | None = None
    symbols: NameTable | str | None = None
    aliases: NameTable | None = None
    ignore_case: bool = False
    duplicates: Duplicates = "first"
    modality: str | None = None
    modalities: tuple[str, ...] | None = None
    batch: str | None = None
    shows_batch: bool = False
    """Whether heads are run that may be told the batch; the encoder never is, unless it normalises each by itself."""
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
        if self.modality is not None and self.modalities is not None:
            raise ValueError(
                f"Expected `modality` or `modalities`, found both: {self.modality!r} and {self.modalities}."
            )
        # Bins come with the matching of genes that they were made with.
        given = [name for name in ("layer", "genes", "symbols", "aliases") if getattr(self, name) is not None]
        if self.tokens is not None and given:
            listing = ", ".join(f"`{name}`" for name in given)
            raise ValueError(f"Expected `tokens` without {listing}, found {self.tokens!r} too.")

    @property
    def one_layer(self) -> str | None:
        """The layer, for tasks that read one modality only."""
        if isinstance(self.layer, Mapping):
            raise TypeError(f"Expected `layer` to name one layer, found {dict(self.layer)!r}.")
        return self.layer


@dataclass(frozen=True, eq=False)
class Cells:
    """A table opened for a model."""

    model: CellModel
    source: Rows
    plan: RowPlan
    request: Request

    @property
    def table(self) -> RowSource:
        """The rows of one table, for tasks that read one modality only."""
        assert isinstance(self.source, RowSource)  # noqa: S101 - models of several modalities have no such task
        return self.source

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
        config = self.plan.tokenizer.config
        tokenizer = {
            key: "none" if value is None else ",".join(value) if isinstance(value, list) else value
            for key, value in to_dict(config).items()
            if key != "parts"
        }
        tokenizer |= {f"modality {part.name}": summary(part) for part in config.parts}
        return {
            "params": {
                "layer": _layer_text(request.layer),
                "tokens": request.tokens or "",
                "genes": request.genes or "var_names",
                "batch": request.batch or "",
                **({} if request.modalities is None else {"modalities": ", ".join(request.modalities)}),
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
    if not has_modalities(adata) or request.modality is not None:
        # What is wrong with one table is said before a model is looked for.
        RowSource(adata, layer=layer if isinstance(layer, str) else None, modality=request.modality)
    loaded = model if isinstance(model, CellModel) else CellModel.from_pretrained(model, device=request.device)
    tokenizer = _with_length(loaded.tokenizer, request.length)
    source = open_rows(adata, tokenizer.config, layer=layer, modality=request.modality, modalities=request.modalities)
    check_writable(adata, source.adata if isinstance(source, RowSource) else adata, copy=request.copy)
    features = _features(source, loaded, tokenizer, request)
    logger.info("Genes: %s.", features.coverage.headline())
    batch = _batch_codes(source, loaded, request.batch, shows_batch=request.shows_batch)
    if request.tokens is None and len(source):
        warn_about_rows(source, tokenizer.config)
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


def _features(source: Rows, model: CellModel, tokenizer: Tokenizer, request: Request) -> FeatureTable:
    if request.tokens is None:
        matching = Matching(
            genes=request.genes,
            symbols=request.symbols,
            aliases=request.aliases,
            ignore_case=request.ignore_case,
            duplicates=request.duplicates,
        )
        return match_rows(source, model.vocabulary, tokenizer.config, matching)
    if isinstance(source, ModalityRows):
        return read_all_binned(source, model.vocabulary, tokenizer.config, key=request.tokens)
    assert isinstance(source, RowSource)  # noqa: S101 - there are no others
    return read_binned(source.adata, model.vocabulary, tokenizer.config, key=request.tokens).features


def _batch_codes(
    source: Rows, model: CellModel, key: str | None, *, shows_batch: bool = False
) -> NDArray[np.int64] | None:
    """Batch of each cell for a model that normalises each by itself, or tells its heads; others do not look."""
    config = model.config
    if not config.domains and not (shows_batch and config.context.batches):
        if key is not None and not config.context.batches:
            raise ValueError(f"Expected no `batch` for a model that treats all batches alike, found {key!r}.")
        return None
    number, names = config.domains or config.context.batches, config.batch_names
    if key is None:
        listing = "" if names is None else f": {', '.join(names)}"
        raise ValueError(
            f"Expected `batch`, the column of `obs` with the technical batch of each cell, found None. This model "
            f"{'normalises each of' if config.domains else 'is told which of'} its {number} batches "
            f"{'by itself' if config.domains else 'a cell is of'}{listing}."
        )
    # A foreign checkpoint keeps no names; its numbers are used as they are.
    known = names or tuple(str(place) for place in range(number))
    return read_classes(source.obs, key, names=known).codes


def check_writable(adata: AnnData | MuData, table: AnnData | MuData, *, copy: bool) -> None:
    """What anndata could not write or copy is refused before any work is done."""
    backed = bool(getattr(adata, "isbacked", False)) or table.isbacked
    if backed and (copy or table.is_view):
        what = "a backed one" if copy else "a view of a backed one"
        raise ValueError(f"Expected a table that can be changed or copied, found {what}. Pass `adata.to_memory()`.")


def _with_length(tokenizer: Tokenizer, length: int | None) -> Tokenizer:
    if length is None:
        return tokenizer
    if tokenizer.config.parts:
        raise ValueError(
            f"Expected no `length` for a model of several modalities, each of which has its own, found {length}."
        )
    return type(tokenizer)(replace(tokenizer.config, length=length), tokenizer.vocabulary)


def _layer_text(layer: Layers) -> str:
    if isinstance(layer, Mapping):
        return ", ".join(f"{name}: {key}" for name, key in layer.items())
    return layer or "X"
