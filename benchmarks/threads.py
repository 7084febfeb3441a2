"""What a second thread is worth, on a quiet machine and beside other programs.

    python benchmarks/threads.py CELLS.h5ad [--sizes demo full] [--tasks embed annotate predict screen train]
        [--neighbours none loop torch] [--threads 1 2] [--rounds 3]

Each task runs on one thread and on more in turn, alone, beside a busy loop on one core, and beside another program that
multiplies small matrices with torch on two threads.  A table has the median seconds and the ratio of the rates; below 1,
more threads are slower.  The other programs are started here, so nothing else should run.  ``demo`` is `scgpt-demo`,
``full`` the published size (12 layers, 512 wide) with random weights.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from predict import SIZE, cells_of
from training import Ours

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES
from scgpt_tools.models.config import ClassifierConfig, Named
from scgpt_tools.train.starting import perturbation_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Each ends with the benchmark, however that ends.
_WITH_PARENT = "import os\nparent = os.getppid()\n"
NEIGHBOURS = {
    "none": None,
    "loop": _WITH_PARENT + "while os.getppid() == parent: pass",
    "torch": _WITH_PARENT + "import torch\ntorch.set_num_threads(2)\nx = torch.rand(256, 256)\n"
    "while os.getppid() == parent: x = (x @ x).softmax(dim=1)",
}
TASKS = ("embed", "annotate", "predict", "screen", "train")
# Cells to embed, cells to predict of so many genes, perturbations, cells of a training step and steps.
WORK = {"demo": (200, 64, 700, 4, 8, 6), "full": (8, 8, 700, 2, 2, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="log-normalised cells with a layer of counts")
    parser.add_argument("--layer", default="counts")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--sizes", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--neighbours", nargs="+", default=list(NEIGHBOURS), choices=list(NEIGHBOURS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sct.settings.show_progress = False

    counts = arguments.threads
    print("| size | task | beside | " + " | ".join(f"{n} threads, s" for n in counts) + " | ratio |")
    print("| --- | --- | --- |" + " --: |" * (len(counts) + 1))
    ratios: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for task, run in tasks(size, arguments, Path(folder)).items():
                for neighbour in arguments.neighbours:
                    with beside(neighbour):
                        seconds = in_turn(run, counts, arguments.rounds)
                    ratio = seconds[0] / seconds[-1]
                    ratios[f"{size}, {task}, beside {neighbour}"] = ratio
                    listing = " | ".join(f"{value:.2f}" for value in seconds)
                    print(f"| {size} | {task} | {neighbour} | {listing} | {ratio:.2f} |", flush=True)
    worst = min(ratios, key=ratios.__getitem__)
    print(f"\nLowest ratio: {ratios[worst]:.2f} ({worst})")


def tasks(size: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    """The tasks asked for; each returns the seconds that count."""
    n_cells, n_predicted, n_genes, n_perturbations, batch_size, steps = WORK[size]
    adata = ad.read_h5ad(arguments.data)
    cells = adata[:n_cells].copy()
    controls = cells_of(arguments.data, n_predicted, n_genes)
    torch.manual_seed(0)
    if size == "demo":
        model = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
        generator = perturbation_model(model).eval()
        known = np.isin(controls.var_names, model.vocabulary.tokens)
        controls = controls[:, known].copy()
    else:
        vocabulary = sct.Vocabulary.from_genes(adata.var_names)
        model = sct.CellModel(FAMILIES["scgpt"](vocabulary), vocabulary).eval()
        generator = sct.CellModel(FAMILIES["scgpt_perturbation"](vocabulary, **SIZE), vocabulary).eval()
    annotator = model.adapt(heads=Named(cell_type=ClassifierConfig(classes=8))).eval()
    perturbations = list(controls.var_names[:n_perturbations])
    checkpoint = model.save(folder / size)
    options = argparse.Namespace(checkpoint=checkpoint, length=1200, dropout=0.2, batch_size=batch_size, steps=steps)
    some = adata[: max(4 * batch_size, 16)].copy()
    some.X = some.layers[arguments.layer].astype(np.float32)
    runs = {
        "embed": lambda: timed(lambda: sct.tl.embed(cells, model, layer=arguments.layer)),
        "annotate": lambda: timed(lambda: sct.tl.annotate(cells, annotator, layer=arguments.layer)),
        "predict": lambda: timed(
            lambda: sct.tl.predict_perturbation(controls, perturbations[:1], generator, condition_key=None)
        ),
        "screen": lambda: timed(lambda: sct.tl.screen(controls, perturbations, generator, condition_key=None)),
        "train": lambda: median(Ours(some, arguments.label, options, "annotate").steps()),
    }
    return {task: runs[task] for task in arguments.tasks}


def in_turn(run: Callable[[], float], threads: list[int], rounds: int) -> list[float]:
    """Median seconds for each number of threads."""
    seconds: dict[int, list[float]] = {number: [] for number in threads}
    # The first run of all warms up.
    torch.set_num_threads(1)
    run()
    for _ in range(rounds):
        for number, found in seconds.items():
            torch.set_num_threads(number)
            found.append(run())
    return [median(found) for found in seconds.values()]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def beside(neighbour: str) -> Iterator[None]:
    """Have another program run meanwhile."""
    code = NEIGHBOURS[neighbour]
    if code is None:
        yield
        return
    program = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(3)
        yield
    finally:
        program.kill()
        program.wait()


if __name__ == "__main__":
    main()
