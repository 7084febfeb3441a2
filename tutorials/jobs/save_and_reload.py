"""Keep what was computed: a fine-tuned model, embedded cells, a run that can be gone on with, and a reference."""

import anndata as ad

import scgpt_tools as sct

blood = sct.datasets.load("pbmc_3_chemistries")
training = {"task": "annotate", "label_key": "cell_type_harmonised", "extend": "all", "lr": 1e-3, "folder": "run"}
model = sct.train.finetune(blood, "scgpt-demo", epochs=1, **training)
model.save("annotator")

# In another session: the folder holds weights, genes, tokenizer and names of the classes.
again = sct.CellModel.from_pretrained("annotator")
print("the same model:", again.checksum == model.checksum)
sct.tl.annotate(blood, again)
sct.tl.embed(blood, again)
blood.write_h5ad("annotated.h5ad")
print(sct.get.provenance(ad.read_h5ad("annotated.h5ad")).T)

# A run goes on from its folder, here with one more epoch, as if it had never stopped.
longer = sct.train.finetune(blood, "scgpt-demo", epochs=2, resume=True, **training)
print(len(longer.history), "epochs")

index = sct.tl.index_reference(blood, label_key="cell_type_harmonised")
print(sct.models.ReferenceIndex.load(index.save("reference")))
