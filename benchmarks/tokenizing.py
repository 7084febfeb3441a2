"""How fast are cells tokenized?  Ours, the same rule as a plain NumPy loop, and scGPT's own collator.

    python benchmarks/tokenizing.py cells.h5ad --layer counts --peer /path/to/scGPT

``--peer`` is a checkout of the original, whose ``scgpt/data_collator.py`` is run as it is on examples made as its
``embed_data`` makes them.  All three turn the same cells into batches of the same size in one process, in turns; the
median counts.  Before that, ours is checked: equal to the loop token for token, and within the tied bins of the
original, which draws them at random.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch

from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.orders import sample
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.values import bin_row
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import scipy.sparse as sp

    Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Job:
    """The cells, and three ways to make batches of them."""

    def __init__(self, X: sp.csr_matrix, features: FeatureTable, keys: np.ndarray, vocabulary: Vocabulary, args):
        self.X, self.features, self.keys, self.vocabulary = X, features, keys, vocabulary
        self.starts = range(0, X.shape[0], args.batch_size)
        self.batch_size, self.length = args.batch_size, args.length
        self.tokenizer = Tokenizer(TokenizerConfig(length=args.length), vocabulary)
        self.token_of = np.full(features.n_columns, -1)
        self.token_of[features.columns] = features.ids

    def ours(self) -> Batches:
        for start in self.starts:
            rows = np.arange(start, min(start + self.batch_size, self.X.shape[0]))
            batch = self.tokenizer(self.X, self.features, self.keys, rows=rows)
            yield batch.genes, batch.values

    def loop(self) -> Batches:
        for start in self.starts:
            cells = [self._cell(row) for row in range(start, min(start + self.batch_size, self.X.shape[0]))]
            width = max(len(ids) for ids, _ in cells)
            genes = np.full((len(cells), width), self.vocabulary.pad_id)
            values = np.full((len(cells), width), -2, dtype=np.float32)
            for place, (ids, bins) in enumerate(cells):
                genes[place, : len(ids)], values[place, : len(ids)] = ids, bins
            yield torch.from_numpy(genes), torch.from_numpy(values)

    def _cell(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.X.indptr[row], self.X.indptr[row + 1])
        ids, values = self.token_of[self.X.indices[part]], self.X.data[part]
        ids, values = ids[ids >= 0], values[ids >= 0]
        bins = bin_row(values, 51)
        if len(ids) > self.length - 1:
            kept = sample(0, int(self.keys[row]), ids, self.length - 1)
            ids, bins = ids[kept], bins[kept]
        return np.insert(ids, 0, self.vocabulary.cls_id), np.insert(bins, 0, -2)

    def peer(self, collator) -> Batches:
        """Examples and batches as the original makes them, from a matrix that is dense already."""
        for start in self.starts:
            dense = self.dense[start : start + self.batch_size]
            batch = collator([self._example(row) for row in dense])
            yield batch["gene"], batch["expr"]

    def _example(self, row: np.ndarray) -> dict[str, torch.Tensor]:
        places = np.nonzero(row)[0]
        genes = np.insert(self.features.ids[places], 0, self.vocabulary.cls_id)
        values = np.insert(row[places], 0, -2)
        return {"genes": torch.from_numpy(genes).long(), "expressions": torch.from_numpy(values).float()}


def load_collator(folder: Path) -> type:
    """The original's class, without its package's start-up."""
    package = ModuleType("scgpt")
    package.__path__ = [str(folder / "scgpt")]
    package.logger = logging.getLogger("scgpt")
    sys.modules["scgpt"] = package
    from scgpt.data_collator import DataCollator

    return DataCollator


def check_loop(job: Job) -> None:
    for (genes, values), (genes_too, values_too) in zip(job.ours(), job.loop(), strict=True):
        assert torch.equal(genes, genes_too)
        assert torch.equal(values, values_too)


def check_peer(job: Job, peer: Callable[[], Batches]) -> None:
    """The same genes where nothing is drawn, and bins that no cell of ours is below: ``left`` is the last of ties."""
    for (genes, values), (genes_too, values_too) in zip(job.ours(), peer(), strict=True):
        short = (genes == genes_too).all(dim=1)
        long = genes[:, -1] != job.vocabulary.pad_id
        assert (short | long).all()
        assert (values_too[short] <= values[short]).all()


def seconds(run: Callable[[], Batches]) -> float:
    start = time.perf_counter()
    for _ in run():
        pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--layer")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--length", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    adata = ad.read_h5ad(args.cells)
    vocabulary = Vocabulary(adata.var_names).with_specials()
    source = RowSource(adata, layer=args.layer)
    features = FeatureTable.from_var(adata.var, vocabulary)
    job = Job(source.take(np.arange(len(source))), features, source.keys, vocabulary, args)
    expressed = job.tokenizer.lengths(job.X, features)
    print(f"{len(source)} cells, {expressed.mean():.0f} tokens a cell, at most {args.length}, one thread")

    runs = {"ours": job.ours, "NumPy loop": job.loop}
    check_loop(job)
    if args.peer:
        job.dense = job.X.toarray()[:, features.columns]
        collator = load_collator(args.peer)(
            pad_token_id=vocabulary.pad_id, pad_value=-2, do_mlm=False, max_length=args.length
        )
        runs["scGPT"] = lambda: job.peer(collator)
        check_peer(job, runs["scGPT"])
    times = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    rates = {name: len(source) / np.median(found) for name, found in times.items()}
    for name, rate in rates.items():
        print(f"{name:12} {rate:10,.0f} cells/s {rates['ours'] / rate:8.1f} x")


if __name__ == "__main__":
    main()
