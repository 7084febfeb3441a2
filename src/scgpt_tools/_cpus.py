"""How many processors this process may use: of the machine, of its affinity, and of its share in a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def usable_cpus(*, quota: bool = True) -> int:
    """Count the processors that this process may use.

    ``quota``: whether to look at quotas, which are of time and leave a process on more processors.  Returns those that
    the scheduler gives it (``taskset``, SLURM), or fewer where a quota of its control groups (Docker, Kubernetes) is
    smaller, rounded up; at least 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    seen = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    share = cpu_quota() if quota else None
    return seen if share is None else max(1, min(seen, math.ceil(share)))


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """Read how many processors the control groups of this process leave it, in both versions of their files.

    Returns the smallest quota of a group and those above it; ``None`` without any.
    """
    found = []
    for line in _text(groups).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", "", ""])[:3]
        if not path.startswith("/"):
            continue
        if not controllers:
            found += [_read_v2(folder) for folder in _upwards(mount, path)]
        elif "cpu" in controllers.split(","):
            for name in ("cpu", controllers):
                found += [_read_v1(folder) for folder in _upwards(mount / name, path)]
    return min((share for share in found if share is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a group and those above it; inside of a container the mount itself is the group's."""
    own = mount / path.lstrip("/")
    return [own, *(folder for folder in own.parents if folder.is_relative_to(mount))]


def _read_v2(folder: Path) -> float | None:
    return _ratio(*(_text(folder / "cpu.max").split() or ("max", "")))


def _read_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str = "100000") -> float | None:
    """Share of time in processors; ``max``, -1 and whatever is no number stand for no limit."""
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if math.isfinite(share) and share > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
