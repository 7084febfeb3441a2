"""Genes of every condition by how strongly they differ from the controls of the same context.

The test is scanpy's; what is added is one reference a context (cell type, batch) and the gene lists that GEARS keeps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from scgpt_tools.screens.conditions import control_mask, unit_name, unit_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Labels

METHODS = ("t-test", "t-test_overestim_var", "wilcoxon", "logreg")
"""Tests of :func:`scanpy.tl.rank_genes_groups`."""
STATISTICS = ("scores", "pvals", "pvals_adj", "logfoldchanges")
_GROUP = "group"


@dataclass(frozen=True)
class GeneRanking:
    """G genes in the order of each of R groups of cells."""

    names: tuple[str, ...]
    """Group, for example a condition."""
    order: NDArray[np.int32]
    """(R, G) gene positions, the most different first."""
    statistics: dict[str, NDArray[np.float64]]
    """(R, G) by name, in the order of the ranking."""

    def scores(self) -> NDArray[np.float64]:
        """(R, G) signed scores in the order of the genes."""
        scores = np.empty_like(self.statistics["scores"])
        np.put_along_axis(scores, self.order.astype(np.int64), self.statistics["scores"], axis=1)
        return scores

    def top(self, n: int) -> NDArray[np.int32]:
        """(R, n) positions of the first genes."""
        return self.order[:, :n]

    def as_scanpy(self, var_names: Sequence[str], params: dict[str, Any]) -> dict[str, Any]:
        """What :func:`scanpy.tl.rank_genes_groups` stores, so that :func:`scanpy.get.rank_genes_groups_df` reads it."""
        genes = np.asarray(var_names, dtype=object)
        fields = {"names": genes[self.order]} | self.statistics
        names = list(self.names)
        records = {
            field: np.rec.fromarrays(list(rows), dtype=[(name, rows.dtype) for name in names])
            for field, rows in fields.items()
        }
        return {"params": params} | records


def rank_genes(
    matrix: Any,
    conditions: Labels,
    *,
    contexts: Labels | None = None,
    method: str = "t-test",
    against: Literal["control", "rest"] = "control",
    ranked: NDArray[np.bool_] | None = None,
) -> GeneRanking:
    """Rank all genes of every condition by the absolute score against other cells of the same context.

    ``contexts``: compare with cells of the same context only, such as a cell type; groups are then named
    ``<context>_<condition>``; ``ranked`` (N,) True for cells of the groups to rank; other perturbed cells count in the
    rest only, however few they are. ``None`` ranks all groups.
    """
    if not matrix.shape[1]:
        raise ValueError("Expected genes to rank, found a table without any. Take the genes that were measured.")
    labels = np.asarray(conditions, dtype=str)
    where = None if contexts is None else np.asarray(contexts, dtype=str)
    is_control = control_mask(labels)
    wanted = ~is_control if ranked is None else ranked & ~is_control
    shown = wanted | is_control
    unit_names(None if where is None else where[wanted], labels[wanted])  # refuses two units with one name
    _check_groups(labels[shown], None if where is None else where[shown], is_control[shown])
    names: list[str] = []
    parts: list[tuple[NDArray[Any], dict[str, NDArray[Any]]]] = []
    for context in [None] if where is None else np.unique(where):
        rows = np.flatnonzero(np.ones(labels.size, dtype=bool) if where is None else where == context)
        if not wanted[rows].any():
            continue
        rows = rows[shown[rows] if against == "control" else ~is_control[rows]]
        groups = np.where(wanted, labels, "")[rows]
        found, order, statistics = _rank(matrix[rows], groups, method, "" if against == "control" else "rest")
        names += [unit_name(context, name) for name in found]
        parts.append((order, statistics))
    return GeneRanking(
        tuple(names),
        np.concatenate([order for order, _ in parts]),
        {key: np.concatenate([statistics[key] for _, statistics in parts]) for key in parts[0][1]},
    )


def _rank(
    matrix: Any, groups: NDArray[Any], method: str, reference: str
) -> tuple[list[str], NDArray[Any], dict[str, NDArray[Any]]]:
    """Rank the groups that have a name."""
    named = sorted({str(group) for group in groups if group})
    # A shell with positions as names: nothing of the user's object is touched, and repeated gene names do no harm.
    columns = pd.Index([str(column) for column in range(matrix.shape[1])])
    cells = pd.Index([str(row) for row in range(matrix.shape[0])])
    obs = pd.DataFrame({_GROUP: pd.Categorical(groups)}, index=cells)
    shell = AnnData(matrix, obs=obs, var=pd.DataFrame(index=columns))
    with warnings.catch_warnings():
        # scanpy inserts one column a group into a frame, and pandas finds that slow.
        warnings.simplefilter("ignore", category=pd.errors.PerformanceWarning)
        sc.tl.rank_genes_groups(
            shell, _GROUP, groups=named, reference=reference, method=method, rankby_abs=True, use_raw=False
        )
    found = shell.uns["rank_genes_groups"]
    names = list(found["names"].dtype.names)
    order = np.stack([found["names"][name].astype(np.int32) for name in names])
    kept = [key for key in STATISTICS if key in found]
    return names, order, {key: np.stack([found[key][name].astype(np.float64) for name in names]) for key in kept}


def _check_groups(labels: NDArray[Any], contexts: NDArray[Any] | None, is_control: NDArray[np.bool_]) -> None:
    frame = pd.DataFrame({"condition": labels, "context": "" if contexts is None else contexts, "control": is_control})
    perturbed = frame[~frame["control"]]
    if perturbed.empty:
        raise ValueError("Expected perturbed cells to rank genes for, found controls only.")
    controls = frame[frame["control"]].groupby("context").size()
    for context in perturbed["context"].unique():
        if controls.get(context, 0) < 2:
            place = f" in {context!r}" if contexts is not None else ""
            raise ValueError(
                f"Expected at least two control cells{place} to compare with, found {controls.get(context, 0)}."
            )
    sizes = perturbed.groupby(["context", "condition"]).size()
    if small := sizes.index[sizes < 2].tolist():
        shown = ", ".join("/".join(part for part in name if part) for name in small[:10])
        raise ValueError(
            f"Expected at least two cells of every condition, found one for {len(small)} of them ({shown}). "
            "Leave these cells out first."
        )


def gears_names(conditions: Labels, cell_types: Labels) -> pd.DataFrame:
    """The columns ``dose_val``, ``control`` and ``condition_name`` that GEARS adds to ``obs``.

    GEARS calls everything a control that has not exactly two parts, so a condition of three genes too; here it is not.
    """
    labels = np.asarray(conditions, dtype=str)
    doses = {label: "+".join("1" for _ in label.split("+")) for label in np.unique(labels)}
    dose = np.array([doses[label] for label in labels])
    name = [f"{kind}_{label}_{value}" for kind, label, value in zip(cell_types, labels, dose, strict=True)]
    return pd.DataFrame({"dose_val": dose, "control": control_mask(labels).astype(int), "condition_name": name})


def gears_lists(
    matrix: Any, conditions: Labels, ranking: GeneRanking, names: pd.DataFrame, *, n: int = 20
) -> dict[str, dict[str, NDArray[Any]]]:
    """The gene lists that GEARS keeps in ``uns``, as positions, by the name of the list and of the condition.

    ``non_zeros_gene_idx`` are the genes seen in any cell of a condition, ``non_dropout_gene_idx`` these and the genes
    seen neither there nor in any control.  Both pool the cell types, which the ranking does not; ``n`` is the length of the
    top lists.
    """
    labels = np.asarray(conditions, dtype=str)
    seen = {label: _any_value(matrix[np.flatnonzero(labels == label)]) for label in np.unique(labels)}
    absent_in_controls = ~_any_value(matrix[np.flatnonzero(control_mask(labels))])
    lists: dict[str, dict[str, NDArray[Any]]] = {
        "rank_genes_groups_cov_all": {},
        "top_non_dropout_de_20": {},
        "top_non_zero_de_20": {},
        "non_dropout_gene_idx": {},
        "non_zeros_gene_idx": {},
    }
    full = names.assign(condition=labels).drop_duplicates("condition_name").set_index("condition_name")
    row = {name: i for i, name in enumerate(ranking.names)}
    for name, cell in full.iterrows():
        if cell["control"]:
            continue
        order = ranking.order[row[str(name).removesuffix(f"_{cell['dose_val']}")]]
        non_zero = seen[cell["condition"]]
        non_dropout = non_zero | (~non_zero & absent_in_controls)
        lists["rank_genes_groups_cov_all"][str(name)] = order
        lists["non_zeros_gene_idx"][str(name)] = np.flatnonzero(non_zero)
        lists["non_dropout_gene_idx"][str(name)] = np.flatnonzero(non_dropout)
        lists["top_non_zero_de_20"][str(name)] = order[non_zero[order]][:n]
        lists["top_non_dropout_de_20"][str(name)] = order[non_dropout[order]][:n]
    return lists


def _any_value(matrix: Any) -> NDArray[np.bool_]:
    if sparse.issparse(matrix):
        return np.asarray((matrix != 0).sum(axis=0)).ravel() > 0
    return (np.asarray(matrix) != 0).any(axis=0)
