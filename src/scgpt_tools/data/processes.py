"""Which process of how many this one is, whoever has started them.

Work that is cut into parts beforehand needs no more than these two numbers: processes that never talk cannot wait for
one that has died.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from scgpt_tools._validate import check_integer
from scgpt_tools.data.epochs import this_process
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

# Number of the process and number of processes.  Of SLURM those of a step, which `srun` alone sets: the script of a job
# sees the number of the job's tasks as well, but runs once.
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
_ON_THIS_MACHINE = ("LOCAL_RANK", "SLURM_LOCALID")


def launched(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Count the processes that a launcher has started.

    ``environment``: variables to look at; ``None`` takes those of this process.  Returns number of this process and how
    many there are: of the process group if there is one (as in Lightning's Fabric), else as ``torchrun`` or ``srun``
    say, else 0 and 1.
    """
    variables = os.environ if environment is None else environment
    if environment is None and this_process()[1] > 1:
        return this_process()
    for rank, processes in _LAUNCHERS:
        if rank in variables and processes in variables:
            return check_process(_number(variables, rank), _number(variables, processes))
    return 0, 1


def launched_here() -> int:
    """How many processes ``torchrun`` has started on this machine; 1 where it has not."""
    return _number(os.environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else 1


def check_process(rank: int | None, processes: int | None) -> tuple[int, int]:
    """Number of a process and how many there are; ``None`` for both asks the launcher."""
    if rank is None and processes is None:
        return launched()
    if rank is None or processes is None:
        raise ValueError(f"Expected `rank` and `processes` together, found {rank=} and {processes=}.")
    check_integer("processes", processes)
    if check_integer("rank", rank, least=0) >= processes:
        raise ValueError(f"Expected `rank` to be below `processes`, {processes}, for it counts from 0; found {rank}.")
    return rank, processes


def device_of_process(device: str | torch.device | None = None) -> str | torch.device | None:
    """Device of this process: the processes of a machine take its GPUs in turn.

    ``device``: what the user asked for; anything but ``None``, ``"auto"`` and ``"cuda"`` is taken as it is.  Returns a
    device, or ``None`` where there is nothing to share out.
    """
    asked = str(device or settings.device)
    place = next((_number(os.environ, name) for name in _ON_THIS_MACHINE if name in os.environ), None)
    if asked not in ("auto", "cuda") or place is None or not torch.cuda.is_available():
        return device
    return f"cuda:{place % torch.cuda.device_count()}"


def _number(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError as error:
        raise ValueError(f"Expected the variable {name} to be a whole number, found {variables[name]!r}.") from error
