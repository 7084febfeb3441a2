"""The spellings of scGPT's tensor names, of which torch's is the one that the classes here speak."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import KeysView
from typing import TYPE_CHECKING, Any

from scgpt_tools.models.formats.tensors import bare_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

_STACKED = re.compile(r"\.(?:_impl\.)?Wqkv\.(weight|bias)$")


def torch_spelling(key: str) -> str:
    """Translate one name in any spelling, with or without what modules around the network put before it."""
    return _STACKED.sub(r".in_proj_\1", bare_name(key)).replace("self_attn._impl.", "self_attn.")


def in_torch_spelling(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of a state dict.

    Raises
    ------
    ValueError
        If one tensor is there under two names.
    """
    translated: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for key, tensor in weights.items():
        name = torch_spelling(key)
        if name in translated:
            raise ValueError(f"Expected one spelling of each tensor, found {key!r} beside {origins[name]!r}.")
        translated[name], origins[name] = tensor, key
    return translated


class StateDict(OrderedDict[str, Any]):
    """A state dict that knows its tensors by every spelling.

    Scripts choose by ``key in model.state_dict()`` what to load and put it there; with one spelling only they would
    leave attention as it was without a word.  Saved and copied, it is an ordinary one.
    """

    _metadata: Any

    def __contains__(self, key: object) -> bool:
        return super().__contains__(torch_spelling(key) if isinstance(key, str) else key)

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(torch_spelling(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(torch_spelling(key), value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(torch_spelling(key))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a tensor, or the default."""
        return self[key] if key in self else default

    def pop(self, key: str, *default: Any) -> Any:
        """Take a tensor out."""
        return super().pop(torch_spelling(key), *default)

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Names, in torch's spelling, that know the others."""
        return KeysView(self)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"_metadata": self._metadata} if hasattr(self, "_metadata") else None
        return OrderedDict, (), state, None, iter(self.items())

    @classmethod
    def of(cls, state: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> StateDict:
        """Make one of torch's."""
        made = cls(state)
        if hasattr(state, "_metadata"):
            made._metadata = state._metadata
        return made
