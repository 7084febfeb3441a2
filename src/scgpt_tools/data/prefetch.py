"""Prepare the next item while the present one is in use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Item = TypeVar("Item")

_END = object()


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate with one item made ahead in a thread.

    Reading and tokenizing release Python's lock, so they run beside the network.  An error arises where its item
    would have come.
    """
    source = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(next, source, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, source, _END)
            yield item  # type: ignore[misc]
