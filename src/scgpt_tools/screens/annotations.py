"""What the preprocessing of perturbations writes into an AnnData.

Everything is computed before the first key is written, so a call that fails leaves the object as it was.  The functions
behind :mod:`scgpt_tools.pp` and :class:`~scgpt_tools.screens.perturbation_data.PerturbationData` are these.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from scgpt_tools._keys import ConditionKeys, PairKeys, RankingKeys, SplitKeys
from scgpt_tools._lookup import absent
from scgpt_tools._types import PairMethod
from scgpt_tools._validate import check_choice, check_integer, check_key, check_key_name
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.parts import PARTS
from scgpt_tools.data.rows import RowSource, plain_vectors
from scgpt_tools.data.writing import check_new_key, is_record
from scgpt_tools.screens.conditions import (
    context_labels,
    control_mask,
    parse_labels,
    read_conditions,
    read_texts,
)
from scgpt_tools.screens.pairing import pair_controls, pair_controls_gears
from scgpt_tools.screens.ranking import METHODS, gears_lists, gears_names, rank_genes
from scgpt_tools.screens.transport import components, pair_by_transport
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import FLAGS, PERTURBED, UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.screens.splits import ConditionSplit, Draw
    from scgpt_tools.tokens.perturbations import ConditionStyle, Direction, Missing

logger = logging.getLogger(__name__)


def annotate_conditions(
    adata: AnnData,
    key: str,
    style: ConditionStyle,
    *,
    genes: str | None = None,
    count_key: str | None = None,
    missing: Missing = "warn",
    direction: Direction | None = None,
    key_added: str = "condition",
) -> None:
    """Read the labels of a column and write them in GEARS' spelling; see :func:`scgpt_tools.pp.parse_conditions`."""
    keys = ConditionKeys(key_added)
    if direction is not None:
        check_choice("direction", direction, tuple(FLAGS))
    check_key(adata.obs, key, "obs")
    if keys.obs in adata.obs and keys.obs != key and keys.uns not in adata.uns:
        raise ValueError(
            f"Expected `key_added` to be a name that is free, found obs[{keys.obs!r}], which something else has written. "
            "Choose another name, or rename that column."
        )
    counts = None if count_key is None else _numbers(adata, count_key)
    names = [name for name in column_names(adata.var, genes) if name is not None]
    found = parse_labels(read_texts(adata, key), style, names, counts=counts, missing=missing)
    logger.info(
        "found %d conditions with %d perturbed genes, %d of them without a column, and %d control cells",
        pd.unique(found.labels).size,
        len(found.genes),
        len(found.missing),
        found.is_control.sum(),
    )
    adata.obs[keys.obs] = pd.Categorical(found.labels)
    adata.uns[keys.uns] = {
        "params": {
            "condition_key": key,
            "control": np.array(style.control, dtype=object),
            "delimiter": style.delimiter,
            "guide_pattern": style.guide_pattern,
            "genes": genes,
        },
        "genes": np.array(found.genes, dtype=object),
        "missing_genes": np.array(found.missing, dtype=object),
        "flags": {"untouched": UNTOUCHED, "perturbed": PERTURBED if direction is None else FLAGS[direction]},
        **({} if direction is None else {"direction": direction}),
    }


def _numbers(adata: AnnData, key: str) -> NDArray[np.float64]:
    column = adata.obs[check_key(adata.obs, key, "obs")]
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float)
    if np.isnan(numbers).any():
        raise ValueError(
            f"Expected the number of perturbed genes of every cell in obs[{key!r}], found "
            f"{column.iloc[int(np.isnan(numbers).argmax())]!r}."
        )
    return numbers


def annotate_pairs(
    adata: AnnData,
    key: str,
    *,
    within: str | Sequence[str] | None = None,
    n: int = 1,
    seed: int = 0,
    draw: Draw = "stable",
    method: PairMethod = "random",
    use_rep: str | None = None,
    layer: str | None = None,
    show_progress: bool | None = None,
    key_added: str = "ctrl_indices",
) -> None:
    """Find a control for every perturbed cell; see :func:`scgpt_tools.pp.pair_controls`."""
    keys = PairKeys(key_added)
    check_new_key(adata, "obsm", keys.obsm, default=PairKeys().obsm)
    check_integer("n", n)
    check_integer("seed", seed, least=0)
    check_choice("draw", draw, ("stable", "gears"))
    if draw == "gears" and (within is not None or method != "random"):
        raise ValueError(
            "Expected no `within`, and method='random', with draw='gears', which draws over all cells; found "
            f"within={within!r} and method={method!r}."
        )
    conditions = read_conditions(adata, key)
    if draw == "gears":
        pairs = pair_controls_gears(conditions, n=n, seed=seed)
    else:
        pairs = find_pairs(
            adata,
            conditions,
            within=within,
            n=n,
            seed=seed,
            method=method,
            use_rep=use_rep,
            layer=layer,
            show_progress=show_progress,
        )
    adata.obsm[keys.obsm] = pairs
    columns = [within] if isinstance(within, str) else list(within or ())
    params = {"condition_key": key, "within": np.array(columns, dtype=object), "n": n, "rng": seed, "draw": draw}
    params |= {"method": method, "use_rep": use_rep, "layer": layer}
    adata.uns[keys.uns] = {"params": params, "cells": checksum_of_cells(adata)}


def find_pairs(
    adata: AnnData,
    conditions: NDArray[Any],
    *,
    within: str | Sequence[str] | None = None,
    n: int = 1,
    seed: int = 0,
    method: PairMethod = "random",
    use_rep: str | None = None,
    layer: str | None = None,
    show_progress: bool | None = None,
) -> NDArray[np.int64]:
    """Controls (N, n) of every perturbed cell; controls are paired with themselves."""
    check_choice("method", method, get_args(PairMethod))
    is_control, contexts = control_mask(conditions), context_labels(adata, within)
    if method == "random":
        if use_rep is not None or layer is not None:
            raise ValueError("Expected `use_rep` and `layer` with method='transport' only, found them with 'random'.")
        return pair_controls(is_control, adata.obs_names, contexts=contexts, n=n, seed=seed)
    if use_rep is not None and layer is not None:
        raise ValueError("Expected `use_rep` or `layer`, found both. Distances are taken in one of them.")
    if use_rep is None:
        vectors = components(log_values(RowSource(adata, layer=layer)), seed=seed)
    else:
        vectors = plain_vectors(adata.obsm[check_key(adata.obsm, use_rep, "obsm")], f"obsm[{use_rep!r}]")
    return pair_by_transport(
        is_control,
        adata.obs_names,
        conditions,
        vectors,
        contexts=contexts,
        n=n,
        seed=seed,
        show_progress=show_progress,
    )


def check_part_column(adata: AnnData, key: str) -> None:
    """Refuse to replace a column that is no column of parts."""
    keys = SplitKeys(key)
    if keys.obs not in adata.obs or is_record(adata.uns.get(keys.uns)):
        return
    if not set(adata.obs[keys.obs].dropna().astype(str)) <= set(PARTS):
        raise ValueError(
            f"Expected `key_added` to be a name that is free, or of a column of {', '.join(PARTS)}, found obs[{key!r}] "
            "with other content. Choose another name, or rename that column."
        )


def read_pairs(adata: AnnData, key: str = "ctrl_indices") -> NDArray[np.int64]:
    """Rows (N, n) of the paired controls, after checking that they are rows of this object."""
    keys = PairKeys(key)
    if keys.obsm not in adata.obsm:
        raise KeyError(f"{absent(keys.obsm, adata.obsm, 'key in `obsm`:')} Run pp.pair_controls first.")
    record = adata.uns.get(keys.uns)
    recorded = record.get("cells") if isinstance(record, Mapping) else None
    if recorded is None:
        raise ValueError(
            f"Expected a record in uns[{key!r}] of the cells for which obsm[{key!r}] was drawn, found none: tables that "
            "were joined or made by others lack it, and their rows may name other cells. Run pp.pair_controls again."
        )
    if recorded != checksum_of_cells(adata):
        raise ValueError(
            f"Expected the cells for which obsm[{key!r}] was drawn, found others: the rows it holds now name other "
            "cells. Run pp.pair_controls again."
        )
    pairs = np.asarray(adata.obsm[keys.obsm])
    if pairs.ndim != 2 or not np.issubdtype(pairs.dtype, np.integer) or not _are_rows(pairs, adata.n_obs):
        raise ValueError(
            f"Expected rows of cells in obsm[{key!r}], found {pairs.dtype} of shape {pairs.shape}"
            f"{'' if _are_rows(pairs, adata.n_obs) else ', some of them outside of the table'}. Run pp.pair_controls again."
        )
    return pairs.astype(np.int64, copy=False)


def _are_rows(pairs: NDArray[Any], n: int) -> bool:
    return bool(((pairs >= 0) & (pairs < n)).all())


def annotate_split(
    adata: AnnData,
    key: str,
    conditions: NDArray[Any],
    split: ConditionSplit,
    params: dict[str, Any],
    *,
    key_added: str,
) -> None:
    """Write the part of every cell, from the conditions in one column; see :func:`scgpt_tools.pp.perturbation_split`."""
    keys = SplitKeys(key_added)
    check_part_column(adata, key_added)
    codes, kinds = pd.factorize(conditions)
    parts = split.assignment()
    groups = {name: group for part in split.subgroups.values() for group, own in part.items() for name in own}
    part = pd.Categorical(np.array([parts.get(kind) for kind in kinds], dtype=object)[codes], categories=list(PARTS))
    group = pd.Categorical(np.array([groups.get(kind) for kind in kinds], dtype=object)[codes])
    record: dict[str, Any] = {
        "params": {"condition_key": key, "method": split.method, "draw": split.draw} | params,
        "hash": {name: split.digest(name) for name in ("train", "val", "test")},
        "conditions": {name: np.array(getattr(split, name), dtype=object) for name in (*PARTS, "dropped")},
    } | {
        f"{name}_subgroup": {group: np.array(own, dtype=object) for group, own in found.items()}
        for name, found in split.subgroups.items()
    }
    for name in ("val", "test"):
        sizes = ", ".join(f"{len(own)} {group}" for group, own in split.subgroups[name].items() if own)
        logger.info(
            "%s: %d conditions (%s), hash %s", name, len(getattr(split, name)), sizes or "none", split.digest(name)[:16]
        )
    missing = [verb for verb in split.empty() if verb != "validate on" or params.get("val_fraction") != 0]
    if missing:
        warn_user(
            f"Expected conditions to {' and to '.join(missing)}, found none: of the {len(kinds)} conditions the split "
            f"{split.method!r} leaves none for that. Choose another `rng`, larger shares or another method."
        )
    adata.obs[keys.obs] = part
    adata.obs[keys.obs_subgroup] = group
    adata.uns[keys.uns] = record


def annotate_ranking(
    adata: AnnData,
    key: str,
    *,
    within: str | None = None,
    layer: str | None = None,
    method: str = "t-test",
    gears: bool = False,
    key_added: str = "perturbation_de",
) -> None:
    """Rank the genes of every condition; see :func:`scgpt_tools.pp.perturbation_de`."""
    keys = RankingKeys(key_added)
    check_new_key(adata, "uns", keys.uns, default=RankingKeys().uns)
    check_choice("method", method, METHODS)
    if gears and within is None:
        raise ValueError("Expected `within` to name the column of cell types with gears=True, found None.")
    conditions = read_conditions(adata, key)
    contexts = context_labels(adata, within)
    columns = _gears_columns(adata, conditions, contexts) if gears and contexts is not None else {}
    cells = log_values(RowSource(adata, layer=layer))
    ranking = rank_genes(cells, conditions, contexts=contexts, method=method)
    params = {"groupby": key, "reference": "ctrl", "method": method, "use_raw": False, "layer": layer}
    params |= {"corr_method": "benjamini-hochberg", "within": within}
    found = {keys.uns: ranking.as_scanpy(list(adata.var_names), params)}
    if columns:
        found |= _gears_entries(adata, cells, conditions, ranking, columns)
    # Everything is computed: a call that fails leaves no half of its results behind.
    for column, values in columns.items():
        adata.obs[column] = values
    if columns and "gene_name" not in adata.var:
        adata.var["gene_name"] = adata.var_names.to_numpy(dtype=object)
    for name, value in found.items():
        adata.uns[name] = value


def check_log_values(source: RowSource) -> None:
    """Refuse values that look like counts, bins or normalised values without a logarithm."""
    if source.units.unit not in ("log1p", "empty"):
        place = "`X`" if source.layer is None else f"layers[{source.layer!r}]"
        raise ValueError(
            f"Expected log-normalised expression in {place}, found {source.units}. Run scanpy.pp.normalize_total and "
            "scanpy.pp.log1p first, or pass the `layer` that holds log values."
        )


def log_values(source: RowSource) -> sp.csr_matrix:
    """(N, G) log-normalised expression in memory; see :func:`check_log_values`."""
    check_log_values(source)
    return source.take(np.arange(len(source)))


def _gears_columns(adata: AnnData, conditions: NDArray[Any], contexts: NDArray[Any]) -> dict[str, pd.Categorical]:
    """Columns of ``obs`` that GEARS reads, none of which takes the place of other content."""
    names = gears_names(conditions, contexts)
    columns = {
        "condition": pd.Categorical(conditions),
        "cell_type": pd.Categorical(contexts),
        **{str(column): pd.Categorical(names[column].to_numpy()) for column in names},
    }
    # The last two follow from the others, and have names that nobody else uses.
    for column in ("condition", "cell_type", "control"):
        if column in adata.obs and (adata.obs[column].astype(str) != columns[column].astype(str)).any():
            raise ValueError(
                f"Expected no obs[{column!r}], or the same as gears=True writes, found another one. It would be "
                "replaced: rename that column, or pass gears=False."
            )
    for name in columns["condition_name"].categories:
        check_key_name("a name of cell type and condition", name)
    return columns


def _gears_entries(
    adata: AnnData, cells: Any, conditions: NDArray[Any], ranking: Any, columns: Mapping[str, pd.Categorical]
) -> dict[str, dict[str, NDArray[Any]]]:
    names = pd.DataFrame({name: np.asarray(columns[name]) for name in ("dose_val", "control", "condition_name")})
    genes = adata.var_names.to_numpy(dtype=object)
    # Positions stay positions in the lists that GEARS calls indices; the others hold names.
    return {
        what: {name: found if what.endswith("_idx") else genes[found] for name, found in own.items()}
        for what, own in gears_lists(cells, conditions, ranking, names).items()
    }


def checksum_of_cells(adata: AnnData) -> str:
    """SHA-256 of the names of the cells in their order."""
    return sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()
