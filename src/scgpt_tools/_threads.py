"""Threads that compute cells, each its own, with one thread inside every product.

Torch shares every product among its threads, which wait for each other at its end, and while they wait they spin.  Where
products are small and something else wants the processors, most of the time goes there: a second program makes the first
one ten times slower.  Threads with cells of their own wait for nobody.  In training they meet at the ends of
the layers (:func:`training_threads`), and what has to be shared sleeps while it waits (:func:`patient_products`).
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from scgpt_tools._cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CPU = torch.device("cpu")

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that are under way or wait, for each thread: enough for none to be idle, few enough for memory.
_AHEAD = 4

# One that waits for the device, one that prepares; each holds a minibatch there.
_BESIDE_A_DEVICE = 2

# Numbers that torch gives a thread at least when it shares a sum; it takes fewer threads for fewer.
_SHARED = 2**16

_changing = Lock()


class Run(Protocol):
    """What applies a function to items, as :class:`map` does: results come in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Apply the function."""
        ...


_trains_by: ContextVar[Run | None] = ContextVar("trains_by", default=None)


def usable_threads() -> int:
    """How many threads to compute with: as many as torch is set to, but no more than there are processors to use."""
    return min(torch.get_num_threads(), usable_cpus())


@contextmanager
def in_threads(*, several: bool = True, device: torch.device = CPU) -> Iterator[Run]:
    """Have items computed in threads, each with one thread inside its products, in the modes of the caller.

    The settings of torch in other threads stay as they are.  Results do not depend on how many threads there are.

    ``several``: whether items may be computed beside each other: without, in the thread of the caller.  So it is where
    gradients are recorded, and on a CPU where torch is set to one thread.  ``device``: where they are computed.  For a GPU
    there are two threads: while it computes for one, the other prepares what comes next.
    """
    here = device.type == "cpu"
    if not several or (here and torch.get_num_threads() == 1) or torch.is_grad_enabled():
        yield map
        return
    threads, kind = usable_threads() if here else _BESIDE_A_DEVICE, device.type
    begin = partial(_begin, kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
    guard = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    with ThreadPoolExecutor(threads, thread_name_prefix="cells", initializer=begin) as pool:
        try:
            yield partial(_run, pool, threads, guard)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(
    pool: ThreadPoolExecutor,
    threads: int,
    guard: Callable[[], Any],
    function: Callable[[Item], Result],
    items: Iterable[Item],
) -> Iterator[Result]:
    def guarded(item: Item) -> Result:
        with guard():
            return function(item)

    coming: deque[Future[Result]] = deque()
    for item in items:
        coming.append(pool.submit(guarded, item))
        if len(coming) == threads * _AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _begin(device: str, autocast: bool, dtype: torch.dtype) -> None:  # noqa: FBT001 - a mode of torch's
    """Prepare a new thread."""
    set_threads_here(1)
    _set_autocast(device, autocast, dtype)


def _set_autocast(device: str, enabled: bool, dtype: torch.dtype) -> None:  # noqa: FBT001 - a mode of torch's
    # Not by a context, at the end of which all weights in another precision would be dropped, for every thread.
    torch.set_autocast_enabled(device, enabled)
    torch.set_autocast_dtype(device, dtype)


@contextmanager
def training_threads() -> Iterator[None]:
    """Let steps of training compute parts of a minibatch beside each other, by what :func:`in_training` returns."""
    threads = usable_threads()
    if threads == 1:
        with _training_by(map):
            yield
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="cells", initializer=set_threads_here, initargs=(1,)) as pool:

        def run(function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            modes = partial(_autocast_here, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
            return _run(pool, threads, modes, function, items)

        with _training_by(run):
            yield


def in_training() -> Run | None:
    """What applies a function that records gradients to parts of a minibatch; ``None`` outside of :func:`training_threads`."""
    return _trains_by.get()


@contextmanager
def _training_by(run: Run) -> Iterator[None]:
    before = _trains_by.set(run)
    try:
        yield
    finally:
        _trains_by.reset(before)


@contextmanager
def _autocast_here(enabled: bool, dtype: torch.dtype) -> Iterator[None]:  # noqa: FBT001 - a mode of torch's
    _set_autocast("cpu", enabled, dtype)
    yield


@contextmanager
def patient_products() -> Iterator[None]:
    """Share products among no more threads than there are processors to use, which sleep when they have to wait long.

    For what cannot be divided by cells, as a step of training.  The library that shares products (OpenMP) has threads
    spin for milliseconds while they wait, but not where it has more threads than processors.  So some more are kept,
    asleep, for as long as this lasts.
    """
    before, threads = torch.get_num_threads(), usable_threads()
    if threads == 1:
        set_threads_here(1)
        try:
            yield
        finally:
            set_threads_here(before)
        return
    ready, over = Event(), Event()
    # With those that share products one more than processors.
    asleep = usable_cpus(quota=False) - threads + 2
    sleeper = Thread(target=_keep_threads, args=(asleep, ready, over), name="asleep", daemon=True)
    sleeper.start()
    ready.wait()
    set_threads_here(threads)
    try:
        yield
    finally:
        set_threads_here(before)
        over.set()
        sleeper.join()


def _keep_threads(number: int, ready: Event, over: Event) -> None:
    try:
        set_threads_here(number)
        # Large enough to be shared among all of them, which is when they are started.
        torch.zeros(number * _SHARED).add_(1)
    finally:
        ready.set()
    over.wait()


def set_threads_here(number: int) -> None:
    """Set torch's number of threads for this thread alone.

    Torch keeps the number for threads to come as well, so theirs is put back, by one of them.
    """
    with _changing:
        usual = _in_new_thread(torch.get_num_threads)
        torch.get_num_threads()  # which sets up a new thread, or it would be set up later, with the usual number
        torch.set_num_threads(number)
        _in_new_thread(torch.set_num_threads, usual)


def _in_new_thread(function: Callable[..., Result], *args: Any) -> Result:
    results: list[Result] = []
    thread = Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]


def _after_fork() -> None:
    """The threads that share products are not there in a forked process, which would wait for them without end."""
    global _changing
    _changing = Lock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
