"""Argument checks with one grammar: *Expected `x` to be ..., found ...*.

Each check returns the checked value or raises; none changes anything.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scgpt_tools._lookup import absent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from scgpt_tools._types import RngLike

Value = TypeVar("Value")


def check_choice(name: str, value: Value, choices: Collection[Value]) -> Value:
    """One of a few allowed values."""
    if value not in choices:
        listing = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected `{name}` to be one of {listing}, found {value!r}.")
    return value


def check_type(name: str, value: Value, kinds: type | tuple[type, ...]) -> Value:
    """An instance of one of the given types."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"Expected `{name}` to be {names}, found {type(value).__name__}.")
    return value


def check_integer(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number not below ``least``; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected `{name}` to be a whole number, found {value!r}.")
    if value < least:
        raise ValueError(f"Expected `{name}` to be at least {least}, found {value}.")
    return int(value)


def check_fraction(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """A number between 0 and 1; ``zero`` and ``one`` say whether the ends count."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected `{name}` to be a number, found {value!r}.")
    number = float(value)
    inside = 0 < number < 1 or (zero and number == 0) or (one and number == 1)
    if not inside:
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise ValueError(f"Expected `{name}` to lie in {interval}, found {value}.")
    return number


def check_key(container: Mapping[Any, Any], key: str, where: str) -> str:
    """A key of an AnnData slot; ``where`` is the slot as the user writes it, for example ``"layers"``."""
    # Since anndata 0.13 `layers` lists X under the key None, which is not a name that a user can have meant.
    if key is None or key not in container:
        raise KeyError(absent(key, container.keys(), f"key in `{where}`:"))
    return key


def as_generator(rng: RngLike) -> np.random.Generator:
    """A generator from a seed, a generator (taken as it is) or ``None``."""
    if isinstance(rng, bool) or not (rng is None or isinstance(rng, Integral | np.random.Generator)):
        raise TypeError(f"Expected `rng` to be a seed, a numpy.random.Generator or None, found {type(rng).__name__}.")
    return np.random.default_rng(rng)
