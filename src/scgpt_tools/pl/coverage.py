"""How well the genes of data sets match a model's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._lookup import absent
from scgpt_tools.pl._style import PALETTE, axes, finish, ink, is_dark
from scgpt_tools.tokens.coverage import MATCHED, OUTCOMES, Coverage

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

    Report: TypeAlias = Coverage | Mapping[str, Any]

COLOURS = {
    "exact": PALETTE["blue"],
    "ensembl": PALETTE["sky"],
    "alias": PALETTE["green"],
    "case": PALETTE["yellow"],
    "ambiguous": PALETTE["orange"],
    "missing": PALETTE["grey"],
    "unnamed": PALETTE["black"],
}
"""Matched genes in colour, the others from orange to black; also the order of the segments."""

# Narrower segments have no room for their number.
_ROOM = 0.06


@shared_docs
def coverage(
    data: Coverage | AnnData | MuData | Mapping[str, Report],
    *,
    key: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Show which part of the genes matched, and how.

    One bar per report, from all genes of the data set; segments are the rules that matched, then what did not match.

    Parameters
    ----------
    data
        A report of :func:`scgpt_tools.pp.match_genes`, several by name, or an AnnData in whose ``uns`` a task has
        left one.
    key
        Which entry of ``uns``; needed only if several tasks have left a report.
    title
        Title of the plot.
    {axes}
    {show}

    Returns
    -------
    ``None`` if the figure is shown, else the axes, or the figure with ``return_fig=True``.

    Raises
    ------
    KeyError
        If ``uns`` holds no such report; the message lists those that it holds.
    ValueError
        If ``uns`` holds several reports and ``key`` names none.
    """
    check_arguments(coverage, locals())
    reports = {name: _counts(report) for name, report in _reports(data, key).items()}
    ax = axes(ax, figsize=figsize or (7, 1.3 + 0.6 * len(reports)))
    totals = np.array([sum(counts.values()) for counts in reports.values()])
    left = np.zeros(len(reports))
    for outcome, colour in COLOURS.items():
        counts = np.array([report[outcome] for report in reports.values()])
        if not counts.any():
            continue
        bars = ax.barh(
            range(len(reports)),
            counts / totals,
            left=left,
            color=ink() if outcome == "unnamed" else colour,
            label=outcome,
            height=0.7,
        )
        dark = outcome in ("case", "missing", "ensembl", "ambiguous") or (outcome == "unnamed" and is_dark())
        wide = [f"{count:,}" if count / total > _ROOM else "" for count, total in zip(counts, totals, strict=True)]
        ax.bar_label(bars, wide, label_type="center", color="black" if dark else "white", fontsize="small")
        left += counts / totals
    ax.set_yticks(range(len(reports)), [_label(name, report) for name, report in reports.items()])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of the genes in the data")
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    in_a_row = {"ncols": len(COLOURS), "columnspacing": 1.0, "handlelength": 1.2, "borderpad": 0.2}
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize="small", **in_a_row)
    ax.set_title(title or "", loc="left", pad=26)
    return finish(ax, show=show, save=save, return_fig=return_fig)


def _reports(data: Any, key: str | None) -> Mapping[str, Report]:
    if isinstance(data, Coverage) or (isinstance(data, Mapping) and "n_features" in data):
        return {"": data}
    if isinstance(data, Mapping):
        for name, report in data.items():
            if not isinstance(report, Coverage) and not (isinstance(report, Mapping) and "n_features" in report):
                raise TypeError(f"Expected coverage reports by name, found {type(report).__name__} as {name!r}.")
        return data
    if not hasattr(data, "uns"):
        raise TypeError(f"Expected a coverage report, several by name, or an AnnData, found {type(data).__name__}.")
    return _in_uns(data.uns, key)


def _in_uns(uns: Mapping[str, Any], key: str | None) -> Mapping[str, Report]:
    found = {
        name: entry["genes"]
        for name, entry in uns.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("genes"), Mapping) and "n_features" in entry["genes"]
    }
    if key is None and len(found) > 1:
        raise ValueError(f"Expected `key` to say which report of `uns` to show, found several: {list(found)}.")
    if not found or (key is not None and key not in found):
        raise KeyError(
            f"{absent(key or 'of any name', found, 'coverage report in `uns`:')} `pp.tokenize` and `tl.embed` leave "
            "one; `pp.match_genes` returns one."
        )
    return {"": found[key or next(iter(found))]}


def _counts(report: Report) -> dict[str, int]:
    summary = report.to_dict() if isinstance(report, Coverage) else report
    return {outcome: int(summary[f"n_{outcome}"]) for outcome in OUTCOMES}


def _label(name: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    matched = sum(counts[rule] for rule in MATCHED)
    return f"{name}\n{matched / total:.1%} of {total:,}".lstrip("\n")
