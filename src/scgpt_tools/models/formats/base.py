"""What reading a checkpoint folder gives, and helpers that all formats share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools.models.formats.rename import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.vocabulary import Vocabulary


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from files: everything that :class:`~scgpt_tools.models.CellModel` is made of."""

    config: ModelConfig
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    """Tensors by our names, often mapped from the file and not yet in memory."""
    report: LoadReport


@dataclass(frozen=True)
class Format:
    """A dialect of checkpoint folders."""

    recognise: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    write: Callable[..., None]
    files: str
    """The files that make such a folder, for messages."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected {path} to hold JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected {path} to hold one JSON object, found a {type(content).__name__}.")
    return content


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a ``torch.save`` file into memory; nothing but tensors is unpickled.

    Raises
    ------
    ValueError
        If the file holds anything but a mapping of names to tensors, or is no such file at all.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        raise ValueError(
            f"Expected {path} to be a state dict saved by torch.save, found something that cannot be read as tensors "
            f"only: {error}"
        ) from error
    for key in ("model_state_dict", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
        raise ValueError(f"Expected {path} to map names to tensors, found {type(loaded).__name__}.")
    return loaded


def as_float(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widen half-precision tensors to float32; leave the others as they are."""
    return {
        key: tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float32 else tensor
        for key, tensor in weights.items()
    }


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
