"""What one process of a run finds out for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from scgpt_tools.data.epochs import this_process

if TYPE_CHECKING:
    from collections.abc import Callable

Found = TypeVar("Found")


def by_first_process(find: Callable[[], Found]) -> Found:
    """What ``find`` returns in the first process, or raises there, in every process that trains together.

    Both must be possible to pickle.
    """
    rank, processes = this_process()
    if processes == 1:
        return find()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = find()
        except Exception as error:  # noqa: BLE001 - the others wait for an answer, whatever it is
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    found, failure = outcome
    if failure is not None:
        raise failure
    return found
