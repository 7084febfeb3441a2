"""What a call with a bad input came to: a clear error or the right result, with the caller's tables as they were."""

from __future__ import annotations

import hashlib
import re
import signal
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData

import scgpt_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

OURS = Path(scgpt_tools.__file__).parent
KINDS = (ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError, PermissionError, ImportError)
"""What users can cause."""
GRAMMAR = re.compile(r"^(Expected|Found) |\bfound\b|, but ")
"""What our messages say: what was expected and what was found instead."""
SECONDS = 30
"""Of computing: far more than any of these inputs takes."""
WAITING = 300
"""Of the clock, on a machine that does much else."""


class Outcome(StrEnum):
    CLEAR = "clear errors"
    RIGHT = "right results"
    WRONG = "silently wrong"
    UNCLEAR = "unclear errors"
    CHANGED = "tables changed"
    CRASHED = "crashes"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.outcome in (Outcome.CLEAR, Outcome.RIGHT)


class TookTooLong(BaseException):
    """Not an Exception, so that nobody between catches it."""


def judge(
    call: Callable[[], Any],
    *,
    tables: Iterable[Any] = (),
    accept: Callable[[Any], str] | None = None,
    warning_is_enough: bool = False,
) -> Verdict:
    """Call a function with a bad input.

    Parameters
    ----------
    call
        The call.
    tables
        What belongs to the caller and has to stay as it is if the call fails.
    accept
        What is wrong with a result, empty if nothing is; without it the call must be refused.
    warning_is_enough
        Whether it counts as an answer that the call warned its caller of the input.
    """
    tables = tuple(tables)
    before = [contents(table) for table in tables]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _limited():
                result = call()
        except (Exception, TookTooLong) as error:  # noqa: BLE001 - whatever comes is judged
            return _of_error(error, before, tables)
        finally:
            plt.close("all")
    told = [str(entry.message) for entry in said if entry.category is UserWarning]
    if warning_is_enough and told:
        return Verdict(Outcome.RIGHT, told[0])
    if accept is None:
        return Verdict(Outcome.WRONG, f"passed without a word, returned {str(result)[:80]}")
    fault = accept(result)
    return Verdict(Outcome.WRONG, fault) if fault else Verdict(Outcome.RIGHT)


class Said(ValueError):
    """What a command line said before it ended with an error of the user."""


def is_clear(error: BaseException) -> str:
    """What is unclear about an error, empty if nothing is."""
    frames = traceback.extract_tb(error.__traceback__)
    raised_at = Path(frames[-1].filename)
    message = str(error.args[0]) if error.args else ""
    where = f"{type(error).__name__}: {message[:140]} ({raised_at.name}:{frames[-1].lineno})"
    if not isinstance(error, KINDS) and not type(error).__module__.startswith("scgpt_tools"):
        return where
    if isinstance(error, Said):
        return "" if GRAMMAR.search(message) else where
    # Python itself refuses unknown and missing arguments.
    if isinstance(error, TypeError) and "argument" in message and len(frames) == 2:
        return ""
    if not raised_at.is_relative_to(OURS) or not GRAMMAR.search(message):
        return where
    return ""


def contents(value: Any) -> dict[str, Any]:
    """All that can be compared in a table, a result or a model: arrays and texts by name, as they lie in memory."""
    return dict(_walk(value, ""))


def values(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the values of sparse matrices instead of their parts."""
    return {
        name: _dense(*value) if isinstance(value, list) and _is_sparse(value) else value
        for name, value in found.items()
    }


def difference(expected: dict[str, Any], found: dict[str, Any], *, tolerance: float = 1e-4) -> str:
    """Where two contents differ, empty if nowhere."""
    if expected.keys() != found.keys():
        return f"other parts: {sorted(expected.keys() ^ found.keys())[:5]}"
    return next((name for name in expected if not _equal(expected[name], found[name], tolerance)), "")


def not_finite(found: dict[str, Any]) -> str:
    """The first part with numbers that are none, empty if there is no such part."""
    for name, value in found.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{name} is not finite"
    return ""


# -------------------------------------------------------------------------------------------------------------- parts


def _of_error(error: BaseException, before: list[dict[str, Any]], tables: tuple[Any, ...]) -> Verdict:
    if isinstance(error, TookTooLong):
        return Verdict(Outcome.CRASHED, "took too long")
    for old, table in zip(before, tables, strict=True):
        if changed := difference(old, contents(table), tolerance=0):
            return Verdict(Outcome.CHANGED, f"{changed}, before {type(error).__name__}: {str(error)[:100]}")
    unclear = is_clear(error)
    return Verdict(Outcome.UNCLEAR, unclear) if unclear else Verdict(Outcome.CLEAR, str(error.args[0])[:140])


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLong

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAITING)}
    previous = {kind: signal.signal(kind, stop) for kind in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for kind, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(kind, previous[kind])


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, MuData):
        for key, table in value.mod.items():
            yield from _walk(table, f"{name}mod[{key}].")
    if isinstance(value, AnnData | MuData):
        yield from _walk_table(value, name)
    elif isinstance(value, pd.DataFrame):
        yield f"{name}index", np.asarray(value.index.astype(str))
        yield f"{name}columns", [str(column) for column in value.columns]
        for place, column in enumerate(value.columns):
            twin = "" if value.columns.is_unique else f" {place}"
            yield f"{name}[{column}{twin}]", _array(value.iloc[:, place])
    elif isinstance(value, torch.nn.Module):
        yield from ((f"{name}{key}", tensor.detach().cpu().numpy()) for key, tensor in value.state_dict().items())
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _walk(getattr(value, field.name), f"{name}{field.name}.")
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _walk(entry, f"{name}{key}.")
    elif isinstance(value, pd.Series | np.ndarray | list | tuple) or sp.issparse(value):
        yield name, _array(value)
    elif isinstance(value, str | int | float | bool | None):
        yield name, value
    else:
        yield name, type(value).__name__


def _walk_table(table: AnnData | MuData, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(table, AnnData):
        yield f"{name}X", None if table.X is None else _array(table.X)
        for key in table.layers:
            if key is not None:
                yield f"{name}layers[{key}]", _array(table.layers[key])
    for slot in ("obs", "var"):
        yield from _walk(getattr(table, slot), f"{name}{slot}.")
    for slot in ("obsm", "varm", "obsp", "varp"):
        for key, entry in getattr(table, slot).items():
            yield from _walk(entry, f"{name}{slot}[{key}]")
    yield f"{name}uns", repr(dict(table.uns))


def _array(value: Any) -> Any:
    if sp.issparse(value):
        # Neither order nor bounds are trusted here, so the parts are kept as they are.
        value = value.tocoo() if value.format not in ("csr", "csc") else value
        parts = [np.asarray(value.data), *(np.asarray(getattr(value, part)) for part in ("indices", "indptr"))]
        return [value.format, value.shape, *parts]
    if isinstance(value, pd.Series):
        return np.asarray(value.astype(str)) if value.dtype.kind not in "iufb" else value.to_numpy()
    try:
        return np.array(value)
    except ValueError:
        return repr(value)


def _is_sparse(value: list[Any]) -> bool:
    return len(value) == 5 and value[0] in ("csr", "csc")


def _dense(kind: str, shape: tuple[int, int], *parts: np.ndarray) -> np.ndarray:
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix}[kind]
    return make(parts, shape=shape).toarray()


def _equal(expected: Any, found: Any, tolerance: float) -> bool:
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_equal, expected, found, [tolerance] * len(expected)))
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        if expected.shape != found.shape:
            return False
        if expected.dtype.kind in "fc" and found.dtype.kind in "fciub":
            return bool(np.allclose(expected, found, rtol=tolerance, atol=tolerance, equal_nan=True))
        if expected.dtype.kind == found.dtype.kind == "O":
            return repr(expected.tolist()) == repr(found.tolist())
        return bool(np.array_equal(expected, found))
    return bool(expected == found) or repr(expected) == repr(found)


def checksum(value: Any) -> str:
    """A short name for a value, the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]
