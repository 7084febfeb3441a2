"""A file of raw counts as CELLxGENE gives them out: Ensembl index, symbols in `feature_name`, no layers."""

import scanpy as sc

import scgpt_tools as sct

cells = sct.datasets.load("cd4_crispri_cellxgene_schema")

# Bins depend on ranks within a cell only, so counts and log-normalised values give the same embedding.
sct.tl.embed(cells, "scgpt-demo", genes="feature_name")
from_counts = cells.obsm["X_scGPT"].copy()

cells.layers["counts"] = cells.X.copy()
sc.pp.normalize_total(cells, target_sum=1e4)
sc.pp.log1p(cells)
sct.tl.embed(cells, "scgpt-demo", genes="feature_name", show_progress=False)
print("largest difference:", abs(cells.obsm["X_scGPT"] - from_counts).max())
