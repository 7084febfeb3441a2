"""How a command speaks: what is logged, warnings and progress to standard error, tables to standard output."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def messages(*, quiet: bool) -> Iterator[None]:
    """Send what is logged and warned to standard error, one line each; progress only to a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    package = logging.getLogger("scgpt_tools")
    package.addHandler(handler)
    level = "warning" if quiet else "hint"
    progress = settings.show_progress and not quiet and sys.stderr.isatty()
    try:
        with warnings.catch_warnings(), settings.override(show_progress=progress, verbosity=level):
            if not sys.warnoptions:
                # What other packages will change in the future is not for users of a command.
                warnings.simplefilter("ignore", FutureWarning)
            warnings.showwarning = _show_warning
            yield
    finally:
        package.removeHandler(handler)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM, which schedulers send when time is up, end the command as an error does: nothing half is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(message: object) -> str:
    """A message, or an exception's, without line breaks."""
    # A KeyError quotes its message as if it were a key.
    text = message.args[0] if isinstance(message, KeyError) and message.args else message
    return " ".join(str(text).split())


def print_rows(rows: Sequence[Sequence[object]]) -> None:
    """Print a table with aligned columns."""
    widths = [max(len(str(value)) for value in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{value!s:{width}}" for value, width in zip(row, widths, strict=True)).rstrip())
