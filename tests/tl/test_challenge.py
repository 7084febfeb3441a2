"""Scores and files of the Virtual Cell Challenge."""

from __future__ import annotations

from importlib.util import find_spec

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgpt_tools as sct

needs_scores = pytest.mark.skipif(
    find_spec("cell_eval2") is None, reason="cell-eval2, of the extra challenge, is absent"
)
needs_vcc = pytest.mark.skipif(
    find_spec("vcc") is None, reason="vcc-cli, which checks files of the challenge, is absent"
)

GENES = [f"G{number}" for number in range(60)]
PERTURBED = ["G0", "G1", "G2", "G3"]


def counts(*, seed=0, n=40, strength=1.2):
    """Counts of controls and of four perturbations, each with strong effects of its own and some shared ones."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(5)
    base = fixed.gamma(3, 3, 60)
    change = {name: strength * fixed.normal(size=60) * (fixed.random(60) < 0.5) for name in PERTURBED}
    blocks, labels = [], []
    for name in ("ctrl", *PERTURBED):
        rate = base * np.exp(change.get(name, 0) + (0.3 * (np.arange(60) % 3 == 0) if name != "ctrl" else 0))
        blocks.append(rng.poisson(rate, (n, 60)))
        labels += [name if name == "ctrl" else f"{name}+ctrl"] * n
    obs = pd.DataFrame({"condition": labels, "context": "A"}, index=[f"cell{i}" for i in range(len(labels))])
    X = sp.csr_matrix(np.concatenate(blocks).astype(np.float32))
    obs["n_counts"] = np.asarray(X.sum(axis=1)).ravel()
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=GENES))


def logged(adata):
    found = adata.copy()
    scale = sp.diags_array(10_000 / adata.obs["n_counts"].to_numpy())
    found.X = sp.csr_matrix(scale @ adata.X).log1p()
    return found


def without_a_context(adata):
    adata.obs.loc["cell50", "context"] = np.nan
    return adata


def test_counts_come_back():
    adata = counts()
    values = logged(adata)
    before = values.X.copy()
    found = sct.tl.predicted_counts(values)
    assert found.dtype == np.float32
    assert np.abs(found - adata.X).max() <= 1  # values in float32 are next to whole numbers
    assert (found != adata.X).mean() < 0.02
    assert (values.X != before).nnz == 0


@pytest.mark.parametrize("dense", [False, True])
def test_a_table_on_disk_is_read(dense, tmp_path):
    values = logged(counts())
    if dense:
        values.X = values.X.toarray()
    values.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert (sct.tl.predicted_counts(backed) != sct.tl.predicted_counts(values)).nnz == 0


def test_rounding_keeps_means_and_follows_the_seed():
    adata = logged(counts(n=400))[:400].copy()
    adata.X = np.full((400, 60), np.log1p(2.3), dtype=np.float32)
    adata.X[:, 0] = -1
    adata.obs["n_counts"] = 10_000
    first, again, other = (sct.tl.predicted_counts(adata, rng=rng).toarray() for rng in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert set(np.unique(first[:, 1:])) == {2, 3}
    assert first[:, 1:].mean() == pytest.approx(2.3, abs=0.02)
    assert not first[:, 0].any()


def test_totals_are_checked():
    adata = logged(counts())
    adata.obs["n_counts"] = np.where(np.arange(adata.n_obs) == 3, 0, adata.obs["n_counts"])
    with pytest.raises(ValueError, match="positive total of every cell in obs.*'cell3'"):
        sct.tl.predicted_counts(adata)
    with pytest.raises(ValueError, match="counts already"):
        sct.tl.predicted_counts(counts())
    with pytest.raises(KeyError, match="totals"):
        sct.tl.predicted_counts(adata, "totals")


def test_the_file_has_what_the_challenge_takes(tmp_path):
    adata = counts()
    order = GENES[::-1][:50]
    place = sct.tl.write_challenge(adata, tmp_path / "prediction.h5ad", genes=order, contexts="context")
    found = ad.read_h5ad(place)
    assert list(found.obs) == ["target_gene", "context"]
    assert set(found.obs["target_gene"]) == set(PERTURBED)
    assert list(found.var_names) == order
    perturbed = (adata.obs["condition"] != "ctrl").to_numpy()
    np.testing.assert_array_equal(found.X.toarray(), adata[perturbed, order].X.toarray())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (logged, {}, "Expected raw counts in X"),
        (lambda adata: adata[:, :59].copy(), {}, "'G59'"),
        (lambda adata: adata[:40].copy(), {}, "found controls only"),
        (without_a_context, {}, r"obs\['context'\]"),
        (lambda adata: adata, {"genes": ["G0", "G0"]}, "Expected each gene once in the `genes`"),
    ],
)
def test_what_the_challenge_does_not_take(tmp_path, change, options, message):
    options = {"genes": GENES, "contexts": "context", **options}
    with pytest.raises(ValueError, match=message):
        sct.tl.write_challenge(change(counts()), tmp_path / "prediction.h5ad", **options)
    assert not list(tmp_path.iterdir())


@needs_vcc
def test_the_tool_of_the_challenge_takes_the_file(tmp_path):
    from vcc.prep import run_prep
    from vcc.vccfile import validate_vcc

    place = sct.tl.write_challenge(counts(), tmp_path / "prediction.h5ad", genes=GENES, contexts="context")
    pd.Series(GENES, name="gene_name").to_csv(tmp_path / "gene_names.csv", index=False)
    pd.Series(PERTURBED, name="target_gene").to_csv(tmp_path / "pert_counts.csv", index=False)
    run_prep(
        input_path=str(place),
        genes_path=str(tmp_path / "gene_names.csv"),
        perts_path=str(tmp_path / "pert_counts.csv"),
        output_path=str(tmp_path / "prediction.vcc"),
        cells_per_pert=40,
        required_contexts=("A",),
        expected_gene_dim=len(GENES),
    )
    validate_vcc(tmp_path / "prediction.vcc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata: adata[:, ::-1].copy(), "genes of the reference in their order"),
        (lambda adata: adata[:160].copy(), "perturbations of the reference"),
        (logged, "Expected raw counts"),
    ],
)
@needs_scores
def test_predictions_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        sct.tl.score_challenge(counts(), change(counts(seed=1)), backend="scanpy")


@pytest.fixture(scope="module")
def scored():
    return sct.tl.score_challenge(counts(), counts(seed=1), backend="scanpy")


@needs_scores
def test_new_cells_of_the_same_screen_are_a_replicate(scored):
    assert len(scored) == 6
    assert scored["scaled"].notna().all()
    # Half of the cells for the other half is what has 1; as many new cells are as good or better.
    assert scored["scaled"].min() > 0.7
    assert scored.attrs["mean"] == pytest.approx(scored["scaled"].mean())


@needs_scores
def test_predicted_controls_do_not_matter(scored):
    predicted = counts(seed=1)
    perturbed = (predicted.obs["condition"] != "ctrl").to_numpy()
    without = sct.tl.score_challenge(counts(), predicted[perturbed].copy(), backend="scanpy")
    pd.testing.assert_frame_equal(without, scored)
    predicted.X = sp.csr_matrix(predicted.X.multiply(np.where(perturbed, 1, 3)[:, None]))
    pd.testing.assert_frame_equal(sct.tl.score_challenge(counts(), predicted, backend="scanpy"), scored)


@needs_scores
def test_the_numbers_are_those_of_cell_eval2(scored):
    import cell_eval2
    from cell_eval2 import aggregate_metrics_wide, build_generic_baseline, compute_metrics
    from cell_eval2.anchor import compute_replicate_anchor
    from cell_eval2.run import metric_output_names
    from cell_eval2.score import _reference_column, _replicate_entries

    from scgpt_tools.tl.challenge import _as_counts, _config

    real, predicted = (_as_counts(counts(seed=seed), "condition", None) for seed in (0, 1))
    config = _config(cell_eval2, real, "scanpy")
    names = metric_output_names(config)
    wide = aggregate_metrics_wide(compute_metrics(predicted, real, config=config), metrics=names)
    values = wide.filter(wide["statistic"] == "mean").to_dicts()[0]
    base = build_generic_baseline(real, config=config, allow_degenerate=True).agg
    base = base.filter(base["statistic"] == "mean").to_dicts()[0]
    _, anchor = compute_replicate_anchor(real, config=config)
    entries = _replicate_entries({name: base[name] for name in names}, anchor)
    rows = [*scored.index, "avg_score"]
    theirs = _reference_column(
        rows, [values[name] for name in names], names, entries, column="from_replicate", label="the anchor"
    )
    np.testing.assert_allclose([*scored["scaled"], scored.attrs["mean"]], theirs.to_list(), atol=1e-12)
    np.testing.assert_allclose(scored["value"], [values[name] for name in scored.index], atol=1e-12)
