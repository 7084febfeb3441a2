"""Fine-tune a model on annotated cells, name the cells of a query, and see how sure it is and how often right."""

import scgpt_tools as sct

blood = sct.datasets.load("pbmc_3_chemistries")
in_reference = blood.obs["batch"] != "5p"
reference, query = blood[in_reference].copy(), blood[~in_reference].copy()

# The demo model lacks two in three of these genes; extend="all" gives them tokens, which are learnt here.
model = sct.train.finetune(
    reference, "scgpt-demo", task="annotate", label_key="cell_type_harmonised", extend="all", epochs=6, lr=1e-3
)
print(model)
print(model.history[["train_loss", "validation_accuracy"]].round(2))
print(model.comparison.round(2))

sct.tl.annotate(query, model, threshold=0.5)
print(query.obs["scgpt_cell_type"].value_counts())
print(sct.metrics.score_annotation(query.obs["cell_type_harmonised"], query.obs["scgpt_cell_type"]))
sct.pl.confusion_matrix(query, truth="cell_type_harmonised", save="confusion.png", show=False)
sct.pl.confidence(query, truth="cell_type_harmonised", save="confidence.png", show=False)
