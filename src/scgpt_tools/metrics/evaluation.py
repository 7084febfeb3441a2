"""One table of every prediction under every metric, and what it says.

No metric stands alone: errors and correlations against the control crown a predictor that ignores the perturbation, so
models are scored beside the baselines and the ceiling, condition by condition, and compared in pairs.  Nothing is
clipped, and unlike metrics are never averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_frame, check_texts
from scgpt_tools.metrics.panel import METRICS, SCALES
from scgpt_tools.metrics.uncertainty import bootstrap_interval, dynamic_range, paired_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.metrics.panel import Truth


_COLUMNS = ("condition", "metric", "method", "value")


def evaluation_table(
    predictions: Mapping[str, NDArray[np.float64]],
    truth: Truth,
    *,
    groups: Mapping[str, str] | None = None,
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
    metrics
        Names in :data:`METRICS`; ``None`` takes all that the truth allows.

    Returns
    -------
    One row per condition, method and metric: ``condition``, ``group``, ``method``, ``metric``, ``value``.
    """
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
    return table


def summarise_scores(
    table: pd.DataFrame, *, by_group: bool = False, level: float = 0.95, rng: RngLike = 0
) -> pd.DataFrame:
    """Mean, median and bootstrap interval over conditions.

    Parameters
    ----------
    table
        From :func:`evaluation_table`.
    by_group
        One row per subgroup instead of one over all.
    level
        Coverage of the interval.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the bootstrap.

    Returns
    -------
    One row per (subgroup,) metric and method: ``n``, ``mean``, ``median``, ``low``, ``high``; undefined scores do not
    count in ``n``.
    """
    keys = [*(["group"] if by_group else []), "metric", "method"]
    check_frame("table", table, (*keys, "value"))
    rows = []
    for key, values in table.groupby(keys, sort=False)["value"]:
        own = values.dropna()
        middle = (own.mean(), own.median()) if own.size else (np.nan, np.nan)
        rows.append((*key, own.size, *middle, *bootstrap_interval(own, level=level, rng=rng)))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "median", "low", "high"])


def compare_methods(
    table: pd.DataFrame,
    method: str,
    others: Sequence[str],
    *,
    level: float = 0.95,
    rng: RngLike = 0,
) -> pd.DataFrame:
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
        Coverage of the interval of the mean difference.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the bootstrap.

    Returns
    -------
    One row per metric and other method: ``n`` conditions that both have a score for, ``difference`` (method less
    other), ``low``, ``high``, ``win_rate``, and ``verdict``: ``"better"`` or ``"worse"`` where the interval leaves out
    0, else ``"undecided"``.
    """
    check_frame("table", table, _COLUMNS)
    wide = table.pivot(index="condition", columns=["metric", "method"], values="value")
    methods = wide.columns.get_level_values("method")
    for name in (method, *check_texts("others", others)):
        if name not in methods:
            raise ValueError(absent(name, sorted(set(methods)), "method"))
    rows = []
    for metric in table["metric"].unique():
        # Methods that predict no cells have no scores of cells.
        scored = wide[metric].columns
        for other in [name for name in others if {name, method} <= set(scored)]:
            better = SCALES[metric].higher_is_better
            pair = (wide[metric][method], wide[metric][other])
            found = paired_difference(*pair, higher_is_better=better, level=level, rng=rng)
            gains = (found.low, found.high) if better else (-found.high, -found.low)
            verdict = "better" if gains[0] > 0 else "worse" if gains[1] < 0 else "undecided"
            rows.append((metric, other, found.n, found.mean, found.low, found.high, found.win_rate, verdict))
    return pd.DataFrame(rows, columns=["metric", "other", "n", "difference", "low", "high", "win_rate", "verdict"])


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
        Method made of half of the true cells.
    baseline
        Method that knows nothing of the perturbation.

    Returns
    -------
    Share by metric; one below about 0.1 to 0.2 cannot tell good predictions from bad ones.
    """
    check_frame("table", table, _COLUMNS)
    means = table.groupby(["metric", "method"], sort=False)["value"].mean()
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
