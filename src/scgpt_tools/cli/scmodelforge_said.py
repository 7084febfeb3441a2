"""A file of scModelForge, read key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import absent
from scgpt_tools.cli.configs import flat
from scgpt_tools.cli.scmodelforge_keys import KEYS, OPEN, OTHER_COMMANDS, SECTIONS, SWITCHED, WITHOUT_EFFECT

if TYPE_CHECKING:
    from scgpt_tools.cli.configs import Tree


class Said:
    """What a file says, key by key; what nobody asks for is reported."""

    def __init__(self, command: str, settings: Mapping[str, Any]) -> None:
        self.command = command
        self.off = {name for name in SWITCHED if _at(settings, name) is None and _has(settings, name)}
        self.given = {key: value for key, value in flat_settings(settings).items() if key not in SECTIONS | {*SWITCHED}}
        for key in self.given:
            if key not in KEYS:
                raise ValueError(absent(key, KEYS, "setting of scModelForge named"))
        self.read: set[str] = set()
        self.notes: list[str] = []

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
