"""What every task that runs a model over cells does first and last: read the arguments, walk, keep a record."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._types import AttentionBackend
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import to_dict
from scgpt_tools.data.binned import expect_bins, read_all_binned, read_binned
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.modalities import ModalityRows, has_modalities
from scgpt_tools.data.opening import Matching, match_rows, open_rows, warn_about_empty, warn_about_rows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.writing import check_writable
from scgpt_tools.inference.runner import CellPooling, Computed, RowPlan, cell_embeddings, compute
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.formats.base import check_weights
from scgpt_tools.models.precision import Precision, resolve_device, resolve_precision
from scgpt_tools.settings import settings
from scgpt_tools.tokens.matching import Duplicates
from scgpt_tools.tokens.modalities import summary

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from scgpt_tools._types import Layers
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.matching import Totals
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
    duplicates: Duplicates = "most_counts"
    mask_var: ArrayLike | str | None = None
    modality: str | None = None
    modalities: tuple[str, ...] | None = None
    batch_key: str | None = None
    conditioned: bool = False
    """Whether heads are run that may be conditioned on the batch; the encoder is not, unless it normalises each by itself."""
    length: int | None = None
    batch_size: int = 64
    device: str | torch.device | None = None
    precision: Precision = "auto"
    attention: AttentionBackend | None = None
    rng: int = 0
    copy: bool = False

    def __post_init__(self) -> None:
        check_arguments(Request, vars(self))
        check_choice("duplicates", self.duplicates, get_args(Duplicates))
        check_choice("precision", self.precision, get_args(Precision))
        if self.device is not None:
            resolve_device(self.device)
        if self.attention is not None:
            check_choice("attention", self.attention, get_args(AttentionBackend))
        if self.modality is not None and self.modalities is not None:
            raise ValueError(
                f"Expected `modality` or `modalities`, found both: {self.modality!r} and {self.modalities}."
            )
        # Bins come with the matching of genes that they were made with.
        given = [
            name for name in ("layer", "genes", "symbols", "aliases", "mask_var") if getattr(self, name) is not None
        ]
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
    def attention(self) -> AttentionBackend | None:
        """Attention backend; ``None`` for the fastest."""
        return self.plan.attention

    def of(self, source: Rows) -> Cells:
        """The same walk through other cells of the same columns."""
        batch_id = batch_ids(source, self.model, self.request.batch_key, conditioned=self.request.conditioned)
        return replace(self, source=source, plan=replace(self.plan, batch_id=batch_id))

    def compute(
        self,
        function: Callable[[TokenBatch], Tensor],
        *,
        finish: Callable[[Tensor], Tensor] | None = None,
        width: int,
        show_progress: bool | None,
    ) -> Computed:
        """Run a function over all cells; see :func:`~scgpt_tools.inference.runner.compute`."""
        return compute(
            self.model, self.source, self.plan, function, finish=finish, width=width, show_progress=show_progress
        )

    def embed(self, *, pooling: CellPooling = "cls", normalize: bool = True, show_progress: bool | None) -> Computed:
        """Embed all cells."""
        embed = partial(
            cell_embeddings, self.model, pooling=pooling, normalize=normalize, attention=self.plan.attention
        )
        return self.compute(embed, width=self.model.dim, show_progress=show_progress)

    def warn_about_empty(self, expressed: NDArray[np.int64], consequence: str) -> None:
        """Say how many cells have nothing that the model knows, and what becomes of them, as a sentence."""
        parts = [f" of {span.name!r}" for span in self.plan.features.spans] or [""]
        for part, counts in zip(parts, expressed.T, strict=True):
            warn_about_empty(counts, self.source.names, part, consequence)

    def names_of_empty(self, expressed: NDArray[np.int64]) -> dict[str, Any]:
        """Record of the cells of which the model has seen nothing; empty if there are none."""
        empty = np.asarray((expressed <= 0).all(axis=1))
        return {"empty": np.asarray(self.source.names[empty], dtype=object)} if empty.any() else {}

    def provenance(self, **params: Any) -> dict[str, Any]:
        """How a result was made: scalars and strings only, which every version of every file format keeps.

        ``params`` are arguments of the task beside those that all share.
        """
        model, request = self.model, self.request
        config = self.plan.tokenizer.config
        tokenizer = {
            key: "none" if value is None else ",".join(map(str, value)) if isinstance(value, list) else value
            for key, value in to_dict(config).items()
            if key != "parts"
        }
        tokenizer |= {f"modality {part.name}": summary(part) for part in config.parts}
        return {
            "params": {
                "layer": _layer_text(request.layer),
                "tokens": request.tokens or "",
                "genes": request.genes or "var_names",
                **({} if request.mask_var is None else {"mask_var": _mask_text(request.mask_var)}),
                "batch_key": request.batch_key or "",
                **({} if request.modalities is None else {"modalities": ", ".join(request.modalities)}),
                **params,
                # Of encoders that see padding, cells depend on those beside them.
                **({} if getattr(model.config.encoder, "padding_mask", True) else {"batch_size": request.batch_size}),
                "rng": self.plan.seed,
                "precision": self.plan.precision,
                "attention": self.attention or "auto",
            },
            "model": {
                "name": model.name,
                "checksum": model.checksum,
                "family": model.config.family,
                "dim": model.dim,
                "architecture": _architecture(model),
            },
            "tokenizer": tokenizer,
            "genes": self.plan.features.coverage.to_dict(),
        }


def open_cells(
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str],
    request: Request,
    *,
    tokenizer: Tokenizer | None = None,
    totals: Totals | None = None,
    opened: Rows | None = None,
) -> Cells:
    """Load the model, match genes and look at the values, before anything is computed or changed.

    ``tokenizer`` reads cells in another way than the model's own, ``totals`` are sums of columns where the table holds only
    some of the cells that count, and ``opened`` are rows of the table that were opened before with the same layers.
    """
    layer = request.layer if request.tokens is None else request.tokens
    if opened is None and (not has_modalities(adata) or request.modality is not None):
        # What is wrong with one table is said before a model is looked for.
        opened = RowSource(adata, layer=layer if isinstance(layer, str) else None, modality=request.modality)
    loaded = load_model(model, request.device)
    tokenizer = _with_length(tokenizer or loaded.tokenizer, request.length)
    source = open_rows(
        adata, tokenizer.config, layer=layer, modality=request.modality, modalities=request.modalities, opened=opened
    )
    check_writable(adata, source.adata if isinstance(source, RowSource) else adata, copy=request.copy)
    if request.tokens is not None:
        expect_bins(source, tokenizer.config)
    source.check_memory()
    features = _features(source, loaded, tokenizer, request, totals)
    logger.info("Genes: %s.", features.coverage.headline())
    _warn_about_genes(features, loaded)
    batch_id = batch_ids(source, loaded, request.batch_key, conditioned=request.conditioned)
    if request.tokens is None:
        warn_about_rows(source, tokenizer.config.expects)
    return planned(loaded, source, features, request, tokenizer=tokenizer, batch_id=batch_id)


def planned(
    model: CellModel,
    source: Rows,
    features: FeatureTable,
    request: Request,
    *,
    tokenizer: Tokenizer | None = None,
    batch_id: NDArray[np.int64] | None = None,
) -> Cells:
    """Rows whose columns are matched already as something to run a model over."""
    plan = RowPlan(
        tokenizer=tokenizer or model.tokenizer,
        features=features,
        batch_size=request.batch_size,
        seed=request.rng,
        precision=resolve_precision(request.precision, model.device),
        prebinned=request.tokens is not None,
        batch_id=batch_id,
        attention=request.attention or settings.attention,
    )
    return Cells(model, source, plan, request)


def _features(
    source: Rows, model: CellModel, tokenizer: Tokenizer, request: Request, totals: Totals | None
) -> FeatureTable:
    if request.tokens is None:
        matching = Matching(
            genes=request.genes,
            symbols=request.symbols,
            aliases=request.aliases,
            ignore_case=request.ignore_case,
            duplicates=request.duplicates,
            mask_var=request.mask_var,
        )
        return match_rows(source, model.vocabulary, tokenizer.config, matching, totals=totals)
    if isinstance(source, ModalityRows):
        return read_all_binned(source, model.vocabulary, tokenizer.config, key=request.tokens)
    assert isinstance(source, RowSource)  # noqa: S101 - there are no others
    return read_binned(source.adata, model.vocabulary, tokenizer.config, key=request.tokens).features


def _warn_about_genes(features: FeatureTable, model: CellModel) -> None:
    """Say where a model that reads zeros too is shown other genes than it was trained on."""
    trained = model.config.trained_genes
    if trained is None:
        return
    read = set(features.names)
    absent, others = len(set(trained) - read), len(read - set(trained))
    if absent or others:
        warn_user(
            f"Expected the {len(trained):,} genes that {model.name!r} was trained on and reads in every cell, found "
            f"{others:,} others and {absent:,} of them missing. Results are not those of the training. Take the same genes: "
            "mask_var=adata.var_names.isin(model.config.trained_genes).",
            once_about=features.names,
        )


def _mask_text(mask_var: ArrayLike | str) -> str:
    return mask_var if isinstance(mask_var, str) else f"{np.count_nonzero(mask_var)} genes of an array"


def batch_ids(
    source: Rows, model: CellModel, key: str | None, *, conditioned: bool = False
) -> NDArray[np.int64] | None:
    """Batch of each cell for a model that normalises each by itself, or tells its heads; others do not look."""
    config = model.config
    if not config.domains and not (conditioned and config.context.batches):
        if key is not None and not config.context.batches:
            raise ValueError(f"Expected no `batch_key` for a model that treats all batches alike, found {key!r}.")
        return None
    number, names = config.domains or config.context.batches, config.batch_names
    if key is None:
        listing = "" if names is None else f": {', '.join(names)}"
        raise ValueError(
            f"Expected `batch_key`, the column of `obs` with the technical batch of each cell, found None. This model "
            f"{'normalises each of' if config.domains else 'is conditioned on'} its {number} batches"
            f"{' by itself' if config.domains else ''}{listing}."
        )
    # A foreign checkpoint keeps no names; its numbers are used as they are.
    known = names or tuple(str(place) for place in range(number))
    return read_classes(source.obs, key, names=known).codes


def load_model(model: CellModel | str | PathLike[str], device: str | torch.device | None = None) -> CellModel:
    """A model as it is, or loaded by its name or from its folder."""
    if isinstance(model, CellModel):
        # Files are looked at when they are read.  Results alone would not tell: torch's attention on a CPU gives numbers
        # for queries that are none.
        check_weights(model.state_dict(), repr(model.name))
        return model
    if not isinstance(model, str | PathLike):
        raise TypeError(f"Expected `model` to be a model, its name or its folder, found {type(model).__name__}.")
    return CellModel.from_pretrained(model, device=device)


def _with_length(tokenizer: Tokenizer, length: int | None) -> Tokenizer:
    if length is None:
        return tokenizer
    if tokenizer.config.parts:
        raise ValueError(
            f"Expected no `length` for a model of several modalities, each of which has its own, found {length}."
        )
    return type(tokenizer)(replace(tokenizer.config, length=length), tokenizer.vocabulary)


def _architecture(model: CellModel) -> str:
    """What, beside the weights, decides an embedding: the same tensors are another network with other attention heads."""
    config = to_dict(model.config)
    parts = {name: config[name] for name in ("encoder", "embedder", "domains", "pooling")}
    parts["encoder"].pop("dropout", None)
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _layer_text(layer: Layers) -> str:
    if isinstance(layer, Mapping):
        return ", ".join(f"{name}: {key}" for name, key in layer.items())
    return layer or "X"
