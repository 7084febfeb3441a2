"""Files of settings, and words that change one of them: ``--config run.yaml --family.layers 4``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from scgpt_tools._files import as_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Tree = dict[str, Any]

_FLAG = re.compile(r"--([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)


@dataclass
class Given:
    """A command line, divided."""

    words: list[str] = field(default_factory=list)
    """What is no setting of a file."""
    settings: Tree = field(default_factory=dict)
    """What the files say, as nested mappings."""
    changes: list[tuple[tuple[str, ...], Any]] = field(default_factory=list)
    """Keys, part by part, and values of ``--section.key value``."""


def divide(words: Sequence[str], sections: Iterable[str] = ()) -> Given:
    """Take ``--config`` and the settings of files out of a command line, and let dashes stand for underscores.

    ``sections``: settings without a dot in their names, which files have and the command has no option for.
    """
    found, rest, sections = Given(), list(words), set(sections)
    while rest:
        word = rest.pop(0)
        flag = _FLAG.fullmatch(word)
        if flag is None:
            found.words.append(word)
            continue
        name, value = flag[1].replace("-", "_"), flag[2]
        if name != "config" and "." not in name and name not in sections:
            found.words.append(f"--{name}" if value is None else f"--{name}={value}")
            continue
        if value is None:
            if not rest:
                raise ValueError(f"Expected a value behind --{flag[1]}, found none.")
            value = rest.pop(0)
        if name == "config":
            found.settings = merged(found.settings, read_file(value))
        else:
            found.changes.append((tuple(name.split(".")), _value(name, value)))
    return found


def read_file(path: str) -> Tree:
    """A YAML file of settings."""
    from scgpt_tools.config import read_yaml  # imports NumPy

    content = read_yaml(as_path("config", path))
    if not isinstance(content, Mapping | None):
        raise TypeError(f"Expected {path} to hold settings by name, found {type(content).__name__}.")
    return dict(content or {})


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """Settings of two files, of which the second counts where both have a key."""
    found = deepcopy(dict(first))
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else deepcopy(value)
    return found


def changed(settings: Mapping[str, Any], key: tuple[str, ...], value: Any) -> Tree:
    """Settings with one value exchanged; sections that are not there are made."""
    for part in reversed(key):
        value = {part: value}
    return merged(settings, value)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Tree:
    """Values by dotted keys; lists and empty sections are values."""
    found: Tree = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _value(name: str, text: str) -> Any:
    """A value as a file would have it."""
    from scgpt_tools.config import yaml_value  # imports NumPy

    try:
        return yaml_value(text)
    except yaml.YAMLError:
        raise ValueError(f"Expected the value of --{name} in the words of YAML, found {text!r}.") from None
