"""Name the cells of a query by their nearest neighbours in an annotated reference, without training."""

import scgpt_tools as sct

reference = sct.datasets.load("pbmc3k_annotated")
query = sct.datasets.load("kang2018_ifnb_annotated")
query = query[query.obs["condition"] == "control"].copy()

# Both are read by the genes that both have, or differences between them would be differences of genes.
shared = reference.var_names.intersection(query.var_names)
reference, query = reference[:, shared].copy(), query[:, shared].copy()

model = sct.CellModel.from_pretrained("scgpt-demo")
sct.tl.embed(reference, model)
sct.tl.embed(query, model)
sct.tl.map_reference(query, reference, label_key="cell_type_harmonised")

print(query.obs[["mapped_cell_type", "mapped_cell_type_confidence", "mapped_cell_type_distance"]].head().to_string())
truth, mapped = query.obs["cell_type_harmonised"], query.obs["mapped_cell_type"]
print(sct.metrics.score_annotation(truth, mapped))
sct.pl.confusion_matrix(
    query, truth="cell_type_harmonised", predicted="mapped_cell_type", save="mapped.png", show=False
)

# A reference that many queries will be compared with is kept as a folder.
sct.tl.index_reference(reference, label_key="cell_type_harmonised").save("reference")
