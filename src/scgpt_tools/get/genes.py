"""Networks and programs of genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tools._arguments import check_arguments
from scgpt_tools._keys import GeneNetworkKeys, GeneProgramKeys, KnockoutKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def knockout(knockouts: AnnData, groups: str | Sequence[str] | None = None, *, random: bool = False) -> pd.DataFrame:
    """Genes by how far a change of each moves cells, from :func:`scgpt_tools.tl.knockout`.

    Parameters
    ----------
    knockouts
        What :func:`scgpt_tools.tl.knockout` returned.
    groups
        One group of cells or several; ``None`` for all.
    random
        Also list the random genes that the others were compared with.

    Returns
    -------
    One row a gene and group, by falling z-score, those without one last: ``gene``, ``group``, ``role``, ``n_cells``,
    ``n_changed``, ``mean_value``, ``shift``, ``displacement``, ``expected_shift``, ``z_score``, ``p_value`` and
    ``q_value``.

    Raises
    ------
    KeyError
        If the table is of something else, or a group is absent; the message lists what is there.
    """
    check_arguments(knockout, locals())
    keys = KnockoutKeys()
    check_key(knockouts.uns, keys.uns, "uns")
    table = knockouts.obs if random else knockouts.obs[knockouts.obs[keys.role] == "asked"]
    if groups is not None:
        wanted, there = [groups] if isinstance(groups, str) else list(groups), list(table[keys.group].unique())
        if missing := [name for name in wanted if name not in there]:
            raise KeyError(absent(missing[0], there, "group of cells named"))
        table = table[table[keys.group].isin(wanted)]
    return table.sort_values(keys.z_score, ascending=False, kind="stable").reset_index(drop=True)


def knockout_effects(
    knockouts: AnnData, gene: str, *, group: str | None = None, n_genes: int | None = None
) -> pd.DataFrame:
    """Predicted expression of other genes after a change of one, from :func:`scgpt_tools.tl.knockout`.

    Parameters
    ----------
    knockouts
        What :func:`scgpt_tools.tl.knockout` returned with ``expression``.
    gene
        The gene that is changed.
    group
        Group of cells; ``None`` for the only one.
    n_genes
        Other genes to return, those that change most first; ``None`` for all.

    Returns
    -------
    One row a gene, by falling absolute change: ``gene`` and ``change``, in the unit of the model's tokens.

    Raises
    ------
    KeyError
        If no expression was predicted, or the gene or the group is absent; the message lists what is there.
    ValueError
        If there are several groups and none is named.
    """
    check_arguments(knockout_effects, locals())
    keys = KnockoutKeys()
    check_key(knockouts.uns, keys.uns, "uns")
    if knockouts.X is None:
        raise KeyError("Expected predicted expression in the table, found none. Pass `expression=` to `tl.knockout`.")
    groups = list(knockouts.obs[keys.group].unique())
    if group is None and len(groups) > 1:
        raise ValueError(f"Expected `group` to be one of {groups}, found None.")
    chosen = groups[0] if group is None else group
    if chosen not in groups:
        raise KeyError(absent(chosen, groups, "group of cells named"))
    own = ((knockouts.obs[keys.gene] == gene) & (knockouts.obs[keys.group] == chosen)).to_numpy()
    if not own.any():
        raise KeyError(absent(gene, knockouts.obs[keys.gene].unique(), "changed gene named"))
    change = np.asarray(knockouts.X[int(own.argmax())], dtype=np.float64).ravel()
    table = pd.DataFrame({"gene": knockouts.var_names.astype(object), "change": change})
    table = table[table["change"].notna() & (table["gene"] != gene)]
    return (
        table.sort_values("change", key=np.abs, ascending=False, kind="stable")
        .head(n_genes or len(table))
        .reset_index(drop=True)
    )
