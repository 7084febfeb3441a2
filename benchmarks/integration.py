"""Embeddings without batches: zero-shot, fine-tuned in several ways, and corrected by Harmony, beside plain ones and random numbers.

Each call is one arm of one data set with one seed and prints a line of JSON with scIB's scores.

    python benchmarks/integration.py shared/data --case pbmc_3_chemistries --arm plain
    python benchmarks/integration.py shared/data --case kang --arm expressed --seed 0

`plain` has no training: zero-shot on all genes and on the 200 that vary most, principal components, all of them also with Harmony,
and random numbers.  `variable-200` and `variable-1200` are the recipe of scGPT's authors on so many variable genes.  The
others read every gene that a cell expresses and have no norms of batches: see `ARMS`.  Ways and rates were chosen on `kang`.  With
`--shares 0.25 0.5` the mean of the weights before and after training is scored too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import anndata as ad
import numpy as np
import scanpy as sc
import torch

import scgpt_tools as sct
from scgpt_tools.objectives import (
    BatchAdversary,
    ElasticSimilarity,
    MaskedExpression,
    MaskedExpressionFromCell,
)
from scgpt_tools.tokens.corruptions import GenerateExpression

# As the model was pre-trained: some expressed genes of a cell are seen, others are asked for, and genes that it does not
# express, which is why the tokenizer has all genes here; afterwards cells are read by what they express.
AS_BEFORE = {"tokenizer": {"genes": "all"}, "batch_parts": False, "sampling": "random", "lr": 3e-4, "epochs": 5}
# Errors in bins are some hundred times an adversary's.
ASKED = GenerateExpression(visible=256, expressed=64, unexpressed=64)
EXPRESSION = [MaskedExpression(weight=0.005), MaskedExpressionFromCell(weight=0.005)]
HIDDEN = BatchAdversary(reversal=1.0)
ARMS = {
    "expression": {**AS_BEFORE, "objectives": EXPRESSION, "corruption": ASKED},
    "adversary": {**AS_BEFORE, "objectives": [*EXPRESSION, HIDDEN], "corruption": ASKED},
    "adversary, faster": {**AS_BEFORE, "objectives": [*EXPRESSION, HIDDEN], "corruption": ASKED, "lr": 1e-3},
    "adversary, stronger": {
        **AS_BEFORE, "objectives": [*EXPRESSION, BatchAdversary(reversal=5.0)], "corruption": ASKED,
    },
    "adversary and similarity": {
        **AS_BEFORE, "objectives": [*EXPRESSION, HIDDEN, ElasticSimilarity(weight=1.0)], "corruption": ASKED,
        "sampling": "one_batch",
    },
    "adversary, little else": {
        **AS_BEFORE,
        "objectives": [MaskedExpressionFromCell(weight=0.0005), HIDDEN],
        "corruption": ASKED,
    },
}  # fmt: skip


def read(folder: Path, case: str) -> ad.AnnData:
    """Cells with the columns `type` and `batch`."""
    name = {"kang": "kang2018_ifnb_annotated"}.get(case, case)
    cells = ad.read_h5ad(folder / f"{name}.h5ad")
    cells.obs["type"] = cells.obs["cell_type_harmonised"].astype(str)
    cells.obs["batch"] = cells.obs["batch"].astype(str)
    return cells


def corrected(cells: ad.AnnData, key: str) -> np.ndarray:
    """Harmony's correction of an embedding."""
    import harmonypy

    found = harmonypy.run_harmony(np.asarray(cells.obsm[key], dtype=np.float64), cells.obs, "batch", verbose=False)
    return np.asarray(found.Z_corr, dtype=np.float32).reshape(cells.n_obs, -1)


def variable(cells: ad.AnnData, n: int) -> ad.AnnData:
    """Genes that vary most, batch by batch."""
    chosen = cells.copy()
    sc.pp.highly_variable_genes(chosen, n_top_genes=n, batch_key="batch")
    return chosen[:, chosen.var["highly_variable"]].copy()


def arm(options: argparse.Namespace) -> dict[str, object]:
    """One way to embed, with its scores."""
    cells = read(options.folder, options.case)
    harmony = not options.no_harmony
    began = perf_counter()
    keys = []
    if options.arm == "plain":
        sct.tl.embed(cells, "scgpt-demo", key_added="zero-shot")
        few = variable(cells, 200)
        sct.tl.embed(few, "scgpt-demo", key_added="zero-shot")
        cells.obsm["zero-shot, 200 genes"] = few.obsm["zero-shot"]
        genes = variable(cells, 2000) if cells.n_vars > 2000 else cells
        cells.obsm["PCA"] = sc.pp.pca(genes, n_comps=50, random_state=0, copy=True).obsm["X_pca"]
        rng = np.random.default_rng(options.seed)
        cells.obsm["random numbers"] = rng.normal(size=(cells.n_obs, 50)).astype(np.float32)
        keys = ["zero-shot", "zero-shot, 200 genes", "PCA", "random numbers"]
        again = ["zero-shot", "PCA"]
    else:
        table, settings = cells, {}
        if options.arm.startswith("variable"):
            table = variable(cells, int(options.arm.split("-")[1]))
            settings = {"epochs": 4, "lr": 1e-3}
        else:
            settings = dict(ARMS[options.arm])
        if options.epochs is not None:
            settings["epochs"] = options.epochs
        model = sct.train.finetune(
            table, "scgpt-demo", task="integrate", batch_key="batch", rng=options.seed, accelerator="cpu", **settings
        )
        if not options.arm.startswith("variable"):
            model = model.adapt(tokenizer=replace(model.config.tokenizer, genes="expressed")).eval()
            model.config = replace(model.config, trained_genes=None)
        key = {"batch_key": "batch"} if model.config.domains else {}
        start = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
        for share in (0.0, *options.shares):
            name = f"{options.arm}, {share:g} of the start" if share else options.arm
            sct.tl.embed(table, model.average_with(start, share=share), key_added=name, **key)
            cells.obsm[name] = table.obsm[name]
            keys.append(name)
        again = list(keys)
    seconds = round(perf_counter() - began)
    if harmony:
        for name in again:
            cells.obsm[f"{name}, Harmony"] = corrected(cells, name)
            keys.append(f"{name}, Harmony")
    found = sct.tl.score_embedding(cells, label_key="type", batch_key="batch", embeddings=keys, baselines=[])
    columns = ["Bio conservation", "Batch correction", "Total"]
    scores = {name: {column: round(float(found.loc[name, column]), 4) for column in columns} for name in keys}
    return {"case": options.case, "arm": options.arm, "seed": options.seed, "seconds": seconds, "scores": scores}


def main() -> None:
    """Run one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", choices=["kang", "pbmc_3_chemistries"], required=True)
    parser.add_argument("--arm", choices=["plain", "variable-200", "variable-1200", *ARMS], required=True)
    parser.add_argument("--shares", type=float, nargs="*", default=[], help="of the start in means of weights")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--no-harmony", action="store_true", help="where harmonypy is not installed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sct.settings.show_progress = False
    print(json.dumps(arm(options)), flush=True)


if __name__ == "__main__":
    main()
