"""DeepSC of the shipped size beside the original's code in one run: a training step, and the embedding of cells.

python benchmarks/deepsc.py path/to/src/deepsc/models/deepsc/model.py [threads]

Eight cells are embedded, in fp32 and for comparison in bf16; two are trained on, the original with torch's Adam, ours
with the optimiser that `train.fit` makes.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools.models import DeepSCModel
from scgpt_tools.train.optim import OptimizerConfig, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

GENES, CELLS, LENGTH, REPEATS = 35210, 8, 1024, 3
TRAINED_ON = 2
MOE = {"n_moe_layers": 4, "use_moe_ffn": False, "dim": 256, "moe_inter_dim": 512, "n_routed_experts": 2}
MOE |= {"n_activated_experts": 2, "n_shared_experts": 1, "score_func": "softmax", "route_scale": 1.0}
SIZES = {"num_layers": 10, "num_heads": 8, "num_bins": 5, "gene_embedding_participate_til_layer": 3}
SIZES |= {"attention_stream": 2, "cross_attention_architecture": "A"}


def cells() -> dict[str, torch.Tensor]:
    """Cells with a cell token; the later ones have more padding."""
    draw = torch.Generator().manual_seed(0)
    genes = torch.stack([torch.randperm(GENES, generator=draw)[:LENGTH] + 1 for _ in range(CELLS)])
    genes[:, 0] = GENES + 1
    bins = torch.randint(1, 6, genes.shape, generator=draw)
    values = torch.rand(genes.shape, generator=draw) * 5
    for row in range(CELLS):
        end = LENGTH - row * LENGTH // (2 * CELLS)
        genes[row, end:], bins[row, end:], values[row, end:] = 0, 0, 0.0
    return {"gene_ids": genes, "expression_bin": bins, "normalized_expr": values}


def step(model: Any, given: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One step on the regression and the bins of all values."""
    logits, values, *_ = model(**given)
    loss = torch.nn.functional.mse_loss(values, given["normalized_expr"])
    loss = loss + torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["expression_bin"].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def original(path: Path) -> Any:
    """The original's model, from its file."""
    spec = importlib.util.spec_from_file_location("deepsc_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeepSC(256, GENES, **SIZES, moe=SimpleNamespace(**MOE))


def timed(*runs: Callable[[], object]) -> list[float]:
    """Median seconds of each, in turns; on one thread of the processor, whatever else it has to do."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS + 1):
        for found, run in zip(seconds, runs, strict=True):
            start = clock()
            run()
            found.append(clock() - start)
    return [statistics.median(found[1:]) for found in seconds]


def main() -> None:
    """Print seconds and the ratio."""
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print(f"{torch.get_num_threads()} threads")
    theirs, given = original(Path(sys.argv[1])), cells()
    ours = DeepSCModel(256, GENES, **SIZES, moe=MOE)
    ours.load_state_dict(theirs.state_dict())
    optimizers = [
        torch.optim.Adam(theirs.parameters(), lr=1e-4),
        make_optimizer(ours.cell_model, OptimizerConfig(lr=1e-4)),
    ]
    batch = ours.batch(**given)
    few = {name: values[:TRAINED_ON] for name, values in given.items()}

    def embed_theirs() -> object:
        with torch.no_grad():
            return theirs(**given)[3][:, 0]

    def embed_ours() -> object:
        with torch.no_grad():
            return ours.cell_model.embed_cells(batch, pooling="cls")

    def embed_in_half() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return embed_ours()

    for model in (theirs, ours):
        model.eval()
    torch.testing.assert_close(embed_ours(), embed_theirs(), rtol=1e-3, atol=1e-3)
    theirs_takes, ours_takes, in_half = timed(embed_theirs, embed_ours, embed_in_half)
    report("embedding", [theirs_takes, ours_takes])
    report("embedding, ours in bf16", [theirs_takes, in_half])
    print(
        f"smallest cosine of bf16 {torch.cosine_similarity(embed_in_half().float(), embed_ours()).min():.5f}",
        flush=True,
    )
    for model in (theirs, ours):
        model.train()
    report(
        "training step",
        timed(*(lambda m=m, o=o: step(m, few, o) for m, o in zip((theirs, ours), optimizers, strict=True))),
    )


def report(what: str, seconds: list[float]) -> None:
    """One line."""
    print(
        f"{what}: original {seconds[0]:.2f} s, ours {seconds[1]:.2f} s, {seconds[0] / seconds[1]:.1f} times", flush=True
    )


if __name__ == "__main__":
    main()
