"""The table of in-silico knock-outs, and what random genes say of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from scgpt_tools._keys import KnockoutKeys
from scgpt_tools._warnings import warn_user
from scgpt_tools.metrics.matched_null import matched_null

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.inference.knockouts import Knockouts, Levels

LEAST_RANDOM = 20
"""Random genes that a p-value takes at least."""


@dataclass(frozen=True, eq=False)
class Found:
    """Results of all genes, (genes, groups, ...)."""

    n_changed: NDArray[np.int64]
    shift: NDArray[np.float32]
    displacement: NDArray[np.float32]
    expression: NDArray[np.float32]


def knockout_table(
    adata: AnnData,
    run: Knockouts,
    groups: list[str],
    asked: NDArray[np.int64],
    null: NDArray[np.int64],
    levels: Levels,
    found: Found,
) -> AnnData:
    """One row per gene and group, without what compares them; ``asked``, ``null``: numbers of genes that the model knows."""
    keys = KnockoutKeys()
    genes, columns = np.concatenate([asked, null]), run.cells.plan.features.columns
    gene = np.repeat(adata.var_names[columns[genes]].to_numpy(dtype=object), len(groups))
    group = np.tile(np.array(groups, dtype=object), len(genes))
    obs = pd.DataFrame(
        {
            keys.gene: gene,
            keys.group: pd.Categorical(group, categories=groups),
            keys.role: pd.Categorical(np.repeat(["asked"] * len(asked) + ["random"] * len(null), len(groups))),
            keys.n_cells: np.tile(run.sizes, len(genes)),
            keys.n_changed: found.n_changed.ravel(),
            keys.value: levels.mean[genes].ravel().astype(np.float32),
            keys.shift: found.shift.ravel(),
            keys.displacement: np.linalg.norm(found.displacement, axis=2).ravel(),
        },
        index=pd.Index(gene if len(groups) == 1 else [f"{a} in {b}" for a, b in zip(gene, group, strict=True)]),
    )
    for name in keys.compared:
        obs[name] = np.nan
    moves = found.displacement.reshape(len(obs), -1)
    if not run.hide:
        return AnnData(obs=obs, obsm={keys.displacement: moves})
    var = adata.var.iloc[columns][[]].copy()
    return AnnData(
        found.expression.reshape(len(obs), -1).astype(np.float32), obs=obs, var=var, obsm={keys.displacement: moves}
    )


def compare_with_random(obs: pd.DataFrame, n_with: NDArray[np.int64], min_cells: int, *, all_random: bool) -> None:
    """Fill in what matched random genes say of each row."""
    keys = KnockoutKeys()
    columns = {name: np.full(len(obs), np.nan) for name in keys.compared}
    asked = (obs[keys.role] == "asked").to_numpy()
    enough = (obs[keys.n_changed] >= min_cells).to_numpy() & (obs[keys.shift] > 0).to_numpy()
    for group in obs[keys.group].cat.categories:
        own = np.flatnonzero((obs[keys.group] == group).to_numpy() & enough)
        random = ~asked[own] | all_random
        if random.sum() < LEAST_RANDOM:
            warn_user(
                f"Expected {LEAST_RANDOM} random genes or more to compare with in {group!r}, found {int(random.sum())} that "
                f"at least min_cells={min_cells} cells have; there are no p-values."
            )
            continue
        scores = np.log(obs[keys.shift].to_numpy(dtype=np.float64)[own])
        likeness = np.stack([n_with[own], obs[keys.value].to_numpy()[own]], axis=1)
        null = matched_null(scores, likeness, random)
        found = (np.exp(null.expected), null.z_score, null.p_value)
        for name, values in zip((keys.expected, keys.z_score, keys.p_value), found, strict=True):
            columns[name][own] = values
    tested = asked & ~np.isnan(columns[keys.p_value])
    if tested.any():
        columns[keys.q_value][tested] = stats.false_discovery_control(columns[keys.p_value][tested])
    for name, values in columns.items():
        obs[name] = values
    if few := int((asked & ~enough).sum()):
        first = obs.index[asked & ~enough][0]
        warn_user(
            f"Expected at least min_cells={min_cells} cells that a change of each gene makes a difference to, found fewer "
            f"for {few} of {int(asked.sum())} rows (first: {first!r}), which get no p-value."
        )
