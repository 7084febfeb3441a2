"""Threads that compute cells: order, modes, settings of torch, errors, processes that are forked."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

from scgpt_tools import _threads as threads
from scgpt_tools._threads import (
    in_threads,
    in_training,
    patient_products,
    set_threads_here,
    training_threads,
    usable_threads,
)


@pytest.fixture(autouse=True)
def torch_with_two_threads(monkeypatch):
    before, usual = torch.get_num_threads(), in_new_thread(torch.get_num_threads)
    monkeypatch.setattr(threads, "usable_cpus", lambda **_: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    in_new_thread(torch.set_num_threads, usual)


def in_new_thread(function, *args):
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*args)))
    thread.start()
    thread.join()
    return found[0]


def here(_: object) -> tuple[str, int]:
    time.sleep(0.002)
    return threading.current_thread().name, torch.get_num_threads()


def test_items_are_shared_out_with_one_thread_inside_each():
    with torch.no_grad(), in_threads() as run:
        found = list(run(here, range(40)))
    assert len({name for name, _ in found}) == 2
    assert {inside for _, inside in found} == {1}


def test_results_come_in_the_order_of_the_items():
    def late(number: int) -> int:
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number

    with torch.no_grad(), in_threads() as run:
        assert list(run(late, range(30))) == list(range(30))


def test_few_items_are_taken_ahead():
    taken = []
    items = (taken.append(number) or number for number in range(1000))
    with torch.no_grad(), in_threads() as run:
        assert next(run(lambda number: number, items)) == 0
    assert len(taken) <= 2 * threads._AHEAD


@pytest.mark.parametrize("fails", [False, True])
def test_settings_of_torch_stay_as_they_were(fails):
    in_new_thread(torch.set_num_threads, 5)

    def compute(number: int) -> int:
        if fails and number == 3:
            raise KeyError(number)
        return number

    def walk():
        with torch.no_grad(), in_threads() as run:
            assert torch.get_num_threads() == 2
            return list(run(compute, range(10)))

    if fails:
        with pytest.raises(KeyError, match="3"):
            walk()
    else:
        assert walk() == list(range(10))
    assert torch.get_num_threads() == 2
    assert in_new_thread(torch.get_num_threads) == 5


def test_what_waits_is_dropped_after_an_error():
    done = []

    def compute(number: int) -> None:
        if number == 0:
            raise KeyError(number)
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(KeyError), torch.no_grad(), in_threads() as run:
        list(run(compute, range(1000)))
    assert len(done) <= 2 * threads._AHEAD


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_modes_are_those_of_the_caller(dtype, guard):
    def modes(_: object) -> tuple[object, ...]:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    with guard(), torch.autocast("cpu", dtype=dtype), in_threads() as run:
        assert set(run(modes, range(8))) == {modes(None)}
    with guard(), in_threads() as run:
        assert {found[2] for found in run(modes, range(8))} == {False}


@pytest.mark.parametrize("fails", [False, True])
def test_parts_of_a_step_of_training(fails):
    def compute(number: int) -> tuple[object, ...]:
        if fails and number == 3:
            raise KeyError(number)
        return (
            number,
            *here(number),
            torch.is_autocast_enabled("cpu"),
            (torch.ones(1, requires_grad=True) * 2).requires_grad,
        )

    assert in_training() is None
    try:
        with training_threads():
            run = in_training()
            with torch.autocast("cpu", torch.bfloat16):
                found = list(run(compute, range(12)))
            outside = list(run(compute, range(12)))
            assert torch.get_num_threads() == 2
    except KeyError as error:
        assert fails, error
    else:
        assert not fails
        numbers, names, inside, lowered, gradients = (set(each) for each in zip(*found, strict=True))
        assert [each[0] for each in found] == list(range(12)) == sorted(numbers)
        assert (len(names), inside, lowered, gradients) == (2, {1}, {True}, {True})
        assert {each[3] for each in outside} == {False}
    assert in_training() is None
    assert torch.get_num_threads() == 2


def test_one_thread_trains_where_it_is():
    torch.set_num_threads(1)
    with training_threads():
        assert list(in_training()(here, range(2))) == [here(0)] * 2


@pytest.mark.parametrize("reason", ["one thread", "gradients", "not divisible"])
def test_there_are_reasons_to_stay_in_one_thread(reason):
    if reason == "one thread":
        torch.set_num_threads(1)
    with torch.set_grad_enabled(reason == "gradients"), in_threads(several=reason != "not divisible") as run:
        assert {name for name, _ in run(here, range(4))} == {threading.current_thread().name}


def test_there_are_no_more_threads_than_processors(monkeypatch):
    torch.set_num_threads(8)
    monkeypatch.setattr(threads, "usable_cpus", lambda **_: 3)
    assert usable_threads() == 3
    with torch.no_grad(), in_threads() as run:
        found = list(run(here, range(60)))
    assert len({name for name, _ in found}) == 3
    monkeypatch.setattr(threads, "usable_cpus", lambda **_: 1)
    with torch.no_grad(), in_threads() as run:
        assert {inside for _, inside in run(here, range(8))} == {1}
    assert torch.get_num_threads() == 8


def test_several_callers_have_threads_of_their_own():
    found = {}

    def walk(caller: int) -> None:
        with torch.no_grad(), in_threads() as run:
            found[caller] = list(run(lambda number: (caller, number), range(50)))

    callers = [threading.Thread(target=walk, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {caller: [(caller, number) for number in range(50)] for caller in range(4)}


def test_a_number_is_set_for_one_thread_alone():
    def work() -> tuple[int, int]:
        set_threads_here(3)
        return torch.get_num_threads(), in_new_thread(torch.get_num_threads)

    usual = in_new_thread(torch.get_num_threads)
    assert in_new_thread(work) == (3, usual)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("processors", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_patience_ends(monkeypatch, processors, fails):
    monkeypatch.setattr(threads, "usable_cpus", lambda **_: processors)
    usual, running = in_new_thread(torch.get_num_threads), threading.active_count()
    try:
        with patient_products():
            assert torch.get_num_threads() == processors
            assert in_new_thread(torch.get_num_threads) == usual
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.get_num_threads() == 2
    assert in_new_thread(torch.get_num_threads) == usual
    assert threading.active_count() == running


CHILD = """
import os, signal, sys, warnings
import numpy as np, pandas as pd, anndata as ad, torch
import scgpt_tools as sct

warnings.filterwarnings("ignore")
torch.set_num_threads(2)
model = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
genes = [name for name in model.vocabulary.tokens if not name.startswith("<")][:300]
counts = np.random.default_rng(0).poisson(2.0, size=(24, 300)).astype(np.float32)
cells = ad.AnnData(counts, var=pd.DataFrame(index=genes))
sct.tl.embed(cells, model, show_progress=False)
before = cells.obsm.pop("X_scGPT")
torch.ones(2**22).sum()  # by two threads, of which the child has one
child = os.fork()
if child == 0:
    signal.alarm(60)
    again = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    sct.tl.embed(cells, again, show_progress=False)
    same = np.array_equal(cells.obsm["X_scGPT"], before) and float(torch.ones(2**22).sum()) == 2**22
    os._exit(0 if same else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("child", code, "threads", torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(threads.os, "fork"), reason="a system without fork")
def test_a_forked_process_computes_too():
    """Its parent has shared products among threads, which the child has not; it would wait for them without end."""
    found = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert found.stdout == "child 0 threads 2\n", found.stderr


def test_a_device_computes_for_one_thread_while_another_prepares():
    torch.set_num_threads(1)
    both = threading.Barrier(2)
    with torch.no_grad(), in_threads(device=torch.device("cuda")) as run:
        assert len(set(run(lambda _: both.wait(timeout=60), range(2)))) == 2
