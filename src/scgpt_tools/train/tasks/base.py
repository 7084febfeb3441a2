"""What fine-tuning for one purpose is: how a table is read, what a model becomes and which minibatches it sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from scgpt_tools._validate import check_fraction, check_text
from scgpt_tools.data.epochs import check_sampling
from scgpt_tools.data.opening import Matching
from scgpt_tools.models.families import find_family
from scgpt_tools.objectives import check_objectives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    import numpy as np
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import Layers, Training
    from scgpt_tools.data.epochs import Sampling
    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.objectives.recipes import Recipe
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A table that was opened for a task; each kind of task adds what it reads of it."""

    terms: Sequence[Objective]
    """Loss terms."""
    train: NDArray[np.int64]
    """Numbers of the cells to train on."""
    validation: NDArray[np.int64]


Table = TypeVar("Table", bound=Opened)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task(ABC, Generic[Table]):
    """A task with its arguments: the fields are those of :func:`scgpt_tools.train.finetune` that it takes."""

    name: ClassVar[str]
    recipe: ClassVar[Recipe]
    fit: ClassVar[Mapping[str, Any]]
    """Fields of :class:`~scgpt_tools.train.FitConfig` to change."""
    defaults: ClassVar[Mapping[str, Any]]
    """What stands for arguments that are None."""
    authors: ClassVar[Mapping[str, Any] | None] = None
    """Fields of FitConfig with which scGPT's authors trained it, where ``fit`` has others; None if they did not."""
    authors_defaults: ClassVar[Mapping[str, Any]] = {}
    """What stands for arguments that are None in their recipe, where ``defaults`` has something else."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Arguments that have to be given."""
    validates_on: ClassVar[str] = "cells"
    until_converged: ClassVar[bool] = False
    """Learn until held-out cells get no better where nobody says how long, see :mod:`scgpt_tools.train.pacing`."""

    layer: Layers
    genes: str | None
    symbols: NameTable | str | None
    aliases: NameTable | None
    ignore_case: bool
    duplicates: Duplicates
    mask_var: ArrayLike | str | None
    validation: float | str | None
    objectives: Sequence[Objective] | None
    sampling: Sampling
    dropout: float | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], *, recipe: Training = "package") -> Self:
        """The task with those of some arguments that it takes."""
        own = {field.name: arguments[field.name] for field in fields(cls) if field.name in arguments}
        defaults = {**cls.defaults, **(cls.authors_defaults if recipe == "authors" else {})}
        return cls(**own | {name: value for name, value in defaults.items() if own[name] is None})

    def __post_init__(self) -> None:
        for name in self.needs:
            if getattr(self, name) is None:
                raise ValueError(f"Expected `{name}`, a column of `obs`, for task={self.name!r}, found None.")
        if isinstance(self.validation, str):
            check_text("validation", self.validation)
        elif self.validation is not None:
            check_fraction("validation", self.validation, one=False)
        check_sampling(self.sampling)
        if self.objectives is not None:
            check_objectives(self.objectives)

    @property
    def matching(self) -> Matching:
        """How names are matched to the vocabulary."""
        return Matching(**{field.name: getattr(self, field.name) for field in fields(Matching)})

    def terms(self, model: CellModel) -> tuple[Objective, ...]:
        """Loss terms: those given, else the family's, else the recipe's."""
        if self.objectives is not None:
            return check_objectives(self.objectives)
        family = find_family(model.config)
        if family is not None and self.name in family.objectives:
            return check_objectives(family.objectives[self.name])
        return self.recipe.objectives

    @abstractmethod
    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> Table:
        """Read what is learnt from, and refuse what a model cannot learn."""

    @abstractmethod
    def adapt(self, model: CellModel, opened: Table) -> CellModel:
        """A new model with the parts that the task needs."""

    @abstractmethod
    def batches(self, model: CellModel, opened: Table) -> CellDataModule:
        """Cells as the adapted model sees them."""

    def remembers(self, opened: Table) -> dict[str, Any]:
        """Fields of the trained model's configuration that say what it was trained on."""
        return {"trained_genes": None}

    def look(self, model: CellModel, data: CellDataModule, opened: Table, *, seed: int) -> Any:
        """What the trained model shows of its cells: one process looks for all of them, where training was."""

    def finish(self, model: CellModel, found: Any) -> None:
        """Give the trained model, beside its weights, what was found."""

    def describe(self, opened: Table) -> dict[str, Any]:
        """What a run that is resumed has to have in common, beyond model, cells, loss terms and settings."""
        return {}
