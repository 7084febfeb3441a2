"""Perturbation screens: divisions, rankings and predicted effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._keys import RankingKeys, ScreenKeys, SplitKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def perturbation_split(adata: AnnData, key: str = SplitKeys.key) -> pd.DataFrame:
    """Conditions of each part, from :func:`scgpt_tools.pp.perturbation_split`.

    Parameters
    ----------
    adata
        A screen with a split.
    key
        Key of the split.

    Returns
    -------
    One row a condition: ``condition``, ``part`` (``"train"``, ``"val"``, ``"test"``, or ``"dropped"`` for conditions that
    would leak either way) and ``subgroup``, how many of its genes training saw; missing for training conditions.

    Raises
    ------
    KeyError
        If there is no such split; the message lists what is there.
    """
    check_arguments(perturbation_split, locals())
    record = adata.uns[check_key(adata.uns, SplitKeys(key).uns, "uns")]
    if "conditions" not in record:
        raise KeyError(absent("conditions", record, f"key in `uns[{key!r}]`:"))
    groups = {
        str(name): group
        for part in ("val", "test")
        for group, own in record.get(f"{part}_subgroup", {}).items()
        for name in own
    }
    rows = [
        (str(name), part, groups.get(str(name)))
        for part in ("train", "val", "test", "dropped")
        for name in record["conditions"].get(part, ())
    ]
    return pd.DataFrame(rows, columns=["condition", "part", "subgroup"])


def perturbation_de(
    adata: AnnData,
    conditions: str | Sequence[str] | None = None,
    *,
    n_genes: int | None = None,
    key: str = RankingKeys.key,
) -> pd.DataFrame:
    """Genes of each condition by how much they differ from the controls, from :func:`scgpt_tools.pp.perturbation_de`.

    Parameters
    ----------
    adata
        A screen with the ranking.
    conditions
        One condition or several, with the context before it if the ranking has contexts; ``None`` for all.
    n_genes
        Genes of each condition, the most different first; ``None`` for all.
    key
        Key of the ranking in ``uns``.

    Returns
    -------
    One row a gene of a condition: ``condition``, ``gene``, and the statistics that the test gives, by scanpy's names:
    ``scores``, ``pvals``, ``pvals_adj``, ``logfoldchanges``.

    Raises
    ------
    KeyError
        If there is no such ranking or condition; the message lists what is there.
    """
    check_arguments(perturbation_de, locals())
    record = adata.uns[check_key(adata.uns, key, "uns")]
    if "names" not in record:
        raise KeyError(absent("names", record, f"key in `uns[{key!r}]`:"))
    there = record["names"].dtype.names
    fields = [name for name in ("scores", "pvals", "pvals_adj", "logfoldchanges") if name in record]
    frames = [
        pd.DataFrame({"condition": name, "gene": record["names"][name][:n_genes]}).assign(
            **{field: record[field][name][:n_genes] for field in fields}
        )
        for name in _chosen(conditions, there, "condition")
    ]
    return pd.concat(frames, ignore_index=True)


def perturbation_effects(
    screened: AnnData, perturbations: str | Sequence[str] | None = None, *, n_genes: int | None = None
) -> pd.DataFrame:
    """Predicted effect of each perturbation on each gene, from :func:`scgpt_tools.tl.screen`.

    Parameters
    ----------
    screened
        What :func:`scgpt_tools.tl.screen` returned.
    perturbations
        One perturbation or several; ``None`` for all.
    n_genes
        Genes of each perturbation, those that change most first; ``None`` for all.

    Returns
    -------
    One row a gene of a perturbation, by falling absolute effect: ``perturbation``, ``gene``, ``control_mean``,
    ``predicted`` mean, ``effect`` (their difference) and ``dispersion``, the standard deviation over control cells.

    Raises
    ------
    KeyError
        If there is no such perturbation, or the table is no result of :func:`scgpt_tools.tl.screen`.
    """
    check_arguments(perturbation_effects, locals())
    keys = ScreenKeys()
    control = screened.var[check_key(screened.var, keys.control, "var")].to_numpy()
    effect, dispersion = (
        screened.layers[check_key(screened.layers, name, "layers")] for name in (keys.effect, keys.dispersion)
    )
    genes = screened.var_names.to_numpy(dtype=object)
    frames = []
    for name in _chosen(perturbations, screened.obs_names, "perturbation"):
        row = screened.obs_names.get_loc(name)
        order = np.argsort(-np.abs(effect[row]), kind="stable")[:n_genes]
        columns = {
            "control_mean": control,
            "predicted": screened.X[row],
            "effect": effect[row],
            "dispersion": dispersion[row],
        }
        frames.append(
            pd.DataFrame(
                {"perturbation": name, "gene": genes[order]} | {what: own[order] for what, own in columns.items()}
            )
        )
    return pd.concat(frames, ignore_index=True)


def _chosen(names: str | Sequence[str] | None, there: Sequence[str], kind: str) -> list[str]:
    wanted = list(there) if names is None else [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in there:
            raise KeyError(absent(name, there, kind))
    return wanted
