"""The scores of scGenePT's evaluation under its own names, and its files.

They are GEARS' scores (:mod:`scgpt_tools.metrics.perturbation_gears`, whose known faults they share), averaged over
conditions and over how much of a condition training saw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._files import as_folder, written_aside
from scgpt_tools.metrics.perturbation_gears import (
    HeldOutCells,
    deeper_analysis,
    evaluation_means,
    evaluation_metrics,
    list_analysis,
    subgroup_means,
    variable_genes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

_OF_GROUPS = (
    "pearson_delta",
    "pearson_delta_de",
    "pearson_delta_top20_de_non_dropout",
    "pearson_top20_de_non_dropout",
)


@dataclass(frozen=True)
class ScGenePTScores:
    """What scGenePT's evaluation writes."""

    means: dict[str, float]
    """``test_mse``, ``test_pearson``, ``test_mse_de`` and ``test_pearson_de`` over all conditions."""
    conditions: dict[str, dict[str, float]]
    """All scores of each condition."""
    groups: dict[str, float]
    """Means over conditions of which training saw as much: ``test_unseen_single_pearson_delta`` and so on."""

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the original's three files.

        Parameters
        ----------
        folder
            Where ``metrics_epoch_best.json``, ``pert_res_epoch_best.json`` and ``test_metrics_detailed.json`` go; as in
            the original, means over groups are written as texts.

        Returns
        -------
        The folder.
        """
        place = as_folder("folder", folder)
        # In the original, the last file has those of the first too.
        detailed = {**self.means, **{name: str(value) for name, value in self.groups.items()}}
        files = {
            "metrics_epoch_best.json": self.means,
            "pert_res_epoch_best.json": self.conditions,
            "test_metrics_detailed.json": detailed,
        }
        for name, content in files.items():
            with written_aside(place / name) as aside:
                aside.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return place


def scgenept_scores(
    cells: HeldOutCells,
    control: NDArray[np.float64],
    order: NDArray[np.int64],
    non_dropout: Sequence[NDArray[np.int64]],
    groups: Mapping[str, Sequence[str]] | None = None,
    *,
    part: str = "test",
) -> ScGenePTScores:
    """Score predictions of held-out cells as scGenePT does.

    Parameters
    ----------
    cells
        Test cells without controls, and predictions for them.
    control
        (G,) mean of all controls, or (C, G) of those that each condition is compared with.
    order
        (C, G) gene positions by falling absolute score, or the first 20 of them or more.
    non_dropout
        Positions of the top 20 genes of each condition that are no dropouts, possibly fewer.
    groups
        Conditions by how much of them training saw; empty groups are left out.
    part
        First word of the names of means.

    Returns
    -------
    The scores.
    """
    check_arguments(scgenept_scores, locals())
    scores: dict[str, Any] = evaluation_metrics(cells.predicted, cells.true, order[:, :20])
    means = {
        f"{part}_{name}": value for name, value in evaluation_means(scores, np.zeros(len(cells.rows), bool)).items()
    }
    deeper = deeper_analysis(cells, control, order, variable_genes(cells.true))
    known = [f"frac_correct_direction_{k}" for k in (20, 50, 100, 200) if k <= order.shape[1]]
    scores |= {
        name: deeper[name] for name in ("pearson_delta", "pearson_delta_de", "frac_correct_direction_all", *known)
    }
    scores |= list_analysis(cells, control, non_dropout, "non_dropout")
    conditions = {
        name: {score: float(values[row]) for score, values in scores.items()}
        for row, name in enumerate(cells.conditions)
    }
    seen = {group: members for group, members in (groups or {}).items() if len(members)}
    own = subgroup_means({name: scores[name] for name in _OF_GROUPS}, cells.conditions, seen)
    return ScGenePTScores(means, conditions, {f"{part}_{name}": value for name, value in own.items()})
