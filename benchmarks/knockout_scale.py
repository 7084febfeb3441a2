"""Seconds and memory of thousands of knock-outs in one call, and whether a run that was killed ends where it would have.

    python benchmarks/knockout_scale.py pbmc3k_annotated.h5ad [--genes 2000] [--cells 12] [--kill-at 0.5]

The most expressed genes that ``scgpt-demo`` knows are removed one at a time from some cells, and compared with each other.  Once without interruption;
once more with the process killed (SIGKILL) when a share of the genes is finished, and called again; and again with all of
them finished.  Each call is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch

import scgpt_tools as sct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells_file", type=Path)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--kill-at", type=float, default=0.5, help="share of the genes that are finished then")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        knock_out(arguments)
        return
    print(f"{arguments.genes:,} genes, {arguments.cells} cells", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        call("uninterrupted", whole)
        call("until it is killed", killed, kill_at=int(arguments.kill_at * arguments.genes))
        call("the rest", killed)
        call("all finished before", killed)
        results = [dict(np.load(place.with_suffix(".npz"))) for place in (whole, killed)]
        size = sum(path.stat().st_size for path in whole.iterdir())
    print(
        f"store of {size / 1e6:.1f} MB; {len(results[0]['shift']):,} rows; largest difference from the uninterrupted run:"
    )
    for name, values in results[0].items():
        difference = np.nanmax(np.abs(values - results[1][name]), initial=0.0)
        print(f"  {name:14} {difference:.1e} of {np.nanmax(np.abs(values)):.3g}")


def call(name: str, store: Path, *, kill_at: int | None = None) -> None:
    """One call in a process, what it took, and how many genes are finished after it."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *sys.argv, "--here", str(store)])
    while kill_at is not None and process.poll() is None:
        time.sleep(0.05)
        if store.is_dir() and finished(store) >= kill_at:
            process.kill()
            break
    _, _, used = os.wait4(process.pid, 0)
    print(
        f"{name:20} {time.perf_counter() - start:7.1f} s, {used.ru_utime + used.ru_stime:7.1f} s of processor, peak "
        f"{used.ru_maxrss / 1024:6.0f} MB, {finished(store):,} genes finished",
        flush=True,
    )


def finished(store: Path) -> int:
    return sum(path.suffix == ".f4" for path in store.iterdir())


def knock_out(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    sct.settings.show_progress, sct.settings.verbosity = False, "warning"
    torch.set_num_threads(arguments.threads)
    model = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    cells = ad.read_h5ad(arguments.cells_file)[: arguments.cells].copy()
    known = cells.var_names.isin(model.vocabulary.tokens)
    order = np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel() * known, kind="stable")
    genes = list(cells.var_names[order[: arguments.genes]])
    found = sct.tl.knockout(cells, model, genes=genes, min_cells=3, store=arguments.here)
    columns = {name: found.obs[name].to_numpy() for name in ("n_changed", "shift", "z_score", "p_value", "q_value")}
    np.savez(arguments.here.with_suffix(".npz"), displacement=found.obsm["displacement"], **columns)


if __name__ == "__main__":
    main()
