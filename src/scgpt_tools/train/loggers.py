"""Loggers of Lightning by name, as files of settings hold them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from scgpt_tools._optional import optional
from scgpt_tools._validate import check_flag, check_text
from scgpt_tools.config import settle_fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LoggerKind: TypeAlias = Literal["csv", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Where the numbers of a run go, step by step: loss, gradient norm, rate and cells per second, and those of epochs."""

    kind: LoggerKind
    """``csv`` writes ``metrics.csv``, that of a run that goes on to a folder of its own; ``tensorboard`` (extra ``tensorboard``) and ``wandb`` (extra ``wandb``) what these
    programs read."""
    project: str = "scgpt-tools"
    """Of Weights & Biases; of the others the name of a folder."""
    name: str | None = None
    """What to call the run; ``None`` leaves it to the logger."""
    offline: bool = False
    """Keep what goes to Weights & Biases on this machine; ``wandb sync`` sends it later."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_text("project", self.project)
        if self.name is not None:
            check_text("name", self.name)
        check_flag("offline", self.offline)
        if self.offline and self.kind != "wandb":
            raise ValueError(f"`offline` goes with the logger 'wandb' only, found {self.kind!r}.")

    def build(self, folder: Path) -> Any:
        """Make the logger, which writes to a folder.

        Raises
        ------
        ImportError
            If its package is not installed.
        """
        loggers = optional("lightning.pytorch.loggers", extra="train")
        if self.kind == "csv":
            # Lightning deletes what a folder of that name has, such as the numbers of a run that goes on.
            version = None if self.name is None else _free(folder / self.project, self.name)
            return loggers.CSVLogger(folder, name=self.project, version=version)
        if self.kind == "tensorboard":
            # Lightning takes either.
            if not loggers.tensorboard._TENSORBOARD_AVAILABLE:
                optional("tensorboardX", extra="tensorboard")
            return loggers.TensorBoardLogger(folder, name=self.project, version=self.name)
        optional("wandb", extra="wandb")
        folder.mkdir(parents=True, exist_ok=True)
        return loggers.WandbLogger(name=self.name, project=self.project, save_dir=folder, offline=self.offline)


def _free(folder: Path, name: str) -> str:
    """The name, or one like it, that no folder has yet."""
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return next(each for each in names if not (folder / each).exists())


def built(loggers: Sequence[Any], folder: Path | None) -> list[Any]:
    """Loggers of Lightning, those that are described made for the folder of a run."""
    described = [entry for entry in loggers if isinstance(entry, LoggerConfig)]
    if described and folder is None:
        raise ValueError(f"Expected a `folder` that the logger {described[0].kind!r} can write to, found None.")
    return [
        entry.build(folder) if isinstance(entry, LoggerConfig) and folder is not None else entry for entry in loggers
    ]
