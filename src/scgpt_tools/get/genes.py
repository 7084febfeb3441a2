"""Networks and programs of genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tools._arguments import check_arguments
from scgpt_tools._keys import GeneNetworkKeys, GeneProgramKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key

if TYPE_CHECKING:
    from anndata import AnnData


def gene_network(adata: AnnData, key: str = GeneNetworkKeys.key) -> pd.DataFrame:
    """Edges of a network of genes from :func:`scgpt_tools.tl.gene_network`.

    Parameters
    ----------
    adata
        A table with the network.
    key
        Key of the network in ``varp``.

    Returns
    -------
    One row an edge, by falling weight, each pair of genes once: ``gene``, ``other`` and ``weight``.

    Raises
    ------
    KeyError
        If there is no such network; the message lists what is there.
    """
    check_arguments(gene_network, locals())
    edges = sparse.triu(sparse.coo_matrix(adata.varp[check_key(adata.varp, key, "varp")]), k=1)
    order = np.lexsort((edges.col, edges.row, -edges.data))
    names = adata.var_names.to_numpy(dtype=object)
    return pd.DataFrame(
        {"gene": names[edges.row[order]], "other": names[edges.col[order]], "weight": edges.data[order]}
    )


def gene_programs(adata: AnnData, key: str = GeneProgramKeys.key) -> pd.DataFrame:
    """Genes of each program from :func:`scgpt_tools.tl.gene_programs`.

    Parameters
    ----------
    adata
        A table with the programs.
    key
        Key of the programs in ``uns``.

    Returns
    -------
    One row a gene of a program, the largest program first: ``program`` and ``gene``.

    Raises
    ------
    KeyError
        If there are no such programs; the message lists what is there.
    """
    check_arguments(gene_programs, locals())
    record = adata.uns[check_key(adata.uns, key, "uns")]
    if not isinstance(record, Mapping) or not isinstance(record.get("programs"), Mapping):
        raise KeyError(absent("programs", record if isinstance(record, Mapping) else (), f"key in `uns[{key!r}]`:"))
    found = sorted(record["programs"].items(), key=lambda entry: -len(entry[1]))
    rows = [(str(name), str(gene)) for name, genes in found for gene in genes]
    return pd.DataFrame(rows, columns=["program", "gene"])
