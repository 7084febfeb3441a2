"""Argument checks with one grammar: *Expected `x` to be ..., found ...*.

Each check returns the checked value or raises; none changes anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scgpt_tools._lookup import absent

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

Value = TypeVar("Value")

# Longest value that a message repeats.
_SHOWN = 80


def check_choice(name: str, value: Value, choices: Collection[Value]) -> Value:
    """One of a few allowed values."""
    if not isinstance(value, Hashable) or value not in choices:
        listing = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected `{name}` to be one of {listing}, found {_shown(value)}.")
    return value


def check_type(name: str, value: Value, kinds: type | tuple[type, ...]) -> Value:
    """An instance of one of the given types."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"Expected `{name}` to be {names}, found {type(value).__name__}.")
    return value


def check_integer(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """A whole number not below ``least`` nor above ``most``; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected `{name}` to be a whole number, found {_shown(value)}.")
    if value < least:
        raise ValueError(f"Expected `{name}` to be at least {least}, found {value}.")
    if most is not None and int(value) > most:
        raise ValueError(f"Expected `{name}` to be at most {most}, found {value}.")
    return int(value)


def check_fraction(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """A number between 0 and 1; ``zero`` and ``one`` say whether the ends count."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected `{name}` to be a number, found {_shown(value)}.")
    number = _as_float(value)
    inside = 0 < number < 1 or (zero and number == 0) or (one and number == 1)
    if not inside:
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise ValueError(f"Expected `{name}` to lie in {interval}, found {value}.")
    return number


def check_key(container: Mapping[Any, Any], key: str, where: str) -> str:
    """A key of an AnnData slot; ``where`` is the slot as the user writes it, for example ``"layers"``."""
    # Since anndata 0.13 `layers` lists X under the key None, which is not a name that a user can have meant.
    if not isinstance(key, Hashable) or key is None or key not in container:
        raise KeyError(absent(key, container.keys(), f"key in `{where}`:"))
    # A frame can have several columns of one name, and gives a frame of them then.
    if (twins := list(getattr(container, "columns", ())).count(key)) > 1:
        raise ValueError(f"Expected one column {key!r} in `{where}`, found {twins}. Give each a name of its own.")
    return key


def check_flag(name: str, value: Any) -> bool:
    """True or False and nothing that Python would take for one, such as the text ``"False"``."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"Expected `{name}` to be True or False, found {_shown(value)}.")
    return bool(value)


def check_number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> float:
    """A finite number, not below ``least`` and larger than ``above``; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected `{name}` to be a number, found {_shown(value)}.")
    number = _as_float(value)
    if not np.isfinite(number):
        raise ValueError(f"Expected `{name}` to be a finite number, found {value}.")
    if (least is not None and number < least) or (above is not None and number <= above):
        bound = f"at least {least:g}" if least is not None else f"larger than {above:g}"
        raise ValueError(f"Expected `{name}` to be {bound}, found {value}.")
    return number


def _as_float(value: Real) -> float:
    """A number in double precision; whole numbers beyond it are infinite."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def check_text(name: str, value: Any) -> str:
    """One text that is not blank."""
    if not isinstance(value, str):
        raise TypeError(f"Expected `{name}` to be a text, found {_kind_and_value(value)}.")
    if not value.strip():
        raise ValueError(f"Expected `{name}` to be a text that is not blank, found {value!r}.")
    return value


def check_texts(name: str, value: Any, *, least: int = 1) -> list[str]:
    """Several texts; one text alone, which Python would take for its letters, is refused."""
    if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise TypeError(f"Expected `{name}` to be a list of texts, found {_shown(value)}.")
    texts = [check_text(f"{name}[{place}]", entry) for place, entry in enumerate(value)]
    if len(texts) < least:
        raise ValueError(f"Expected `{name}` to name at least {least}, found {len(texts)}.")
    return texts


def check_key_name(name: str, value: Any) -> str:
    """A name under which a result can be kept in AnnData and in every file that it is written to.

    A slash would nest the entry in h5ad and cannot be written to zarr at all; ``.`` and ``..`` are folders there.
    """
    text = check_text(name, value)
    if "/" in text or "\0" in text or text.strip(".") == "":
        raise ValueError(
            f"Expected `{name}` to be a name that files can keep, without '/' and not of dots alone, found {value!r}."
        )
    return text


def check_finite(what: str, values: Any, advice: str) -> None:
    """Refuse results that hold NaN or infinite numbers.

    ``what``: what the values are, as the subject of a sentence: ``"the embedding of every cell"``.
    """
    good = np.isfinite(np.asarray(values))
    if good.all():
        return
    bad = ~good.reshape(len(good), -1).all(axis=1) if good.ndim else ~good.reshape(1)
    raise ValueError(
        f"Expected {what} to be finite, found NaN or infinite numbers in {int(bad.sum()):,} of {len(bad):,} rows "
        f"(first: row {int(bad.argmax())}). {advice}"
    )


def check_hashable(what: str, values: Any) -> None:
    """Refuse labels that cannot be compared, such as lists."""
    if values.dtype != object:
        return
    for place, value in enumerate(values):
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"Expected one label of each cell in {what}, found {_shown(value)} in row {place}. Put a text in its place."
            ) from None


def as_numbers(name: str, values: Any) -> NDArray[np.float64]:
    """Numbers as an array of float64, which may have NaN among them."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `{name}` to be an array of numbers, found {type(values).__name__}.") from error


def check_numbers(name: str, values: Any, *, ndim: int | None = None) -> NDArray[np.float64]:
    """Finite numbers as an array of float64, with ``ndim`` dimensions.

    ``ndim``: number of dimensions; ``None`` takes any.
    """
    array = as_numbers(name, values)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"Expected `{name}` to be an array of {ndim} dimensions, found one of shape {array.shape}.")
    check_finite(f"`{name}`", array, "Leave these out first.")
    return array


def check_frame(name: str, value: Any, columns: Collection[str]) -> None:
    """A data frame with some columns."""
    if not hasattr(value, "columns"):
        raise TypeError(f"Expected `{name}` to be a data frame, found {type(value).__name__}.")
    for column in columns:
        if column not in value.columns:
            raise KeyError(absent(column, value.columns, f"column of `{name}` named"))


def check_fits(name: str, values: Any, shape: tuple[int, ...]) -> Any:
    """An array that has a shape, or can be repeated to have it."""
    try:
        return np.broadcast_to(values, shape)
    except ValueError as error:
        raise ValueError(f"Expected `{name}` of shape {shape} or {shape[1:]}, found {np.shape(values)}.") from error


def as_generator(rng: RngLike) -> np.random.Generator:
    """A generator from a whole number, a generator (taken as it is) or ``None``, which is fresh entropy."""
    if isinstance(rng, bool) or not (rng is None or isinstance(rng, Integral | np.random.Generator)):
        raise TypeError(
            f"Expected `rng` to be a whole number, a numpy.random.Generator or None, found {type(rng).__name__}."
        )
    if isinstance(rng, Integral) and rng < 0:
        raise ValueError(f"Expected `rng` to be at least 0, found {rng}.")
    return np.random.default_rng(rng)


def as_seed(rng: RngLike, *, bits: int = 63) -> int:
    """The whole number that draws are hashed with, and that results record.

    A number is taken as it is, cut to ``bits``; a generator gives one draw, and ``None`` fresh entropy.
    """
    generator = as_generator(rng)
    number = int(rng) if isinstance(rng, Integral) else int(generator.integers(0, 2**63 - 1, endpoint=True))
    return number & (2**bits - 1)


def _kind_and_value(value: object) -> str:
    """Kind of a value, and the value where that is short."""
    kind, shown = type(value).__name__, _shown(value)
    return kind if kind == shown else f"{kind}: {shown}"


def _shown(value: object) -> str:
    """What a value is, in a few words: itself, or its kind where it is long, such as a table or a network."""
    text = repr(value)
    return text if len(text) <= _SHOWN and "\n" not in text else f"{type(value).__name__}"
