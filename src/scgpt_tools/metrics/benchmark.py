"""Scores of several models at several tasks: one long table, means with intervals, files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._files import as_path, read_json, replace_file
from scgpt_tools._lookup import lookup
from scgpt_tools._validate import check_frame
from scgpt_tools.metrics.uncertainty import t_interval

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

COLUMNS = (
    "dataset",
    "benchmark",
    "model",
    "role",
    "replicate",
    "seed",
    "metric",
    "value",
    "reference",
    "n_cells",
    "reason",
)
"""Of :attr:`BenchmarkScores.table`."""
_KINDS: Any = {"replicate": "Int64", "seed": "Int64", "value": float, "reference": float, "n_cells": "Int64"}
_GROUP = ["dataset", "benchmark", "metric", "model", "role"]


@dataclass(frozen=True, eq=False)
class BenchmarkScores:
    """Result of :func:`scgpt_tools.tl.benchmark`; printing it shows means and their intervals."""

    table: pd.DataFrame
    """One row per ``dataset``, ``benchmark``, ``model`` (with its ``role``: model or baseline), ``replicate`` of the model,
    ``seed`` and ``metric``: ``value``, the ``reference`` that knows nothing of the embedding on the same cells, and
    ``n_cells``, on which the score was computed.  What failed is a row without a metric whose ``reason`` says why."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Versions, settings, data sets and models, as plain values."""

    def __post_init__(self) -> None:
        check_frame("table", self.table, COLUMNS)

    @property
    def failures(self) -> pd.DataFrame:
        """Rows of what failed, with its reason."""
        return self.table[self.table["metric"].isna()].dropna(axis=1, how="all")

    def summary(self, *, level: float = 0.95) -> pd.DataFrame:
        """Mean and interval of each score.

        Scores of the seeds of one replicate are averaged first where there are several replicates, as of a recipe that was
        trained several times: the interval is that of another run then.  Of one model alone it is that of another division
        of the cells.

        Parameters
        ----------
        level
            Coverage of Student's interval of the mean.

        Returns
        -------
        One row per data set, benchmark, metric and model: ``role``, ``n`` scores, ``mean``, ``low``, ``high`` (missing
        with one score only) and the mean ``reference``; and a row with ``n`` 0 and a ``reason`` for each failure.
        """
        rows = []
        for key, own in self.table.groupby(_GROUP, sort=False, dropna=False):
            if own["metric"].isna().all():
                rows += [(*key, 0, np.nan, np.nan, np.nan, np.nan, reason) for reason in own["reason"].unique()]
                continue
            replicates = own.groupby("replicate", sort=False)["value"].mean()
            values = replicates if len(replicates) > 1 else own["value"]
            low, high = t_interval(values, level=level)
            rows.append((*key, values.count(), values.mean(), low, high, own["reference"].mean(), ""))
        return pd.DataFrame(rows, columns=[*_GROUP, "n", "mean", "low", "high", "reference", "reason"])

    def means(self) -> pd.DataFrame:
        """Mean scores, one row a model and one column a data set, benchmark and metric."""
        found = self.summary().dropna(subset="metric")
        columns = ["dataset", "benchmark", "metric"]
        wide = found.pivot(index="model", columns=columns, values="mean")
        return wide.reindex(
            index=found["model"].unique(), columns=pd.MultiIndex.from_frame(found[columns].drop_duplicates())
        )

    def save(self, path: str | PathLike[str]) -> Path:
        """Write to a file: ``.json`` has everything, ``.csv`` the table alone.

        Parameters
        ----------
        path
            File to write; one that is there is replaced.

        Returns
        -------
        The file.
        """
        target = as_path("path", path)
        write = lookup({".json": self._write_json, ".csv": self._write_csv}, target.suffix.lower(), "format of scores")
        replace_file(target, write)
        return target

    def _write_json(self, path: Path) -> None:
        content = {**self.about, "summary": _records(self.summary()), "scores": _records(self.table)}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        self.table.to_csv(path, index=False)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> BenchmarkScores:
        """Read what :meth:`save` wrote to a file of JSON or CSV.

        Parameters
        ----------
        path
            File to read.

        Returns
        -------
        The scores; those of a CSV without ``about``.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        source = as_path("path", path)
        if source.suffix.lower() == ".csv":
            return cls(_typed(pd.read_csv(source, keep_default_na=False, na_values=[""])))
        content = read_json(source)
        rows = content.pop("scores", None)
        if not isinstance(rows, list):
            raise ValueError(f"Expected '{source}' to hold the scores of a benchmark, found {sorted(content)}.")
        content.pop("summary", None)
        return cls(_typed(pd.DataFrame(rows, columns=list(COLUMNS))), content)

    def __str__(self) -> str:
        lines = []
        summary = self.summary()
        for (dataset, benchmark), own in summary.groupby(["dataset", "benchmark"], sort=False):
            scored, failed = own.dropna(subset="metric"), own[own["metric"].isna()]
            lines.append(f"{benchmark} on {dataset}")
            if len(scored):
                shown = scored.assign(score=[_shown(*row) for row in scored[["mean", "low", "high"]].to_numpy()])
                wide = shown.pivot(index="model", columns="metric", values="score")
                wide = wide.reindex(index=shown["model"].unique(), columns=shown["metric"].unique())
                lines.append(wide.rename_axis(index=None, columns=None).to_string(na_rep="-"))
            lines += [f"{row.model} failed: {row.reason}" for row in failed.itertuples()]
            lines.append("")
        return "\n".join(lines).rstrip()


def benchmark_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the table of :class:`BenchmarkScores`."""
    return _typed(pd.DataFrame(rows, columns=list(COLUMNS)))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    check_frame("table", table, COLUMNS)
    table = table[list(COLUMNS)].astype(_KINDS)
    table["metric"] = table["metric"].astype(object).where(table["metric"].notna(), None)
    table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), "")
    return table


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=15))


def _shown(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
