"""Translate tensor names between a foreign dialect and ours, both ways, from one table.

Every foreign key is renamed, split, dropped by name with a reason, or an error.  Nothing is skipped in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from scgpt_tools.models.formats.tensors import bare_names, some_names
from scgpt_tools.models.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A foreign name and what it is called here.

    ``{i}`` stands for a number.  A name that ends with a dot stands for all names that begin so.
    """

    theirs: str
    ours: str | tuple[str, ...] | None
    """Our name; several names where their tensor holds ours stacked along the first axis; ``None`` to drop it."""
    reason: str = ""
    """Why a tensor is dropped."""

    def read(self, key: str) -> tuple[str, ...] | None:
        """Our names for a foreign key, or ``None`` if the rule is not about it."""
        match = self._theirs_pattern.fullmatch(key)
        if match is None:
            return None
        names = () if self.ours is None else (self.ours,) if isinstance(self.ours, str) else self.ours
        return tuple(_fill(name, match) for name in names)

    def write(self, key: str) -> tuple[str, int] | None:
        """Foreign name for one of our keys and its place in the stack, or ``None``."""
        for place, pattern in enumerate(self._our_patterns):
            if (match := pattern.fullmatch(key)) is not None:
                return _fill(self.theirs, match), place
        return None

    @property
    def parts(self) -> int:
        """How many of our tensors their tensor holds."""
        return len(self._our_patterns)

    @cached_property
    def _theirs_pattern(self) -> re.Pattern[str]:
        return _pattern(self.theirs)

    @cached_property
    def _our_patterns(self) -> tuple[re.Pattern[str], ...]:
        names = () if self.ours is None else (self.ours,) if isinstance(self.ours, str) else self.ours
        return tuple(_pattern(name) for name in names)


def read_names(
    weights: Mapping[str, Tensor], rules: Iterable[Rule], *, leave_unknown: bool = False
) -> tuple[dict[str, Tensor], Transfer]:
    """Translate a foreign state dict to our names.

    Parameters
    ----------
    weights
        Tensors by foreign name, with or without what :func:`~.tensors.bare_names` takes off.
    rules
        The dialect, first match wins.
    leave_unknown
        Pass names that are not in the dialect through as they are.

    Returns
    -------
    Tensors by our names (views of the given ones), and what became of each.

    Raises
    ------
    ValueError
        If a name is not in the dialect, unless ``leave_unknown``, or two names stand for the same tensor.
    """
    rules = tuple(rules)
    ours: dict[str, Tensor] = {}
    used: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, str] = {}
    unknown = []
    weights = bare_names(weights)
    for key, tensor in weights.items():
        for rule in rules:
            names = rule.read(key)
            if names is not None:
                break
        else:
            unknown.append(key)
            continue
        if not names:
            dropped[key] = rule.reason
            continue
        if taken := [name for name in names if name in ours]:
            rivals = [other for other, claimed in used.items() if taken[0] in claimed]
            raise ValueError(f"Expected one spelling of each tensor, found {key!r} beside {rivals[0]!r}.")
        used[key] = names
        ours.update(zip(names, _split(key, tensor, len(names)), strict=True))
    if leave_unknown:
        ours.update((key, weights[key]) for key in unknown)
    elif unknown:
        raise ValueError(
            f"Expected tensors of a known model, found {len(unknown)} that none of its parts takes: "
            f"{some_names(unknown)}. If they belong to a variant of the model, its weights cannot be used as they are."
        )
    return ours, Transfer(used=used, dropped=dropped)


def write_names(weights: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Translate our state dict to foreign names; the inverse of :func:`read_names`.

    Raises
    ------
    ValueError
        If the dialect has no name for one of our tensors.
    """
    rules = tuple(rules)
    theirs: dict[str, list[Tensor | None]] = {}
    unknown = []
    for key, tensor in weights.items():
        for rule in rules:
            written = rule.write(key)
            if written is not None:
                break
        else:
            unknown.append(key)
            continue
        name, place = written
        theirs.setdefault(name, [None] * rule.parts)[place] = tensor
    if unknown:
        raise ValueError(f"This format has no name for {len(unknown)} tensors: {some_names(unknown)}.")
    return {name: _stack(name, parts) for name, parts in theirs.items()}


def _split(name: str, tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    if parts == 1:
        return (tensor,)
    if tensor.dim() == 0 or len(tensor) % parts:
        raise ValueError(f"Expected {name!r} to stack {parts} tensors, found the shape {tuple(tensor.shape)}.")
    return tensor.chunk(parts)


def _stack(name: str, parts: list[Tensor | None]) -> Tensor:
    present = [part for part in parts if part is not None]
    if len(present) != len(parts):
        raise ValueError(f"Expected {len(parts)} tensors for {name!r}, found {len(present)}.")
    return present[0] if len(present) == 1 else torch.cat(present)


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>[0-9]{1,6})")
    return re.compile(pattern + r"(?P<rest>.*)" if template.endswith(".") else pattern)


def _fill(template: str, match: re.Match[str]) -> str:
    groups = match.groupdict()
    return template.replace("{i}", groups.get("i") or "") + (groups.get("rest") or "")
