"""Warnings that name the line of the user's code which called into the package, however deep inside they arise."""

from __future__ import annotations

import sys
import warnings
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_OURS = str(Path(__file__).parent)
_SAID: set[str] = set()


def warn_user(
    message: str, category: type[Warning] = UserWarning, *, once_about: Iterable[object] | None = None
) -> None:
    """Warn of something that the user can act on.

    ``once_about``: what the message is about, such as the names of the genes of a table; the same message about the same
    is given once in a session, for every further function that is called with it would repeat it.
    """
    about = None if once_about is None else sha256("\n".join([message, *map(str, once_about)]).encode()).hexdigest()
    if about in _SAID:
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
    # Not before: where warnings are errors, the next call has to fail too.
    if about is not None:
        _SAID.add(about)


def forget_warnings() -> None:
    """Give every message again."""
    _SAID.clear()
