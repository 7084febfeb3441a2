"""Mouse cells in a human model: by a table of orthologues, or, as here, by the same letters."""

import scgpt_tools as sct

cells = sct.datasets.load("mouse_brain_merfish_cellxgene")

# With the bundled table of orthologues, or by `tokens.gene_lists.read_orthologs` with a file of BioMart or MGI:
#     names = sct.tokens.orthologs.ortholog_names(sct.tokens.gene_lists.orthologs("mouse"))
#     sct.tl.embed(cells, model, genes="feature_name", aliases=names)
coverage = sct.pp.match_genes(cells, "scgpt-demo", genes="feature_name", ignore_case=True, min_coverage=0.2)
print(coverage)

sct.tl.embed(cells, "scgpt-demo", genes="feature_name", ignore_case=True)
sct.pl.embedding(cells, "cell_type", save="brain.png", show=False)
# The demo model has seen blood cells of humans only: what it makes of a mouse's brain says how names are matched, no more.
