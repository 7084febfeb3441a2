"""What every loss term is: a name, a weight, the heads it reads and the views of the batch it needs.

An objective sees outputs and the batch, never the model.  What it predicts comes from ``batch.target`` at the
places of ``batch.hidden``, so nothing that the network saw can leak into its score by accident.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from scgpt_tools._validate import check_integer, check_number
from scgpt_tools.config import OneOf, settle_fields
from scgpt_tools.nn.output import CellOutput

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.objectives.profiles import ProfileSums
    from scgpt_tools.tokens.batch import TokenBatch

View: TypeAlias = Literal["first", "again", "from_cell"]
"""A forward pass over the batch: the ``first`` one; the same ``again``, which differs by dropout only; or one whose
position 0 is the detached cell embedding of the first."""

Views: TypeAlias = Mapping[View, CellOutput]

TokensRead: TypeAlias = Literal["all", "hidden", "none"]


@dataclass(frozen=True, kw_only=True)
class Objective(OneOf, ABC):
    """One weighted term of the loss; files say which by its ``name``.

    Calling it returns the term without its weight; a term of weight 0 is as if it were not in the list.
    """

    weight: float = 1.0
    """Factor in the sum of all terms."""
    from_step: int = 0
    """Optimiser steps to leave the term out for."""

    tag: ClassVar[str] = "name"
    name: ClassVar[str]
    """What the term is called in configurations, logs and tables."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Heads of the model that it reads, in the last of its views."""
    views: ClassVar[tuple[View, ...]] = ("first",)
    """Forward passes that it needs."""
    tokens: ClassVar[TokensRead] = "all"
    """Tokens of which it reads something in the last of its views, predictions included: the encoder may leave out others."""
    cells: ClassVar[bool] = True
    """Whether it reads cells in its views, or what is predicted from them."""
    reports: ClassVar[tuple[str, ...]] = ()
    """Names of its measures."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_number("weight", self.weight, least=0)
        check_integer("from_step", self.from_step, least=0)

    def check(self) -> None:
        """Refuse a term that lacks something to be computed from; called before training."""

    def at_epoch(self, epoch: int) -> Objective:
        """The term as it is in an epoch, counted from 0, for terms that change from one to the next."""
        return self

    @abstractmethod
    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Compute the term, a scalar, from outputs by view and the batch that they belong to."""

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Numbers to report beside the loss, such as an accuracy: those of ``reports`` that are means over cells."""
        return {}

    def collector(self) -> ProfileSums | None:
        """What sees all validation cells, for ``reports`` that are no means over cells; ``None`` without such."""
        return None
