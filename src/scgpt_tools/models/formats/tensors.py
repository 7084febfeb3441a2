"""The tensors of a file of weights, out of whatever a training loop wrapped them in; nothing in a file is ever run."""

from __future__ import annotations

import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""How the name of a file of weights may end."""

# What training loops keep a state dict under, and what data-parallel, wrapping and compiled modules put before its names.
_WRAPPERS = ("model_state_dict", "state_dict", "model")
_PREFIXES = re.compile(r"(?:module\.|model\.|_orig_mod\.)+")
# Of the things beside a state dict, those that hold the state of a training.
_TRAINING = re.compile(r"optimi[sz]er|scheduler|callbacks|loops|scaler|rng")


_DEEPEST = 4
# A few references in a file can stand for more values than there is memory.
_MOST_VALUES, _MOST_DEPTH = 100_000, 30


class Contents(NamedTuple):
    """What a file of weights holds."""

    weights: dict[str, Tensor]
    """Tensors by bare names, mapped into memory where the file can be."""
    beside: Mapping[str, Any]
    """Plain values that a training loop saved beside them, such as its settings and the names of classes."""


def read_contents(path: Path) -> Contents:
    """Map the tensors of a file into memory, by their names without what wraps them."""
    if path.suffix == ".safetensors":
        try:
            return Contents(bare_names(load_file(path)), {})
        except (SafetensorError, ValueError, RuntimeError):
            raise ValueError(
                f"Expected {str(path)!r} to be a whole safetensors file, found a damaged one. Copy it again."
            ) from None
    loaded, beside = _unwrapped(_load(path))
    if isinstance(loaded, _Unread):
        raise ValueError(_unsafe(path))
    if not isinstance(loaded, dict):
        raise ValueError(f"Expected {str(path)!r} to map names to tensors, found {type(loaded).__name__}.")
    for key, tensor in loaded.items():
        if isinstance(tensor, _Unread):
            raise ValueError(_unsafe(path))
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"Expected {str(path)!r} to map names to tensors, found {type(tensor).__name__} at {str(key)[:80]!r}."
            )
    return Contents(bare_names(loaded), _plain(beside))


def bare_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.``, ``model.`` and ``_orig_mod.`` off the front of all names that carry them."""
    bare: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = bare_name(key)
        if name in bare:
            raise ValueError(
                f"Expected one tensor of each name, found {name[:120]!r} more than once, with and without 'module.', "
                "'model.' or '_orig_mod.' before it."
            )
        bare[name] = tensor
    return bare


def bare_name(key: str) -> str:
    """Name of a tensor without what modules around the network put before it."""
    return key[found.end() :] if (found := _PREFIXES.match(key)) else key


class _Unread:
    """Stands for an object of a class of somebody else: it keeps what the file says of it, and runs nothing."""

    def __new__(cls, *arguments: Any, **_: Any) -> _Unread:
        made = super().__new__(cls)
        made.state = list(arguments)
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _load(path: Path) -> Any:
    """Content of a ``torch.save`` file."""
    archive = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError:
        if not archive:
            # Torch's own message tells how to read such a file nevertheless.
            raise ValueError(_unsafe(path)) from None
    except Exception:  # noqa: BLE001  # a damaged file meets errors of every kind
        raise ValueError(_damaged(path)) from None
    # Training loops save objects of their own beside the tensors; each is read as a thing without behaviour.
    try:
        foreign = get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(type(name.rpartition(".")[2], (_Unread,), {}), name) for name in foreign]
        with safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001  # as above
        raise ValueError(_unsafe(path)) from None


def _unwrapped(loaded: Any) -> tuple[Any, dict[str, Any]]:
    """The state dict in what was loaded, and what lies beside it."""
    beside: dict[str, Any] = {}
    for _ in range(_DEEPEST):
        if not isinstance(loaded, dict):
            break
        wrapper = next((key for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if wrapper is None:
            break
        beside |= {key: value for key, value in loaded.items() if key != wrapper and isinstance(key, str)}
        loaded = loaded[wrapper]
    return loaded, beside


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, texts, lists and mappings among what lies beside a state dict, as far as they are few."""
    left = _MOST_VALUES

    def plain(value: Any, depth: int = 0) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MOST_DEPTH:
            return None
        if isinstance(value, _Unread):
            return plain(value.state, depth + 1)
        if isinstance(value, dict):
            return {key: plain(entry, depth + 1) for key, entry in value.items() if isinstance(key, str | int)}
        if isinstance(value, list | tuple):
            return [plain(entry, depth + 1) for entry in value]
        return value if isinstance(value, str | int | float) else None

    return {key: plain(value) for key, value in values.items() if not _TRAINING.search(key)}


def _unsafe(path: Path) -> str:
    return (
        f"Expected {str(path)!r} to be a state dict saved by torch.save, found objects that cannot be read as tensors "
        "only. Such a file can run any code when it is read, or it is damaged; nothing in it was run. Ask for the weights "
        "as safetensors, or get the file again from where it came from."
    )


def _damaged(path: Path) -> str:
    return (
        f"Expected {str(path)!r} to be a state dict saved by torch.save, found a damaged file that cannot be read as "
        "tensors only. Get it again from where it came from."
    )


def some_names(names: Iterable[str], *, shown: int = 6) -> str:
    """The first of some names, for messages."""
    names = list(names)
    return ", ".join(name[:120] for name in names[:shown]) + (", ..." if len(names) > shown else "")
