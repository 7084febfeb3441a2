"""How long an in-silico screen takes and how much memory it needs, when it is killed on the way and started again.

    python benchmarks/screen.py CELLS.h5ad [--perturbations 100] [--controls 300] [--genes 2000] [--precision fp32]

A generator of the size of scgpt-demo with untrained flags and head predicts the genes that most cells express.  The first
process is killed with SIGKILL after a quarter of the perturbations; the second one goes on from the store.  Finished
perturbations must stay as they are.
"""

from __future__ import annotations

import argparse
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import torch

import scgpt_tools as sct
from scgpt_tools.train.starting import perturbation_model


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Write a generator and controls that it knows every gene of."""
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    cells = ad.read_h5ad(arguments.data)
    cells = cells[: 2 * arguments.controls, [name in base.vocabulary for name in cells.var_names]].copy()
    expressed = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    cells = cells[:, np.sort(np.argsort(-expressed, kind="stable")[: arguments.genes])].copy()
    cells.write_h5ad(folder / "cells.h5ad")
    torch.manual_seed(0)
    perturbation_model(base).save(folder / "generator")


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Screen, as a process of its own."""
    torch.set_num_threads(1)
    cells = ad.read_h5ad(folder / "cells.h5ad")
    names = cells.var_names[:: max(1, cells.n_vars // arguments.perturbations)][: arguments.perturbations]
    sct.tl.screen(
        cells,
        list(names),
        folder / "generator",
        condition_key=None,
        n_controls=arguments.controls,
        store=folder / "store",
        device="cpu",
        precision=arguments.precision,
        attention="varlen",
        show_progress=False,
    )
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--perturbations", type=int, default=100)
    parser.add_argument("--controls", type=int, default=300)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        run(arguments, arguments.worker)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments, folder)
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        start = time.perf_counter()
        first = subprocess.Popen(command)
        while len(finished(folder)) < arguments.perturbations // 4 and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = finished(folder)
        print(f"killed after {len(before)} perturbations and {time.perf_counter() - start:.0f} s", flush=True)
        subprocess.run(command, check=True)
        after = finished(folder)
        if {name: after[name] for name in before} != before:
            raise SystemExit("Finished perturbations were computed again.")
        print(f"{len(after)} perturbations after {time.perf_counter() - start:.0f} s in all")


def finished(folder: Path) -> dict[str, int]:
    """Finished perturbations, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "store").glob("*.f4")}


if __name__ == "__main__":
    main()
