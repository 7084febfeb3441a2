"""States of a run on disk: written whole or not at all, and read with a word on what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._files import replace_file

if TYPE_CHECKING:
    from lightning.pytorch.plugins.io import CheckpointIO


def read_state(path: Path) -> dict[str, Any]:
    """Read a state that a run has written; tensors stay in the file until they are needed.

    Parameters
    ----------
    path
        ``last.ckpt`` or ``best.ckpt``.

    Returns
    -------
    The state.

    Raises
    ------
    ValueError
        If the file is damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        # torch advises to read what may be hostile without a check, which nobody should.
        raise ValueError(
            f"Expected {path} to hold the state of a run, found a damaged file or something else. Delete it to begin anew."
        ) from None
    if not isinstance(state, dict) or "state_dict" not in state:
        raise ValueError(f"Expected {path} to hold the state of a run, found something else. Delete it to begin anew.")
    return state


def whole_files() -> CheckpointIO:
    """How Lightning is to write states: beside their place, flushed, and renamed in one step.

    Its own way goes through the folder for temporary files, which may lie on another disk; the last step is a copy then,
    and who is killed within it has no state left.
    """
    # It is optional.
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    class WholeFiles(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
            """Write a state."""
            place = Path(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, lambda aside: torch.save(checkpoint, aside))

    return WholeFiles()
