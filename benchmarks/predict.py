"""How many cells per second are predicted after a perturbation, against scGPT's own ``pred_perturb``.

    python benchmarks/predict.py CELLS.h5ad --peer FOLDER [--cells 16] [--genes 1500] [--threads 2] [--precision fp32 bf16]

Both have the same random weights of the published size (12 layers, 512 wide) and predict the same cells from the same
flags, in minibatches of eight.  Ours is what ``tl.predict_perturbation`` runs, from a table to a layer of it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from timing import in_turn

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 8
SIZE = {"dim": 512, "heads": 8, "hidden": 512, "layers": 12}
STOOD_IN = {
    "wandb": (),
    "IPython": ("get_ipython",),
    "datasets": ("Dataset", "load_dataset"),
    "torchtext": (),
    "torchtext.vocab": ("Vocab",),
    "torchtext._torchtext": ("Vocab",),
    "torch_geometric": (),
    "torch_geometric.loader": ("DataLoader",),
    "gears": ("PertData", "GEARS"),
    "gears.inference": ("compute_metrics", "deeper_analysis", "non_dropout_analysis"),
    "gears.utils": ("create_cell_graph_dataset_for_prediction",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="folder that holds the package scgpt")
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--genes", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")

    controls = cells_of(arguments.data, arguments.cells, arguments.genes)
    perturbed = controls.var_names[0]
    vocabulary = sct.Vocabulary.from_genes(controls.var_names)
    ids = vocabulary.ids(controls.var_names)
    torch.manual_seed(0)
    model = sct.CellModel(FAMILIES["scgpt_perturbation"](vocabulary, **SIZE), vocabulary).eval()
    theirs = peer(arguments.peer, model)

    def predict(precision: str) -> np.ndarray:
        sct.tl.predict_perturbation(
            controls, [perturbed], model, condition_key=None, precision=precision, batch_size=BATCH, show_progress=False
        )
        return controls.layers["predicted"].copy()

    runs: dict[str, Callable[[], np.ndarray]] = {
        precision: (lambda precision=precision: predict(precision)) for precision in arguments.precision
    }
    runs["scGPT"] = lambda: pred_perturb(theirs, controls, ids)
    results = {name: run() for name, run in runs.items()}
    for name in arguments.precision:
        error = np.abs(results[name] - results["scGPT"]).max()
        print(
            f"{name} against scGPT: largest difference {error:.1e} of values up to {np.abs(results['scGPT']).max():.1f}"
        )
        if name == "fp32" and error > 1e-4:
            raise SystemExit("The two disagree; the times would not be comparable.")
    rates = {name: controls.n_obs / seconds for name, seconds in in_turn(runs, arguments.rounds).items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} cells/s, {rate / rates['scGPT']:.1f} times scGPT")
    print(f"{controls.n_obs} cells of {controls.n_vars} genes, {arguments.threads} threads")


def cells_of(path: Path, n_cells: int, n_genes: int) -> ad.AnnData:
    """Log-normalised cells, with the genes that most of them express."""
    cells = ad.read_h5ad(path)[:n_cells]
    expressed = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    kept = cells[:, np.sort(np.argsort(-expressed, kind="stable")[:n_genes])]
    return ad.AnnData(kept.X.copy(), obs=kept.obs[[]], var=kept.var[[]])


def stand_in() -> None:
    """Empty modules for what scGPT and scGenePT import and predictions do not use."""
    for name, classes in STOOD_IN.items():
        module = ModuleType(name)
        for own in (*classes, "__version__"):
            setattr(module, own, type(own, (), {}))
        sys.modules.setdefault(name, module)


def peer(source: Path, model: sct.CellModel) -> torch.nn.Module:
    """scGPT's generator, from outside this repository, with the weights of ours."""
    sys.path.insert(0, str(source))
    stand_in()
    from scgpt.model import TransformerGenerator

    words = {token: number for number, token in enumerate(model.vocabulary.tokens)}
    theirs = TransformerGenerator(
        len(words),
        SIZE["dim"],
        SIZE["heads"],
        SIZE["hidden"],
        SIZE["layers"],
        nlayers_cls=3,
        n_cls=1,
        vocab=words,
        use_fast_transformer=False,
    )
    with TemporaryDirectory() as folder:
        weights = torch.load(model.export(folder) / "best_model.pt", weights_only=True)
    missing = theirs.load_state_dict(weights, strict=False).missing_keys
    # The classifier, which nothing here reads.
    if any(not name.startswith("cls_decoder.") for name in missing):
        raise SystemExit(f"scGPT's generator wants weights that ours has not: {missing}")
    return theirs.eval()


def pred_perturb(model: torch.nn.Module, controls: ad.AnnData, ids: np.ndarray) -> np.ndarray:
    """What scGPT's tutorial does, with the first gene perturbed."""
    expression = torch.from_numpy(controls.X.toarray().astype(np.float32)).to(next(model.parameters()).device)
    flags = torch.zeros_like(expression)
    flags[:, 0] = 1
    predicted = []
    for start in range(0, len(expression), BATCH):
        part = slice(start, start + BATCH)
        x = torch.stack((expression[part].flatten(), flags[part].flatten()), dim=1)
        batch = SimpleNamespace(pert=["gene+ctrl"] * len(expression[part]), x=x, to=lambda device: None)
        with torch.no_grad():
            predicted.append(model.pred_perturb(batch, include_zero_gene="all", gene_ids=ids, amp=False))
    return torch.cat(predicted).cpu().numpy()


if __name__ == "__main__":
    main()
