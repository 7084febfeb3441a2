"""Models beside baselines and the ceiling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgpt_tools as sct
from generators import generator
from scgpt_tools.screens.held_out import HeldOutScreen
from screen_tables import screen

# Generators with random weights tell perturbations hardly apart, and are told off for it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The predictions of:UserWarning"),
    pytest.mark.usefixtures("without_bars"),
]

HELD = ("G0+ctrl", "G2+G3", "G0+G6", "G4+G5")
BASELINES = {
    "no_change",
    "perturbed_mean",
    "matching_mean",
    "additive",
    "scaled_additive",
    "linear",
    "kernel",
    "shrunken_mean",
    "perturbed_cells",
}


@pytest.fixture
def cells():
    adata = screen(20)
    rest = [name for name in adata.obs["condition"].unique() if name not in HELD]
    sct.pp.perturbation_split(adata, "custom", parts={"train": rest, "test": HELD})
    sct.pp.pair_controls(adata)
    return adata


@pytest.fixture
def truth(cells) -> pd.DataFrame:
    """Mean profiles of the held-out conditions."""
    found = HeldOutScreen.read(cells).truth
    return pd.DataFrame(found.true, index=list(found.conditions), columns=cells.var_names)


@pytest.fixture
def model(cells):
    return generator(cells.var_names, strength=20)


def test_the_table_holds_every_method_condition_and_metric(cells, model, unchanged):
    before = unchanged(cells)
    scores = sct.tl.evaluate_perturbation(cells, {"mine": model})
    assert unchanged(cells) == before
    assert list(scores.table.columns) == ["condition", "group", "method", "role", "metric", "value"]
    assert set(scores.table["method"]) == {"mine", "ceiling", *BASELINES}
    assert scores.models == ("mine",)
    assert set(scores.baselines) == BASELINES
    assert set(scores.table["condition"]) == set(HELD)
    assert set(scores.table["group"]) == {"seen_single", "combo_seen2"}
    assert not scores.table.duplicated(["condition", "method", "metric"]).any()
    assert scores.test_hash == cells.uns["split"]["hash"]["test"]
    expected = HeldOutScreen.read(cells).table({})
    baseline = scores.table[scores.table["role"] != "model"].drop(columns="role").reset_index(drop=True)
    pd.testing.assert_frame_equal(baseline, expected)


def test_the_truth_wins_and_the_summary_says_so(cells, truth):
    scores = sct.tl.evaluate_perturbation(cells, {"oracle": truth})
    means = scores.means()
    assert means.loc["oracle", "mse"] == 0
    assert set(scores.winners()) == {"oracle"}
    assert "No baseline has a better mean than oracle." in str(scores)
    assert scores.spread["oracle"] == pytest.approx(1)


def test_a_losing_model_is_said_to_lose(cells, model, caplog):
    caplog.set_level("INFO", logger="scgpt_tools")
    scores = sct.tl.evaluate_perturbation(cells, {"mine": model})
    text = str(scores)
    assert "A baseline has the better mean: " in text
    assert "additive in mse" in text
    assert "mine against additive: worse in mse" in text
    assert "Scored 4 held-out conditions; a baseline has the better mean than that of mine in " in caplog.text
    assert "4 held-out conditions (3 combo_seen2, 1 seen_single)" in text
    compared = scores.compare("mine").set_index(["metric", "other"])
    assert compared.loc[("mse", "additive"), "low"] > 0


def test_predictions_come_from_controls_only(cells, model):
    """Held-out cells are the truth, and nothing else."""
    profiles = sct.tl.screen(cells, list(HELD), model, n_controls=None)
    by_screen = sct.tl.evaluate_perturbation(cells, {"m": profiles})
    by_model = sct.tl.evaluate_perturbation(cells, {"m": model}, n_controls=10_000)
    # A screen is predicted from all controls, a model here from those that the truth is not compared with.
    errors = [scores.means().loc["m", ["mse", "mae", "mse_de"]] for scores in (by_screen, by_model)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.1)
    changed = cells.copy()
    held = np.flatnonzero(changed.obs["split"] == "test")
    dense = changed.X.toarray()
    dense[held] = dense[held][:, ::-1]
    changed.X = dense
    np.testing.assert_array_equal(sct.tl.screen(changed, list(HELD), model, n_controls=None).X, profiles.X)


def test_the_pool_of_the_original_is_drawn_with_replacement(cells, model):
    prepared = HeldOutScreen.read(cells)
    inputs = np.flatnonzero(prepared.is_input)
    pool = prepared.controls("", 50, seed=3, bootstrap=True)
    np.testing.assert_array_equal(pool, inputs[np.random.RandomState(3).randint(0, len(inputs), 50)])
    once = sct.tl.evaluate_perturbation(cells, {"m": model}, n_controls=50)
    drawn = sct.tl.evaluate_perturbation(cells, {"m": model}, n_controls=50, bootstrap=True)
    own, other = (scores.table.query("method == 'm'")["value"].to_numpy() for scores in (once, drawn))
    assert not np.allclose(own, other)


def test_genes_are_matched_as_asked(cells, model):
    cells.var_names = cells.var_names.str.lower()
    cells.obs["condition"] = cells.obs["condition"].astype(str).str.lower()
    with pytest.raises(ValueError, match="vocabulary"):
        sct.tl.evaluate_perturbation(cells, {"m": model})
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, ignore_case=True)
    assert scores.models == ("m",)


def test_layers_of_predictions_are_averaged(cells, model):
    sct.tl.predict_perturbation(cells, None, model)
    scores = sct.tl.evaluate_perturbation(cells, "predicted")
    prepared = HeldOutScreen.read(cells)
    means = [cells.layers["predicted"][(cells.obs["condition"] == name).to_numpy()].mean(axis=0) for name in HELD]
    frame = pd.DataFrame(np.stack(means), index=list(HELD), columns=cells.var_names)
    expected = prepared.table({"predicted": frame.loc[list(prepared.truth.conditions)].to_numpy(float)})
    cells.layers["sparse"] = sp.csr_matrix(cells.layers["predicted"])
    again = sct.tl.evaluate_perturbation(cells, {"predicted": "sparse"}).table
    pd.testing.assert_frame_equal(again, scores.table)
    own, wanted = (table[table["method"] == "predicted"]["value"].to_numpy() for table in (scores.table, expected))
    np.testing.assert_allclose(own, wanted, rtol=1e-5, atol=1e-6)


def test_contexts_are_predicted_from_their_own_controls(cells, model):
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, within="batch")
    assert set(scores.table["condition"]) == {f"{batch}_{name}" for batch in "ab" for name in HELD}
    shifted = cells.copy()
    dense = shifted.X.toarray()
    others = ((shifted.obs["batch"] == "b") & (shifted.obs["condition"] == "ctrl")).to_numpy()
    dense[others] += 0.3
    shifted.X = dense
    again = sct.tl.evaluate_perturbation(shifted, {"m": model}, within="batch")
    for batch, same in (("a", True), ("b", False)):
        own = [
            s.table.query(f"method == 'm' and metric == 'mse' and condition.str.startswith('{batch}_')")[
                "value"
            ].to_numpy()
            for s in (scores, again)
        ]
        assert np.allclose(*own) == same


def test_held_out_replicates(cells, model):
    sct.pp.cell_split(cells, "batch", test=["b"])
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, within="batch")
    assert scores.table["condition"].nunique() == 13
    assert set(scores.table["group"]) == {"seen_single", "combo_seen2"}


def test_the_originals_metrics_stand_beside(cells, truth):
    originals = sct.tl.evaluate_perturbation(cells, {"oracle": truth}).originals
    means = originals.groupby("metric")["value"].mean()
    assert means["gears_mse"] == 0
    assert means[["scgpt_pearson", "scgpt_pearson_delta", "scgpt_pearson_de_delta"]].tolist() == pytest.approx(
        [1, 1, 1]
    )


@pytest.mark.parametrize("within", [None, "batch"])
def test_analyses_of_gears_on_request(cells, model, within):
    short = sct.tl.evaluate_perturbation(cells, {"m": model}, within=within).originals
    whole = sct.tl.evaluate_perturbation(cells, {"m": model}, within=within, analyses=True)
    scores = whole.originals
    means, name = whole.means(originals=True), "gears_frac_correct_direction_20"
    assert {*whole.table["metric"], *scores["metric"]} == set(means.columns)
    genes = scores.query("metric == @name")["condition"].str.removeprefix("a_").str.removeprefix("b_")
    by_perturbation = scores.query("metric == @name")["value"].groupby(genes).mean()
    assert means.loc["m", name] == pytest.approx(by_perturbation.mean())
    groups = whole.summary(originals=True, by_group=True).query("metric == @name").set_index("group")
    assert groups["n"].to_dict() == {"seen_single": 1, "combo_seen2": 3}
    assert not scores.duplicated(["condition", "method", "metric"]).any()
    pd.testing.assert_frame_equal(
        scores[scores["metric"].isin(short["metric"])].reset_index(drop=True), short.reset_index(drop=True)
    )
    names = {name.removeprefix("gears_") for name in scores["metric"]}
    assert {"frac_correct_direction_20", "frac_in_range_40_60", "mean_sigma", "fold_change_gap_upreg_3"} <= names
    assert {"pearson_top200_hvg", "mse_top50_de", "frac_sigma_below_2_non_dropout"} <= names
    wide = scores.pivot(index="condition", columns="metric", values="value")
    # The whole list of twenty is a subset of genes like any other.
    np.testing.assert_allclose(wide["gears_mse_top20_de"], wide["gears_mse_de"])
    np.testing.assert_allclose(wide["gears_pearson_top20_de"], wide["gears_pearson_de"])
    assert wide["gears_frac_correct_direction_all"].between(0, 1).all()
    assert set(scores["group"]) == {"seen_single", "combo_seen2"}


def test_collapsed_predictions_raise_an_alarm(cells, truth):
    same = pd.DataFrame(np.tile(truth.mean(axis=0), (len(truth), 1)), index=truth.index, columns=truth.columns)
    with pytest.warns(
        UserWarning, match=r"predictions of mean are nearly the same for every perturbation: they differ 0\.0%"
    ):
        scores = sct.tl.evaluate_perturbation(cells, {"mean": same})
    assert "nearly the same for every perturbation" in str(scores)


def test_several_models_stand_in_one_table(cells, truth, model):
    scores = sct.tl.evaluate_perturbation(cells, {"oracle": truth, "generator": model})
    assert scores.models == ("oracle", "generator")
    assert scores.ranges()["mse"] > 0.5
    assert {"group", "metric", "method", "mean", "low", "high"} <= set(scores.summary(by_group=True))


def test_bad_input(cells, truth, model):
    with pytest.raises(ValueError, match="Expected a row 'G0\\+G6' in the predictions"):
        sct.tl.evaluate_perturbation(cells, truth.drop(index="G0+G6"))
    with pytest.raises(ValueError, match="found 1 missing, the first being 'G9'"):
        sct.tl.evaluate_perturbation(cells, truth.drop(columns="G9"))
    with pytest.raises(ValueError, match=r"finite predictions of 'prediction', found NaN .* in \['G0\+G6'\]"):
        sct.tl.evaluate_perturbation(cells, truth.drop(index="G0+G6").reindex(truth.index))
    with pytest.raises(ValueError, match="found NaN or infinite numbers. Predict with perts=None"):
        sct.tl.predict_perturbation(cells, "G0", model)
        sct.tl.evaluate_perturbation(cells, "predicted")
    with pytest.raises(ValueError, match="no token for G4"):
        sct.tl.evaluate_perturbation(cells, generator([name for name in cells.var_names if name != "G4"]))
    with pytest.raises(ValueError, match="found whole numbers"):
        cells.X = np.rint(np.expm1(cells.X.toarray()))
        sct.tl.evaluate_perturbation(cells, truth)


def test_a_direction_is_checked_if_no_model_reads_it(cells, truth):
    with pytest.raises(ValueError, match="`direction`"):
        sct.tl.evaluate_perturbation(cells, truth, direction="upwards")


def test_a_condition_with_one_cell_is_refused(cells, truth):
    keep = (cells.obs["condition"] != "G0+G6").to_numpy(copy=True)
    keep[np.flatnonzero(~keep)[0]] = True
    few = cells[keep].copy()
    with pytest.raises(ValueError, match="G0\\+G6"):
        sct.tl.evaluate_perturbation(few, truth)


def test_rows_are_found_by_their_genes(cells, truth):
    other = truth.rename(index={"G0+G6": "G6+G0", "G0+ctrl": "ctrl+G0"})
    first, second = (sct.tl.evaluate_perturbation(cells, {"mine": table}).table for table in (truth, other))
    assert first.equals(second)
    twice = pd.concat([truth, other.loc[["G6+G0"]]]).drop(index="G0+G6")
    assert sct.tl.evaluate_perturbation(cells, {"mine": twice}).models == ("mine",)
    with pytest.raises(ValueError, match=r"one row for 'G2\+G3'.*found \['G3\+G2', 'G2\+G3\+G2'\]"):
        sct.tl.evaluate_perturbation(
            cells,
            pd.concat([truth.rename(index={"G2+G3": name}) for name in ("G3+G2", "G2+G3+G2")])
            .groupby(level=0, sort=False)
            .first(),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.iloc[[0, 0, 1, 2, 3]],
            "Expected rows of the predictions of 'mine' with names of their own",
        ),
        (lambda table: table.iloc[:, [0, *range(table.shape[1])]], "Expected genes of the predictions"),
        (
            lambda table: table.astype(object).where(table != table.iloc[0, 0], "high"),
            "Expected numbers in the predictions",
        ),
        (lambda table: table.replace(table.iloc[0, 0], np.inf), "finite predictions of 'mine'"),
    ],
    ids=["rows", "genes", "texts", "infinite"],
)
def test_tables_that_say_nothing_clear_are_refused(cells, truth, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sct.tl.evaluate_perturbation(cells, {"mine": change(truth)})


@pytest.mark.parametrize("given", ["kernel", {"mine": "kernel"}, {"mine": ["kernel"]}, ["kernel"]], ids=str)
def test_the_kernel_model_is_a_baseline_and_no_prediction(cells, given):
    with pytest.raises(ValueError, match="found 'kernel', which is one of them"):
        sct.tl.evaluate_perturbation(cells, given)


@pytest.mark.parametrize(
    "wrong", [{"symbols": 3}, {"symbols": "absent"}, {"aliases": ["A"]}, {"aliases": "absent"}], ids=str
)
def test_tables_of_names_are_looked_at_though_nothing_reads_them(cells, truth, wrong):
    with pytest.raises((KeyError, TypeError), match="absent|of names"):
        sct.tl.evaluate_perturbation(cells, truth, **wrong)


def test_other_words_for_parts_are_named(cells, truth):
    cells.obs["split"] = cells.obs["split"].astype(object).replace({"test": "Test"})
    with pytest.raises(ValueError, match=r"found 'Test' \("):
        sct.tl.evaluate_perturbation(cells, truth)


def test_a_gene_that_never_varies_does_not_hide_the_others(cells, truth):
    dense, held = cells.X.toarray(), (cells.obs["condition"] == "G0+ctrl").to_numpy()
    dense[:, 0] = 2.0
    dense[held, 0] = 0.0
    cells.X = dense
    scores = sct.tl.evaluate_perturbation(cells, {"mine": truth}, metrics=["mse_weighted", "r2_weighted"]).table
    assert np.isfinite(scores["value"]).all()


def test_the_files_of_scgenept(cells, model, tmp_path):
    assert not sct.tl.evaluate_perturbation(cells, {"mine": model}).scgenept
    scores = sct.tl.evaluate_perturbation(cells, {"mine": model}, scgenept=True)
    found = scores.scgenept["mine"]
    assert set(found.conditions) == set(HELD)
    originals = scores.originals.query("method == 'mine'").set_index(["metric", "condition"])["value"]
    for name in ("mse", "pearson", "mse_de", "pearson_de"):
        expected = originals[f"gears_{name}"]
        assert found.means[f"test_{name}"] == pytest.approx(expected.mean())
        for condition in HELD:
            assert found.conditions[condition][name] == pytest.approx(expected[condition])
    groups = ("seen_single", "combo_seen2")
    assert {name for name in found.groups if name.endswith("_pearson_delta")} == {
        f"test_{group}_pearson_delta" for group in groups
    }
    doubles = [found.conditions[name]["pearson_delta"] for name in HELD[1:]]
    assert found.groups["test_combo_seen2_pearson_delta"] == pytest.approx(np.mean(doubles))
    found.save(tmp_path / "metrics")
    names = {"metrics_epoch_best.json", "pert_res_epoch_best.json", "test_metrics_detailed.json"}
    assert {path.name for path in (tmp_path / "metrics").iterdir()} == names


def test_genes_that_are_no_dropouts(cells):
    """A perfect prediction of the genes that GEARS lists for a condition."""
    held = HeldOutScreen.read(cells)
    perfect = pd.DataFrame(held.truth.true, index=list(held.conditions), columns=cells.var_names)
    found = sct.tl.evaluate_perturbation(cells, {"truth": perfect}, scgenept=True).scgenept["truth"]
    for own in found.conditions.values():
        assert own["mse_top20_de_non_dropout"] == 0
        assert own["pearson_delta_top20_de_non_dropout"] == pytest.approx(1)
        assert own["frac_correct_direction_all"] == 1


def test_cells_of_any_model_are_scored_beside_measured_ones(cells):
    """Means and samples of a table of predicted cells, whatever else it holds and however conditions are written."""
    own = cells[cells.obs["condition"].isin([*HELD, "ctrl"])].copy()
    own.obs["condition"] = own.obs["condition"].astype(str).replace({"G2+G3": "G3+G2"})
    scores = sct.tl.evaluate_perturbation(reference=cells, prediction={"cells": own[:, ::-1].copy()}, cells=True)
    means = scores.means()
    assert means.loc["cells", "mse"] == pytest.approx(0, abs=1e-12)
    assert means.loc["cells", "energy"] <= 0
    assert "cells is above the ceiling in" in str(scores)
    with pytest.raises(ValueError, match=r"predicted cells of 'G0\+G6' from 'prediction', found none"):
        sct.tl.evaluate_perturbation(cells, own[(own.obs["condition"] != "G0+G6").to_numpy()].copy())
    with pytest.raises(TypeError, match="instead of `adata` and `predictions`, found both"):
        sct.tl.evaluate_perturbation(cells, own, reference=cells)
    with pytest.raises(TypeError, match="one of both alone"):
        sct.tl.evaluate_perturbation(reference=cells)
    counts = own.copy()
    counts.X = np.expm1(counts.X.toarray()).round()
    with pytest.raises(ValueError, match="raw counts"):
        sct.tl.evaluate_perturbation(reference=cells, prediction=counts)


def test_models_of_one_recipe_are_scored_as_their_mean_and_spread(cells, truth):
    several = [truth, truth + 0.2, truth + 0.4]
    scores = sct.tl.evaluate_perturbation(cells, {"recipe": several, "one": truth}, metrics=["mse"])
    assert scores.models == ("recipe", "one")
    assert scores.means().loc["recipe", "mse"] == pytest.approx((0.2**2 + 0.4**2) / 3)
    spread = scores.seeds().set_index(["method", "metric"]).loc[("recipe", "mse")]
    assert (spread["n"], spread["min"], spread["max"]) == (3, pytest.approx(0), pytest.approx(0.16))
    assert spread["sd"] == pytest.approx(np.std([0, 0.04, 0.16], ddof=1))
    assert set(scores.by_seed["seed"]) == {0, 1, 2}
    with pytest.raises(ValueError, match="at least one prediction of 'none'"):
        sct.tl.evaluate_perturbation(cells, {"none": []})


def test_the_mean_prediction_of_a_recipe_is_a_method_of_its_own(cells, truth, model):
    several = [truth, truth + 0.2, truth - 0.4]
    scores = sct.tl.evaluate_perturbation(
        cells, {"recipe": several, "one": truth}, metrics=["mse", "pearson_control"], ensemble=True
    )
    assert scores.models == ("recipe", "one", "recipe ensemble")
    assert scores.means().loc["recipe ensemble", "mse"] == pytest.approx((0.2 / 3) ** 2)
    # Of cells, the mean over what the models made of the same controls.
    networks = [model, generator(cells.var_names, seed=1)]
    scores = sct.tl.evaluate_perturbation(
        cells, {"mine": networks}, metrics=["mse"], ensemble=True, cells=True, n_controls=10
    )
    assert {"mse", "energy"} <= set(scores.table.query("method == 'mine ensemble'")["metric"])
    means = scores.means()
    assert means.loc["mine ensemble", "mse"] < means.loc["mine", "mse"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda truth: {"mine": truth}, "lists of two models or more with `ensemble`"),
        (lambda truth: {"mine": [truth]}, "lists of two models or more with `ensemble`"),
        (lambda truth: {"mine": [truth, truth], "mine ensemble": truth}, "no prediction of the name 'mine ensemble'"),
    ],
    ids=["no list", "a list of one", "a name that is taken"],
)
def test_what_has_no_ensemble(cells, truth, given, message):
    with pytest.raises(ValueError, match=message):
        sct.tl.evaluate_perturbation(cells, given(truth), ensemble=True)


def test_a_model_of_a_recipe_without_a_score_is_named(cells, truth):
    still = truth.copy()
    # No change, with which nothing correlates.
    still.loc["G2+G3"] = HeldOutScreen.read(cells).truth.control[list(truth.index).index("G2+G3")]
    with pytest.warns(UserWarning, match="every model of 'recipe'") as caught:
        scores = sct.tl.evaluate_perturbation(cells, {"recipe": [truth, still]}, metrics=["mse", "pearson_control"])
    said = " ".join(str(warning.message) for warning in caught)
    assert "found none of some in 1 of 8 (first: 'pearson_control' of 'G2+G3', 1 of 2 models)" in said
    assert "'scgpt_pearson_delta' of 'G2+G3'" in said
    assert scores.table.query("method == 'recipe'")["value"].notna().all()


def test_a_perturbation_in_several_contexts_counts_once(cells):
    scores = sct.tl.evaluate_perturbation(cells, {"same": truth_within(cells)}, within="batch", metrics=["mse", "mae"])
    row = scores.summary().set_index(["metric", "method"]).loc[("mse", "no_change")]
    assert (row["n"], row["n_rows"]) == (4, 8)
    compared = scores.compare("same").set_index(["metric", "other"])
    assert compared.loc[("mse", "no_change"), "n"] == 4


def truth_within(cells) -> pd.DataFrame:
    found = HeldOutScreen.read(cells, within="batch").truth
    return pd.DataFrame(found.true + 0.01, index=list(found.conditions), columns=cells.var_names)
