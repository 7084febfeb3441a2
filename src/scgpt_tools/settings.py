"""The only global state: choices of the machine and the session, never of the science."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from tqdm.auto import tqdm

from scgpt_tools._files import as_path
from scgpt_tools._lookup import absent
from scgpt_tools._types import AttentionBackend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Item = TypeVar("Item")
Verbosity = Literal["error", "warning", "info", "hint", "debug"]

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "hint": 15, "debug": logging.DEBUG}
_PACKAGE = logging.getLogger("scgpt_tools")


class _Messages(logging.Handler):
    """Writes to standard error what no other handler hears, so that programs with a log of their own see nothing twice."""

    def emit(self, record: logging.LogRecord) -> None:
        others = [*logging.getLogger().handlers, *_PACKAGE.handlers]
        if others == [self]:
            print(self.format(record), file=sys.stderr)


@dataclass(slots=True)
class Settings:
    """Defaults that functions take where an argument is ``None``.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.settings.device = "cpu"
    >>> with sct.settings.override(show_progress=False):
    ...     sct.settings.show_progress
    False
    """

    cache_dir: Path | None = None
    """Folder for downloaded weights; ``None`` takes the cache of :mod:`huggingface_hub`."""
    show_progress: bool = True
    """Draw progress bars."""
    verbosity: Verbosity = "info"
    """Which messages are shown: ``error``, ``warning``, ``info``, ``hint`` or ``debug``, or 0 to 4, as in scanpy.  Programs
    that handle the logger ``scgpt_tools`` or all loggers themselves get the messages instead."""
    attention: AttentionBackend | None = None
    """Attention backend at inference; ``None`` takes the fastest that the device has."""
    device: str = "auto"
    """``auto`` (CUDA, else MPS, else CPU) or a name that torch knows, such as ``cuda:1``."""
    offline: bool = False
    """Use local files only."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, _checked(name, value))
        if name == "verbosity":
            _PACKAGE.setLevel(_LEVELS[self.verbosity])

    @contextmanager
    def override(self, **changes: Any) -> Iterator[Settings]:
        """Change some settings for the length of a ``with`` block.

        Parameters
        ----------
        changes
            Settings by name.
        """
        # All are checked before the first is set.
        checked = {name: _checked(name, value) for name, value in changes.items()}
        before = {name: getattr(self, name) for name in checked}
        try:
            for name, value in checked.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def progress(
        self, items: Iterable[Item], *, total: int | None = None, unit: str = "it", show: bool | None = None
    ) -> tqdm[Item]:
        """Wrap an iterable, or ``()`` for manual updates, in a progress bar.

        Parameters
        ----------
        items
            What to iterate over.
        total
            Number of steps, where the items do not know it.
        unit
            What one step is called.
        show
            ``None`` follows :attr:`show_progress`.

        Returns
        -------
        The bar, disabled where progress is not to be shown.
        """
        disable = not (self.show_progress if show is None else show)
        return tqdm(items, total=total, unit=unit, disable=disable)


_NAMES = tuple(field.name for field in fields(Settings))


def _checked(name: str, value: Any) -> Any:
    if name not in _NAMES:
        raise AttributeError(absent(name, _NAMES, "setting"))
    if name == "cache_dir":
        return None if value is None else as_path("settings.cache_dir", value)
    if name == "attention" and value not in (None, *get_args(AttentionBackend)):
        raise ValueError(
            f"Expected `settings.attention` to be None or one of {get_args(AttentionBackend)}, found {value!r}."
        )
    if name == "verbosity":
        words = get_args(Verbosity)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(words):
            return words[value]
        if value not in words:
            raise ValueError(
                f"Expected `settings.verbosity` to be one of {', '.join(map(repr, words))} or 0 to {len(words) - 1}, found "
                f"{value!r}."
            )
    if name in ("show_progress", "offline") and not isinstance(value, bool):
        raise TypeError(f"Expected `settings.{name}` to be True or False, found {value!r}.")
    if name == "device" and not isinstance(value, str):
        raise TypeError(f"Expected `settings.device` to be a name such as 'auto' or 'cuda:0', found {value!r}.")
    return value


settings = Settings()
_PACKAGE.addHandler(_Messages())
