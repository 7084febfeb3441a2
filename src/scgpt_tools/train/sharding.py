"""Training with weights cut into pieces, one for each process (FSDP).

What is trained is a copy: sharding changes a model for good, and the caller's is wanted whole.  :cite:p:`Zhao2023`
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy

from scgpt_tools.train.module import CellModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning import Trainer

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.train.optim import OptimizerConfig


def sharding() -> ModelParallelStrategy:
    """Lightning's strategy, with checkpoints that are one file of whole tensors, as those of every other run."""
    return ModelParallelStrategy(save_distributed_checkpoint=False)


class ShardedCellModule(CellModule):
    """Each process keeps its piece of every tensor, and of its optimiser state, and fetches a layer when it runs.

    Parameters
    ----------
    model
        The network to train a copy of; it goes to the CPU.
    objectives, optimizer, seed
        As in :class:`CellModule`.
    """

    sharded = True

    def __init__(
        self, model: CellModel, objectives: Sequence[Objective], optimizer: OptimizerConfig, *, seed: int = 0
    ) -> None:
        # On the CPU, for it may not fit a device before it is cut.
        super().__init__(deepcopy(model.to("cpu")), objectives, optimizer, seed=seed)
        self._cut = False
        # Parameters that no loss has reached have no state in the optimiser, which strict loading takes for an error.
        # That the weights are those of this model is known before.
        self.strict_loading = False

    def configure_model(self) -> None:
        """Cut the weights: a layer of the encoder at a time, and the rest together."""
        # Lightning calls this more than once.
        if self._cut:
            return
        # Not every build of torch has them.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # nor this

        mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
        for stage in self.model.encoder.stages:
            fully_shard(stage, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self._cut = True

    def bad_gradients(self) -> list[str]:
        """Parameters whose gradients are not finite in the pieces of this process, or a word on those of others."""
        found = super().bad_gradients()
        anywhere = self.trainer.strategy.reduce_boolean_decision(bool(found), all=False)
        return found or (["a piece on another process"] if anywhere else [])

    def bad_weights(self, checkpoint: dict[str, Any]) -> list[str]:
        """Tensors that are not finite; only the first process has the whole ones, and all have to know."""
        found = super().bad_weights(checkpoint)
        anywhere = self.trainer.strategy.reduce_boolean_decision(bool(found), all=False)
        return found or (["a tensor of the first process"] if anywhere else [])


def whole_weights(trainer: Trainer) -> dict[str, Any] | None:
    """Put the pieces together; every process must call it.

    Returns state of the module in the first process, ``None`` in the others.
    """
    state: dict[str, Any] = trainer.strategy.lightning_module_state_dict()
    return state if trainer.is_global_zero else None
