"""What tasks on annotated cells have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scgpt_tools._validate import check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.cell_splits import rank, split_cells
from scgpt_tools.data.classes import UNKNOWN, Classes, read_classes
from scgpt_tools.data.learning import open_to_learn
from scgpt_tools.data.modalities import has_modalities
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.opening import open_rows, warn_about_rows
from scgpt_tools.data.parts import read_parts
from scgpt_tools.models.growing import keep_narrow_heads
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train.extending import with_all_genes
from scgpt_tools.train.modalities import check_weights, hiding
from scgpt_tools.train.pacing import automatic_share
from scgpt_tools.train.parts import needs_hidden_values, parts_for
from scgpt_tools.train.tasks.base import Opened, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import Extend
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.nn.heads import RegressorConfig
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.corruptions import Corruption
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.modalities import Modalities
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary

ENOUGH = 4
"""Cells of a class of which one is held out, however small the share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedCells(Opened):
    """Cells with their classes and batches, and how they become tokens."""

    source: Rows
    features: FeatureTable
    tokenizer: TokenizerConfig
    labels: Classes | None
    batches: Classes | None
    targets: NDArray[np.float32] | None = None
    """(cells, targets) numbers to learn, as the head predicts them; NaN where they are not known."""
    regressor: RegressorConfig | None = None
    """The head that predicts them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellTask(Task[OpenedCells]):
    """A task on cells with labels or technical batches."""

    reads: ClassVar[Mapping[str, Any]] = {}
    """Fields of the tokenizer to change."""
    batch_norm: ClassVar[bool] = True
    """Normalise each batch by itself where there are parts for batches; otherwise the heads read the batch only."""

    label_key: str | None
    batch_key: str | None
    modality: str | None
    modalities: Modalities
    corruption: Corruption | None
    tokenizer: Mapping[str, Any] | None
    extend: Extend
    batch_parts: bool | None
    """None has parts for batches if there are batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer is not None:
            check_type("tokenizer", self.tokenizer, Mapping)

    @property
    def has_batch_parts(self) -> bool:
        """Whether the model gets parts for each batch."""
        return self.batch_key is not None if self.batch_parts is None else self.batch_parts

    def usable(self, source: Rows) -> NDArray[np.bool_]:
        """(cells,) which have what is learnt, labels apart."""
        return np.ones(len(source), dtype=bool)

    def weighted(self, terms: Sequence[Objective], tokenizer: TokenizerConfig) -> Sequence[Objective]:
        """The usual loss terms as this tokenizer needs them."""
        return terms

    def config_of(self, model: CellModel) -> ModelConfig:
        """Description of the model before heads and parts are added."""
        return model.config

    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> OpenedCells:
        """Read the cells with their classes and batches, and divide them."""
        vocabulary = self._vocabulary(adata, model)
        source, features, tokenizer = open_to_learn(
            adata,
            vocabulary,
            model.config.tokenizer,
            layer=self.layer,
            modality=self.modality,
            modalities=self.modalities,
            matching=self.matching,
            changes={**self.reads, **(self.tokenizer or {})},
            seed=seed,
        )
        if vocabulary is not model.vocabulary:
            features = replace(features, vocabulary=vocabulary)
        warn_about_rows(source, tokenizer.expects)
        terms = self.terms(model)
        if self.objectives is None:
            terms = tuple(self.weighted(terms, tokenizer))
        check_weights(terms, tokenizer)
        labels = None if self.label_key is None else read_classes(source.obs, self.label_key, allow_unknown=True)
        if labels is None and self.sampling == "balanced":
            raise ValueError(
                "Expected `label_key`, the column of `obs` with classes, for sampling='balanced', found None."
            )
        batches = _read_batches(
            source, model, self.batch_key, needed=self.sampling == "one_batch", add_parts=self.has_batch_parts
        )
        usable = self.usable(source)
        if labels is not None and "cell_type" in {term.name for term in terms}:
            usable &= labels.codes != UNKNOWN
        train, validation = _parts(source, self.validation, usable, labels, batches, seed=seed)
        return OpenedCells(
            terms=terms,
            train=train,
            validation=validation,
            source=source,
            features=features,
            tokenizer=tokenizer,
            labels=labels,
            batches=batches,
        )

    def _vocabulary(self, adata: AnnData | MuData, model: CellModel) -> Vocabulary:
        """The model's, with all genes of the table if they are to have tokens."""
        config = model.config.tokenizer
        if self.extend != "all":
            return model.vocabulary
        if config.parts or (has_modalities(adata) and self.modality is None):
            raise ValueError(
                "Expected extend='auto' for several modalities, found 'all'. Give genes of RNA tokens with "
                "modalities={'rna': {'extend': True}, ...}."
            )
        rows = open_rows(adata, config, layer=self.layer, modality=self.modality)
        return with_all_genes(rows, model.vocabulary, config, self.matching)

    def adapt(self, model: CellModel, opened: OpenedCells) -> CellModel:
        """Add heads, parts for batches and modalities, and tokens."""
        config = self.config_of(model)
        changes = {"encoder": config.encoder} | parts_for(
            config,
            opened.terms,
            classes=None if opened.labels is None else opened.labels.names,
            batches=None if opened.batches is None else opened.batches.names,
            batch_parts=self.has_batch_parts,
            batch_norm=self.batch_norm,
            regressor=opened.regressor,
            tokenizer=opened.tokenizer,
            dropout=self.dropout,
        )
        tuned = model.adapt(opened.features.vocabulary, **changes)
        keep_narrow_heads(model, tuned)
        return tuned

    def batches(self, model: CellModel, opened: OpenedCells) -> CellDataModule:
        """Tokens of the cells, some of them hidden if a term asks for hidden values."""
        _warn_about_length(model, opened.features)
        corruption = self._hidden(model, opened.terms)
        return CellDataModule(
            [CellTable(opened.source, opened.features, _codes(opened.batches), _codes(opened.labels), opened.targets)],
            model.tokenizer,
            corruption=None if corruption is None else corruption.of(model.tokenizer),
            train=opened.train,
            validation=opened.validation,
            sampling=self.sampling,
        )

    def remembers(self, opened: OpenedCells) -> dict[str, Any]:
        """Genes that every cell was read with."""
        if opened.tokenizer.parts or opened.tokenizer.genes != "all":
            return {"trained_genes": None}
        return {"trained_genes": tuple(map(str, opened.features.names))}

    def _hidden(self, model: CellModel, terms: Sequence[Objective]) -> Corruption | None:
        if self.corruption is not None or not needs_hidden_values(terms):
            return self.corruption
        if model.config.tokenizer.parts:
            return hiding(model.config.tokenizer, generate="generation" in model.config.embedder.parts)
        # 0.4 as in scGPT's finetune_integration.py; its function default, 0.15, is not what they trained with there.
        tokenizer = model.config.tokenizer
        return MaskValues(ratio=0.4, mask_value=tokenizer.mask_value, mask_bin=tokenizer.mask_bin)


def _read_batches(source: Rows, model: CellModel, key: str | None, *, needed: bool, add_parts: bool) -> Classes | None:
    """Batches of the table, numbered as the model numbers them where it has parts for each already."""
    has_parts = bool(model.config.domains or model.config.context.batches)
    if key is None:
        if needed or has_parts or add_parts:
            raise ValueError("Expected `batch_key`, the column of `obs` with technical batches, found None.")
        return None
    keep = has_parts and not add_parts
    return read_classes(source.obs, key, names=model.config.batch_names if keep else None)


def _parts(
    source: Rows,
    validation: float | str | None,
    usable: NDArray[np.bool_],
    labels: Classes | None,
    batches: Classes | None,
    *,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the cells to train and to validate on."""
    if isinstance(validation, str):
        part = read_parts(source.obs, validation)
        return np.flatnonzero(usable & (part == "train")), np.flatnonzero(usable & (part == "val"))
    cells = np.flatnonzero(usable)
    if validation is None:
        validation = automatic_share(cells.size)
    if validation == 0:
        return cells, cells[:0]
    groups = [
        "-".join(str(classes.codes[cell]) for classes in (labels, batches) if classes is not None) for cell in cells
    ]
    names = np.asarray(source.names, dtype=str)[cells]
    part = split_cells(names.tolist(), test=0, val=validation, seed=seed, strata=groups)
    if labels is not None:
        _hold_out_of_each(part, labels.codes[cells], names, validation, seed=seed)
    return cells[part == "train"], cells[part == "val"]


def _hold_out_of_each(
    part: NDArray[np.str_], codes: NDArray[np.int64], names: NDArray[np.str_], share: float, *, seed: int
) -> None:
    """Hold out more cells of classes whose share the batches have rounded down, and one where it is less than one."""
    for code in np.unique(codes[codes != UNKNOWN]):
        own = np.flatnonzero(codes == code)
        wanted = max(round(own.size * share), int(own.size >= ENOUGH))
        left = own[part[own] == "train"]
        if (more := wanted - (own.size - left.size)) > 0:
            part[left[np.isin(names[left], rank(names[left], seed, "cells")[:more])]] = "val"


def _codes(classes: Classes | None) -> NDArray[np.int64] | None:
    return None if classes is None else classes.codes


def _warn_about_length(model: CellModel, features: FeatureTable) -> None:
    tokenizer = model.config.tokenizer
    if tokenizer.parts or tokenizer.genes != "all" or tokenizer.length is None:
        return
    room = tokenizer.length - tokenizer.cls
    if len(features) > room:
        warn_user(
            f"{len(features)} genes are known to the model and every cell shows {room} of them, drawn at random and "
            "mostly zero. Choose as many highly variable genes first (`scanpy.pp.highly_variable_genes`), or raise "
            "`tokenizer={'length': ...}`."
        )
