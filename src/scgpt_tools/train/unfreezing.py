"""Unfreezing during a run, as Lightning calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

from scgpt_tools.train.freezing import hold, release

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

    from scgpt_tools.models.cell_model import CellModel


class GradualUnfreezing(Callback):
    """Release one more part of the model every few epochs, from the heads down to the embedder.

    All parameters are in the optimiser from the start; one without gradient is not updated.  What is trained is a
    function of the epoch, so a run that goes on after a checkpoint does the same.

    Parameters
    ----------
    model
        The model that is trained.
    every
        Epochs between two parts.
    """

    def __init__(self, model: CellModel, every: int) -> None:
        super().__init__()
        self.model, self.every = model, every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Release the parts of an epoch that a run goes on with in its middle, which does not start again."""
        release(self.model, trainer.current_epoch // self.every)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Release the parts of this epoch."""
        release(self.model, trainer.current_epoch // self.every)


class LateUnfreezing(Callback):
    """Train what the task brings alone for some epochs, and then everything.

    As for :class:`GradualUnfreezing`, all parameters are in the optimiser from the start.

    Parameters
    ----------
    model
        The model that is trained.
    after
        Epochs before everything is trained.
    """

    def __init__(self, model: CellModel, after: int) -> None:
        super().__init__()
        self.model, self.after = model, after

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold or release by the epoch that a run goes on with."""
        hold(self.model, "backbone" if trainer.current_epoch < self.after else "nothing")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold or release by this epoch."""
        hold(self.model, "backbone" if trainer.current_epoch < self.after else "nothing")
