"""Predictions of a screen beside every baseline and the ceiling, and what that says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools.metrics.evaluation import (
    common_conditions,
    compare_methods,
    dynamic_ranges,
    summarise_scores,
    verdict,
)
from scgpt_tools.metrics.panel import METRICS, SCALES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.perturbation_scgenept import ScGenePTScores

_SHOWN = ("mse", "mse_weighted", "pearson_control", "pearson_perturbed_mean", "discrimination_l1", "centroid_accuracy")
# Below this share of its range a metric hardly tells a perfect prediction from the perturbed mean on the data at hand.
_NARROW = 0.15
_COLLAPSED = 0.1
# Of directions that are drawn.
_CHANCE = 0.5
_UNTRAINED = "No training conditions: baselines that learn from others are left out."
_BEYOND_MEAN = ("pearson_perturbed_mean", "r2_weighted")


@dataclass(frozen=True, eq=False)
class PerturbationScores:
    """Result of :func:`scgpt_tools.tl.evaluate_perturbation`; printing it says who wins."""

    table: pd.DataFrame
    """One row per ``condition`` (with its ``group``), ``method`` (with its ``role``: model, baseline or ceiling) and
    ``metric``: ``value``."""
    originals: pd.DataFrame
    """The same columns for the metrics of GEARS and scGPT as they are computed there, faults included: perturbed genes
    count, and the control is a part of both sides of ``pearson_delta``; with GEARS' analyses if they were asked for."""
    spread: pd.Series
    """By model: how much predictions differ between conditions, as a share of how much the truth does."""
    test_hash: str
    """SHA-256 of the held-out conditions, to report with every figure."""
    rng: int = 0
    """What controls, their halves and the noise of the ceiling were drawn with."""
    scgenept: Mapping[str, ScGenePTScores] = field(default_factory=dict)
    """By model: the scores of scGenePT's evaluation, if they were asked for; ``save`` writes its files."""
    by_seed: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Of predictions by several models of one recipe: the mean of each ``metric`` by ``method`` and ``seed``, the number of
    the model in its list.  ``table`` has the mean of their scores."""

    @property
    def models(self) -> tuple[str, ...]:
        """Methods that were evaluated."""
        return self._of_role("model")

    @property
    def baselines(self) -> tuple[str, ...]:
        """Methods that know nothing but the training conditions."""
        return self._of_role("baseline")

    @property
    def held_out(self) -> bool:
        """Whether there were other conditions, from which baselines learn."""
        return "perturbed_mean" in self.baselines

    def _of_role(self, role: str) -> tuple[str, ...]:
        return tuple(self.table.loc[self.table["role"] == role, "method"].unique())

    def summary(self, *, by_group: bool = False, originals: bool = False, level: float = 0.95) -> pd.DataFrame:
        """Mean, median and Student's interval over the conditions that every method has a score for.

        A perturbation in several contexts counts once; see :func:`scgpt_tools.metrics.summarise_scores`.  ``originals`` also
        takes the metrics of GEARS and scGPT in :attr:`originals`, which models alone have; ``by_group`` of these is
        GEARS' subgroup analysis.
        """
        table = common_conditions(self._all(originals=originals))
        return summarise_scores(table, by_group=by_group, level=level)

    def means(self, *, originals: bool = False) -> pd.DataFrame:
        """The means of :meth:`summary`, one row a method and one column a metric."""
        table = self._all(originals=originals)
        return (
            self.summary(originals=originals)
            .pivot(index="method", columns="metric", values="mean")
            .reindex(index=table["method"].unique(), columns=table["metric"].unique())
            .rename_axis(index="method", columns="metric")
        )

    def _all(self, *, originals: bool) -> pd.DataFrame:
        """The table, with the rows of ``originals`` below it if they are asked for."""
        if not originals:
            return self.table
        role = self.table.drop_duplicates("method").set_index("method")["role"]
        others = self.originals.assign(role=self.originals["method"].map(role))
        if "perturbation" in self.table:
            done = self.table.drop_duplicates("condition").set_index("condition")["perturbation"]
            others = others.assign(perturbation=others["condition"].map(done))
        return pd.concat([self.table, others[list(self.table.columns)]], ignore_index=True)

    def seeds(self) -> pd.DataFrame:
        """Spread over models of one recipe: ``n``, ``mean``, ``sd``, ``min`` and ``max`` by method and metric.

        Of the conditions of :meth:`means`.
        """
        if self.by_seed.empty:
            return pd.DataFrame(columns=["method", "metric", "n", "mean", "sd", "min", "max"])
        found = self.by_seed.groupby(["method", "metric"], sort=False)["value"]
        return found.agg(n="count", mean="mean", sd="std", min="min", max="max").reset_index()

    def compare(
        self, model: str | None = None, *, others: Sequence[str] | None = None, level: float = 0.95
    ) -> pd.DataFrame:
        """Paired differences of a model to others; see :func:`scgpt_tools.metrics.compare_methods`.

        ``others=None`` takes every baseline.
        """
        chosen = self.models[0] if model is None else model
        return compare_methods(self.table, chosen, self.baselines if others is None else others, level=level)

    def above_ceiling(self, *, level: float = 0.95) -> pd.DataFrame:
        """Means that are better than that of a perfect prediction, which no prediction can honestly have.

        Rows of :meth:`compare` of every model and baseline with the ceiling, with ``method``; the ``verdict`` is
        ``"significant"``, or ``"within the noise"`` where the difference is undecided.  Metrics of cells are left out: their
        ceiling is of half of the cells, and predictions are compared with all.
        """
        ceiling, table = self._of_role("ceiling"), self.table[self.table["metric"].isin(list(METRICS))]
        found = [
            compare_methods(table, method, ceiling, level=level).assign(method=method)
            for method in (*self.models, *self.baselines)
        ]
        compared = pd.concat(found, ignore_index=True)
        higher = compared["metric"].map(lambda name: SCALES[name].higher_is_better)
        above = compared[np.where(higher, compared["difference"] > 0, compared["difference"] < 0)]
        sure = np.where(above["verdict"] == "better", "significant", "within the noise")
        return above.assign(verdict=sure).reset_index(drop=True)

    def ranges(self) -> pd.Series:
        """How much of its range each metric has here, from the perturbed mean, or no change where there is none.

        See :func:`scgpt_tools.metrics.dynamic_ranges`.
        """
        ceiling, table = self._of_role("ceiling")[0], common_conditions(self.table)
        other = dynamic_ranges(table, ceiling=ceiling, baseline="no_change")
        if not self.held_out:
            return other
        ranges = dynamic_ranges(table, ceiling=ceiling, baseline="perturbed_mean")
        # The perturbed mean is the reference of some itself, so nothing can be measured from it.
        return ranges.where(ranges.notna(), other)

    def winners(self) -> pd.Series:
        """Method with the best mean, models and baselines together, by metric."""
        return self._best_of([*self.models, *self.baselines])

    def _best_of(self, methods: Sequence[str]) -> pd.Series:
        means = self.means().loc[list(methods)]
        best = {}
        for metric, values in means.items():
            known = values.dropna()
            if known.size:
                best[metric] = known.idxmax() if SCALES[str(metric)].higher_is_better else known.idxmin()
        return pd.Series(best, name="winner")

    def _winners(self, model: str) -> pd.Series:
        """Who has the best mean among a model and the baselines, in each metric that the model has a value of.

        Other models are left out: one that wins would hide that a baseline beats this one.
        """
        found = self._best_of([model, *self.baselines])
        return found[found.index.isin(self.means().loc[model].dropna().index)]

    def __str__(self) -> str:
        return "\n".join([self._header(), "", self._numbers(), *self._sizes(), "", *self._conclusions()])

    def headline(self) -> str:
        """Whether baselines win, in a line."""
        lost = {model: self._winners(model) != model for model in self.models}
        each = ", ".join(f"of {model} in {own.sum()} of {own.size} metrics" for model, own in lost.items() if own.any())
        better = f"; a baseline has the better mean than that {each}" if each else ""
        return f"Scored {self._counted()}{better}. Print the scores to see which."

    def _counted(self) -> str:
        """How many conditions, and perturbations where these are fewer."""
        conditions = self.table["condition"].nunique()
        found = self.table["perturbation"].nunique() if "perturbation" in self.table else conditions
        each = "" if found == conditions else f" of {found} perturbation{'' if found == 1 else 's'}"
        kind = "held-out condition" if self.held_out else "condition"
        return f"{conditions} {kind}{'' if conditions == 1 else 's'}{each}"

    def _header(self) -> str:
        groups = self.table.drop_duplicates("condition")["group"].value_counts()
        sizes = (
            f" ({', '.join(f'{n} {group}' for group, n in groups.items())})" if list(groups.index) != ["all"] else ""
        )
        return f"{self._counted()}{sizes}, hash {self.test_hash[:16]}; means:"

    def _numbers(self) -> str:
        shown = self.means()
        return shown[self._shown()].rename_axis(index=None, columns=None).to_string(float_format="{:.3g}".format)

    def _shown(self) -> list[str]:
        """Metrics that are printed."""
        there = self.table["metric"].unique()
        return [name for name in _SHOWN if name in there] or list(there)

    def _sizes(self) -> list[str]:
        """Of how many perturbations and scores the printed means are, and how far models of a recipe spread."""
        sizes = self.summary().groupby("metric", sort=False)[["n", "n_rows"]].max().loc[self._shown()]
        each = [
            (f"n = {n}, n_rows = {rows}", own.index) for (n, rows), own in sizes.groupby(["n", "n_rows"], sort=False)
        ]
        listing = "; ".join(text if len(each) == 1 else f"{text} in {', '.join(own)}" for text, own in each)
        lines = [f"Perturbations and their scores: {listing}."]
        spread = self.seeds()
        for recipe, own in spread[spread["metric"].isin(self._shown())].groupby("method", sort=False):
            if own["n"].max() > 1:
                ranges = ", ".join(f"{row.metric} {row.min:.3g} to {row.max:.3g}" for row in own.itertuples())
                lines.append(f"{recipe}, {own['n'].max()} models: {ranges}.")
        return lines

    def _conclusions(self) -> list[str]:
        lines = [] if self.held_out else [_UNTRAINED]
        if not self.held_out and (there := [name for name in _BEYOND_MEAN if name in set(self.table["metric"])]):
            lines.append(f"{' and '.join(there)} refer to the mean change of the scored conditions.")
        for model in self.models:
            winners = self._winners(model)
            lost = winners[winners != model]
            if lost.size:
                listing = "; ".join(f"{method} in {', '.join(own.index)}" for method, own in lost.groupby(lost))
                better = "the better mean" if len(self.models) == 1 else f"a better mean than {model}"
                lines.append(f"A baseline has {better}: {listing}.")
            else:
                lines.append(f"No baseline has a better mean than {model}.")
            lines.append(verdict(self.compare(model), model))
            if self.spread.get(model, np.nan) < _COLLAPSED:
                lines.append(collapse_message(model, float(self.spread[model])))
        ranges = self.ranges()
        narrow = [str(name) for name in ranges.index[ranges < _NARROW]]
        if narrow:
            lines.append(
                f"On these data even a perfect prediction would hardly beat {'the perturbed mean' if self.held_out else 'no change'} "
                f"in {', '.join(narrow)}."
            )
        above = self.above_ceiling()
        sure = above["verdict"] == "significant"
        for method, own in above[sure].groupby("method", sort=False):
            lines.append(
                f"{method} is above the ceiling in {', '.join(own['metric'])}: what it predicts shares more with the measured "
                "cells than the perturbation, such as their noise."
            )
        unsure = above[~sure].groupby("method", sort=False)["metric"]
        if listed := [f"{method} in {', '.join(own)}" for method, own in unsure]:
            lines.append(f"Above the ceiling within the noise: {'; '.join(listed)}.")
        lines += self._by_chance()
        means = self.means()
        if {"interaction"} <= set(means.columns) and {"no_change"} <= set(means.index):
            null = float(means["interaction"].to_numpy()[means.index.get_loc("no_change")])
            if not np.isnan(null):
                lines.append(
                    f"In interaction, no change has {null:.2f}, for the same sum is subtracted from both sides."
                )
        return lines

    def _by_chance(self) -> list[str]:
        """Models whose directions are no better than chance, which no change, without any direction, does not show."""
        rows = self.summary().query("metric == 'direction_de'").set_index("method")
        found = rows[rows.index.isin(self.models) & (rows["low"] <= _CHANCE)]
        return [
            f"In direction_de, chance is {_CHANCE} and no change has 0: {name} has {mean:.2f}, not surely above chance."
            for name, mean in found["mean"].items()
        ]


def overall_spread(
    predicted: NDArray[np.float64], true: NDArray[np.float64], scored: NDArray[np.bool_] | None = None
) -> float:
    """How much C profiles differ between conditions, as a share of how much the true ones do.

    ``predicted``, ``true`` (C, G) changes against the control; ``scored`` (C, G) what counts; ``None`` counts
    everything.  Returns ratio of the root mean variances over conditions; NaN where the truth does not vary.
    """
    counts = np.ones(true.shape) if scored is None else scored.astype(float)
    n = counts.sum(axis=0)

    def size(values: NDArray[np.float64]) -> float:
        mean = (counts * values).sum(axis=0) / np.maximum(n, 1)
        return float((counts * (values - mean) ** 2).sum())

    of_truth = size(true)
    return float(np.sqrt(size(predicted) / of_truth)) if of_truth else np.nan


def collapsed(spread: Mapping[str, float]) -> dict[str, float]:
    """Models whose predictions are nearly the same whatever is perturbed."""
    return {model: share for model, share in spread.items() if share < _COLLAPSED}


def collapse_message(model: str, spread: float) -> str:
    """Say that the predictions of a model have collapsed."""
    return (
        f"The predictions of {model} are nearly the same for every perturbation: they differ {spread:.1%} as much as "
        "the true profiles do."
    )
