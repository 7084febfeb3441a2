"""Models at several tasks, beside baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_type
from scgpt_tools.metrics.benchmark import BenchmarkScores
from scgpt_tools.pl._forest import forest, panels_for
from scgpt_tools.pl._style import PALETTE, finish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = {
    "linear_probe": ("accuracy", "f1_macro"),
    "embedding_quality": ("Bio conservation", "Batch correction", "Total"),
    "perturbation": ("pearson", "mse"),
    "grn_inference": ("auroc", "auprc"),
}
"""What is drawn of a benchmark unless metrics are named."""
_LOWER = ("mse",)


@shared_docs
def benchmark(
    scores: BenchmarkScores,
    *,
    dataset: str | None = None,
    benchmarks: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
    ncols: int = 3,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show models beside baselines, one panel a score: means with intervals over seeds or replicates.

    A broken line is the reference of the score, such as the share of the most frequent label.  What failed is named below
    the title.

    Parameters
    ----------
    scores
        Result of :func:`scgpt_tools.tl.benchmark`.
    dataset
        Which data set; needed where there are several.
    benchmarks
        Which benchmarks; ``None`` takes all.
    metrics
        Which metrics; ``None`` takes the main ones of each benchmark.
    level
        Coverage of the intervals.
    ncols
        Panels in a row.
    title
        Title of the figure.
    ax
        Axes to draw in, for one score; ``None`` makes a figure.
    figsize
        Width and height of a new figure in inches.
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes of the first panel, or the figure with ``return_fig=True``.

    Raises
    ------
    ValueError
        If a data set, benchmark or metric is not in the table, several data sets are there and none is named, or ``ax`` is
        given for several scores.
    """
    check_arguments(benchmark, locals())
    check_type("scores", scores, BenchmarkScores)
    table = scores.summary(level=level)
    table = table[table["dataset"] == _one_of(dataset, list(table["dataset"].unique()))]
    for column, wanted in (("benchmark", benchmarks), ("metric", metrics)):
        known = list(table[column].dropna().unique())
        for name in wanted or ():
            if name not in known:
                raise ValueError(absent(name, known, column))
    failed = table[table["metric"].isna()]["model"].unique()
    scored = table.dropna(subset="metric")
    panels = [
        (str(question), str(metric), own.set_index("model"))
        for (question, metric), own in scored.groupby(["benchmark", "metric"], sort=False)
        if (benchmarks is None or question in benchmarks)
        and metric in (_main(str(question), scored) if metrics is None else metrics)
    ]
    if not panels:
        raise ValueError("Expected scores to draw, found none: everything failed. See `scores.failures`.")
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"Expected one score for the given `ax`, found {len(panels)}. Name `benchmarks` and `metrics`."
        )
    roles = scored.drop_duplicates("model").set_index("model")["role"]
    roles = roles[[name for name in roles.index if any(name in own.index for _, _, own in panels)]]
    drawn = [ax] if ax is not None else panels_for(len(panels), min(ncols, len(panels)), len(roles), figsize)
    several = len({question for question, _, _ in panels}) > 1
    for panel, (question, metric, own) in zip(drawn, panels, strict=False):
        forest(panel, own, roles)
        reference = float(own["reference"].mean())
        if not np.isnan(reference):
            panel.axvline(reference, color=PALETTE["black"], linewidth=0.8, linestyle="--", zorder=0)
        panel.set_title(f"{question}\n{metric}" if several else metric, fontsize="medium", loc="left")
        panel.set_xlabel("lower is better" if metric in _LOWER else "higher is better", fontsize="small")
    missing = f"failed: {', '.join(map(str, failed))}" if len(failed) else ""
    heading = "\n".join(part for part in (title or (None if several else panels[0][0]), missing) if part)
    figure = drawn[0].get_figure(root=True)
    if figure is not None and ax is None:
        if heading:
            figure.suptitle(heading, x=0.02, ha="left")
    elif title:
        drawn[0].set_title(title)
    return finish(drawn[0], show=show, save=save, return_fig=return_fig)


def _one_of(dataset: str | None, known: Sequence[str]) -> str:
    if dataset is None:
        if len(known) != 1:
            raise ValueError(f"Expected `dataset`, one of {list(known)}, found None.")
        return known[0]
    if dataset not in known:
        raise ValueError(absent(dataset, known, "dataset"))
    return dataset


def _main(question: str, table: pd.DataFrame) -> tuple[str, ...]:
    """The main metrics of a benchmark, by its name or, where it has a title, by the metrics that it has."""
    there = set(table.loc[table["benchmark"] == question, "metric"])
    own = _SHOWN.get(question) or next((names for names in _SHOWN.values() if names[0] in there), ())
    return tuple(name for name in own if name in there) or tuple(there)
