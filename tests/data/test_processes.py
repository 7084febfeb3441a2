"""Numbers of processes from whoever has started them, and their devices."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools import settings
from scgpt_tools.data import epochs, processes
from scgpt_tools.data.processes import check_process, device_of_process, launched

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No launcher but the one of a test, no device but what it asks for."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with settings.override(device="auto"):
        yield


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, (1, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        ({"RANK": "3"}, (0, 1)),
    ],
    ids=["nobody", "torchrun", "srun", "torchrun within srun", "the script of a job", "half of it"],
)
def test_the_launcher_says_which_process_this_is(monkeypatch, variables, expected):
    assert launched(variables) == expected
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == check_process(None, None) == expected


def test_a_process_group_is_asked_first(monkeypatch):
    monkeypatch.setattr(processes, "this_process", lambda: (1, 3))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "9")
    assert launched() == (1, 3)
    assert epochs.this_process() == (0, 1)


@pytest.mark.parametrize(
    ("rank", "number", "error", "message"),
    [
        (0, None, ValueError, "together, found rank=0 and processes=None"),
        (None, 2, ValueError, "together"),
        (2, 2, ValueError, "below `processes`, 2, for it counts from 0; found 2"),
        (-1, 2, ValueError, "`rank` to be at least 0"),
        (0, 0, ValueError, "`processes` to be at least 1"),
        (0.5, 2, TypeError, "`rank` to be a whole number"),
    ],
)
def test_processes_that_cannot_be_are_refused(rank, number, error, message):
    with pytest.raises(error, match=message):
        check_process(rank, number)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "variable RANK to be a whole number, found 'x'"),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "2"}, "below `processes`"),
    ],
)
def test_variables_that_make_no_sense_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        launched(variables)


def test_processes_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_of_process() is None, "started by nobody"
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert [device_of_process(device) for device in (None, "cuda", "auto")] == ["cuda:1"] * 3
    assert device_of_process("cuda:3") == "cuda:3"
    assert device_of_process("cpu") == "cpu"
    with settings.override(device="cpu"):
        assert device_of_process() is None


def test_without_a_gpu_there_is_nothing_to_share_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert device_of_process() is None
    assert device_of_process("cuda") == "cuda"
