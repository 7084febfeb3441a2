"""Learn an embedding without technical batches, and score it beside PCA."""

import scanpy as sc

import scgpt_tools as sct

blood = sct.datasets.load("pbmc_3_chemistries")
sc.pp.highly_variable_genes(blood, n_top_genes=300, batch_key="batch")
blood = blood[:, blood.var["highly_variable"]].copy()
sc.pp.pca(blood)

model = sct.train.finetune(blood, "scgpt-demo", task="integrate", batch_key="batch", extend="all", epochs=3, lr=1e-3)
# The model reads these genes in every cell and says so if it is given others later.
sct.tl.embed(blood, model, batch_key="batch")

scores = sct.tl.score_embedding(
    blood, label_key="cell_type_harmonised", batch_key="batch", embeddings=["X_scGPT"], baselines=["X_pca"]
)
print(scores[["Bio conservation", "Batch correction", "Total"]].round(2))
sct.pl.scores(scores, save="scores.png", show=False)
sct.pl.embedding(blood, ["batch", "cell_type_harmonised"], save="integrated.png", show=False)
