"""How a model is built or run for a while: without memory, in eval mode."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class _Mode(NamedTuple):
    """What a part of a model is put back to when the last of its users is done."""

    users: int
    training: bool


_MODES: WeakKeyDictionary[nn.Module, _Mode] = WeakKeyDictionary()
_LOCK = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its parts back in its own mode at the end, errors included.

    Several threads may share a model, or parts of one: modes come back when the last of them is done.
    """
    with _LOCK:
        parts = list(model.modules())
        for part in parts:
            before = _MODES.get(part, _Mode(0, part.training))
            _MODES[part] = _Mode(before.users + 1, before.training)
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                users, training = _MODES.pop(part)
                if users > 1:
                    _MODES[part] = _Mode(users - 1, training)
                else:
                    part.training = training


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules whose parameters have a shape and no values, to be given those of a file."""
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Leave out the draw of first values.

    There is nothing to draw into, and torch would import its compiler to do so, which takes longer than all the rest of
    loading a checkpoint.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Functions of the first kind call one of the second, unseen from here.
        if getattr(func, "__module__", None) == init.__name__ or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
