"""Two tables, of true and of predicted cells, without a split and without cells to train on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from generators import generator
from scgpt_tools.metrics.evaluation import by_perturbation
from scgpt_tools.metrics.panel import METRICS
from screen_tables import CONDITIONS, screen

pytestmark = [
    pytest.mark.filterwarnings("ignore:The predictions of:UserWarning"),
    pytest.mark.usefixtures("without_bars"),
]

PERTURBED = set(CONDITIONS) - {"ctrl"}


@pytest.fixture
def pair():
    """Two halves of the cells of each condition and batch, as tools write true and predicted cells."""
    cells = screen(20)
    order = cells.obs.groupby(["condition", "batch"], observed=True).cumcount().to_numpy()
    return tuple(cells[order % 2 == side].copy() for side in (0, 1))


@pytest.mark.parametrize("within", [None, "batch"])
def test_true_and_predicted_cells_alone(pair, within, caplog, unchanged):
    reference, predicted = pair
    caplog.set_level("INFO", logger="scgpt_tools")
    before = unchanged(reference), unchanged(predicted)
    scores = sct.tl.evaluate_perturbation(reference=reference, prediction=predicted, within=within, cells=True)
    assert (unchanged(reference), unchanged(predicted)) == before
    assert "Found no obs['split'] in the reference: all conditions of the prediction are scored." in caplog.text
    assert scores.models == ("prediction",)
    assert scores.baselines == ("no_change",)
    names = PERTURBED if within is None else {f"{batch}_{name}" for batch in "ab" for name in PERTURBED}
    assert set(scores.table["condition"]) == names
    assert set(scores.table["metric"]) == {*METRICS, "energy", "energy_to_control", "mmd"} - {"interaction"}
    means = scores.means()
    # As good as a prediction with the noise of as many cells can be.
    assert (means.loc["ceiling", "mse"] < means.loc["prediction", "mse"] < 2.5 * means.loc["ceiling", "mse"]).all()
    for metric in ("pearson_control", "pearson_perturbed_mean", "discrimination_l1", "centroid_accuracy"):
        assert means.loc["prediction", metric] == pytest.approx(means.loc["ceiling", metric], abs=0.08)
    text = str(scores)
    assert text.startswith("13 conditions, hash" if within is None else "26 conditions of 13 perturbations, hash")
    assert "No training conditions: baselines that learn from others are left out." in text
    assert "pearson_perturbed_mean and r2_weighted refer to the mean change of the scored conditions." in text
    assert scores.ranges()["mse"] > 0.5


def test_one_profile_for_all_has_nothing_beyond_the_mean_of_the_conditions(pair):
    reference, _ = pair
    rng = np.random.default_rng(0)
    dense = reference.X.toarray()
    base = dense[(reference.obs["condition"] == "ctrl").to_numpy()].mean(axis=0)
    same = pd.DataFrame([base + rng.normal(0, 0.5, base.size)] * len(PERTURBED), sorted(PERTURBED), reference.var_names)
    scores = sct.tl.evaluate_perturbation(reference, same, split=None).table
    found = scores.query("metric == 'pearson_perturbed_mean' and method == 'prediction'")["value"]
    assert abs(found.mean()) < 0.05


def test_a_split_is_no_matter_where_all_are_scored(pair):
    reference, predicted = pair
    alone = sct.tl.evaluate_perturbation(reference=reference, prediction=predicted).table
    held = sorted(PERTURBED)[:4]
    parts = {"train": sorted({*PERTURBED, "ctrl"} - set(held)), "test": held}
    sct.pp.perturbation_split(reference, "custom", parts=parts)
    pd.testing.assert_frame_equal(sct.tl.evaluate_perturbation(reference, predicted, split=None).table, alone)
    assert set(sct.tl.evaluate_perturbation(reference=reference, prediction=predicted).table["condition"]) == set(held)
    # A part without any that train is the same, but said.
    reference.obs["split"] = "test"
    with pytest.warns(UserWarning, match=r"of the part 'train' in obs\['split'\], found none"):
        found = sct.tl.evaluate_perturbation(reference, predicted)
    pd.testing.assert_frame_equal(found.table, alone)


def test_conditions_that_are_not_predicted_are_named_and_left_out(pair):
    reference, predicted = pair
    fewer = predicted[~predicted.obs["condition"].isin(["G0+ctrl", "G2+G3"]).to_numpy()].copy()
    with pytest.warns(UserWarning, match=r"all 13 conditions from 'few', found none of 2: 'G0\+ctrl', 'G2\+G3'"):
        scores = sct.tl.evaluate_perturbation(reference, {"few": fewer, "all": predicted}, split=None)
    assert set(scores.table["condition"]) == PERTURBED - {"G0+ctrl", "G2+G3"}
    own = fewer[~((fewer.obs["batch"] == "a") & (fewer.obs["condition"] == "G1+ctrl")).to_numpy()].copy()
    with pytest.warns(UserWarning, match="found none of 5: 'a_G0"):
        scores = sct.tl.evaluate_perturbation(reference, own, split=None, within="batch")
    assert scores.table["condition"].nunique() == 21
    other = predicted[predicted.obs["condition"].isin(["ctrl", "G0+ctrl"]).to_numpy()].copy()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="a condition that all of 'few', 'other' predict"),
    ):
        sct.tl.evaluate_perturbation(reference, {"few": fewer, "other": other}, split=None)


def test_models_layers_and_profiles_without_a_split(pair):
    reference, _ = pair
    reference.layers["mine"] = reference.X.toarray()
    model = generator(reference.var_names, strength=20)
    profiles = sct.tl.screen(reference, ["G0", "G1"], model)
    given = {"layer": "mine", "model": model, "profiles": profiles}
    with pytest.warns(UserWarning, match="'profiles', found none of 11"):
        scores = sct.tl.evaluate_perturbation(reference, given, split=None, analyses=True)
    assert scores.models == tuple(given)
    assert set(scores.originals["condition"]) == set(scores.table["condition"]) == {"G0+ctrl", "G1+ctrl"}
    assert by_perturbation(scores.table)["mse"].notna().all(axis=None)


def test_one_condition_has_no_mean_of_others(pair):
    reference, predicted = pair
    one = reference[reference.obs["condition"].isin(["ctrl", "G0+ctrl"]).to_numpy()].copy()
    scores = sct.tl.evaluate_perturbation(reference=one, prediction=predicted)
    assert not {"pearson_perturbed_mean", "r2_weighted", "mse_weighted"} & set(scores.table["metric"])
    assert str(scores).startswith("1 condition, hash")
    assert "mean change of the scored" not in str(scores)


def _counts(cells):
    cells.X = np.expm1(cells.X.toarray()).round()


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda true, other: _counts(true), {}, ValueError, r"raw counts.*normalize_total"),
        (
            lambda true, other: _counts(other),
            {},
            ValueError,
            r"Predictions of 'prediction'.*raw counts.*normalize_total",
        ),
        (
            lambda true, other: other.obs.__setitem__("condition", "G9+ctrl"),
            {},
            ValueError,
            r"predicted cells of 'G0\+G1' from 'prediction', found none. There are cells of 'G9\+ctrl'",
        ),
        (lambda true, other: other.obs.pop("condition"), {}, ValueError, "have their conditions in `obs`"),
        (lambda true, other: other.obs.pop("batch"), {"within": "batch"}, KeyError, "batch"),
        (
            lambda true, other: true.obs.__setitem__("condition", "G1+ctrl"),
            {},
            ValueError,
            "control cells to compare perturbed ones with",
        ),
        (lambda true, other: None, {"split": "parts"}, KeyError, "Found no key in `obs`: 'parts'.*split=None"),
        (lambda true, other: None, {"part": "val"}, KeyError, "Found no key in `obs`: 'split'.*split=None"),
        (lambda true, other: None, {"part": "val", "split": None}, ValueError, "part='val', found split=None"),
    ],
    ids=["counts", "predicted counts", "others", "no conditions", "no batch", "no controls", "split", "part", "both"],
)
def test_what_is_wrong_with_either_table_is_said(pair, change, options, error, message):
    reference, predicted = pair
    change(reference, predicted)
    with pytest.raises(error, match=message):
        sct.tl.evaluate_perturbation(reference=reference, prediction=predicted, **options)


def test_a_table_without_a_split_says_how_to_do_without(pair):
    reference, predicted = pair
    with pytest.raises(KeyError, match="Found no key in `obs`: 'split'.*pass split=None to score all conditions"):
        sct.tl.evaluate_perturbation(reference, predicted)
