"""Arguments of public functions, checked in one place before anything else happens.

The signature says what an argument may be: its annotation gives the kind, its name the range, and ``None`` is allowed
where the annotation names it.  What is not in the tables here (tables of cells, models, choices) is checked where it is
read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache, partial, wraps
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast, get_args

import numpy as np

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
            try:
                check(name, given[name])
            except TypeError as error:
                raise TypeError(f"{error}{_place(function, name, given[name])}") from None


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


def _place(function: Callable[..., object], name: str, value: Any) -> str:
    """Where a table or a model belongs that was given in another place, as one more sentence of a message."""
    takes = ("AnnData", "MuData") if _is_table(value) else _OF_MODELS if _is_model(value) else ()
    parameters = inspect.signature(function).parameters
    fitting = [
        other
        for other, parameter in parameters.items()
        if other != name and any(word in str(parameter.annotation) for word in takes)
    ]
    if not fitting:
        return ""
    order = [other for other, entry in parameters.items() if entry.kind is not entry.KEYWORD_ONLY]
    what = "a table of cells" if _is_table(value) else "a model"
    more = ", ..." if len(order) < len(parameters) else ""
    return f" `{fitting[0]}` takes {what}: {function.__name__}({', '.join(order)}{more})."


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


# This module may know neither AnnData nor models, so both are told by what they have.
_OF_MODELS = ("CellModel", "AnyModel", "HasTokenizer", "VocabularySource", "Prediction")


def _is_table(value: Any) -> bool:
    return all(hasattr(value, slot) for slot in ("obs", "var", "uns", "obsm"))


def _is_model(value: Any) -> bool:
    return hasattr(value, "embed_cells") and hasattr(value, "adapt")


def _table(name: str, value: Any) -> None:
    # A MuData has no layers.
    if not _is_table(value) or not hasattr(value, "layers"):
        _refuse_table(name, value, "an AnnData")


def _mudata(name: str, value: Any) -> None:
    if not _is_table(value) or not hasattr(value, "mod"):
        _refuse_table(name, value, "a MuData")


def _any_table(name: str, value: Any) -> None:
    if not _is_table(value):
        _refuse_table(name, value, "an AnnData or a MuData")


def _refuse_table(name: str, value: Any, expected: str) -> None:
    if isinstance(value, str | PathLike):
        ending = "read_h5mu" if str(value).endswith(".h5mu") else "read_h5ad"
        reader = f"mudata.{ending}" if ending == "read_h5mu" else f"anndata.{ending}"
        raise TypeError(
            f"Expected `{name}` to be {expected}, found {type(value).__name__} {str(value)!r}. Read it first: {reader}({str(value)!r})."
        )
    wrap = " Wrap it: mudata.MuData({'rna': adata})." if expected == "a MuData" and _is_table(value) else ""
    raise TypeError(f"Expected `{name}` to be {expected}, found {type(value).__name__}.{wrap}")


def _model(name: str, value: Any) -> None:
    if not isinstance(value, str | PathLike) and not _is_model(value):
        raise TypeError(f"Expected `{name}` to be a model, its name or its folder, found {type(value).__name__}.")


def _no_table(name: str, value: Any) -> None:
    """For what may be many things, but never cells."""
    if _is_table(value):
        raise TypeError(f"Expected `{name}` to be a model, its name or its folder, found {type(value).__name__}.")


def _names(name: str, value: Any) -> None:
    """A text or any number of them, which are looked at where they are read: an iterator gives them once."""
    if not isinstance(value, Iterable) or isinstance(value, Mapping) or _is_table(value):
        raise TypeError(f"Expected `{name}` to be a text or a list of texts, found {type(value).__name__}.")


def _array(name: str, value: Any) -> None:
    """Numbers or labels in a row or a rectangle; of which kind is seen where they are read."""
    if (
        not hasattr(value, "__len__")
        or isinstance(value, str | bytes | Mapping)
        or _is_table(value)
        or np.ndim(value) == 0
    ):
        raise TypeError(f"Expected `{name}` to be an array, found {_found(value)}.")


def _of_type(name: str, value: Any, *, kind: str, makers: str = "") -> None:
    """An instance of a class that this module may not know, by its name."""
    if all(base.__name__ != kind for base in type(value).__mro__):
        raise TypeError(f"Expected `{name}` to be a {kind}{makers}, found {_found(value)}.")


def _frame(name: str, value: Any) -> None:
    if not hasattr(value, "columns"):
        raise TypeError(f"Expected `{name}` to be a data frame, found {type(value).__name__}.")


def _by_name(name: str, value: Any, *, of: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"Expected `{name}` to be a dictionary with {of} for each name, found {_found(value)}.")


def _gene_sets(name: str, value: Any) -> None:
    if not hasattr(value, "__len__") or isinstance(value, str | Mapping) or _is_table(value):
        raise TypeError(f"Expected `{name}` to be a list of conditions, each a tuple of genes, found {_found(value)}.")
    for genes in value:
        if (
            isinstance(genes, str)
            or not isinstance(genes, Iterable)
            or not all(isinstance(gene, str) for gene in genes)
        ):
            raise TypeError(
                f"Expected each condition in `{name}` to be a tuple of genes, such as ('KLF1',), found {genes!r}."
            )


def _found(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


KINDS: dict[str, Check] = {
    "AnnData": _table,
    "MuData": _mudata,
    "AnnData | MuData": _any_table,
    "CellModel | str | PathLike[str]": _model,
    "AnyModel | Sequence[AnyModel]": _no_table,
    "AnyModel | GeneClassifier | Sequence[AnyModel | GeneClassifier]": _no_table,
    "HasTokenizer | Vocabulary | str | PathLike[str]": _no_table,
    "VocabularySource": _no_table,
    "str | Iterable[str]": _names,
    "ArrayLike": _array,
    "ArrayLike | sp.spmatrix": _array,
    "NDArray[np.float64]": _array,
    "Mapping[str, NDArray[np.float64]]": partial(_by_name, of="an array"),
    "pd.DataFrame": _frame,
    "TrainingEffects": partial(_of_type, kind="TrainingEffects"),
    "DifferentialExpression": partial(_of_type, kind="DifferentialExpression", makers=" from differential_expression"),
    "Truth": partial(_of_type, kind="Truth"),
    "HeldOutCells": partial(_of_type, kind="HeldOutCells"),
    "Sequence[GeneSet]": _gene_sets,
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
        for alias in ("Extend", "GeneSampling", "Include", "PairMethod", "Unknown", "Unmeasured")
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
