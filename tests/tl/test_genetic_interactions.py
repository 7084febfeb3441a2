"""Doubles beside the sum of their singles."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import TheilSenRegressor

import scgpt_tools as sct
from generators import generator
from screen_tables import screen

CONDITIONS = ("A+ctrl", "B", "C+ctrl", "A+B", "C+B", "A+D", "ctrl")


pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def effects(rng) -> ad.AnnData:
    """A+B is the sum, C+B half of B; D was not measured alone."""
    a, b, c = rng.normal(size=(3, 60))
    table = np.stack([a, b, c, a + b, 0.5 * b + 0.01 * rng.normal(size=60), a, np.zeros(60)])
    var = pd.DataFrame(index=["A", "B", "C", *(f"G{i}" for i in range(57))])
    return ad.AnnData(table, obs=pd.DataFrame(index=list(CONDITIONS)), var=var)


def test_doubles_are_found_under_any_spelling(effects, unchanged, caplog):
    before = unchanged(effects)
    caplog.set_level(logging.INFO, logger="scgpt_tools")
    found = sct.tl.genetic_interactions(effects, layer=None)
    assert unchanged(effects) == before
    assert list(found.index) == ["A+B", "C+B"]
    assert found[["first", "second"]].to_numpy().tolist() == [["A", "B"], ["C", "B"]]
    assert found.loc["A+B", ["c1", "c2", "additive_cosine"]].tolist() == pytest.approx([1, 1, 1])
    assert found.loc["C+B", ["c1", "c2"]].tolist() == pytest.approx([0, 0.5], abs=0.02)
    assert found.loc["C+B", "additive_cosine"] < 0.9
    assert "Left out for lack of a single: A+D." in caplog.text


def test_perturbed_genes_can_be_left_out(effects):
    changed = effects.copy()
    changed.X[3, :2] += 100
    plain, without = (sct.tl.genetic_interactions(changed, layer=None, exclude_perturbed=own) for own in (False, True))
    assert plain.loc["A+B", "additive_pearson"] < 0.9
    assert without.loc["A+B", "additive_pearson"] == pytest.approx(1)


def test_a_screen_can_be_scored():
    cells = screen(6)
    screened = sct.tl.screen(cells, ["G0", "G1", "G0+G1"], generator(cells.var_names))
    found = sct.tl.genetic_interactions(screened)
    labelled = ad.AnnData(
        screened.layers["effect"], obs=pd.DataFrame({"what": list(screened.obs_names)}, index=list("abc"))
    )
    labelled.var_names = screened.var_names
    again = sct.tl.genetic_interactions(labelled, condition_key="what", layer=None)
    assert list(found.index) == ["G0+G1"]
    pd.testing.assert_frame_equal(found, again)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table[["B", "A+B"]].copy(), ValueError, "found 1 doubles and none with both"),
        (lambda table: ad.concat([table, table["B"]]), ValueError, "one row for each condition, found 'B'"),
        (lambda table: ad.AnnData(table.X * np.nan, obs=table.obs, var=table.var), ValueError, "finite changes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
def test_bad_tables_are_refused(effects, change, error, message):
    with pytest.raises(error, match=message):
        sct.tl.genetic_interactions(change(effects), layer=None)


def test_absent_keys_are_named(effects):
    with pytest.raises(KeyError, match="effect"):
        sct.tl.genetic_interactions(effects)
    with pytest.raises(KeyError, match="condition"):
        sct.tl.genetic_interactions(effects, condition_key="condition", layer=None)


@pytest.fixture(scope="module")
def norman() -> ad.AnnData:
    """Measured effects of 104 single and 130 double activations."""
    name = "norman2019_pseudobulk_effects"
    if name not in sct.datasets.available().index:
        pytest.skip(f"no {name}.h5ad in the folder of SCGPT_TOOLS_DATA")
    return sct.datasets.load(name)


def test_doubles_of_norman_are_mostly_additive(norman):
    """The figures that come with the file: 126 of 130 doubles have both singles, with a median cosine of 0.71."""
    doubles = norman.obs.query("n_perturbed == 2 and both_singles_measured")["condition"]
    assert ((norman.obs["n_perturbed"] == 2).sum(), len(doubles)) == (130, 126)
    singles = norman.to_df().filter(like="+ctrl", axis=0)
    effects = sct.metrics.TrainingEffects(
        genes=tuple(norman.var_names),
        control=np.zeros(norman.n_vars),
        perturbed=tuple((name.removesuffix("+ctrl"),) for name in singles.index),
        effects=singles.to_numpy(float),
    )
    found = sct.metrics.additive(effects, [tuple(name.split("+")) for name in doubles])
    assert found.informed.all()
    true = norman[list(doubles.index)].X
    additive = sct.metrics.cosine(found.effects, true)
    assert np.median(additive) == pytest.approx(0.71, abs=0.005)
    # What the other baselines reach with the same singles.
    mean = sct.metrics.perturbed_mean(effects, [("A", "B")] * len(doubles)).effects
    assert np.median(sct.metrics.cosine(mean, true)) < 0.6
    assert (sct.metrics.mse(found.effects, true) < sct.metrics.mse(0 * mean, true)).mean() > 0.7


def test_all_doubles_of_norman_are_scored(norman):
    genes = np.argsort(-norman.X.var(axis=0))[:200]
    found = sct.tl.genetic_interactions(norman[:, genes].copy(), layer=None, max_pairs=5000)
    assert list(found.index) == list(norman.obs_names[norman.obs["both_singles_measured"]])
    scores = found.drop(columns=["first", "second", "dominance"]).astype(float)
    assert np.isfinite(scores.to_numpy()).all()
    # A fit that may weigh the singles comes as near as their plain sum, up to its robustness.
    assert (found["corr_fit"] > found["additive_pearson"] - 0.1).all()
    assert found["corr_fit"].median() > found["additive_pearson"].median()
    # Two activations do less than the sum of both as a rule.
    assert found["mag"].median() < np.sqrt(2)


def test_scores_of_norman_are_those_of_the_definitions(norman):
    """Theil and Sen's fit by scikit-learn with the settings of GEARS, and distance correlation written out."""
    genes = np.argsort(-norman.X.var(axis=0))[:120]
    table = norman[:, genes].copy()
    found = sct.tl.genetic_interactions(table, layer=None)
    rows = table.to_df()
    for name in list(found.index[:3]):
        first, second = (rows.loc[f"{gene}+ctrl"].to_numpy(float) for gene in name.split("+"))
        double = rows.loc[name].to_numpy(float)
        singles = np.stack([first, second], axis=1)
        fit = TheilSenRegressor(fit_intercept=False, max_subpopulation=1e5, max_iter=1000, random_state=1000)
        np.testing.assert_allclose(
            found.loc[name, ["c1", "c2"]].astype(float), fit.fit(singles, double).coef_, rtol=1e-3
        )
        assert found.loc[name, "dcor"] == pytest.approx(distance_correlation(singles, double[:, None]))
        assert found.loc[name, "mag"] == pytest.approx(np.hypot(*found.loc[name, ["c1", "c2"]]))


def distance_correlation(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    a, b = (centring @ cdist(side, side) @ centring for side in (x, y))
    return float(np.sqrt((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
