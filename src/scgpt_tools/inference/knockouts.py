"""What a model makes of cells without a gene, against what it makes of them as they are.

Memory holds the embeddings of all cells, one minibatch of changed ones, and the sums of a few genes.  Letters: C cells,
K genes at a time, S groups, D width, R genes whose expression is predicted; V changed cells of a minibatch, L tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from scgpt_tools.inference.runner import (
    CellPooling,
    Fitting,
    cell_embeddings,
    check_results,
    expression_of,
    token_batches,
)
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import autocast
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues, candidates_of
from scgpt_tools.tokens.knockouts import How, most_expressed, overexpressed, with_values, without_tokens
from scgpt_tools.tokens.orders import draws

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.inference.cells import Cells
    from scgpt_tools.tokens.batch import TokenBatch

Hide = Literal["masked", "generated"]

# Part of the values to predict, as in scGPT's fine-tuning, and what keeps these draws apart from others.
_HIDDEN, _PURPOSE = 0.4, 4


class Levels(NamedTuple):
    """How much of each gene the cells of a group have, by their tokens."""

    n_cells: NDArray[np.int64]
    """(genes, S) cells with the gene above zero."""
    mean: NDArray[np.float64]
    """(genes, S) its mean value in these, in the unit of the tokens; 0 where there are none."""


class Shifts(NamedTuple):
    """What becomes of K changed genes, one after another."""

    n_changed: NDArray[np.int64]
    """(K, S) cells that the change makes a difference to."""
    length: NDArray[np.float64]
    """(K, S) mean distance of these from where they were; NaN where there are none."""
    mean: NDArray[np.float64]
    """(K, S, D) mean move of all cells of a group."""
    expression: NDArray[np.float64]
    """(K, S, R) mean change of predicted values; NaN where nothing was predicted."""


@dataclass(frozen=True, eq=False)
class Knockouts:
    """Cells to change genes in; to be used within :meth:`running`."""

    cells: Cells
    groups: NDArray[np.int64]
    """(C,) group of each cell."""
    n_groups: int
    how: How
    pooling: CellPooling
    hide: Hide | None = None
    """How values are hidden that are to be predicted; ``None`` predicts nothing."""
    _place_of: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        features = self.cells.plan.features
        place_of = torch.full((self.cells.model.config.n_tokens,), -1)
        place_of[torch.from_numpy(features.ids)] = torch.arange(len(features.ids))
        object.__setattr__(self, "_place_of", place_of)

    @property
    def n_genes(self) -> int:
        """Genes of the table that have a token, by whose numbers they are asked for."""
        return len(self.cells.plan.features.ids)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) cells of each group."""
        return np.bincount(self.groups, minlength=self.n_groups)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The modes that the model runs in."""
        model = self.cells.model
        with evaluating(model), torch.inference_mode(), autocast(self.cells.plan.precision, model.device):
            yield

    def levels(self) -> Levels:
        """Read how much of each gene there is."""
        counts = np.zeros((self.n_genes, self.n_groups), dtype=np.int64)
        sums = np.zeros((self.n_genes, self.n_groups))
        for batch in self._batches():
            cells, columns = self._expressed(batch).nonzero(as_tuple=True)
            genes = self._place_of[batch.genes[cells, columns]].numpy()
            groups = self.groups[batch.require("index")[cells].numpy()]
            np.add.at(counts, (genes, groups), 1)
            np.add.at(sums, (genes, groups), batch.values[cells, columns].double().numpy())
        return Levels(counts, sums / np.maximum(counts, 1))

    def base(self, *, show_progress: bool | None) -> NDArray[np.float32]:
        """(C, D) embeddings of the cells as they are."""
        return self.cells.embed(pooling=self.pooling, normalize=True, show_progress=show_progress).values

    def shifts(self, genes: NDArray[np.int64], base: NDArray[np.float32]) -> Shifts:
        """Change each of some genes (K,) in all cells, one gene at a time."""
        n_responses = self.n_genes if self.hide else 0
        shape = (len(genes), self.n_groups)
        counts, lengths = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        moves, responses = np.zeros((*shape, self.cells.model.dim)), np.zeros((*shape, n_responses))
        asked = np.zeros((*shape, n_responses))
        number_of = torch.full((self.n_genes + 1,), -1)
        number_of[torch.from_numpy(genes)] = torch.arange(len(genes))
        ids = torch.from_numpy(self.cells.plan.features.ids[genes])
        for batch in self._batches():
            rows = batch.require("index").numpy()
            # Tokens of no gene have -1 for their place, which is the last entry.
            tokens = number_of[self._place_of[batch.genes]].masked_fill(~batch.mask, -1)
            numbers = tokens.masked_fill(~self._expressed(batch), -1)
            predicted = _Predicted.of(self, batch, tokens, len(genes)) if self.hide else None
            if predicted is not None:
                for group in range(self.n_groups):
                    own = self.groups[rows] == group
                    asked[:, group] += predicted.visible[own].T @ predicted.asked[own]
            for some in self._changes(batch, numbers, len(genes)):
                changed = self._changed(batch.select(some.cells), batch, some, ids)
                own = rows[some.cells.numpy()]
                at = (some.numbers.numpy(), self.groups[own])
                found = self._embed(changed).cpu().numpy()
                self._check(found, own)
                move = found.astype(np.float64) - base[own]
                np.add.at(counts, at, 1)
                np.add.at(lengths, at, np.linalg.norm(move, axis=1))
                np.add.at(moves, at, move)
                if predicted is not None:
                    np.add.at(responses, at, self._responses(predicted, batch, some, ids))
        with np.errstate(invalid="ignore"):
            return Shifts(counts, lengths / counts, moves / self.sizes[:, None], responses / asked)

    def _batches(self) -> Iterator[TokenBatch]:
        return token_batches(self.cells.source, self.cells.plan)

    def _expressed(self, batch: TokenBatch) -> Tensor:
        """(B, L) True on tokens of genes above zero."""
        real = candidates_of(batch, self.cells.plan.tokenizer.config.first)
        return real & (batch.values > 0) & (self._place_of[batch.genes] >= 0)

    def _changes(self, batch: TokenBatch, numbers: Tensor, n_genes: int) -> Iterator[_Changes]:
        """The changes of a minibatch of cells, some at a time; ``numbers`` (B, L) which gene each token is of, or -1."""
        cells, places = (numbers >= 0).nonzero(as_tuple=True)
        changes = _Changes(cells, places, numbers[cells, places])
        if self.how == "max":
            place = torch.full((len(batch), n_genes), -1)
            place[cells, changes.numbers] = places
            top = most_expressed(batch, self.cells.plan.tokenizer)
            values = torch.where(place >= 0, batch.values.gather(1, place.clamp(min=0)), -torch.inf)
            cells, which = ((values < top[:, None]) & top.isfinite()[:, None]).nonzero(as_tuple=True)
            changes = _Changes(cells, place[cells, which], which)
        for start in range(0, len(changes.cells), self.cells.plan.batch_size):
            yield _Changes(*(part[start : start + self.cells.plan.batch_size] for part in changes))

    def _changed(self, tokens: TokenBatch, batch: TokenBatch, some: _Changes, ids: Tensor) -> TokenBatch:
        """Cells with their changes; ``batch``: the minibatch as it is, with nothing hidden."""
        tokenizer = self.cells.plan.tokenizer
        if self.how == "remove":
            return without_tokens(tokens, some.places, tokenizer)
        if self.how == "zero":
            return with_values(tokens, some.places, torch.zeros(len(some.places)), tokenizer)
        top = most_expressed(batch, tokenizer)[some.cells]
        # An unexpressed gene may have a token of its own.
        there = (tokens.genes == ids[some.numbers][:, None]) & tokens.mask
        places = torch.where(there.any(dim=1), there.int().argmax(dim=1), -1)
        return overexpressed(tokens, ids[some.numbers], places, top, tokenizer)

    @cached_property
    def _embed(self) -> Fitting:
        return Fitting(
            partial(
                cell_embeddings,
                self.cells.model,
                pooling=self.pooling,
                normalize=True,
                attention=self.cells.attention,
            )
        )

    @cached_property
    def _predict(self) -> Fitting:
        return Fitting(expression_of(self.cells.model, attention=self.cells.attention))

    def _check(self, values: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        check_results(values, self.cells.source.names[rows], precision=self.cells.plan.precision)

    def _responses(self, predicted: _Predicted, batch: TokenBatch, some: _Changes, ids: Tensor) -> NDArray[np.float64]:
        """(V, R) changes of predicted values; 0 where nothing was predicted, or where the gene itself was hidden."""
        result = np.zeros((len(some.cells), self.n_genes))
        seen = torch.from_numpy(predicted.visible[some.cells.numpy(), some.numbers.numpy()])
        if bool(seen.any()):
            kept = _Changes(*(part[seen] for part in some))
            changed = self._changed(predicted.hidden.select(kept.cells), batch, kept, ids)
            values = self._predict(changed).numpy()
            self._check(values, predicted.rows[kept.cells.numpy()])
            result[seen.numpy()] = self._by_gene(changed, values) - predicted.values[kept.cells.numpy()]
        return result

    def _by_gene(self, batch: TokenBatch, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Values of the hidden tokens (B, L) as (B, R), with 0 for all others."""
        cells, columns = (batch.require("hidden") & batch.mask).nonzero(as_tuple=True)
        genes = self._place_of[batch.genes[cells, columns]]
        known = genes >= 0
        result = np.zeros((len(batch), self.n_genes))
        result[cells[known].numpy(), genes[known].numpy()] = values[cells[known].numpy(), columns[known].numpy()]
        return result


class _Changes(NamedTuple):
    """Some changes, each of one gene in one cell."""

    cells: Tensor
    """(V,) row of the minibatch."""
    places: Tensor
    """(V,) column of the gene's token, or -1 where the cell lacks it."""
    numbers: Tensor
    """(V,) which of the K genes."""


@dataclass(frozen=True, eq=False)
class _Predicted:
    """A minibatch of cells with hidden values, and what is predicted for these."""

    hidden: TokenBatch
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    """(B, R), 0 where nothing is hidden."""
    asked: NDArray[np.float64]
    """(B, R) 1 where a value is hidden."""
    visible: NDArray[np.bool_]
    """(B, K) True where a gene to be changed is not hidden itself."""

    @classmethod
    def of(cls, run: Knockouts, batch: TokenBatch, numbers: Tensor, n_genes: int) -> _Predicted:
        """Hide values by draws; ``numbers`` (B, L) which of the K genes each token is of, or -1."""
        tokenizer, rows = run.cells.plan.tokenizer, batch.require("index").numpy()
        bits = draws(run.cells.plan.seed, run.cells.source.keys[rows][:, None], batch.genes.numpy(), _PURPOSE)
        drawn = torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53 < _HIDDEN)
        places = drawn & candidates_of(batch, tokenizer.config.first)
        if run.hide == "generated":
            hidden = GenerateValues().of(tokenizer).hide(batch, places).replace(generated=places)
        else:
            hidden = MaskValues(mask_value=tokenizer.config.mask_value).of(tokenizer).hide(batch, places)
        values = run._predict(hidden).numpy()
        run._check(values, rows)
        ones = np.ones(tuple(batch.genes.shape), dtype=np.float32)
        asked = run._by_gene(hidden, ones)
        visible = np.ones((len(batch), n_genes), dtype=bool)
        cells, columns = ((numbers >= 0) & places).nonzero(as_tuple=True)
        visible[cells.numpy(), numbers[cells, columns].numpy()] = False
        return cls(hidden, rows, run._by_gene(hidden, values), asked, visible)
