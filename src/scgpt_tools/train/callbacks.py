"""What watches a run: a table of its history, and files that a run can go on from."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint, TQDMProgressBar

from scgpt_tools._files import replace_file
from scgpt_tools.settings import settings
from scgpt_tools.train.probing import PROBED, embedded_cells, probe_scores
from scgpt_tools.train.randomness import own_random_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from lightning import LightningModule, Trainer
    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellDataModule, CellLoader
    from scgpt_tools.tokens.batch import TokenBatch

logger = logging.getLogger(__name__)

HINT = 15
"""Level of messages that a notebook with a bar need not show, and a log file should."""
BEST, LAST = "best", "last"
# What loggers are told at steps; the table has a number for the epoch.
_OF_STEPS = ("loss", "lr", "gradient_norm", "cells_per_second")
SUFFIX = ".ckpt"


class History(Checkpoint):
    """One row per epoch: losses and measures of both parts, learning rate of its last step, time and speed.

    A kind of checkpoint for Lightning, which calls those when the numbers of the epoch are there.

    Parameters
    ----------
    path
        CSV file to keep the table in; ``None`` keeps it in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._cells, self._tokens, self._seconds = 0, 0, 0.0
        self._since = time.perf_counter()
        self._lr = math.nan

    @property
    def table(self) -> pd.DataFrame:
        """The history so far, indexed by epoch."""
        return pd.DataFrame(self.rows).set_index("epoch") if self.rows else pd.DataFrame()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; what an interrupted epoch spent before is counted from its checkpoint."""
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock in the middle of an epoch too, where a run goes on."""
        self._since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Keep the learning rate, which is that of the next step by the end of the minibatch."""
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        """Count cells and tokens."""
        self._cells += len(batch) * trainer.world_size
        self._tokens += int(batch.mask.sum()) * trainer.world_size
        now = time.perf_counter()
        seconds = now - self._since
        self._seconds, self._since = self._seconds + seconds, now
        if trainer.loggers:
            rate = len(batch) * trainer.world_size / max(seconds, 1e-9)
            pl_module.log_dict({"lr": self._lr, "cells_per_second": rate})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out of the speed of training."""
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting."""
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row."""
        seconds = max(self._seconds, 1e-9)
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "lr": self._lr,
                **{
                    name: float(value)
                    for name, value in sorted(trainer.callback_metrics.items())
                    if name not in _OF_STEPS
                },
                "seconds": self._seconds,
                "cells_per_second": self._cells / seconds,
                "tokens_per_second": self._tokens / seconds,
            }
        )
        self._cells, self._tokens, self._seconds = 0, 0, 0.0
        if trainer.is_global_zero:
            logger.log(HINT, "%s", _line(self.rows[-1], trainer.max_epochs))
        if self.path is not None and trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, self.table.to_csv)

    def state_dict(self) -> dict[str, Any]:
        """Rows and counts, for a checkpoint."""
        return {"rows": list(self.rows), "counts": (self._cells, self._tokens, self._seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows of an earlier run."""
        self.rows = list(state_dict["rows"])
        self._cells, self._tokens, self._seconds = state_dict["counts"]


def _line(row: Mapping[str, float], epochs: int | None) -> str:
    """A row of the history in a line: losses and scores of the epoch, and its speed."""
    scores = (f"{name} {value:.4g}" for name, value in row.items() if name.startswith(("train_", "validation_")))
    epoch = int(row["epoch"]) + 1
    return f"Epoch {epoch} of {epochs}: {', '.join(scores)}, {row['cells_per_second']:.0f} cells/s."


class DataPlace(Callback):
    """Keeps the place of a loader in checkpoints.

    Lightning asks loaders for their place itself, but gives it back in the middle of an epoch only.
    """

    def __init__(self, loader: CellLoader) -> None:
        super().__init__()
        self.loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Place of the minibatch that comes next."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.loader.load_state_dict(state_dict)


class Probe(Checkpoint):
    """Scores a linear classifier on embeddings of held-out cells, see :class:`~scgpt_tools.train.probing.ProbeConfig`.

    A kind of checkpoint for Lightning, which calls those behind others, and this one before :class:`History`.

    Parameters
    ----------
    data
        Cells to fit to and to score, as tokens with nothing hidden.
    codes
        Class of each cell.
    every
        Epochs between two.
    """

    def __init__(self, data: CellDataModule, codes: NDArray[np.int64], *, every: int) -> None:
        super().__init__()
        self.data, self.codes, self.every = data, codes, every

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the scores of an earlier epoch, which Lightning keeps."""
        for name in PROBED:
            trainer.callback_metrics.pop(name, None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed, fit and score; every process does the same."""
        if (trainer.current_epoch + 1) % self.every:
            return
        model: Any = pl_module.model
        training = model.training
        with torch.no_grad(), own_random_numbers(0):
            model.eval()
            parts = (self.data.train, self.data.validation)
            train, test = (embedded_cells(model, self.data, cells) for cells in parts)
            model.train(training)
        pl_module.log_dict(probe_scores(train, self.codes[parts[0]], test, self.codes[parts[1]]))


class Progress(TQDMProgressBar):
    """Lightning's bar, shown where our settings say so."""

    def __init__(self) -> None:
        super().__init__()
        if not settings.show_progress:
            self.disable()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Losses only."""
        found: Mapping[str, Any] = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in found.items() if name != "v_num"}


class FolderCheckpoint(ModelCheckpoint):
    """Lightning's, which goes on with what it knew where the folder was moved or is named otherwise."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state, with its files in the folder of today."""
        here = {name: self._here(value) for name, value in state_dict.items()}
        super().load_state_dict(here | {"dirpath": self.dirpath})

    def _here(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._here(path): score for path, score in value.items()}
        # Every text among them but the metric's name is the path of a file in the folder.
        return str(Path(str(self.dirpath)) / Path(value).name) if isinstance(value, str) and "/" in value else value


def best_and_last(
    folder: Path, *, monitor: str | None, mode: str, every: int | None
) -> tuple[list[ModelCheckpoint], list[ModelCheckpoint]]:
    """Keep the best state by a metric and the last one.

    ``monitor``: metric that says what is best; ``None`` keeps the last state only; ``every``: optimiser steps between
    two writings of the last state; ``None`` writes at the end of epochs.
    """
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    # The last state knows no metric: a newer file replaces the older one.
    last: list[ModelCheckpoint] = [
        FolderCheckpoint(filename=LAST, every_n_epochs=1, save_on_train_epoch_end=True, **common)
    ]
    if every is not None:
        last.append(FolderCheckpoint(filename=LAST, every_n_train_steps=every, **common))
    if monitor is None:
        return last, []
    return last, [FolderCheckpoint(filename=BEST, monitor=monitor, mode=mode, save_weights_only=True, **common)]


def stop_early(monitor: str, *, mode: str, patience: int) -> EarlyStopping:
    """Stop when a metric has not got better for some epochs."""
    # Not strict: a budget of steps may end within the first epoch, before there is a metric.
    return EarlyStopping(monitor=monitor, mode=mode, patience=patience, check_finite=False, strict=False)
