"""A file of scModelForge, read key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import absent
from scgpt_tools.cli.configs import flat
from scgpt_tools.cli.scmodelforge_keys import (
    KEYS,
    OPEN,
    OTHER_COMMANDS,
    SECTIONS,
    SWITCHED,
    WITHOUT_EFFECT,
)
from scgpt_tools.cli.scmodelforge_kinds import settled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgpt_tools.cli.configs import Tree


class Said:
    """What a file says, key by key; what nobody asks for is reported."""

    def __init__(self, command: str, settings: Mapping[str, Any]) -> None:
        self.command = command
        self.off = {name for name in SWITCHED if _at(settings, name) is None and _has(settings, name)}
        self.given = {key: value for key, value in flat_settings(settings).items() if not _is_empty(key, value)}
        for key, value in self.given.items():
            if key in KEYS:
                self.given[key] = settled(key, value)
            elif (inner := within(key)) and not isinstance(value, Mapping):
                off = " or null" if key in SWITCHED else ""
                raise TypeError(
                    f"Expected `{key}` to be a section{off}, with settings such as `{inner[0]}`, found {value!r}."
                )
            else:
                raise ValueError(no_key(key))
        self.read: set[str] = set()
        self.notes: list[str] = []
        self.noted: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """What the file says, or the original's default."""
        self.read.add(key)
        return self.given.get(key, KEYS[key])

    def asks(self, key: str) -> bool:
        """Whether the file has a key."""
        return key in self.given

    def has(self, section: str) -> bool:
        """Whether the file has anything of a section."""
        return any(key.startswith(f"{section}.") for key in self.given)

    def note(self, key: str, why: str) -> None:
        """Warn that a key has no effect, or another than it says."""
        self.read.add(key)
        self.noted.add(key)
        self.notes.append(f"{key}: {self.given.get(key, KEYS[key])!r} ({why})")

    def report(self) -> None:
        """Warn about keys without effect, by name."""
        from scgpt_tools._warnings import warn_user  # imports NumPy

        others = OTHER_COMMANDS.get(self.command, ())
        for key, value in self.given.items():
            if key in self.read or any(key == other or key.startswith(f"{other}.") for other in others):
                continue
            if value != KEYS[key]:
                self.note(key, WITHOUT_EFFECT.get(key, "nothing reads it beside the other settings"))
        if self.notes:
            warn_user(f"Settings of scModelForge without effect, or with another, here: {'; '.join(self.notes)}.")


def no_key(key: str, others: Iterable[str] = ()) -> str:
    """Message for a key that its files do not have: the nearest, or those of its section.

    ``others``: settings of this package that may stand beside them.
    """
    section = next((part for part in _parents(key) if within(part)), "")
    return absent(key, [*within(section), *others], "setting of scModelForge named", near=[*KEYS, *others])


def is_setting(key: str) -> bool:
    """Whether a dotted name is a key, a section, or an entry of a mapping of anything."""
    return key in KEYS or bool(within(key)) or key.startswith(tuple(f"{name}." for name in OPEN))


def within(section: str) -> list[str]:
    """Keys of a section; of none, all."""
    return [key for key in KEYS if not section or key.startswith(f"{section}.")]


def _parents(key: str) -> list[str]:
    """Sections that a key would lie in, the innermost first."""
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _is_empty(key: str, value: Any) -> bool:
    """Whether a section has nothing in it, or is switched off."""
    return (key in SECTIONS or bool(within(key))) and (value == {} or (value is None and key in SWITCHED | SECTIONS))


def flat_settings(settings: Mapping[str, Any]) -> Tree:
    """Values by dotted keys, those that are mappings of anything as wholes."""
    found: Tree = {}
    for key, value in flat(settings).items():
        whole = next((name for name in OPEN if key.startswith(f"{name}.")), None)
        if whole is None:
            found[key] = value
        else:
            found[whole] = _at(settings, whole)
    return found


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(settings: Mapping[str, Any], key: str) -> bool:
    *sections, last = key.split(".")
    value: Any = _at(settings, ".".join(sections)) if sections else settings
    return isinstance(value, Mapping) and last in value
