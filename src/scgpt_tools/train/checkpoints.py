"""States of a run on disk: written whole or not at all, and read with a word on what is wrong."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from scgpt_tools._files import remove_left_behind, replace_file
from scgpt_tools._outputs import hold, let_go
from scgpt_tools.data.epochs import this_process
from scgpt_tools.train.diagnosis import not_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch.plugins.io import CheckpointIO


Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]
"""What a state has to hold, by name."""

_WEIGHTS: Fields = {"state_dict": dict}


def read_state(path: Path, fields: Fields = _WEIGHTS) -> dict[str, Any]:
    """Read a state that a run has written, without running anything that the file may hold.

    Returns its content; tensors on the CPU.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected the checkpoint {path}, found none. Begin in another folder.")
    advice = "Begin in another folder, or put a copy of the file back."
    try:
        written = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        if isinstance(error, PermissionError):
            raise
        objects = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if objects is not None and zipfile.is_zipfile(path):
            raise ValueError(
                f"Expected {path} to hold tensors and plain values only, found {objects[1]}, which is not loaded because a "
                "file could run code that way. If it is the state of a callback, let that keep numbers, text and tensors "
                "only, and begin anew."
            ) from None
        # torch advises to read what may be hostile without a check, which nobody should.
        raise ValueError(
            f"Expected {path} to hold the state of a run, found a damaged file or something else. {advice}"
        ) from None
    held = written if isinstance(written, dict) else {}
    wrong = [name for name, kind in fields.items() if name not in held or not isinstance(held[name], kind)]
    wrong += [] if wrong else [name for name, tensor in written["state_dict"].items() if not torch.is_tensor(tensor)]
    if wrong:
        raise ValueError(
            f"Expected {path} to hold the state of a run, found something else, without {wrong[0]!r}. {advice}"
        )
    if bad := not_finite(written["state_dict"].items()):
        raise ValueError(f"Expected finite weights in {path}, found NaN or infinity in {len(bad)} tensors. {advice}")
    return dict(written)


@contextmanager
def run_folder(folder: Path) -> Iterator[Path]:
    """Keep other runs from a folder; the processes of one run share it."""
    # It is optional.
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) or this_process()[0]:
        yield folder
        return
    lock = folder / ".lock"
    descriptor = hold(lock, f"'{folder}'")
    try:
        remove_left_behind(folder)
        yield folder
    finally:
        lock.unlink(missing_ok=True)
        let_go(descriptor)


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
            try:
                replace_file(place, lambda aside: torch.save(checkpoint, aside))
            except RuntimeError as error:
                # What torch's writer says when the disk is full.
                raise OSError(f"Expected to write the state of the run to {place}, found no way: {error}") from error

    return WholeFiles()
