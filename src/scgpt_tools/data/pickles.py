"""Read pickles of plain values without running anything that is in them.

A pickle names functions to call.  Here those that make NumPy's arrays and numbers are replaced by our own, which only keep
what the file says of them; every other name is refused.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_KINDS = "fiubUS"
"""Numbers, flags and texts."""
_EXPECTED = "containers, numbers, texts and arrays of numbers alone"


class _Dtype:
    """What a file says of the type of an array."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        self.order = order if order in ("<", ">", "=", "|") else "="

    def resolve(self) -> np.dtype[Any]:
        """The type, if it is one of numbers or texts."""
        code = self.code.decode("latin1") if isinstance(self.code, bytes) else self.code
        # A type such as "O" would have objects be made of bytes, one such as "i4,O" too.
        if not isinstance(code, str) or not code[:1].isalpha() or not code[1:].isdigit() or code[0] not in _KINDS:
            raise ValueError(f"an array of {str(code)[:40]!r}")
        return np.dtype(self.order + code if self.order in "<>" else code)


class _Array:
    """What a file says of an array."""

    def __init__(self, *_: Any) -> None:
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("a damaged array")
        shape, dtype, fortran, content = state[-4:]
        self.array = _of_bytes(content, dtype, shape, "F" if fortran else "C")


def _of_bytes(content: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise ValueError("an array of objects")
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("a damaged array")
    kind = dtype.resolve()
    if int(np.prod(shape, dtype=object)) * kind.itemsize != len(content):
        raise ValueError("a damaged array")
    found = np.frombuffer(bytes(content), dtype=kind).reshape(shape, order="F" if order == "F" else "C")
    return found.astype(kind.newbyteorder("="))


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _of_bytes(content, dtype, shape, str(order))
    return made


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _of_bytes(content, dtype, (1,), "C")[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("damaged text")
    return text.encode("latin1")


class _Only:
    """A function that a file may call, and not change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise ValueError("a change to a function")


_CORE = ("numpy.core", "numpy._core")
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Only(_encode),
    ("collections", "OrderedDict"): dict,
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in {"set": set, "dict": dict}.items()
    },
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _CORE},
    **{(f"{core}.multiarray", "scalar"): _Only(_scalar) for core in _CORE},
    **{(f"{core}.numeric", "_frombuffer"): _Only(_from_buffer) for core in _CORE},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the name {module}.{name}"[:120])
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to something outside")


def read_pickle(path: Path) -> Any:
    """Read a pickle of containers, numbers, texts and arrays; nothing in it is run.

    Raises
    ------
    ValueError
        If it names anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _arrays(_Unpickler(file).load(), {})
    except (pickle.UnpicklingError, ValueError) as error:
        found = str(error)[:160] or "a damaged file"
    except OSError:
        raise
    except Exception:  # noqa: BLE001  # a damaged file meets errors of every kind
        found = "a damaged file"
    raise ValueError(
        f"Expected {str(path)!r} to be a pickle of {_EXPECTED}, found {found}. A pickle can run any code when it is read; "
        "nothing in this one was run. Ask for the values in another format, or get the file again from where it came from."
    )


def _arrays(value: Any, made: dict[tuple[int, int], Any], depth: int = 0) -> Any:
    """Arrays in the places of what stands for them, as deep as plain values go; ``made``: what was made of each before."""
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, dict | list | tuple) or depth >= _MOST_DEPTH:
        return value
    # A few references in a file can stand for more values than there is memory.
    place = (id(value), depth)
    if place in made:
        return made[place]
    found: Any = value
    if isinstance(value, dict):
        found = {key: _arrays(entry, made, depth + 1) for key, entry in value.items()}
    # Long lists of numbers stay as they are.
    elif any(isinstance(x, _Array | dict | list) for x in value):
        found = type(value)(_arrays(entry, made, depth + 1) for entry in value)
    made[place] = found
    return found


_MOST_DEPTH = 8
