"""What can be wrong with files: tables of damages for each kind, drawn by a seed where chance has a part.

Each generator takes what a good file holds and gives pairs of a name and what the damaged file holds instead.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Values of other kinds than a setting has, and of its own kind that cannot be meant.
VALUES: dict[str, Any] = {
    "null": None,
    "a text": "2",
    "an empty text": "",
    "true": True,
    "a list": [1],
    "an empty list": [],
    "an object": {"a": 1},
    "negative": -7,
    "zero": 0,
    "a fraction": 0.5,
    "huge": 10**7,
    "beyond 64 bits": 10**30,
    "beyond floats": 10**400,
}

# Texts that replace a whole file of JSON.
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "a number": b"3",
    "a list": b"[1, 2]",
    "null": b"null",
    "a text": b'"text"',
    "an empty object": b"{}",
    "cut short": b'{"a": 1',
    "a page": b"<!DOCTYPE html><html></html>",
    "bytes": b"\xff\xfe\x00\x01",
    "NaN": b'{"a": NaN}',
    "nested deeply": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "many digits": b'{"a": ' + b"1" * 10_000 + b"}",
    "half a letter": b'{"\\ud800": 0}',
    "a pickle": pickle.dumps({"a": 1}),
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


def texts() -> Iterator[tuple[str, bytes]]:
    """Files that are no settings."""
    yield from TEXTS.items()


def settings(content: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Settings of which one is another value, at whatever depth, or absent."""
    for path in _paths(content):
        for name, value in VALUES.items():
            yield f"{'.'.join(path)} = {name}", json.dumps(_with(content, path, value)).encode()
        yield f"without {'.'.join(path)}", json.dumps(_without(content, path)).encode()


def vocabularies(content: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Vocabularies with wrong ids and names."""
    first, second = list(content)[:2]
    changed: dict[str, Any] = {
        "a hole": content | {first: len(content) + 5},
        "a huge id": content | {first: 10**8},
        "an id beyond 64 bits": content | {first: 10**30},
        "an id twice": content | {first: content[second]},
        "negative": content | {first: -1},
        "a fraction": content | {first: 0.5},
        "a text": content | {first: "0"},
        "true": content | {first: True},
        "null": content | {first: None},
        "an empty name": {("" if token == first else token): index for token, index in content.items()},
        "one more": content | {"ONE MORE": len(content)},
        "others": {f"other{index}": index for index in range(10 * len(content))},
    }
    for name, value in changed.items():
        yield name, json.dumps(value).encode()
    yield "a name twice", (json.dumps(content)[:-1] + f', "{first}": {content[first]}}}').encode()


def cuts(content: bytes, seed: int = 0, number: int = 8) -> Iterator[tuple[str, bytes]]:
    """Files that end too early, or go on."""
    rng = random.Random(seed)
    for keep in sorted({0, 1, 7, 8, 9, len(content) - 1, *(rng.randrange(len(content)) for _ in range(number))}):
        yield f"{keep} bytes", content[:keep]
    yield "one byte more", content + b"\0"


def flips(content: bytes, seed: int = 0, number: int = 20, most: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Files with one byte changed, among the first ones if ``most`` is given."""
    rng = random.Random(seed)
    for _ in range(number):
        place, value = rng.randrange(min(len(content), most or len(content))), rng.randrange(1, 256)
        changed = bytearray(content)
        changed[place] ^= value
        yield f"byte {place} ^ {value}", bytes(changed)


def headers(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Safetensors files whose header promises something else."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    first = next(name for name in header if name != "__metadata__")
    entry = header[first]
    for size in (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1):
        yield f"a header of {size} bytes", size.to_bytes(8, "little") + content[8:]
    changed: dict[str, Any] = {
        "huge shape": {**entry, "shape": [10**12, 10**12]},
        "negative shape": {**entry, "shape": [-1]},
        "shape of texts": {**entry, "shape": ["1"]},
        "no shape": {"dtype": entry["dtype"], "data_offsets": entry["data_offsets"]},
        "unknown kind": {**entry, "dtype": "F7"},
        "whole numbers": {**entry, "dtype": "I32"},
        "offsets beyond the end": {**entry, "data_offsets": [0, 10**15]},
        "negative offsets": {**entry, "data_offsets": [-8, 0]},
        "offsets in reverse": {**entry, "data_offsets": entry["data_offsets"][::-1]},
        "a list": [1],
    }
    for name, value in changed.items():
        yield name, _safetensors({**header, first: value}, data)
    yield (
        "renamed",
        _safetensors({("x" * 1000 if name == first else name): each for name, each in header.items()}, data),
    )
    yield "nested deeply", (100_000).to_bytes(8, "little") + b"[" * 100_000


class Bomb:
    """What a malicious file could hold: reading it as a pickle would run a function."""

    armed = True

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Bomb, "armed", False))


def states(content: dict[str, torch.Tensor]) -> Iterator[tuple[str, bytes]]:
    """Files of torch.save that hold something else than a state dict, or tensors that cannot be weights."""
    first = next(iter(content))
    tensor = content[first]
    changed: dict[str, Any] = {
        "a list": [tensor],
        "a tensor": tensor,
        "an object of numbers": {"a": 1},
        "numbers as names": dict(enumerate(content.values())),
        "a bomb": {**content, "bomb": Bomb()},
        "nothing": {},
        "one lost": {name: each for name, each in content.items() if name != first},
        "one more": {**content, "one.more": tensor},
        "another shape": {**content, first: tensor[..., None]},
        "no axis": {**content, first: torch.tensor(1.0)},
        "empty": {**content, first: tensor[:0]},
        "whole numbers": {**content, first: tensor.long()},
        "complex": {**content, first: tensor.to(torch.complex64)},
        "truths": {**content, first: tensor > 0},
        "sparse": {**content, first: tensor.to_sparse()},
        "NaN": {**content, first: torch.full_like(tensor, torch.nan)},
        "infinite": {**content, first: torch.full_like(tensor, torch.inf)},
        "too large for float32": {**content, first: torch.full_like(tensor, 1e300, dtype=torch.float64)},
        "a layer of a large number": {**content, "transformer_encoder.layers.99999999.norm1.bias": torch.zeros(16)},
        "a layer of many digits": {**content, f"transformer_encoder.layers.{'9' * 5000}.norm1.bias": torch.zeros(16)},
    }
    for name, value in changed.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        yield name, buffer.getvalue()
    yield "a bare pickle", pickle.dumps(Bomb())


def arrays(array: np.ndarray[Any, Any]) -> Iterator[tuple[str, bytes]]:
    """Files of numpy that hold something else, or promise more than they hold."""
    changed: dict[str, np.ndarray[Any, Any]] = {
        "texts": np.array([["a"]]),
        "objects": np.array([Bomb()], dtype=object),
        "complex": array.astype(complex),
        "another axis": array[..., None],
        "no axis": array.reshape(-1)[0],
        "no rows": array[:0],
        "fewer rows": array[:-1],
        "records": np.zeros(3, dtype=[("a", "i4")]),
        "times": array.astype("datetime64[s]"),
    }
    if array.dtype.kind == "f":
        changed["NaN"] = np.full_like(array, np.nan)
    else:
        changed["negative"], changed["huge"] = -1 - array, array + 10**12
    for name, value in changed.items():
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=True)
        yield name, buffer.getvalue()
    good = io.BytesIO()
    np.save(good, array)
    shape = str(array.shape).encode()
    for name, promised in {"terabytes": (10**12,) * array.ndim, "negative": (-1,) * array.ndim}.items():
        text = str(promised).encode()
        yield (
            f"a header of {name}",
            good.getvalue().replace(shape + b", ", text + b", ").replace(b" " * len(text), b"", 1),
        )


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _paths(content: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in content.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _paths(value, (*before, name))


def _with(content: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def _without(content: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return changed
