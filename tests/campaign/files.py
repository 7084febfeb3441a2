"""Damaged files of models: their settings, vocabulary and weights, in both formats, by rule and by seeded chance."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from campaign.inputs import annotator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DRAWS = 40
"""Random damages of each file."""
NAN, INF = float("nan"), float("inf")
ODD: tuple[Any, ...] = (
    None, True, "true", "2", "", -1, 0, 2.5, 10**7, 10**30, NAN, INF, [], [1], {}, {"a": 1}, "xy", ["x", 1], "\ud800",
)  # fmt: skip
"""What may stand where something else is expected."""


def native(folder: Path) -> Path:
    """A folder of our format."""
    return annotator().save(folder)


def original(folder: Path) -> Path:
    """The same model in scGPT's format."""
    return annotator().export(folder)


# ------------------------------------------------------------------------------------------------------------ by rule

TEXTS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "cut by one": lambda text: text[:-1],
    "doubled": lambda text: text + text,
    "a list": lambda text: f"[{text}]",
    "null": lambda text: "null",
    "a number": lambda text: "3",
    "no object": lambda text: '"text"',
    "empty object": lambda text: "{}",
    "no text": lambda text: b"\xff\xfe\x00\x01" * 10,
    "a mark of byte order": lambda text: "\ufeff" + text,
    "deep": lambda text: "[" * 100_000 + "]" * 100_000,
    "an HTML page": lambda text: "<!DOCTYPE html><html>Sign in</html>",
    "a pickle": lambda text: b"\x80\x04N.",
    "of another disk": lambda text: b"\0" * len(text),
}
"""Damages of any text file."""

BINARIES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "head only": lambda content: content[:8],
    "longer": lambda content: content + b"\0" * 16,
    "zeros at the end": lambda content: content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2),
    "zeros": lambda content: b"\0" * len(content),
    "turned round": lambda content: content[::-1],
    "huge header": lambda content: (2**62).to_bytes(8, "little") + content[8:],
    "negative header": lambda content: b"\xff" * 8 + content[8:],
    "an HTML page": lambda content: b"<!DOCTYPE html><html>Sign in</html>",
    "a pointer of Git LFS": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a pickle": lambda content: b"\x80\x04cos\nsystem\n.",
}
"""Damages of any binary file."""

WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "a NaN": lambda weights: _with(weights, NAN),
    "an infinite number": lambda weights: _with(weights, INF),
    "one absent": lambda weights: dict(list(weights.items())[1:]),
    "one more": lambda weights: weights | {"no_such_part.weight": torch.zeros(2)},
    "one of another shape": lambda weights: _changed(weights, lambda tensor: tensor[..., :-1].contiguous()),
    "one turned": lambda weights: _changed(weights, lambda tensor: tensor.T.contiguous()),
    "integers": lambda weights: _changed(weights, lambda tensor: tensor.to(torch.int64)),
    "complex": lambda weights: _changed(weights, lambda tensor: tensor.to(torch.complex64)),
    "bool": lambda weights: _changed(weights, lambda tensor: tensor > 0),
    "no tensors": lambda weights: dict.fromkeys(weights, 3),
    "none": lambda weights: {},
    "a list": lambda weights: list(weights.values()),
    "in a nest": lambda weights: {"state_dict": {"model": weights}},
}
"""Damages of a mapping of names to tensors."""


def _with(weights: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    return _changed(weights, lambda tensor: tensor.clone().index_fill_(0, torch.tensor([0]), value))


def _changed(
    weights: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2 and tensor.is_floating_point())
    return weights | {name: change(weights[name])}


# ---------------------------------------------------------------------------------------------------------- by chance


def mutated_json(text: str, rng: random.Random) -> str:
    """One value somewhere in a JSON file replaced, removed or put under another key."""
    content = json.loads(text)
    if not content:
        return json.dumps([content])
    where = content
    while True:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        key = rng.choice(list(keys))
        inside = where[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.3:
            break
        where = inside
    kind = rng.choice(["replace", "replace", "replace", "remove", "rename"])
    if kind == "replace" or isinstance(where, list):
        where[key] = rng.choice(ODD)
    else:
        value = where.pop(key)
        if kind == "rename":
            where[rng.choice(["", "no such", key.upper(), f"{key} "])] = value
    return json.dumps(content)


def is_another_setting(before: str, after: str) -> bool:
    """Whether a change put one finite number in the place of another, which may be what its author wants."""

    def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                yield from leaves(entry, f"{place}/{key}")
        else:
            yield place, value

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    old, new = (dict(leaves(json.loads(text))) for text in (before, after))
    changed = [place for place in old if repr(new.get(place)) != repr(old[place])]
    return old.keys() == new.keys() and all(is_number(old[place]) and is_number(new[place]) for place in changed)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, dropped or put in."""
    changed = bytearray(content)
    # The head says what the rest means, so it is hit as often as all the rest.
    for _ in range(rng.choice([1, 1, 4, 64])):
        place = rng.randrange(min(len(changed), 2000) if rng.random() < 0.5 else len(changed))
        kind = rng.choice(["flip", "flip", "drop", "add"])
        if kind == "flip":
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "drop":
            del changed[place]
        else:
            changed.insert(place, rng.randrange(256))
    return bytes(changed)


# -------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class DamagedFile:
    """A file of a model and what is wrong with it."""

    make: Callable[[Path], Path]
    file: str
    damage: str

    def __str__(self) -> str:
        return f"{self.make.__name__}-{self.file}-{self.damage}"

    def folder(self, place: Path) -> Path:
        """A folder with the damaged file."""
        folder = self.make(place)
        path = folder / self.file
        whole = path.read_bytes()
        kind, _, name = self.damage.partition(": ")
        if kind == "weights":
            _write(path, WEIGHTS[name](_read(path)))
        elif kind == "chance":
            mutate = (
                (lambda content, rng: mutated_json(content.decode(), rng).encode(errors="surrogatepass"))
                if self.file.endswith(".json")
                else mutated_bytes
            )
            path.write_bytes(mutate(whole, random.Random(f"{self}")))
        elif self.file.endswith(".json"):
            text = TEXTS[name](whole.decode())
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        else:
            path.write_bytes(BINARIES[name](whole))
        return folder


FILES: dict[Callable[[Path], Path], tuple[str, ...]] = {
    native: ("config.json", "vocab.json", "model.safetensors"),
    original: ("args.json", "vocab.json", "best_model.pt"),
}


def damaged() -> Iterator[DamagedFile]:
    """Every file with every damage."""
    for make, files in FILES.items():
        for file in files:
            rules = [f"rule: {name}" for name in (TEXTS if file.endswith(".json") else BINARIES)]
            weights = [] if file.endswith(".json") else [f"weights: {name}" for name in WEIGHTS]
            chance = [f"chance: {draw}" for draw in range(DRAWS)]
            for damage in (*rules, *weights, *chance):
                if not (file.endswith(".safetensors") and damage in UNWRITABLE):
                    yield DamagedFile(make, file, damage)


UNWRITABLE = {"weights: no tensors", "weights: a list", "weights: in a nest"}
"""What safetensors cannot hold."""


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _write(path: Path, weights: Any) -> None:
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
