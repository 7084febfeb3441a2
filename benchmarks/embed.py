"""How many cells per second, against scGPT's own function and others and against what the machine can do.

    python benchmarks/embed.py CHECKPOINT CELLS.h5ad [--peer FOLDER] [--helical FOLDER] [--torch-encoder]
        [--cells 64] [--precision fp32 bf16]

The ceiling is the time that the matrix products and the attention that the embedding needs take alone, at the same
lengths, with the best kernel for each, ours included; everything else counts against us.  The second one is the time if
attention were as fast as the other products and its softmax took none.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
import torch.nn.functional as F
from timing import in_turn

import scgpt_tools as sct
from scgpt_tools.nn.products import attend_by_products, products_pay

if TYPE_CHECKING:
    from collections.abc import Callable


def untied(adata: ad.AnnData, layer: str | None) -> ad.AnnData:
    """Counts with a tiny ramp over genes: no two values of a cell are equal, so every rule of binning agrees."""
    X = (adata.X if layer is None else adata.layers[layer]).tocsr().astype(np.float32)
    X.data += 0.01 * (X.indices + 1) / X.shape[1]
    return ad.AnnData(X, obs=adata.obs[[]], var=adata.var[[]])


def flops(lengths: np.ndarray, layers: int, dim: int, hidden: int) -> tuple[float, float]:
    """Floating point operations of linear maps and of attention, for all cells; of the last layer what a cell token needs."""
    linear = 2 * lengths.sum() * ((layers - 1) * (4 * dim * dim + 2 * dim * hidden) + 2 * dim * dim)
    return float(linear), float((layers - 1) * 4 * (lengths.astype(float) ** 2).sum() * dim)


def ceilings(lengths: np.ndarray, layers: int, dim: int, heads: int, dtype: torch.dtype) -> tuple[float, float]:
    """Cells per second if only linear maps and attention took time, and if both went at the rate of linear maps."""
    rate_linear = max(linear_rate(n, dim, dtype) for n in (int(lengths.mean()), 2048, 4096))
    n = int(lengths.mean())
    x, q = torch.randn(n, dim, dtype=dtype), torch.randn(1, heads, n, dim // heads, dtype=dtype)
    attention = [lambda: F.scaled_dot_product_attention(q, q, q), lambda: (q @ q.mT).softmax(dim=-1) @ q]
    if products_pay(x, x):
        attention.append(lambda: attend_by_products(x, x, x, heads))
    rate_attention = 4 * n * n * dim / min(best_of(kernel) for kernel in attention)
    of_linear, of_attention = flops(lengths, layers, dim, dim)
    return (
        len(lengths) / (of_linear / rate_linear + of_attention / rate_attention),
        len(lengths) / ((of_linear + of_attention) / rate_linear),
    )


def linear_rate(n: int, dim: int, dtype: torch.dtype) -> float:
    """Floating point operations a second of a linear map of n rows, by the fastest of torch's kernels."""
    x, w = torch.randn(n, dim, dtype=dtype), torch.randn(dim, dim, dtype=dtype)
    rows, filters = x.view(1, n, 1, dim).permute(0, 3, 1, 2), w[:, :, None, None]
    products = [lambda: F.linear(x, w)]
    if dtype == torch.float32:
        products.append(lambda: torch.mkldnn_convolution(rows, filters, None, (0, 0), (1, 1), (1, 1), 1))
    return 2 * n * dim * dim / min(best_of(product) for product in products)


def best_of(run: Callable[[], object], times: int = 15) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(times):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--layer", default="counts")
    parser.add_argument("--peer", type=Path, help="folder that holds the package scgpt")
    parser.add_argument("--helical", type=Path, help="folder that holds the package helical")
    parser.add_argument("--torch-encoder", action="store_true", help="run torch.nn.TransformerEncoder too")
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--length", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)

    adata = untied(ad.read_h5ad(arguments.data)[: arguments.cells], arguments.layer)
    start = time.perf_counter()
    model = sct.CellModel.from_pretrained(arguments.checkpoint, device="cpu")
    print(f"loading ours: {time.perf_counter() - start:.2f} s")

    def ours(precision: str, model: sct.CellModel = model, **options: str) -> np.ndarray:
        sct.tl.embed(adata, model, length=arguments.length, precision=precision, show_progress=False, **options)
        return adata.obsm["X_scGPT"].copy()

    runs: dict[str, Callable[[], np.ndarray]] = {
        precision: (lambda precision=precision: ours(precision)) for precision in arguments.precision
    }
    if arguments.peer is not None:
        from peers import ScGPT

        start = time.perf_counter()
        peer = ScGPT(arguments.peer, arguments.checkpoint)
        print(f"loading scGPT: {time.perf_counter() - start:.2f} s")
        runs["scGPT"] = lambda: peer.embed(adata, length=arguments.length)
    if arguments.helical is not None:
        from peers import Helical

        helical = Helical(arguments.helical, arguments.checkpoint)
        runs["helical"] = lambda: helical.embed(adata, length=arguments.length)
    if arguments.torch_encoder:
        from peers import with_torch_encoder

        other = with_torch_encoder(model)
        runs["TransformerEncoder"] = lambda: ours("fp32", other, attention="sdpa")

    lengths = np.minimum(np.diff(adata.X.indptr) + 1, arguments.length)
    whole = np.diff(adata.X.indptr) + 1 <= arguments.length
    results = {name: run() for name, run in runs.items()}
    check(results, whole, arguments.precision)
    rates = {name: len(lengths) / seconds for name, seconds in in_turn(runs, arguments.rounds).items()}
    config = model.config
    for name, rate in rates.items():
        line = f"{name}: {rate:.2f} cells/s"
        if name in arguments.precision:
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            top, products = ceilings(lengths, config.encoder.layers, config.dim, config.encoder.heads, dtype)
            line += f", {rate / top:.0%} of the ceiling of {top:.2f}, {rate / products:.0%} of {products:.2f} for products alone"
        if name in arguments.precision:
            line += "".join(
                f", {rate / rates[peer]:.1f} times {peer}" for peer in rates if peer not in arguments.precision
            )
        print(line)
    print(f"{len(lengths)} cells, {lengths.mean():.0f} tokens a cell, {arguments.threads} threads")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def check(results: dict[str, np.ndarray], whole: np.ndarray, ours: list[str]) -> None:
    """Cells that nobody has to subsample must agree."""
    reference = results.get("fp32")
    for name, embedding in results.items():
        if reference is None or name == "fp32":
            continue
        cosine = (embedding * reference).sum(axis=1)[whole].min()
        error = np.abs(embedding - reference)[whole].max()
        print(f"{name} against fp32: largest difference {error:.1e}, smallest cosine {cosine:.6f}")
        if name not in ours and error > 1e-5:
            raise SystemExit(f"{name} and ours disagree; the times would not be comparable.")


if __name__ == "__main__":
    main()
