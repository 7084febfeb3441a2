"""Cells/s and memory of minibatches from disk: this package's reader beside annbatch's and scDataset's.

    python benchmarks/loaders.py [--cells 20000] [--expressed 1000] [--only NAME ...]

Synthetic counts in an h5ad file and in a sharded zarr folder as annbatch writes it.  Every arm gives minibatches of 64 cells
as CSR, in an order that shuffles runs of neighbours and then the cells of 64 runs; an epoch, in a process of its own, with
the file in the cache of the system.  Our order is that of ``sampling="blocks"``; annbatch also reads that order, as a reader of
ours would.  "tokens" adds what training adds.  annbatch needs Python 3.12; arms whose package is absent are left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgpt_tools.data.epochs import block_shuffled, in_batches
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.stores import open_table
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

GENES, BATCH, RUN, RUNS = 20_000, 64, 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--expressed", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(ARMS))
    parser.add_argument("--here", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        measure(arguments.here, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.cells, arguments.expressed)
        for name in arguments.only:
            if all(find_spec(package) for package in ARMS[name][2]):
                subprocess.run([sys.executable, *sys.argv, "--here", name, "--folder", folder], check=True)
            else:
                print(f"{name:32} left out: {', '.join(ARMS[name][2])} is not installed", flush=True)


def write(folder: Path, n_cells: int, n_expressed: int) -> None:
    rng = np.random.default_rng(0)
    genes = np.sort(rng.integers(0, GENES, (n_cells, n_expressed)), axis=1)
    values = rng.poisson(1.0, genes.shape).astype(np.float32) + 1
    pointers = np.arange(0, genes.size + 1, n_expressed)
    X = sp.csr_matrix((values.ravel(), genes.ravel(), pointers), shape=(n_cells, GENES))
    X.sum_duplicates()
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(n_cells)])
    cells = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{number}" for number in range(GENES)]))
    cells.write_h5ad(folder / "cells.h5ad")
    if find_spec("annbatch"):
        import annbatch
        import zarr

        annbatch.write_sharded(zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=3), cells)
    print(f"{n_cells:,} cells, {X.nnz / n_cells:.0f} of {GENES:,} genes expressed", flush=True)


def measure(name: str, folder: Path) -> None:
    warnings.filterwarnings("ignore")
    make, file, _ = ARMS[name]
    with open_table(folder / file) as table:
        next(make(table))  # compiled loops, and the file in the cache
        before = peak()
        start, processor = time.perf_counter(), time.process_time()
        n_cells = sum(make(table))
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    assert n_cells == table.n_obs, n_cells
    print(
        f"{name:32} {n_cells / seconds:8.0f} cells/s, {n_cells / processor:8.0f} a second of processor, peak {peak():6.0f} MB, "
        f"{before:6.0f} MB of these before",
        flush=True,
    )


def peak() -> float:
    # Of this program alone; what `resource` says counts the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def order(n_cells: int) -> list[np.ndarray]:
    """Minibatches of an epoch, as those of ``sampling="blocks"``."""
    cells = np.arange(n_cells)
    return in_batches(block_shuffled(cells, np.random.default_rng(0), block=RUN, blocks=RUNS), BATCH)


def chunks(n_cells: int) -> Iterator[list[np.ndarray]]:
    """Minibatches that are read together."""
    batches, together = order(n_cells), RUN * RUNS // BATCH
    for start in range(0, len(batches), together):
        yield batches[start : start + together]


def ours(table: ad.AnnData) -> Iterator[int]:
    source = RowSource(table)
    for some in chunks(len(source)):
        rows = np.sort(np.concatenate(some))
        X = source.take(rows)
        for batch in some:
            yield X[np.searchsorted(rows, batch)].shape[0]


def ours_with_tokens(table: ad.AnnData) -> Iterator[int]:
    vocabulary = Vocabulary.from_genes(table.var_names)
    features = FeatureTable.from_var(table.var, vocabulary)
    data = CellDataModule(
        [CellTable(RowSource(table), features)], Tokenizer(TokenizerConfig(), vocabulary), sampling="blocks"
    )
    for batch in data.loader("train", batch_size=BATCH):
        yield len(batch)


def annbatch_own(table: ad.AnnData) -> Iterator[int]:
    from annbatch import Loader

    loader = Loader(batch_size=BATCH, chunk_size=RUN, preload_nchunks=RUNS, shuffle=True, rng=np.random.default_rng(0))
    for found in loader.add_datasets([table.X]):
        yield found["X"].shape[0]


def annbatch_in_our_order(table: ad.AnnData) -> Iterator[int]:
    from annbatch import Loader
    from annbatch.abc import Sampler

    class Ours(Sampler):
        batch_size, shuffle = BATCH, False

        def n_batches(self, n_obs: int) -> int:
            return len(order(n_obs))

        def validate(self, n_obs: int) -> None:
            """Anything goes."""

        def _sample(self, n_obs: int) -> Iterator[Any]:
            for some in chunks(n_obs):
                rows = np.sort(np.concatenate(some))
                yield {"requests": rows, "splits": [np.searchsorted(rows, batch) for batch in some]}

    for found in Loader(batch_sampler=Ours()).add_datasets([table.X]):
        yield found["X"].shape[0]


def scdataset_own(table: ad.AnnData) -> Iterator[int]:
    from scdataset import BlockShuffling, scDataset

    class Matrix:
        def __len__(self) -> int:
            return table.n_obs

        def __getitem__(self, rows: Any) -> Any:
            return table.X[rows]

    data = scDataset(
        Matrix(),
        BlockShuffling(RUN),
        batch_size=BATCH,
        fetch_factor=RUN * RUNS // BATCH,
        batch_callback=lambda fetched, rows: fetched[rows],
        seed=0,
    )
    for found in data:
        yield found.shape[0]


ARMS = {
    "ours, h5ad": (ours, "cells.h5ad", ()),
    "ours, sharded zarr": (ours, "cells.zarr", ("annbatch",)),
    "ours with tokens, h5ad": (ours_with_tokens, "cells.h5ad", ()),
    "ours with tokens, sharded zarr": (ours_with_tokens, "cells.zarr", ("annbatch",)),
    "annbatch, sharded zarr": (annbatch_own, "cells.zarr", ("annbatch",)),
    "annbatch in our order": (annbatch_in_our_order, "cells.zarr", ("annbatch",)),
    "scDataset, h5ad": (scdataset_own, "cells.h5ad", ("scdataset",)),
}


if __name__ == "__main__":
    main()
