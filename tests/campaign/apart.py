"""Another process for what could end this one."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from campaign.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 300
"""More than starting a process takes on a busy machine."""


class Apart:
    """A process that is started again when it ends."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, judged: Callable[..., Verdict], *arguments: Any) -> Verdict:
        """The verdict of a function there."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        try:
            return self.pool.submit(judged, *arguments).result(timeout=SECONDS)
        except BrokenProcessPool:
            self.close()
            return Verdict(Outcome.CRASHED, "the process ended")

    def close(self) -> None:
        """End the process."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None
