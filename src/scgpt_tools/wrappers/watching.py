"""What watches a training run of a wrapper: lines of the log, and folders that it can be loaded from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)


class Folders(Callback):
    """Saves the model after each epoch and after some minibatches.

    Parameters
    ----------
    save
        Writes the model to a folder.
    folder
        Where the folders go; ``None`` saves nothing.
    log_interval
        Minibatches between two lines of the log.
    save_interval
        Minibatches between two checkpoints within an epoch; ``None`` for none.
    """

    def __init__(
        self, save: Callable[[Path], Any], folder: Path | None, *, log_interval: int, save_interval: int | None
    ) -> None:
        super().__init__()
        self._save, self._folder = save, folder
        self._log_interval, self._save_interval = log_interval, save_interval

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log and save within an epoch."""
        done = batch_idx + 1
        if done % self._log_interval == 0:
            logger.info("epoch %d, minibatch %d: loss %.4f", trainer.current_epoch + 1, done, float(outputs["loss"]))
        if self._save_interval is not None and done % self._save_interval == 0:
            self._write(trainer, f"checkpoint_epoch{trainer.current_epoch + 1}_batch{done}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        self._write(trainer, f"epoch_{trainer.current_epoch + 1}")

    def _write(self, trainer: Trainer, name: str) -> None:
        if self._folder is not None and trainer.is_global_zero:
            self._save(self._folder / name)
