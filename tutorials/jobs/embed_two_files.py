"""Embed two files with one model, and look at them together.

`scgpt-demo` was trained on a few thousand blood cells and is for trying things out; take `scgpt-human` for results.
"""

import anndata as ad

import scgpt_tools as sct

first = sct.datasets.load("pbmc3k_annotated")  # or anndata.read_h5ad("first.h5ad")
second = sct.datasets.load("kang2018_ifnb_annotated")

model = sct.CellModel.from_pretrained("scgpt-demo")  # loaded once, used for both
print(model)
sct.tl.embed(first, model)
sct.tl.embed(second, model)

both = ad.concat({"pbmc3k": first, "kang": second}, label="study", index_unique="-")
sct.pl.embedding(both, ["study", "cell_type_harmonised", "CD3D"], save="two_files.png", show=False)

scores = sct.metrics.score_clusters(both.obsm["X_scGPT"], both.obs["cell_type_harmonised"])
print(scores)
print(sct.get.provenance(first).T)
first.write_h5ad("first_embedded.h5ad")
second.write_h5ad("second_embedded.h5ad")
