"""Cells whose genes are indexed by Ensembl id, of which the table has the symbols in a column."""

import scgpt_tools as sct

cells = sct.datasets.load("tian2019_cell_line_mixture")
print(cells.var.head(3))

# Without `genes`, the error names the column that matches: "pass genes='gene_symbol'".
coverage = sct.pp.match_genes(cells, "scgpt-demo", genes="gene_symbol", min_coverage=0.3)
print(coverage)
sct.pl.coverage(coverage, save="coverage.png", show=False)

sct.tl.embed(cells, "scgpt-demo", genes="gene_symbol")
# The demo model has seen blood cells only, and hardly tells these lines of lung cancer apart.
sct.pl.embedding(cells, ["cell_type", "batch"], save="lines.png", show=False)
