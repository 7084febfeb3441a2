"""How many controls per second scGenePT of the published size predicts, against the original's ``pred_perturb_from_ctrl``.

    python benchmarks/scgenept.py CELLS.h5ad --peer SCGENEPT --scgpt SCGPT [--cells 4] [--genes 5045] [--precision fp32 bf16]

12 layers, 512 wide, 60,697 tokens, one table of texts of 1,536 numbers, random weights; the original reads the file that ours
writes, with tables in float64 as it keeps them.  ``--peer`` is a checkout of czi-ai/scGenePT, ``--scgpt`` the folder that holds the
package scgpt, which it builds on; what they import beside it and do not need here is stood in for.  The original predicts
one cell at a time; ours is ``tl.screen``, from a table to its mean effect.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from predict import cells_of
from timing import in_turn

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

TOKENS, WIDTH = 60_697, 1536
STOOD_IN = {
    "wandb": (),
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
    parser.add_argument("--peer", type=Path, help="checkout of scGenePT; without, ours alone")
    parser.add_argument("--scgpt", type=Path, help="folder that holds the package scgpt")
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--cells-of-peer", type=int, default=1)
    parser.add_argument("--genes", type=int, default=5045)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")

    controls = cells_of(arguments.data, arguments.cells, arguments.genes)
    perturbed = str(controls.var_names[0])
    others = [f"other{number}" for number in range(TOKENS - arguments.genes - 3)]
    vocabulary = sct.Vocabulary.from_genes([*controls.var_names, *others])
    assert len(vocabulary) == TOKENS
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = FAMILIES["scgenept"](vocabulary, model_type="scgenept_ncbi_gpt", flag_pad=2)
        place = sct.CellModel(config, vocabulary).export(folder)
        began = perf_counter()
        model = sct.CellModel.from_pretrained(place, device="cpu").eval()
        print(f"loaded in {perf_counter() - began:.1f} s from {(place / 'best_model.pt').stat().st_size / 1e6:.0f} MB")
        theirs = peer(arguments, place, vocabulary) if arguments.peer else None

    def ours(precision: str, cells: ad.AnnData) -> np.ndarray:
        found = sct.tl.screen(
            cells, perturbed, model, condition_key=None, n_controls=None, precision=precision, show_progress=False
        )
        return found.X[0]

    few = controls[: max(2, arguments.cells_of_peer)].copy()
    if theirs is not None:
        true = predicted(theirs, few, perturbed, vocabulary)
        for precision in arguments.precision:
            error = np.abs(ours(precision, few) - true).max()
            print(
                f"{precision} against scGenePT: largest difference {error:.1e} of values up to {np.abs(true).max():.2f}"
            )
            if precision == "fp32" and error > 1e-4:
                raise SystemExit("The two disagree; the times would not be comparable.")
    runs: dict[str, Callable[[], Any]] = {
        precision: (lambda precision=precision: ours(precision, controls)) for precision in arguments.precision
    }
    sizes = dict.fromkeys(runs, controls.n_obs)
    if theirs is not None:
        one = controls[: arguments.cells_of_peer]
        runs["scGenePT"] = lambda: predicted(theirs, one, perturbed, vocabulary)
        sizes["scGenePT"] = arguments.cells_of_peer
    seconds = {name: time / sizes[name] for name, time in in_turn(runs, arguments.rounds).items()}
    for name, each in seconds.items():
        beside = f", {seconds['scGenePT'] / each:.1f} times scGenePT" if theirs is not None else ""
        print(f"{name}: {each:.2f} s a cell, {1 / each:.3f} cells/s{beside}")
    print(f"{controls.n_vars} genes, {arguments.threads} threads")


def peer(arguments: argparse.Namespace, folder: Path, vocabulary: sct.Vocabulary) -> Any:
    """The original's model, from outside this repository, with the weights that ours has written."""
    for name, classes in STOOD_IN.items():
        module = ModuleType(name)
        for own in (*classes, "__version__"):
            setattr(module, own, type(own, (), {}))
        sys.modules.setdefault(name, module)
    sys.path[:0] = [str(arguments.peer), str(arguments.scgpt)]
    from models.scGenePT import scGenePT

    theirs = scGenePT(
        len(vocabulary),
        512,
        8,
        512,
        12,
        3,
        1,
        {token: number for number, token in enumerate(vocabulary.tokens)},
        2,
        dropout=0.0,
        embs_to_include=["scGPT_counts_embs", "scGPT_token_embs", "genePT_token_embs_gpt"],
        genept_embs=np.zeros((len(vocabulary), WIDTH)),
        genept_emb_size=WIDTH,
    )
    theirs.load_state_dict(torch.load(folder / "best_model.pt", weights_only=True))
    return theirs.eval()


def predicted(model: Any, controls: ad.AnnData, perturbed: str, vocabulary: sct.Vocabulary) -> np.ndarray:
    """Mean of the original's predictions for each control once, in whatever order it draws them."""
    names, ids = list(controls.var_names), vocabulary.ids(controls.var_names)
    rows = [
        model.pred_perturb_from_ctrl(controls[[row]], f"{perturbed}+ctrl", names, "cpu", ids, amp=False, pool_size=1)
        for row in range(controls.n_obs)
    ]
    return np.concatenate(rows).mean(axis=0)


if __name__ == "__main__":
    main()
