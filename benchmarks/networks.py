"""Seconds and memory of networks of genes, each in a process of its own.

    python benchmarks/networks.py pbmc3k_annotated.h5ad [--cells 1000] [--genes 2000] [--threads 2]

Attention of so many genes in so many cells with ``scgpt-demo``; contextual embeddings of all genes by cell type; and the
graph of 20,000 genes with 512 dimensions, all pairs above a cosine and nearest neighbours.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import torch

import scgpt_tools as sct

LABELS = "cell_type_harmonised"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells_file")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(MEASURED))
    parser.add_argument("--here", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is None:
        for name in arguments.only:
            subprocess.run([sys.executable, *sys.argv, "--here", name], check=True)
        return
    warnings.filterwarnings("ignore")
    sct.settings.show_progress, sct.settings.verbosity = False, "warning"
    torch.set_num_threads(arguments.threads)
    work = MEASURED[arguments.here](arguments)
    before, start, processor = peak(), time.perf_counter(), time.process_time()
    said = work()
    seconds = time.perf_counter() - start
    print(
        f"{arguments.here:24} {seconds:7.1f} s ({time.process_time() - processor:.1f} s of processor), peak {peak():6.0f} MB, {before:6.0f} MB of these before it began; {said}",
        flush=True,
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attention(arguments: argparse.Namespace, how: str = "rank"):
    model, cells, genes = read(arguments)

    def work() -> str:
        maps = sct.tl.attention(cells, model, genes=genes, normalise=how)
        return f"{cells.n_obs} cells, {maps.n_obs} genes"

    return work


def contextual(arguments: argparse.Namespace):
    model, cells, _ = read(arguments)

    def work() -> str:
        sct.tl.embed_genes(cells, model, contextual=True, groupby=LABELS)
        return f"{cells.n_obs} cells, {cells.n_vars} genes, {cells.obs[LABELS].nunique()} groups"

    return work


def read(arguments: argparse.Namespace) -> tuple[sct.CellModel, ad.AnnData, list[str]]:
    model = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    cells = ad.read_h5ad(arguments.cells_file)[: arguments.cells].copy()
    known = cells.var_names.isin(model.vocabulary.tokens)
    order = np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel() * known, kind="stable")
    return model, cells, list(cells.var_names[order[: arguments.genes]])


def graph(n_neighbors: int | None, threshold: float):
    def prepare(arguments: argparse.Namespace):
        rng = np.random.default_rng(0)
        # As in real embeddings, genes lie about some hundred centres.
        vectors = rng.normal(size=(200, 512))[rng.integers(0, 200, 20_000)] + rng.normal(size=(20_000, 512))
        genes = ad.AnnData(var=pd.DataFrame(index=[f"G{number}" for number in range(20_000)]))
        genes.varm["vectors"] = vectors.astype(np.float32)

        def work() -> str:
            sct.tl.gene_network(genes, use_rep="vectors", n_neighbors=n_neighbors, threshold=threshold)
            return f"{genes.varp['gene_network'].nnz // 2} edges"

        return work

    return prepare


MEASURED = {
    "attention": attention,
    "attention, softmax": lambda arguments: attention(arguments, "softmax"),
    "contextual embeddings": contextual,
    "graph, 15 nearest": graph(15, 0.0),
    "graph, cosine above 0.4": graph(None, 0.4),
}


if __name__ == "__main__":
    main()
