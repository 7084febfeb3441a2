"""Gene networks from embeddings of genes."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scgpt_tools as sct


def run_gene_embedding(folder: Path, case: dict) -> None:
    arrays, table = np.load(folder / "arrays.npz"), case["table"]
    names = [str(name) for name in arrays["genes"]]
    genes = ad.AnnData(var=pd.DataFrame(index=names), varm={"vectors": arrays["embeddings"]})
    close = {"atol": case["tolerance"]["atol"], "rtol": case["tolerance"]["rtol"]}

    def same(found: pd.DataFrame, wanted: dict) -> None:
        assert list(found["gene"]) == wanted["gene"]
        np.testing.assert_allclose(found["similarity"], wanted["similarity"], **close)

    same(sct.tl.similar_genes(genes, table["query"], use_rep="vectors"), table["similarities"])
    subset = table["similarities_subset"]
    same(sct.tl.similar_genes(genes, table["query"], use_rep="vectors", genes=subset["subset"]), subset)
    same(sct.tl.similar_genes(genes, table["mean_vector_of"], use_rep="vectors"), table["nearest_to_mean_vector"])
    weighted = {gene: table["weighted_vector"]["weights"][gene] for gene in table["weighted_vector"]["genes"]}
    for query, vector in ((table["mean_vector_of"], "mean_vector"), (weighted, "weighted_vector")):
        by_vector = sct.tl.similar_genes(genes, arrays[vector], use_rep="vectors")
        same(sct.tl.similar_genes(genes, query, use_rep="vectors"), by_vector.to_dict("list"))
    threshold = table["network"]["threshold"]
    sct.tl.gene_network(genes, use_rep="vectors", threshold=threshold, n_neighbors=None, show_progress=False)
    edges = genes.varp["gene_network"].tocoo()
    found = {frozenset((names[i], names[j])) for i, j in zip(edges.row, edges.col, strict=True)}
    # Every gene has an edge to itself in the original, which a network of ours leaves out.
    assert found == {frozenset(edge) for edge in table["network"]["edges"] if edge[0] != edge[1]}
    assert {edge[0] for edge in table["network"]["edges"] if edge[0] == edge[1]} == set(names)


RUNNERS = {"GeneEmbedding": run_gene_embedding}
