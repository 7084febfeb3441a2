"""Mean profiles of conditions over all validation cells, whatever minibatches and processes they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from scgpt_tools.objectives.ranks import is_shared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scgpt_tools.nn.output import CellOutput
    from scgpt_tools.tokens.batch import TokenBatch

Condition = tuple[int, ...]
"""Tokens of the genes that are perturbed, ascending."""

_SIDES = 4
"""Predicted, true and control expression, and a count."""


class ProfileSums:
    """Sums over the cells of each condition, gene by gene, of predicted, true and control expression."""

    def __init__(self) -> None:
        self._sums: dict[Condition, NDArray[np.float64]] = {}
        # Column of each token, -1 before it is met: a screen has a small part of a vocabulary.
        self._column = np.zeros(0, dtype=np.int64)

    def add(self, views: Mapping[Any, CellOutput], batch: TokenBatch) -> None:
        """Add a minibatch."""
        where, genes = batch.mask.cpu(), batch.genes.cpu()
        flags = (batch.require("perturbed").cpu() > 0) & where
        own = [tuple(sorted(set(row[on].tolist()))) for row, on in zip(genes, flags, strict=True)]
        number = {condition: place for place, condition in enumerate(dict.fromkeys(own))}
        rows = torch.tensor([number[condition] for condition in own])
        tokens, column = genes[where].unique(return_inverse=True)
        place = rows[:, None].expand_as(genes)[where] * len(tokens) + column
        sides = (views["first"]["expression"], batch.require("target"), batch.values, torch.ones_like(batch.values))
        found = torch.stack(
            [
                torch.zeros(len(number) * len(tokens)).index_add(0, place, side.detach().float().cpu()[where])
                for side in sides
            ]
        )
        sums = found.view(_SIDES, len(number), len(tokens)).numpy()
        for condition, row in number.items():
            self._put(condition, tokens.numpy(), sums[:, row])

    def gathered(self) -> ProfileSums:
        """The sums over all processes, which all have to ask for them."""
        if not is_shared():
            return self
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (self._sums, self._tokens))
        total = ProfileSums()
        for theirs, tokens in everyone:
            for condition, sums in theirs.items():
                total._put(condition, tokens[: sums.shape[1]], sums)
        return total

    def measures(self) -> dict[str, float]:
        """Squared error of mean profiles, their correlation and that of their changes, averaged over conditions."""
        scores = []
        for sums in self._sums.values():
            there = sums[3] > 0
            predicted, true, control = sums[:3, there] / sums[3, there]
            error = float(np.square(predicted - true).mean())
            scores.append((error, _correlation(predicted, true), _correlation(predicted - control, true - control)))
        return dict(zip(MEASURES, np.mean(scores, axis=0).tolist(), strict=True)) if scores else {}

    @property
    def _tokens(self) -> NDArray[np.int64]:
        """Token of each column."""
        met = np.flatnonzero(self._column >= 0)
        return met[np.argsort(self._column[met])]

    def _put(self, condition: Condition, tokens: NDArray[np.int64], sums: NDArray[np.floating[Any]]) -> None:
        room = int(tokens.max(initial=-1)) + 1 - len(self._column)
        if room > 0:
            self._column = np.pad(self._column, (0, room), constant_values=-1)
        columns = int(self._column.max(initial=-1)) + 1
        new = tokens[self._column[tokens] < 0]
        self._column[new] = columns + np.arange(len(new))
        columns += len(new)
        kept = self._sums.get(condition, np.zeros((_SIDES, 0)))
        kept = np.pad(kept, ((0, 0), (0, columns - kept.shape[1])))
        kept[:, self._column[tokens]] += sums
        self._sums[condition] = kept


MEASURES = ("profile_error", "profile_correlation", "change_correlation")
"""What :meth:`ProfileSums.measures` returns."""


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of two vectors; 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(np.linalg.norm(x) * np.linalg.norm(y), np.finfo(np.float64).tiny))
