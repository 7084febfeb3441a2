"""Predicted cells as the Virtual Cell Challenge scores and takes them: raw counts, six metrics, one file."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._files import as_path, replace_file
from scgpt_tools._lookup import absent
from scgpt_tools._optional import optional
from scgpt_tools._validate import as_seed, check_key, check_number
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import RowSource
from scgpt_tools.screens.conditions import control_mask, read_conditions, read_labels
from scgpt_tools.tokens.perturbations import CONTROL, condition_genes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

logger = logging.getLogger(__name__)

_PERTURBED, _CONTEXT = "target_gene", "context"
_ROWS = 4096


@shared_docs
def predicted_counts(
    adata: AnnData,
    totals: str = "n_counts",
    *,
    layer: str | None = None,
    target_sum: float = 10_000,
    rng: RngLike = 0,
) -> sp.csr_matrix:
    """Raw counts of predicted cells, which are log-normalised.

    Values are what ``log1p`` of counts, scaled to a total of ``target_sum`` a cell, would be; those below 0 are no counts.
    Expected counts are rounded up or down at random, so that means stay as they were predicted.

    Parameters
    ----------
    adata
        Predicted cells; not changed.
    totals
        Column of ``obs`` with the total of each cell over all genes of the experiment, such as that of the control that it was
        predicted from.
    {layer}
    target_sum
        Total that counts were scaled to.
    rng
        Whole number, generator or ``None`` (fresh entropy) for rounding.

    Returns
    -------
    (cells, genes) whole numbers as float32, in the order of the table.

    Raises
    ------
    KeyError
        If there is no such column or layer.
    ValueError
        If values are whole numbers or not finite, or a total is not a positive number.
    """
    check_arguments(predicted_counts, locals())
    check_number("target_sum", target_sum, above=0)
    values = adata.X if layer is None else adata.layers[check_key(adata.layers, layer, "layers")]
    values = sp.csr_matrix(values[:] if adata.isbacked else values)
    if not np.isfinite(values.data).all():
        raise ValueError("Expected predictions that are finite, found values that are not.")
    if not (values.data != np.floor(values.data)).any():
        raise ValueError("Expected log-normalised predictions, found whole numbers, which are counts already.")
    sizes = pd.to_numeric(adata.obs[check_key(adata.obs, totals, "obs")], errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isfinite(sizes) & (sizes > 0))
    if wrong.any():
        raise ValueError(
            f"Expected a positive total of every cell in obs[{totals!r}], found {int(wrong.sum())} without (first: "
            f"{str(adata.obs_names[wrong][0])!r})."
        )
    random = np.random.default_rng(as_seed(rng))
    blocks = []
    for start in range(0, values.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        log_values = values[rows].toarray().astype(np.float64)
        expected = np.expm1(log_values.clip(min=0)) * (sizes[rows] / target_sum)[:, None]
        whole = np.floor(expected)
        blocks.append(sp.csr_matrix((whole + (random.random(whole.shape) < expected - whole)).astype(np.float32)))
    return sp.vstack(blocks, format="csr")


def score_challenge(
    reference: AnnData,
    prediction: AnnData,
    *,
    condition_key: str = "condition",
    layer: str | None = None,
    backend: str = "auto",
    rng: RngLike = 0,
) -> pd.DataFrame:
    """Score predicted cells by the six metrics of the Virtual Cell Challenge 2026, as cell-eval2 computes them.

    Parameters
    ----------
    reference
        Measured cells with raw counts, controls among them; not changed.
    prediction
        Predicted cells of the same perturbations and genes with raw counts (:func:`scgpt_tools.tl.predicted_counts` makes them
        from log-normalised ones); in the place of its controls, if it has any, are those of the reference.  Not changed.
    condition_key
        Column of ``obs`` of both with conditions from :func:`scgpt_tools.pp.parse_conditions`.
    layer
        Key of ``layers`` of both with raw counts; ``None`` takes ``X``.
    backend
        What tests genes: ``"auto"``, ``"scanpy"``, ``"pdex"`` or ``"gpudge"``, as in cell-eval2.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the cells of the baseline and the halves of the replicate.

    Returns
    -------
    One row a ``metric``: ``value`` of the prediction; that of the ``baseline``, cells with the mean response of all
    perturbations; that of a ``replicate``, half of the measured cells for the other half; and ``scaled``, 0 for the baseline
    and 1 for the replicate, bounded as in the challenge, NaN where the two do not differ.  ``attrs["mean"]`` is the mean of
    ``scaled``, NaN if one of them is.

    Raises
    ------
    ImportError
        If cell-eval2 is not installed (``pip install scgpt-tools[challenge]``).
    KeyError
        If a column or layer is absent.
    ValueError
        If genes or perturbations differ, there are no controls, values are no counts, or the reference has no effects that
        its noise leaves visible.

    Warns
    -----
    UserWarning
        If a metric cannot be scaled.
    """
    check_arguments(score_challenge, locals())
    seed = as_seed(rng)
    package = optional("cell_eval2", extra="challenge")
    measured, predicted = (_as_counts(table, condition_key, layer) for table in (reference, prediction))
    if not predicted.var_names.equals(measured.var_names):
        raise ValueError(
            f"Expected predictions of the genes of the reference in their order, found {predicted.n_vars} genes beside "
            f"{measured.n_vars} or another order. Pass prediction[:, reference.var_names]."
        )
    wanted, found = ({*table.obs[_PERTURBED]} - {CONTROL} for table in (measured, predicted))
    if wanted != found:
        lost = sorted(wanted ^ found)
        raise ValueError(
            f"Expected predictions of the perturbations of the reference and of no others, found {len(lost)} in one of "
            f"them only (such as {lost[0]!r})."
        )
    if CONTROL not in set(measured.obs[_PERTURBED]):
        raise ValueError(
            f"Expected control cells (label 'ctrl' in obs[{condition_key!r}]) in the reference, found none."
        )
    predicted = _with_controls(predicted, measured)
    config = _config(package, measured, backend)
    names = optional("cell_eval2.run", extra="challenge").metric_output_names(config)
    anchors = optional("cell_eval2.anchor", extra="challenge")

    def means(results: Any) -> dict[str, float]:
        table = package.aggregate_metrics_wide(results, metrics=names)
        row = table.filter(table["statistic"] == "mean").to_dicts()[0]
        return {name: float(value) for name, value in row.items() if name != "statistic" and value is not None}

    try:
        value = means(package.compute_metrics(predicted, measured, config=config))
        built = package.build_generic_baseline(measured, config=config, seed=seed, allow_degenerate=True)
        _, anchor = anchors.compute_replicate_anchor(measured, config=config, base_seed=seed)
    except ValueError as error:
        raise ValueError(f"Expected cells that cell-eval2 can score, found a complaint of its: {error}") from error
    baseline = means(built.results)
    replicate = {row["metric"]: row["replicate"] for row in anchor.to_dicts() if row["replicate"] is not None}
    members = optional("cell_eval2.competition", extra="challenge").competition_members()
    rows = [
        {
            "metric": name,
            "value": value.get(name, np.nan),
            "baseline": baseline.get(name, np.nan),
            "replicate": replicate.get(name, np.nan),
        }
        for name in members
    ]
    table = pd.DataFrame(rows).set_index("metric")
    table["scaled"] = [_scaled(str(name), *row) for name, row in zip(table.index, table.to_numpy(), strict=True)]
    if lost := list(table.index[table["scaled"].isna()]):
        warn_user(
            f"Expected baseline and replicate to differ in every metric, found no scale for {', '.join(lost)}: these cells "
            "are too few, or their effects too small, to tell a replicate from the mean response."
        )
    table.attrs["mean"] = float(table["scaled"].mean(skipna=False))
    return table


def write_challenge(
    adata: AnnData,
    path: str | PathLike[str],
    *,
    genes: Sequence[str],
    contexts: str,
    condition_key: str = "condition",
    layer: str | None = None,
) -> Path:
    """Write predicted cells as ``vcc prep`` of the Virtual Cell Challenge takes them.

    Controls are left out, columns are those of the challenge in its order, and ``obs`` has ``target_gene`` and ``context``
    only.  ``vcc prep FILE -g gene_names.csv --perts pert_counts.csv`` checks and packs the file.

    Parameters
    ----------
    adata
        Predicted cells with raw counts (:func:`scgpt_tools.tl.predicted_counts`); not changed.
    path
        File ``.h5ad`` to write.
    genes
        Genes of the challenge, from its ``gene_names.csv``.
    contexts
        Column of ``obs`` with the context of each cell, such as ``"A"``.
    condition_key
        Column of ``obs`` with conditions from :func:`scgpt_tools.pp.parse_conditions`.
    layer
        Key of ``layers`` with raw counts; ``None`` takes ``X``.

    Returns
    -------
    The path.

    Raises
    ------
    KeyError
        If a column or layer is absent.
    ValueError
        If values are no counts, a gene of the challenge is missing or a gene is there twice, a cell has no context, or there
        are only controls.
    """
    check_arguments(write_challenge, locals())
    table = _as_counts(adata, condition_key, layer)
    table.obs[_CONTEXT] = read_labels(adata, contexts)
    table = table[(table.obs[_PERTURBED] != CONTROL).to_numpy()]
    if not table.n_obs:
        raise ValueError("Expected predicted cells of perturbations, found controls only.")
    order = [str(gene) for gene in genes]
    for name, own in (("table", table.var_names), ("`genes`", pd.Index(order))):
        if own.has_duplicates:
            raise ValueError(f"Expected each gene once in the {name}, found {own[own.duplicated()][0]!r} again.")
    if lost := [gene for gene in order if gene not in table.var_names]:
        raise ValueError(f"{absent(lost[0], table.var_names, 'gene of the challenge')} {len(lost)} genes are missing.")
    place = as_path("path", path)
    replace_file(place, table[:, order].copy().write_h5ad)
    logger.info("Wrote %d cells of %d perturbations to %s.", table.n_obs, table.obs[_PERTURBED].nunique(), place)
    return place


def _as_counts(table: AnnData, key: str, layer: str | None) -> AnnData:
    """Counts and the perturbation of each cell by short names (``"KLF1"``), and nothing else."""
    source = RowSource(table, layer=layer)
    values = sp.csr_matrix(source.take(np.arange(len(source))), dtype=np.float32)
    if values.data.size and (values.data.min() < 0 or (values.data != np.floor(values.data)).any()):
        place = "X" if layer is None else f"layers[{layer!r}]"
        raise ValueError(
            f"Expected raw counts in {place}, found values that are negative or not whole. Pass `layer`, or make counts "
            "of log-normalised predictions with tl.predicted_counts."
        )
    values.eliminate_zeros()
    conditions = read_conditions(table, key)
    names: NDArray[Any] = np.array(["+".join(condition_genes(name)) for name in conditions], dtype=object)
    names[control_mask(conditions)] = CONTROL
    obs = pd.DataFrame({_PERTURBED: names}, index=table.obs_names.astype(str))
    return AnnData(values, obs=obs, var=pd.DataFrame(index=table.var_names.astype(str)))


def _with_controls(predicted: AnnData, measured: AnnData) -> AnnData:
    """Predicted perturbed cells beside the controls of the reference, which cell-eval2 wants of both."""
    own, controls = (table.obs[_PERTURBED] == CONTROL for table in (predicted, measured))
    parts = [predicted[~own.to_numpy()], measured[controls.to_numpy()]]
    names = np.concatenate([part.obs[_PERTURBED].to_numpy(dtype=object) for part in parts])
    obs = pd.DataFrame({_PERTURBED: names}, index=[f"predicted {number}" for number in range(len(names))])
    return AnnData(sp.vstack([part.X for part in parts], format="csr"), obs=obs, var=measured.var)


def _config(package: Any, measured: AnnData, backend: str) -> Any:
    """The settings of the challenge for labels of ours."""
    preset = package.EvalConfig.from_preset("vcc2026")
    known = set(measured.var_names)
    # The gene itself is left out of its own scores; combinations and unmeasured genes have none.
    own = {name: name if name in known else None for name in set(measured.obs[_PERTURBED]) - {CONTROL}}
    return replace(
        preset,
        pert_col=_PERTURBED,
        control=CONTROL,
        target_gene_map=own,
        de=replace(preset.de, backend=backend),
    )


def _scaled(name: str, value: float, baseline: float, replicate: float) -> float:
    """Between baseline (0) and replicate (1), with the bounds of the challenge; NaN where they do not differ."""
    scoring = optional("cell_eval2.scoring", extra="challenge")
    policy = optional("cell_eval2.catalog", extra="challenge").CATALOG[name].scoring
    if not np.isfinite([value, baseline, replicate]).all():
        return np.nan
    try:
        own = replace(policy, anchor=replicate, allow_negative_baseline=False)
    except ValueError:
        return np.nan
    return np.nan if scoring.is_degenerate(baseline, own) else float(scoring.score_one(value, baseline, own))
