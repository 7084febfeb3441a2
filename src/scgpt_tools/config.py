"""Frozen dataclasses to plain dictionaries and back, strictly.

An unknown key is refused with the nearest valid one, a value of the wrong kind with its place (``encoder.layers``).
Nothing is guessed: an integer passes for a float, a list for a tuple, a string for a path, and that is all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, FrozenInstanceError, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import yaml

from scgpt_tools._files import as_path, replace_file
from scgpt_tools._lookup import absent, lookup


class Dataclass(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)
Entry = TypeVar("Entry")
Kind = TypeVar("Kind")


class OneOf:
    """Base of configurations that stand for one another, told apart by ``kind`` (or another ``tag``) in files.

    The classes of a place share a base, which knows the table of them; a row that another package adds counts as well.
    """

    kinds: ClassVar[Mapping[str, type[Any]]]
    """What there is, by the name that files have for it."""
    tag: ClassVar[str] = "kind"
    """Key of that name."""

    @property
    def kind(self) -> str:
        """Name of this class in the table."""
        for name, cls in self.kinds.items():
            if cls is type(self):
                return name
        raise ValueError(
            f"Expected a configuration of {list(self.kinds)}, found {type(self).__name__}, which has no row in that table."
        )


class Named(Mapping[str, Entry]):
    """Configurations by names that a user gives them, never changed; ``named.name`` is short for ``named["name"]``.

    Parameters
    ----------
    entries
        Configurations by name.
    **more
        Further ones; ``None`` stands for none.
    """

    def __init__(self, entries: Mapping[str, Entry | None] = MappingProxyType({}), /, **more: Entry | None) -> None:
        found = {name: entry for name, entry in {**entries, **more}.items() if entry is not None}
        if wrong := [name for name in found if not (isinstance(name, str) and name.isidentifier())]:
            raise ValueError(f"Expected names of letters, digits and underscores, found {wrong[0]!r}.")
        object.__setattr__(self, "_entries", found)

    _entries: dict[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getattr__(self, name: str) -> Entry:
        if name.startswith("_") or name not in self._entries:
            raise AttributeError(absent(name, vars(self).get("_entries", ()), "entry named"))
        return self._entries[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to {name!r}; make another with `replace`")

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._entries == dict(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._entries,)

    def __repr__(self) -> str:
        return f"Named({', '.join(f'{name}={entry!r}' for name, entry in self.items())})"

    def find(self, name: str, kind: type[Kind]) -> Kind | None:
        """Entry of a name if it is of a kind; ``None`` if there is none, or another."""
        entry = self._entries.get(name)
        return entry if isinstance(entry, kind) else None

    def replace(self, **changes: Entry | None) -> Named[Entry]:
        """Copy with some entries exchanged, added, or removed by ``None``."""
        return Named(self._entries, **changes)


def from_dict(cls: type[Config], mapping: Mapping[str, Any], *, where: str = "") -> Config:
    """Build a configuration from plain values.

    Parameters
    ----------
    cls
        A dataclass; its fields may be dataclasses, optional, ``Literal``, ``tuple``, ``list``, ``dict`` and
        :class:`Named`.  For a base of several (:class:`OneOf`), ``mapping["kind"]`` says which.
    mapping
        Values by field name.
    where
        Dotted place of ``mapping`` in a larger configuration, for messages.

    Returns
    -------
    The configuration.

    Raises
    ------
    ValueError
        For an unknown or missing key, or a value outside its choices.
    TypeError
        For a value of the wrong kind.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"Expected `{where or cls.__name__}` to be a mapping, found {_shown(mapping)}.")
    if issubclass(cls, OneOf):
        cls, mapping = _kind(cls, mapping, where)
    known = {field.name: field for field in fields(cls) if field.init}
    for name in mapping:
        if name not in known:
            raise ValueError(absent(name, known, f"field of {cls.__name__} named"))
    missing = [name for name, field in known.items() if name not in mapping and _is_required(field)]
    if missing:
        raise ValueError(f"Expected {cls.__name__} to be given {missing}, found only {list(mapping)}.")
    hints = hints_of(cls)
    values = {name: _convert(hints[name], value, _join(where, name)) for name, value in mapping.items()}
    return cls(**values)


def settle_fields(config: Dataclass) -> None:
    """Check the kind of every field of a frozen dataclass made in Python, as :func:`from_dict` does for files.

    ``config``: the instance, from its ``__post_init__``; fields are replaced by their checked values, such as a path
    for a text.
    """
    hints = hints_of(type(config))
    for field in fields(config):
        object.__setattr__(config, field.name, _convert(hints[field.name], getattr(config, field.name), field.name))


def to_dict(config: Dataclass) -> dict[str, Any]:
    """Plain values of a configuration, as JSON and YAML can hold them.

    Parameters
    ----------
    config
        A dataclass instance.

    Returns
    -------
    Values by field name; nested configurations are dictionaries, tuples are lists and paths are strings.  One of several
    kinds says which as ``kind``.
    """
    kind = {config.tag: config.kind} if isinstance(config, OneOf) else {}
    return kind | {field.name: _plain(getattr(config, field.name)) for field in fields(config) if field.init}


def from_yaml(cls: type[Config], path: str | Path) -> Config:
    """Read a configuration from a YAML file; see :func:`from_dict`.

    Parameters
    ----------
    cls
        A dataclass.
    path
        File to read.

    Returns
    -------
    The configuration.
    """
    path = as_path("path", path)
    content = read_yaml(path)
    return from_dict(cls, {} if content is None else content)


def to_yaml(config: Dataclass, path: str | Path) -> None:
    """Write a configuration to a YAML file.

    Parameters
    ----------
    config
        A dataclass instance.
    path
        File to write.
    """
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    replace_file(as_path("path", path), lambda aside: aside.write_text(text, encoding="utf-8"))


class _Loader(yaml.SafeLoader):
    """YAML where ``1e-4`` is a number, as in Python; PyYAML alone reads it as text.

    What aliases repeat is counted, since a few lines of them can stand for more values than there is memory; a name that
    comes twice is refused.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before = self._values
        if isinstance(event, yaml.AliasEvent):
            self._values += self._sizes.get(event.anchor, 0)
        node = super().compose_node(parent, index)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, those repeated by aliases included")
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._values - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, count in names.items() if count > 1 and name != "<<"]:
            raise ValueError(f"{twice[0]!r} twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file, in bounded time and memory."""
    expected = f"Expected {path} to hold YAML, found"
    if not path.is_file():
        raise FileNotFoundError(f"{expected} no such file.")
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{expected} {size:,} bytes, more than the {_MOST_BYTES:,} that a configuration may have.")
    try:
        return yaml.load(path.read_bytes().decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{expected} bytes that are no text in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{expected} a fault{place}: {error.problem}.") from None
    except yaml.YAMLError:
        raise ValueError(f"{expected} characters that YAML does not allow.") from None
    except RecursionError:
        raise ValueError(f"{expected} lists or mappings that are nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{expected} {error}.") from None


def yaml_value(text: str) -> Any:
    """A value as a YAML file would have it."""
    return yaml.load(text, Loader=_Loader)


_MOST_BYTES, _MOST_VALUES = 1 << 20, 100_000

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Types of the fields of a dataclass."""
    return get_type_hints(cls)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _kind(cls: type[Any], mapping: Mapping[str, Any], where: str) -> tuple[type[Any], dict[str, Any]]:
    """The class that a mapping is of, and its fields."""
    rest = dict(mapping)
    tag = cls.tag
    if tag not in rest and cls in cls.kinds.values():
        return cls, rest
    place = f"{tag} of {where or cls.__name__}"
    if tag not in rest:
        raise ValueError(f"Expected `{_join(where, tag)}`, one of {list(cls.kinds)}, found only {list(rest)}.")
    found = lookup(cls.kinds, rest.pop(tag), place)
    if not issubclass(found, cls):
        raise ValueError(f"Expected a {cls.__name__}, found the {place} {mapping[tag]!r}.")
    return found, rest


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``, or an error that names the place."""
    hint = _member(hint, value)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, Hashable) or value not in arguments:
            listing = ", ".join(map(repr, arguments))
            raise ValueError(f"Expected `{where}` to be one of {listing}, found {_shown(value)}.")
        return value
    if hint is Path:
        return as_path(where, value)
    if not _fits(hint, value):
        raise TypeError(f"Expected `{where}` to be {_name(hint)}, found {_shown(value)}.")
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where=where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is list:
        return [_convert(arguments[0], entry, f"{where}[{place}]") for place, entry in enumerate(value)]
    if origin is Named:
        return Named({key: _convert(arguments[0], entry, _join(where, key)) for key, entry in value.items()})
    if origin in (dict, Mapping):
        return {key: _convert(arguments[1], entry, _join(where, key)) for key, entry in value.items()}
    if hint is float:
        return _finite(value, where)
    if hint is int and abs(value) >= _LARGEST:
        raise ValueError(f"Expected `{where}` to be a number of 64 bits, found {_shown(value)}.")
    return hint(value) if hint in (bool, int) else value


def _finite(value: float, where: str) -> float:
    """A number as Python keeps it; NaN and infinite ones, which YAML has, would only show in results."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"Expected `{where}` to be a finite number, found {_shown(value)}.")
    return number


def _shown(value: Any) -> str:
    """A value in a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


_SHOWN, _LARGEST = 200, 2**63


def _tuple(arguments: tuple[Any, ...], value: Sequence[Any], where: str) -> tuple[Any, ...]:
    hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(hints) != len(value):
        raise ValueError(f"Expected `{where}` to have {len(hints)} entries, found {len(value)}.")
    return tuple(
        _convert(hint, entry, f"{where}[{i}]") for i, (hint, entry) in enumerate(zip(hints, value, strict=True))
    )


def _member(hint: Any, value: Any) -> Any:
    """The member of a union that takes the value; a type that is no union is its own only member."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = get_args(hint)
    fitting = [member for member in members if _fits(member, value)]
    if fitting:
        return fitting[0]
    # With one member besides None, its own message says best what was expected.
    real = [member for member in members if member is not NoneType]
    return real[0] if len(real) == 1 else hint


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value looks like a type, without going into its entries."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(member, value) for member in get_args(hint))
    if origin is Literal:
        return isinstance(value, Hashable) and value in get_args(hint)
    if hint is Any:
        return True
    if is_dataclass(hint) and isinstance(hint, type):
        return isinstance(value, Mapping | hint)
    if isinstance(value, bool | np.bool_):
        return hint is bool
    accepted: dict[Any, Any] = {
        int: Integral,
        float: Real,
        Path: (str, PathLike),
        tuple: (list, tuple),
        list: (list, tuple),
        dict: Mapping,
        Named: Mapping,
    }
    kind = origin or hint
    return isinstance(value, accepted.get(kind, kind))


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
