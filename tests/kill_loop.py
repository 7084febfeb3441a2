"""Save again and again, be killed or run out of disk, and look at what is left.  Run as a program, so that a kill hurts nobody.

``python kill_loop.py KIND KILLS FOLDER`` prints how often the folder held the older content and how often the newer one
after a kill, and exits with an error if it ever held anything else.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tools import scGPTConfig, scGPTModel, settings
from scgpt_tools.models import CellModel
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.models.reference import ReferenceIndex
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

GENES = [f"G{i}" for i in range(200)]


def model(number: int) -> CellModel:
    """One of many models of one shape, with other weights, other places of genes and another class."""
    torch.manual_seed(number)
    genes = GENES[number:] + GENES[:number]
    vocabulary = Vocabulary(["<pad>", "<cls>", "<eoc>", *genes])
    return CellModel(scgpt(vocabulary, dim=32, layers=2, heads=2, hidden=32), vocabulary)


def wrapper(number: int) -> scGPTModel:
    torch.manual_seed(number)
    config = scGPTConfig(d_model=32, nhead=2, d_hid=32, nlayers=1)
    return scGPTModel(config, gene_list=[f"{name}-{number}" for name in GENES], device="cpu")


def index(number: int) -> ReferenceIndex:
    rng = np.random.default_rng(number)
    return ReferenceIndex(rng.normal(size=(500, 16)).astype(np.float32), rng.integers(0, 2, 500), (f"{number}", "T"))


def identity(index: ReferenceIndex) -> str:
    return f"{index.classes}{float(index.vectors.sum()):.6f}{int(index.codes.sum())}"


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any, Path], object], Callable[[Path], str], Callable[[Any], str]]] = {
    "save": (
        model,
        CellModel.save,
        lambda folder: CellModel.from_pretrained(folder, device="cpu").checksum,
        lambda made: made.checksum,
    ),
    "export": (
        model,
        CellModel.export,
        lambda folder: CellModel.from_pretrained(folder, device="cpu").checksum,
        lambda made: made.checksum,
    ),
    "wrapper": (
        wrapper,
        scGPTModel.save,
        lambda folder: scGPTModel.from_pretrained(folder, device="cpu").cell_model.checksum,
        lambda made: made.cell_model.checksum,
    ),
    "index": (index, ReferenceIndex.save, lambda folder: identity(ReferenceIndex.load(folder)), identity),
}  # fmt: skip


def child(work: Callable[[], object]) -> int:
    """Do something in another process; returns its number."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    finally:
        os._exit(0)


def forever(save: Callable[[Any, Path], object], made: list[Any], folder: Path) -> None:
    while True:
        for one in made:
            save(one, folder)


def kill(kind: str, kills: int, folder: Path, *, together: int = 1) -> Counter[str]:
    """Kill processes that save two contents in turn, and read after each kill."""
    make, save, read, name = KINDS[kind]
    made = [make(number) for number in range(1, 3)]
    names = {name(one): f"content {number}" for number, one in enumerate(made)}
    save(made[0], folder)
    found: Counter[str] = Counter()
    rng = random.Random(0)
    for _ in range(kills):
        processes = [child(partial(forever, save, made, folder)) for _ in range(together)]
        time.sleep(rng.uniform(0.01, 0.4))
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        found[names.get(read(folder), "mixed")] += 1
    save(made[0], folder)
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    if left:
        raise SystemExit(f"left behind: {left}")
    return found


def stop(kind: str, folder: Path) -> Counter[str]:
    """Be killed before the first call of the system that changes a folder, before the second, and so on to the last."""
    make, save, read, name = KINDS[kind]
    old, new = make(1), make(2)
    found: Counter[str] = Counter()

    def save_until(step: int) -> None:
        calls = iter(range(step))

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: object, **options: object) -> object:
                if next(calls, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return counted

        for each in ("mkdir", "chmod", "fsync", "rename", "replace", "unlink", "rmdir"):
            setattr(os, each, dying(getattr(os, each)))
        save(new, folder)

    for step in range(1000):
        save(old, folder)
        _, status = os.waitpid(child(partial(save_until, step)), 0)
        found[{name(old): "old", name(new): "new"}.get(read(folder), "mixed")] += 1
        if not os.WIFSIGNALED(status):
            break
    if not found["old"] or not found["new"]:
        raise SystemExit(f"never {'old' if found['new'] else 'new'}")
    return found


def fill(kind: str, tries: int, folder: Path) -> Counter[str]:
    """Save where files may only have so many bytes, which is what a full disk is like, and read after each try."""
    make, save, read, name = KINDS[kind]
    old, new = make(1), make(2)
    save(old, folder)
    largest = max(path.stat().st_size for path in folder.iterdir())
    found: Counter[str] = Counter()

    def with_little_space(most: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            save(new, folder)
        except OSError as error:
            (folder.parent / "error").write_text(str(error))

    for step in range(tries):
        os.waitpid(child(partial(with_little_space, largest - 1 - (largest - 1) * step // tries)), 0)
        if not (folder.parent / "error").exists():
            raise SystemExit("no error")
        (folder.parent / "error").unlink()
        found["old" if read(folder) == name(old) else "mixed"] += 1
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings.show_progress = False
    kind, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    killed = kill(kind, number, folder / "killed")
    together = kill(kind, number, folder / "together", together=3)
    stopped = stop(kind, folder / "stopped")
    full = fill(kind, number, folder / "full")
    print(
        f"{kind}: killed at each step {dict(stopped)}, at random {dict(killed)}, three at once {dict(together)}, full disk {dict(full)}"
    )
    sys.exit("mixed" in stopped | killed | together | full)
