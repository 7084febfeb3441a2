"""Perturbation labels as columns of ``obs`` hold them: read, checked against the genes, spelled like GEARS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._keys import ConditionKeys
from scgpt_tools._validate import check_key
from scgpt_tools._warnings import warn_user
from scgpt_tools.tokens.perturbations import (
    CONTROL,
    FLAGS,
    SEPARATORS,
    ConditionStyle,
    canonical_labels,
    condition_genes,
    locate_genes,
    perturbed_genes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Direction, GeneSet, Labels, Missing

# Labels of controls in public data sets, for a message; nothing is taken for a control because of it.
_CONTROL = re.compile(
    r"(ctrl|control|ntc?|non.?target.*|neg.*|scramble.*|safe.*|untreated|unperturbed|mock|dmso)\d*", flags=re.IGNORECASE
)
_SHOWN = 10


@dataclass(frozen=True)
class Conditions:
    """Conditions of N cells."""

    labels: NDArray[Any]
    """(N,) condition of each cell in GEARS' spelling."""
    genes: GeneSet
    """Genes that some condition perturbs, sorted."""
    missing: GeneSet
    """Those of them without a column."""

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """(N,) True for cells that nothing perturbs."""
        return control_mask(self.labels)


def control_mask(labels: Labels) -> NDArray[np.bool_]:
    """True for cells that nothing perturbs, from labels in GEARS' spelling."""
    codes, kinds = pd.factorize(np.asarray(labels, dtype=str))
    return np.array([not condition_genes(str(kind)) for kind in kinds], dtype=bool)[codes]


def read_labels(adata: AnnData, key: str) -> NDArray[Any]:
    """One column of ``obs`` as text (N,)."""
    labels = read_texts(adata, key)
    spellings: dict[str, str] = {}
    for kind in pd.unique(labels):
        if (other := spellings.setdefault(kind.strip(), kind)) != kind:
            raise ValueError(
                f"Expected labels without white space around them in obs[{key!r}], found {other!r} and {kind!r}. Run "
                f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str).str.strip() first."
            )
    return labels


def read_texts(adata: AnnData, key: str) -> NDArray[Any]:
    """One column of ``obs`` as text, white space around it and all; see :func:`read_labels`."""
    column = adata.obs[check_key(adata.obs, key, "obs")]
    without = column.isna().to_numpy() | (column.astype(str).str.strip() == "").to_numpy()
    if without.any():
        raise ValueError(
            f"Expected a label in obs[{key!r}] of every cell, found none for {int(without.sum())} of {adata.n_obs} "
            f"(first: {str(adata.obs_names[without][0])!r}). Leave these cells out: adata[adata.obs[{key!r}].notna()]."
        )
    return column.astype(str).to_numpy(dtype=object)


def read_conditions(adata: AnnData, key: str) -> NDArray[Any]:
    """Conditions (N,) in GEARS' spelling, one for each set of genes.

    A set that the column spells in one way keeps that spelling, ``"B+A"`` or ``"ctrl+A"``; where it is spelled in
    several, as ``"A+B"`` and ``"B+A"``, its genes are sorted and a warning says so.  The column stays as it is.
    """
    labels = read_texts(adata, key)
    codes, kinds = pd.factorize(labels)
    known = _gene_names(adata, key)
    other = [kind for kind in kinds if "+" not in kind and condition_genes(kind) and kind.strip() not in known]
    if other:
        raise ValueError(
            f"Expected conditions such as 'ctrl', 'G+ctrl' or 'A+B' in obs[{key!r}], found {_listing(other)}. "
            "Run pp.parse_conditions on this column first."
        )
    return np.array(_one_spelling(list(kinds), known, key), dtype=object)[codes]


def read_direction(adata: AnnData, key: str | None) -> Direction | None:
    """Direction of the perturbations of a column, if :func:`scgpt_tools.pp.parse_conditions` recorded one."""
    record = {} if key is None else adata.uns.get(ConditionKeys(key).uns, {})
    flag = record.get("flags", {}).get("perturbed") if isinstance(record, Mapping) and "direction" in record else None
    return "up" if flag == FLAGS["up"] else "down" if flag == FLAGS["down"] else None


def _gene_names(adata: AnnData, key: str) -> frozenset[str]:
    """Measured genes, and perturbed ones that were read from this column before."""
    record = adata.uns.get(ConditionKeys(key).uns, {})
    read = record.get("genes", ()) if isinstance(record, Mapping) else ()
    return frozenset(map(str, [*adata.var_names, *read]))


def _one_spelling(kinds: list[str], known: frozenset[str], key: str) -> list[str]:
    canonical = canonical_labels(kinds, known=known)
    spelled: dict[str, list[str]] = {}
    for kind, condition in canonical.items():
        spelled.setdefault(condition, []).append(kind)
    if several := {condition: own for condition, own in spelled.items() if len(own) > 1}:
        condition, own = next(iter(several.items()))
        warn_user(
            f"Expected one spelling of each set of perturbed genes in obs[{key!r}], found several of {len(several)}: "
            f"{_listing(own)} are taken for {condition!r}. Run pp.parse_conditions to write one spelling."
        )
    conditions = []
    for kind in kinds:
        alone = len(spelled[canonical[kind]]) == 1 and kind.startswith(f"{CONTROL}+")
        conditions.append(kind if alone and kind == "+".join([CONTROL, *condition_genes(kind)]) else canonical[kind])
    return conditions


def parse_labels(
    labels: NDArray[Any],
    style: ConditionStyle,
    names: Sequence[str],
    *,
    counts: NDArray[Any] | None = None,
    missing: Missing = "warn",
) -> Conditions:
    """Spell the labels (N,) of cells as GEARS does.

    ``names`` are the measured genes, and ``counts`` (N,) the number of perturbed genes of each cell as the data set says.
    """
    known = frozenset(names)
    codes, kinds = pd.factorize(labels)
    canonical = canonical_labels(kinds, style, known=known)
    conditions = np.array([canonical[kind] for kind in kinds], dtype=object)[codes]
    genes = perturbed_genes(canonical.values())
    if control_mask(conditions).all():
        raise ValueError(f"Expected perturbed cells, found controls only: {_listing(kinds)}.")
    if not control_mask(conditions).any():
        raise ValueError(_no_controls(kinds, style))
    if counts is not None:
        _check_counts(labels, conditions, counts)
    absent = tuple(gene for gene in genes if gene not in known)
    locate_genes(genes, dict.fromkeys(known, 0), missing=missing, hint=_hint(absent, style))
    return Conditions(conditions, genes, absent)


def context_labels(adata: AnnData, within: str | Sequence[str] | None) -> NDArray[Any] | None:
    """One label a cell (N,) from one or several columns of ``obs``, or ``None``.

    Values are joined by ``_``, or are tuples where that would give two combinations the same label.
    """
    columns = [within] if isinstance(within, str) else list(within or ())
    if not columns:
        return None
    parts = [read_labels(adata, column) for column in columns]
    rows = list(zip(*parts, strict=True))
    label_of = {values: "_".join(values) for values in rows}
    if len(set(label_of.values())) < len(label_of):  # ("a_b", "c") and ("a", "b_c")
        label_of = {values: str(values) for values in label_of}
    return np.array([label_of[values] for values in rows], dtype=object)


def unit_name(context: str | None, condition: str) -> str:
    """What the cells of one context and condition are called."""
    return f"{context}_{condition}" if context else condition


def unit_names(contexts: Labels | None, conditions: Labels) -> NDArray[Any]:
    """What the context and condition of each cell are called together (N,); a context may be ``""`` for none."""
    if len(conditions) == 0:
        return np.array([], dtype=object)
    alone = [""] * len(conditions) if contexts is None else contexts
    columns = [np.asarray(alone, dtype=object), np.asarray(conditions, dtype=object)]
    codes, pairs = pd.MultiIndex.from_arrays(columns).factorize()
    pair_of: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        name = unit_name(*pair)
        if name in pair_of:
            raise ValueError(
                f"Expected contexts and conditions with names of their own when joined, found {name!r} for both "
                f"{pair_of[name]} and {pair}. Rename the context of one of them."
            )
        pair_of[name] = pair
    return np.array(list(pair_of), dtype=object)[codes]


def _check_counts(labels: NDArray[Any], conditions: NDArray[Any], counts: NDArray[Any]) -> None:
    found = np.array([len(condition_genes(condition)) for condition in conditions])
    # Controls carry any number of non-targeting guides.
    wrong = np.flatnonzero((found > 0) & (found != counts))
    if wrong.size:
        row = wrong[0]
        raise ValueError(
            f"Expected as many genes in each label as its count says, found {found[row]} in {labels[row]!r} instead of "
            f"{counts[row]:g} ({wrong.size} cells differ). Check `delimiter` and `control`."
        )


def _no_controls(kinds: Labels, style: ConditionStyle) -> str:
    message = f"Expected some cells labelled as controls ({_listing(style.control)}), found none."
    if similar := [kind for kind in kinds if _CONTROL.fullmatch(kind)]:
        return f"{message} Pass control={similar[0]!r}, if that is the control here."
    return f"{message} Labels are {_listing(kinds)}; pass `control`."


def _hint(absent: Sequence[str], style: ConditionStyle) -> str:
    others = [mark for mark in SEPARATORS if mark != style.delimiter and any(mark in gene for gene in absent)]
    return f" If {others[0]!r} separates genes, pass delimiter={others[0]!r}." if others else ""


def _listing(names: Labels) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(repr(str(name)) for name in names[:_SHOWN]) + more
