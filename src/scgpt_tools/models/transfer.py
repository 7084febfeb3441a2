"""Which weights went from a file, or from one model, to another model, and which did not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What became of every tensor of a source and of the model that was made of it."""

    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names in the source, with the names that their numbers have in the model."""
    reshaped: tuple[str, ...] = ()
    """Tensors of the model that are larger than those of the source, and hold all numbers of these."""
    missing: tuple[str, ...] = ()
    """Tensors of the model that start from scratch."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Names in the source that were left behind, with the reason; empty where the model has no such part."""

    def __str__(self) -> str:
        parts = {
            "Weights taken over": dict.fromkeys(self.used, ""),
            "taken over in part": dict.fromkeys(self.reshaped, ""),
            "starting from scratch": dict.fromkeys(self.missing, ""),
            "left behind": self.dropped,
        }
        said = (f"{what}: {by_part(names)}" for what, names in parts.items() if names or what != "taken over in part")
        return "; ".join(said) + "."

    def grown(self, names: Iterable[str]) -> Transfer:
        """The same, after tensors that started from scratch got the numbers of smaller ones of the source."""
        names = tuple(names)
        return replace(
            self,
            reshaped=(*self.reshaped, *names),
            missing=tuple(key for key in self.missing if key not in names),
            dropped={key: reason for key, reason in self.dropped.items() if key not in names},
        )


def copy_weights(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], *, rows: tuple[int, int], share: float = 1.0
) -> Transfer:
    """Copy the tensors of one network to those of another, where name and shape agree.

    ``source``, ``target``: tensors by name; those of the target are changed; ``rows``: tokens of the vocabularies of
    both: tables with so many rows are copied as far as they go; ``share``: of the source in a weighted mean of both.
    """
    used, reshaped = {}, []
    with torch.no_grad():
        for key, known in source.items():
            own = target.get(key)
            if own is None:
                continue
            if known.shape == own.shape:
                _mix(own, known, share)
                used[key] = (key,)
            elif known.shape[:1] + own.shape[:1] == rows and known.shape[1:] == own.shape[1:]:
                _mix(own[: min(rows)], known[: min(rows)], share)
                reshaped.append(key)
    return Transfer(
        used=used,
        reshaped=tuple(reshaped),
        missing=tuple(key for key in target if key not in used and key not in reshaped),
        dropped=left_behind((key for key in source if key not in used and key not in reshaped), source, target),
    )


def _mix(own: Tensor, known: Tensor, share: float) -> None:
    """Move numbers towards others, all the way with a share of 1; whole ones, such as counts of steps, stay unless all are copied."""
    if share == 1:
        own.copy_(known)
    elif own.is_floating_point():
        own.lerp_(known.to(own), share)


def left_behind(names: Iterable[str], source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that found no place in a network, with the reason where it is their shape."""
    return {
        name: f"{tuple(source[name].shape)} where the model has {tuple(target[name].shape)}" if name in target else ""
        for name in names
    }


def by_part(reasons: Mapping[str, str]) -> str:
    """Names of parts, with how many tensors each has and why they were left behind."""
    parts = Counter(
        (".".join(name.split(".")[: 1 if name.startswith("encoder.") else 2]), reason)
        for name, reason in reasons.items()
    )
    shown = (f"{part} ({count} tensors{reason and f': {reason}'})" for (part, reason), count in parts.items())
    return ", ".join(shown) or "nothing"
