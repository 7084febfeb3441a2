"""Gene networks from embeddings of genes."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

import scgpt_tools as sct
from golden_runners._compare import close, load
from golden_runners.scgpt_models import build
from scgpt_tools.models.attention_maps import attention_products, first_ranks, normalized
from scgpt_tools.tokens.batch import TokenBatch


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Expected genes with a vector", category=UserWarning)
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


def run_attention(folder: Path, case: dict) -> None:
    """Products and first ranks are exact; second ranks are where the original's sort kept the order of equal ones."""
    inputs, expected = load(folder / "inputs.safetensors"), load(folder / "outputs.safetensors")
    model = build({**case, "system": "TransformerModel"}).eval()
    model.load_state_dict(load(folder / "weights.safetensors"), strict=True)
    batch = TokenBatch(genes=inputs["src"], values=inputs["values"], mask=~inputs["src_key_padding_mask"])
    with torch.no_grad():
        products = attention_products(model.cell_model, batch, layer=case["layer"])
    close(products, expected["raw_scores"], case["tolerance"]["raw_scores"], "raw_scores")
    length = products.shape[-1]
    torch.testing.assert_close(first_ranks(products) / length, expected["first_rank"], rtol=0, atol=1e-6)
    ranks = torch.stack([normalized(own, "rank", 0, ties_by_order=True) for own in products])
    # Where the original's sort left equal ranks in another order, only the mean says anything.
    assert (ranks - expected["rank_scores"]).abs().mean() < 0.1
    shared = torch.stack([normalized(own, "rank", 0) for own in products])
    assert torch.allclose(shared.mean(dim=(1, 2)), expected["rank_scores"].mean(dim=(1, 2)), atol=1e-5)
    conditions = np.array(case["conditions"])
    for name in np.unique(conditions):
        own = ranks[torch.from_numpy(conditions == name)]
        assert (own.mean(dim=0) - expected[f"mean_all.{name}"]).abs().mean() < 0.1
        # The first cell is left out of the sum and still counted.
        assert (own[1:].sum(dim=0) / len(own) - expected[f"mean_original.{name}"]).abs().mean() < 0.1


RUNNERS = {"GeneEmbedding": run_gene_embedding, "attention gene network": run_attention}
