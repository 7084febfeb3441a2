"""Mouse cells in a human model: by a table of orthologues, or by the same letters where none is at hand."""

import scgpt_tools as sct

cells = sct.datasets.load("mouse_brain_merfish_cellxgene")

# With a table of orthologues (a file of Ensembl's BioMart, say):
#     names = sct.tokens.orthologs.ortholog_names(table, to="human", of="mouse", kind="kind")
#     sct.tl.embed(cells, model, genes="feature_name", aliases=names)
coverage = sct.pp.match_genes(cells, "scgpt-demo", genes="feature_name", ignore_case=True, min_coverage=0.2)
print(coverage)

sct.tl.embed(cells, "scgpt-demo", genes="feature_name", ignore_case=True)
sct.pl.embedding(cells, "cell_type", save="brain.png", show=False)
# The demo model has seen blood cells of humans only: what it makes of a mouse's brain says how names are matched, no more.
