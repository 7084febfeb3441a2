"""From a CRISPR screen to predicted perturbations, and to how good they are beside plain baselines."""

import scanpy as sc

import scgpt_tools as sct

adata = sct.datasets.load("papalexi2021_thp1_eccite")  # log-normalised; labels such as "STAT1+ctrl", controls "ctrl"
knockouts = ["STAT1", "IFNGR1", "JAK2", "SMAD4", "IRF1", "CD86", "TNFRSF14", "CMTM6"]
adata = adata[adata.obs["condition"].isin(["ctrl", *(f"{gene}+ctrl" for gene in knockouts)])].copy()
sc.pp.subsample(adata, n_obs=min(600, adata.n_obs), random_state=0)

sct.pp.parse_conditions(adata, missing="ignore")  # some knocked-out genes are no columns of this table
sct.pp.pair_controls(adata, within="batch")
sct.pp.cell_split(adata, "batch", test=["rep_3"])

# Genes without a column are told to the model by their token, here and in all that follows.
model = sct.train.finetune(
    adata, "scgpt-demo", task="perturb", unmeasured="token", extend="all", epochs=3, lr=2e-3, patience=None
)
sct.tl.predict_perturbation(adata, model=model)  # every cell under its own condition
sct.pp.perturbation_de(adata)
sct.pl.perturbation_scatter(adata, "STAT1", save="scatter.png", show=False)
sct.pl.perturbation_de(adata, "STAT1", n_genes=12, save="changes.png", show=False)

# Three epochs are for trying the steps; where predictions hardly differ, a warning of the next line says so.
scores = sct.tl.evaluate_perturbation(adata, {"generator": model}, within="batch")
print(scores)
effects = sct.tl.screen(adata, [*knockouts, "IFNGR1+SMAD4"], model, n_controls=60)
print(sct.get.perturbation_effects(effects).head())
