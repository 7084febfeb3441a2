"""One table of every prediction under every metric, and what it says.

No metric stands alone: errors and correlations against the control crown a predictor that ignores the perturbation, so
models are scored beside the baselines and the ceiling, condition by condition, and compared in pairs.  Nothing is
clipped, and unlike metrics are never averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_frame, check_texts
from scgpt_tools.metrics.panel import METRICS, SCALES
from scgpt_tools.metrics.uncertainty import dynamic_range, holm, paired_difference, t_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.panel import Truth


_COLUMNS = ("condition", "metric", "method", "value")


def evaluation_table(
    predictions: Mapping[str, NDArray[np.float64]],
    truth: Truth,
    *,
    groups: Mapping[str, str] | None = None,
    perturbations: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Score every prediction of every condition.

    Parameters
    ----------
    predictions
        (C, G) mean profiles by the name of the method: models, baselines and the ceiling.
    truth
        What they are compared with.
    groups
        Subgroup of a condition, such as ``"combo_seen1"``.
    perturbations
        What is done in a condition, where the same is done in several contexts; those are no independent scores, and
        intervals and tests count them as one.
    metrics
        Names in :data:`METRICS`; ``None`` takes all that the truth allows.

    Returns
    -------
    One row per condition, method and metric: ``condition``, ``group``, ``method``, ``metric``, ``value``, and
    ``perturbation`` if they are given.
    """
    check_arguments(evaluation_table, locals())
    if not predictions:
        raise ValueError("Expected predictions of at least one method, found none.")
    names = list(METRICS) if metrics is None else check_texts("metrics", metrics)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(absent(unknown[0], METRICS, "metric"))
    rows = []
    for method, predicted in predictions.items():
        if predicted.shape != truth.true.shape:
            raise ValueError(f"Expected {method!r} of shape {truth.true.shape}, found {predicted.shape}.")
        for name in names:
            values = METRICS[name].compute(np.asarray(predicted, dtype=np.float64), truth)
            if values is not None:
                rows.append(pd.DataFrame({"condition": truth.conditions, "metric": name, "value": values}))
                rows[-1].insert(1, "method", method)
    table = pd.concat(rows, ignore_index=True)
    table.insert(1, "group", table["condition"].map(lambda name: (groups or {}).get(name, "all")))
    if perturbations is not None:
        table["perturbation"] = table["condition"].map(perturbations)
    return table


def by_perturbation(table: pd.DataFrame) -> pd.DataFrame:
    """Scores (conditions, (metric, method)), with the mean over the contexts of a perturbation where it has several."""
    rows = ["perturbation"] if "perturbation" in table else ["condition"]
    return table.pivot_table(index=rows, columns=["metric", "method"], values="value", sort=False, dropna=False)


def common_conditions(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of conditions that all methods have a score for, metric by metric; means over others compare unlike things.

    ``table``: from :func:`evaluation_table`.  A method without any score under a metric leaves the others alone, and so
    does the ceiling.
    """
    compared = table if "role" not in table else table[table["role"] != "ceiling"]
    lacking = compared[compared["value"].isna()]
    lacking = lacking[compared.groupby(["metric", "method"])["value"].transform("count").loc[lacking.index] > 0]
    left_out = pd.MultiIndex.from_frame(lacking[["metric", "condition"]])
    return table[~pd.MultiIndex.from_frame(table[["metric", "condition"]]).isin(left_out)]


def summarise_scores(table: pd.DataFrame, *, by_group: bool = False, level: float = 0.95) -> pd.DataFrame:
    """Mean, median and Student's interval over conditions.

    Parameters
    ----------
    table
        From :func:`evaluation_table`.
    by_group
        One row per subgroup instead of one over all.
    level
        Coverage of the interval.

    Returns
    -------
    One row per (subgroup,) metric and method: ``n`` perturbations, ``n_rows`` scores of them (more where they are scored in
    several contexts, of which the mean counts as one), ``mean``, ``median``, ``low``, ``high``; undefined scores do not
    count.
    """
    check_arguments(summarise_scores, locals())
    keys = [*(["group"] if by_group else []), "metric", "method"]
    check_frame("table", table, (*keys, "value"))
    unit = "perturbation" if "perturbation" in table else "condition"
    check_frame("table", table, (unit,))
    rows = []
    for key, own in table.dropna(subset="value").groupby(keys, sort=False, dropna=False):
        values = own.groupby(unit)["value"].mean()
        rows.append((*key, values.size, len(own), values.mean(), values.median(), *t_interval(values, level=level)))
    found = pd.DataFrame(rows, columns=[*keys, "n", "n_rows", "mean", "median", "low", "high"])
    # Those without any defined score keep their row.
    every = table[keys].drop_duplicates()
    return every.merge(found, on=keys, how="left").fillna({"n": 0, "n_rows": 0}).astype({"n": int, "n_rows": int})


def compare_methods(table: pd.DataFrame, method: str, others: Sequence[str], *, level: float = 0.95) -> pd.DataFrame:
    """Compare one method with others, condition by condition.

    Parameters
    ----------
    table
        From :func:`evaluation_table`.
    method
        Usually the model.
    others
        Usually the baselines.
    level
        Coverage of the interval of the mean difference, and of all verdicts against one other method together.

    Returns
    -------
    One row per metric and other method: ``n`` perturbations that both have a score for, ``difference`` (method less
    other), ``low``, ``high``, ``win_rate``, ``p_value`` of Student's paired test, ``p_adjusted`` for the number of metrics
    by Holm's method, and ``verdict``: ``"better"`` or ``"worse"`` where that is below one less the level, else
    ``"undecided"``.
    """
    check_arguments(compare_methods, locals())
    check_frame("table", table, _COLUMNS)
    wide = by_perturbation(table)
    methods = wide.columns.get_level_values("method")
    for name in (method, *check_texts("others", others)):
        if name not in methods:
            raise ValueError(absent(name, sorted(set(methods)), "method"))
    rows = []
    for metric in table["metric"].unique():
        # Methods that predict no cells have no scores of cells.
        scored = set(table.loc[table["metric"] == metric, "method"])
        for other in [name for name in others if {name, method} <= scored]:
            better = SCALES[metric].higher_is_better
            pair = (wide[metric][method], wide[metric][other])
            found = paired_difference(*pair, higher_is_better=better, level=level)
            gain = found.mean if better else -found.mean
            rows.append(
                (metric, other, found.n, found.mean, found.low, found.high, found.win_rate, found.p_value, gain)
            )
    names = ["metric", "other", "n", "difference", "low", "high", "win_rate", "p_value", "gain"]
    result = pd.DataFrame(rows, columns=names)
    result["p_adjusted"] = result.groupby("other")["p_value"].transform(lambda own: holm(own.to_numpy()))
    sure = result["p_adjusted"] < 1 - level
    result["verdict"] = np.where(sure & (result["gain"] > 0), "better", np.where(sure, "worse", "undecided"))
    return result.drop(columns="gain")


def verdict(comparison: pd.DataFrame, method: str) -> str:
    """Say in words which methods win, losses first.

    Parameters
    ----------
    comparison
        From :func:`compare_methods`.
    method
        The method that was compared.

    Returns
    -------
    One line for each other method that the comparison holds.
    """
    check_arguments(verdict, locals())
    check_frame("comparison", comparison, ("other", "metric", "n", "verdict"))
    lines = []
    for other, own in comparison.groupby("other", sort=False):
        own = own[own["n"] > 0]
        found = {name: own.loc[own["verdict"] == name, "metric"].tolist() for name in ("worse", "better", "undecided")}
        parts = [f"{name} in {', '.join(metrics)}" for name, metrics in found.items() if metrics]
        if parts:
            lines.append(f"{method} against {other}: {'; '.join(parts)}.")
    return "\n".join(lines)


def dynamic_ranges(table: pd.DataFrame, *, ceiling: str, baseline: str) -> pd.Series:
    """How much of its range each metric has on these data.

    Parameters
    ----------
    table
        From :func:`evaluation_table`.
    ceiling
        Method that stands for a perfect prediction.
    baseline
        Method that knows nothing of the perturbation.

    Returns
    -------
    Share by metric; where it is small, even a perfect prediction is hardly better than the baseline.
    """
    check_arguments(dynamic_ranges, locals())
    check_frame("table", table, _COLUMNS)
    means = by_perturbation(table).mean()
    for name in (ceiling, baseline):
        if name not in means.index.get_level_values("method"):
            raise ValueError(absent(name, table["method"].unique(), "method"))
    return pd.Series(
        {
            metric: dynamic_range(means[metric, ceiling], means[metric, baseline], SCALES[metric].perfect)
            for metric in table["metric"].unique()
        },
        name="dynamic_range",
    )
