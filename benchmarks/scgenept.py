"""How many controls per second scGenePT of the published size predicts, against the original's ``pred_perturb_from_ctrl``.

    python benchmarks/scgenept.py CELLS.h5ad --peer SCGENEPT --scgpt SCGPT [--cells 4] [--genes 5045] [--precision fp32 bf16]

12 layers, 512 wide, 60,697 tokens, one table of texts of 1,536 numbers, random weights; the original reads the file that ours
writes, with tables in float64 as it keeps them.  ``--peer`` is a checkout of czi-ai/scGenePT, ``--scgpt`` the folder that holds the
package scgpt, which it builds on; what they import beside it and do not need here is stood in for.  The original predicts
one cell at a time; ours is ``tl.predict_perturbation``, from a table to a table.  Where other programs run, the work of the
processors says more than the clock; on a GPU (``--device cuda``) it says nothing.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from predict import cells_of, stand_in

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

TOKENS, WIDTH = 60_697, 1536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", type=Path, help="checkout of scGenePT; without, ours alone")
    parser.add_argument("--scgpt", type=Path, help="folder that holds the package scgpt")
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, help="of the vocabulary; fewer need less memory and cost the same"
    )
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--cells-of-peer", type=int, default=1)
    parser.add_argument("--genes", type=int, default=5045)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")

    controls = cells_of(arguments.data, arguments.cells, arguments.genes)
    perturbed = str(controls.var_names[0])
    others = [f"other{number}" for number in range(arguments.tokens - arguments.genes - 3)]
    vocabulary = sct.Vocabulary.from_genes([*controls.var_names, *others])
    assert len(vocabulary) == arguments.tokens
    with TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = FAMILIES["scgenept"](vocabulary, model_type="scgenept_ncbi_gpt", flag_pad=2)
        place = sct.CellModel(config, vocabulary).export(folder)
        began = perf_counter()
        model = sct.CellModel.from_pretrained(place, device=arguments.device).eval()
        print(f"loaded in {perf_counter() - began:.1f} s from {(place / 'best_model.pt').stat().st_size / 1e6:.0f} MB")
        theirs = peer(arguments, place, vocabulary) if arguments.peer else None

    def ours(precision: str) -> np.ndarray:
        found = sct.tl.predict_perturbation(
            controls, perturbed, model, condition_key=None, precision=precision, as_anndata=True, show_progress=False
        )
        return found.X

    runs: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        precision: (controls.n_obs, lambda precision=precision: ours(precision)) for precision in arguments.precision
    }
    if theirs is not None:
        few = controls[: arguments.cells_of_peer]
        runs["scGenePT"] = (few.n_obs, lambda: predicted(theirs, few, perturbed, vocabulary, arguments.device))
    results, spent = {}, {name: [] for name in runs}
    if arguments.device == "cuda":
        # The first call of each starts libraries.
        for _, run in runs.values():
            run()
    for _ in range(arguments.rounds):
        for name, (cells, run) in runs.items():
            wall, work = perf_counter(), process_time()
            results[name] = run()
            spent[name].append(((perf_counter() - wall) / cells, (process_time() - work) / cells))
    wall, work = ({name: median(times[kind] for times in own) for name, own in spent.items()} for kind in (0, 1))
    for name in runs:
        said = f"{name}: {wall[name]:.2f} s a cell, {1 / wall[name]:.3f} cells/s, {work[name]:.2f} s of processors"
        if theirs is not None and name != "scGenePT":
            true = results["scGenePT"]
            error = np.abs(results[name][: len(true)] - true).max()
            said += f"; {wall['scGenePT'] / wall[name]:.1f} times scGenePT by the clock, {work['scGenePT'] / work[name]:.1f} by work"
            said += f"; largest difference {error:.1e} of values up to {np.abs(true).max():.2f}"
            if name == "fp32" and error > 1e-4:
                raise SystemExit(f"{said}. The two disagree; the times do not compare.")
        print(said)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads"
    print(f"{controls.n_vars} genes, {where}, torch {torch.__version__}")


def peer(arguments: argparse.Namespace, folder: Path, vocabulary: sct.Vocabulary) -> Any:
    """The original's model, from outside this repository, with the weights that ours has written."""
    stand_in()
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
    return theirs.eval().to(arguments.device)


def predicted(model: Any, controls: ad.AnnData, perturbed: str, vocabulary: sct.Vocabulary, device: str) -> np.ndarray:
    """The original's predictions from each control, one by one."""
    names, ids = list(controls.var_names), vocabulary.ids(controls.var_names)
    rows = [
        model.pred_perturb_from_ctrl(controls[[row]], f"{perturbed}+ctrl", names, device, ids, amp=False, pool_size=1)
        for row in range(controls.n_obs)
    ]
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
