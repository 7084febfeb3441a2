"""Names of the scIB scores of an embedding (Luecken et al. 2022), by what they are about."""

from __future__ import annotations

BIO, BATCH, AGGREGATE = "Bio conservation", "Batch correction", "Aggregate"

GROUPS: dict[str, str] = {
    "Isolated labels": BIO,
    "Leiden NMI": BIO,
    "Leiden ARI": BIO,
    "KMeans NMI": BIO,
    "KMeans ARI": BIO,
    "Silhouette label": BIO,
    "cLISI": BIO,
    "Silhouette batch": BATCH,
    "BRAS": BATCH,
    "iLISI": BATCH,
    "KBET": BATCH,
    "Graph connectivity": BATCH,
    "PCR comparison": BATCH,
    BIO: AGGREGATE,
    BATCH: AGGREGATE,
    "Total": AGGREGATE,
}
"""Group of each column of :func:`scgpt_tools.tl.score_embedding`; scib-metrics gives the columns their names."""
