"""Learn RNA and proteins of CITE-seq together, embed the cells by both, and predict proteins of cells without them."""

import mudata as md
import numpy as np

import scgpt_tools as sct

if hasattr(md, "set_options"):
    md.set_options(pull_on_update=False)  # mudata before 0.4 warns at each copy otherwise

mdata = sct.datasets.load("pbmc_citeseq_2runs")  # or mudata.read_h5mu("cells.h5mu")
# Proteins are read from counts: the centred log ratios in X are negative in part, and made anew by the model.
counts = {"rna": "counts", "prot": "counts"}
held_out = np.random.default_rng(0).random(mdata.n_obs) < 0.25
train, test = mdata[~held_out].copy(), mdata[held_out].copy()

model = sct.train.finetune(
    train,
    "scgpt-demo",
    task="multiomic",
    batch_key="batch",
    layer=counts,
    modalities={"rna": {"most": 400, "extend": True}, "prot": {}},
    epochs=4,
    batch_size=16,
)
sct.tl.embed(train, model, layer=counts)
print(train.obsm["X_scGPT"].shape)

without = md.MuData({"rna": test["rna"].copy()})
sct.tl.impute(without, model, modality="prot", layer={"rna": "counts"}, batch_key="batch")
print(without.obsm["prot_imputed"].round(2).head())
