"""How many processors may be used, from the files of control groups as they are in several surroundings."""

from __future__ import annotations

import os

import pytest

from scgpt_tools import _cpus
from scgpt_tools._cpus import cpu_quota, usable_cpus

V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")

CASES = {
    "a container, second version": ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    "no limit, second version": ("0::/", {"cpu.max": "max 100000"}, None),
    "a limit above": (
        "0::/pods/mine/one",
        {"pods/cpu.max": "50000 100000", "pods/mine/one/cpu.max": "max 100000"},
        0.5,
    ),
    "the smaller of two": ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
    "seen from inside": ("0::/host/path/of/it", {"cpu.max": "300000 100000"}, 3.0),
    "first version": ("3:cpuset:/\n1:cpu:/job", {f"cpu/job/{V1[0]}": "250000", f"cpu/job/{V1[1]}": "100000"}, 2.5),
    "first version, two controllers": (
        "4:cpu,cpuacct:/docker/x",
        {f"cpu,cpuacct/{V1[0]}": "100000\n", f"cpu,cpuacct/{V1[1]}": "50000\n"},
        2.0,
    ),
    "no limit, first version": ("1:cpu:/", {f"cpu/{V1[0]}": "-1", f"cpu/{V1[1]}": "100000"}, None),
    "another controller": ("5:memory:/x", {"memory/x/cpu.max": "100000 100000"}, None),
    "not a number": ("0::/", {"cpu.max": "some words"}, None),
    "an empty file": ("0::/", {"cpu.max": ""}, None),
    "no period": ("0::/", {"cpu.max": "100000"}, 1.0),
    "a period of zero": ("0::/", {"cpu.max": "100000 0"}, None),
    "no files": ("0::/", {}, None),
    "no groups": ("", {"cpu.max": "100000 100000"}, None),
    "a line of another form": ("nonsense\n0::/", {"cpu.max": "100000 100000"}, 1.0),
}


@pytest.mark.parametrize(("groups", "files", "expected"), CASES.values(), ids=CASES)
def test_quotas_are_read(tmp_path, groups, files, expected):
    mount = tmp_path / "mount"
    for name, content in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(content)
    (tmp_path / "cgroup").write_text(groups)
    assert cpu_quota(tmp_path / "cgroup", mount) == expected


def test_machines_without_control_groups_have_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "absent", tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"), [(8, None, 8), (8, 1.5, 2), (8, 0.2, 1), (2, 6.0, 2), (1, None, 1)]
)
def test_the_smaller_of_affinity_and_quota_counts(monkeypatch, affinity, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(_cpus, "cpu_quota", lambda: quota)
    assert usable_cpus() == expected
    assert usable_cpus(quota=False) == affinity


@pytest.mark.parametrize(("count", "expected"), [(4, 4), (None, 1)])
def test_systems_without_affinity_count_processors(monkeypatch, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(_cpus, "cpu_quota", lambda: None)
    assert usable_cpus() == expected
