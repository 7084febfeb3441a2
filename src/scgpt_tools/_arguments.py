"""Arguments of public functions, checked in one place before anything else happens.

The signature says what an argument may be: its annotation gives the kind, its name the range, and ``None`` is allowed
where the annotation names it.  What is not in the tables here (tables of cells, models, choices) is checked where it is
read.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast, get_args

from scgpt_tools import _types
from scgpt_tools._files import as_path
from scgpt_tools._validate import (
    as_generator,
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
    check_key_name,
    check_number,
    check_text,
    check_texts,
    check_type,
)
from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from collections.abc import Callable

    Check: TypeAlias = Callable[[str, Any], object]

Given = ParamSpec("Given")
Result = TypeVar("Result")


def renamed(**names: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Take keywords by their former names, with a warning: ``@renamed(label="label_key")``."""

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        places = list(inspect.signature(function).parameters)

        @wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            given = cast("dict[str, Any]", kwargs)
            for former in names.keys() & given.keys():
                name = names[former]
                if name in given or name in places[: len(args)]:
                    raise TypeError(f"Expected `{name}` alone, found its former name `{former}` beside it.")
                warn_user(f"Expected `{name}`, found its former name `{former}`. Write `{name}=`.", FutureWarning)
                given[name] = given.pop(former)
            return function(*args, **kwargs)

        return call

    return decorate


def check_arguments(function: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Refuse arguments of a wrong kind or out of range.

    ``function``: the function that was called, whose annotations are texts (``from __future__ import annotations``);
    ``given``: its arguments by name, or some of them: ``locals()`` in its first line.
    """
    for name, (check, optional) in _checks(function).items():
        if name in given and (given[name] is not None or not optional):
            check(name, given[name])


@cache
def _checks(function: Callable[..., object]) -> dict[str, tuple[Check, bool]]:
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        kind = " | ".join(kind for kind in kinds if kind != "None")
        check = (RANGES.get(name) if kind in _PLAIN else None) or KINDS.get(kind)
        if check is not None:
            found[name] = (check, "None" in kinds)
    return found


def check_layers(name: str, value: Any) -> None:
    """A key of ``layers``, or one for each modality."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        check_text(name, value)
        return
    for modality, key in value.items():
        check_text(f"a modality in {name}", modality)
        if key is not None:
            check_text(f"{name}[{modality!r}]", key)


def _text_or_texts(name: str, value: Any) -> None:
    check_text(name, value) if isinstance(value, str) else check_texts(name, value)


def _size(name: str, value: Any) -> None:
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"Expected `{name}` to be a width and a height, found {value!r}.")
    for number in value:
        check_number(name, number, above=0)


_COUNT: Check = partial(check_integer, least=0)
_POSITIVE: Check = partial(check_number, above=0)
_PLAIN = ("int", "float", "str", "Sequence[str]")


def _table(name: str, value: Any) -> None:
    # This module may not know of AnnData; these it has and a MuData has not.
    if not all(hasattr(value, slot) for slot in ("obs", "var", "uns", "obsm", "layers")):
        raise TypeError(f"Expected `{name}` to be an AnnData, found {type(value).__name__}.")


KINDS: dict[str, Check] = {
    "AnnData": _table,
    "bool": check_flag,
    "int": check_integer,
    "float": check_number,
    "str": check_text,
    "Sequence[str]": check_texts,
    "str | Sequence[str]": _text_or_texts,
    "Layers": check_layers,
    "RngLike": lambda name, value: as_generator(value),
    "tuple[float, float]": _size,
    "str | PathLike[str]": as_path,
    **{
        alias: partial(check_choice, choices=get_args(getattr(_types, alias)))
        for alias in ("GeneSampling", "Include", "Unknown", "Unmeasured")
    },
}
"""What an argument may be, by its annotation without ``None``."""

RANGES: dict[str, Check] = {
    "bins": partial(check_integer, least=2),
    "dropout": partial(check_fraction, one=False),
    "delimiter": partial(check_type, kinds=str),
    "embeddings": partial(check_texts, least=0),
    "key_added": check_key_name,
    "limit": _POSITIVE,
    "min_cell_counts": _COUNT,
    "min_coverage": check_fraction,
    "min_gene_counts": _COUNT,
    "rng": _COUNT,
    "n_labels": _COUNT,
    "num_workers": _COUNT,
    "n_held_out": _COUNT,
    "rank": _COUNT,
    "reject": partial(check_fraction, one=False),
    "seed": _COUNT,
    "size": _POSITIVE,
    "target_sum": _POSITIVE,
    "threshold": check_fraction,
    "title": partial(check_type, kinds=str),
}
"""What a number or a text may be, by its name, where the annotation does not say enough."""
