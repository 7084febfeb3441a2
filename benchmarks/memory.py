"""Peak memory of embedding 2,000 and 200,000 cells from one file on disk.

    python benchmarks/memory.py FOLDER [--cells 2000 200000] [--expressed 50]

Writes a synthetic table of short cells to the folder in pieces, embeds it with the demo model, each size and each way in
a process of its own, and prints the peak resident memory of that process (Linux only).  `tl.embed` keeps its result and the names of
cells in memory, `tl.embed_store` neither.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

import scgpt_tools as sct

PIECE = 10_000
WAYS = ("embed", "embed_store")


def write_cells(path: Path, n: int, genes: list[str], expressed: int) -> None:
    """An h5ad of random counts, never more than a piece of it in memory."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", pd.DataFrame(index=[f"cell{number}" for number in range(n)]))
        write_elem(file, "var", pd.DataFrame(index=genes))
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n, len(genes))})
        X["indptr"] = np.arange(n + 1, dtype=np.int64) * expressed
        chunks = (min(2**18, n * expressed),)
        data = X.create_dataset("data", (n * expressed,), "float32", chunks=chunks, compression="gzip")
        indices = X.create_dataset("indices", (n * expressed,), "int32", chunks=chunks, compression="gzip")
        for start in range(0, n, PIECE):
            size = min(PIECE, n - start)
            part = slice(start * expressed, (start + size) * expressed)
            data[part] = rng.geometric(0.5, size * expressed)
            # One gene of each of as many stretches: distinct and in order.
            stretch = len(genes) // expressed
            indices[part] = (np.arange(expressed) * stretch + rng.integers(0, stretch, (size, expressed))).ravel()


def embed(path: Path, way: str) -> None:
    """Embed one file in this process and print its peak."""
    # Compiling and loading first, so that the peaks differ by what the cells need.
    model = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    start = time.perf_counter()
    if way == "embed":
        import anndata

        adata = anndata.read_h5ad(path, backed="r")
        sct.tl.embed(adata, model, show_progress=False)
        n = adata.n_obs
    else:
        output = path.with_suffix(f".{time.time_ns()}.zarr")
        sct.tl.embed_store(path, output, model, rank=0, processes=1, show_progress=False)
        import zarr

        n = zarr.open_group(output, mode="r")["obsm/X_scGPT"].shape[0]
    seconds = time.perf_counter() - start
    of_result = n * model.dim * 4 / 2**20
    print(f"{way:12} {n:>9,} {peak():>10,.0f} {of_result:>10,.0f} {n / seconds:>10,.0f}", flush=True)


def peak() -> float:
    """Peak resident memory of this program in MiB; what `getrusage` says includes that of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="scratch; a folder that exists")
    parser.add_argument("--cells", type=int, nargs="+", default=[2_000, 200_000])
    parser.add_argument("--expressed", type=int, default=50, help="genes of each cell")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        embed(arguments.one, arguments.ways[0])
        return
    vocabulary = sct.CellModel.from_pretrained("scgpt-demo", device="cpu").vocabulary
    genes = [token for token in vocabulary.tokens if not token.startswith("<")]
    print(f"{'':12} {'cells':>9} {'peak/MiB':>10} {'result/MiB':>10} {'cells/s':>10}", flush=True)
    for n in arguments.cells:
        path = arguments.folder / f"cells{n}.h5ad"
        if not path.exists():
            write_cells(path, n, genes, arguments.expressed)
        for way in arguments.ways:
            words = [sys.executable, __file__, str(arguments.folder), "--one", str(path), "--ways", way]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
