"""What predictions of a screen are scored with."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools import pp
from scgpt_tools.metrics.evaluation import summarise_scores
from scgpt_tools.screens.held_out import HeldOutScreen
from screen_tables import effects, screen

HELD = ("G0+ctrl", "G2+G3", "G0+G6", "G4+G5")


@pytest.fixture
def split_screen():
    adata = screen(60)
    rest = [name for name in adata.obs["condition"].unique() if name not in HELD]
    pp.perturbation_split(adata, "custom", parts={"train": rest, "test": HELD})
    return adata


def test_training_and_truth_share_no_condition(split_screen):
    found = HeldOutScreen.read(split_screen)
    assert found.conditions == found.truth.conditions == tuple(sorted(HELD))
    assert not {frozenset(genes) for genes in found.train.perturbed} & {frozenset(genes) for genes in found.targets}
    assert found.groups == {
        "G0+ctrl": "seen_single",
        "G0+G6": "combo_seen2",
        "G2+G3": "combo_seen2",
        "G4+G5": "combo_seen2",
    }


def test_held_out_cells_do_not_reach_the_baselines(split_screen):
    """Changing every held-out cell changes the truth and leaves baselines and controls alone."""
    before = HeldOutScreen.read(split_screen)
    changed = split_screen.copy()
    held = np.flatnonzero(changed.obs["split"] == "test")
    dense = changed.X.toarray()
    dense[held] = dense[held][:, ::-1]
    changed.X = dense
    after = HeldOutScreen.read(changed)
    assert not np.allclose(before.truth.true, after.truth.true)
    np.testing.assert_allclose(before.train.effects, after.train.effects, rtol=1e-6)
    np.testing.assert_allclose(before.truth.control, after.truth.control, rtol=1e-6)
    np.testing.assert_allclose(before.truth.perturbed_mean, after.truth.perturbed_mean, rtol=1e-6)


@pytest.mark.parametrize(("within", "where"), [(None, "the table"), ("batch", "the context 'one'")])
def test_one_control_alone_is_refused(split_screen, within, where):
    adata = split_screen
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "one", "two")
    controls = np.flatnonzero((adata.obs["condition"] == "ctrl") & ((adata.obs["batch"] == "one") | (within is None)))
    few = adata[np.setdiff1d(np.arange(adata.n_obs), controls[1:])].copy()
    with pytest.raises(ValueError, match=f"two control cells or more.* found one in {where}"):
        HeldOutScreen.read(few, within=within)


@pytest.mark.parametrize("within", [None, "batch"])
def test_controls_of_predictions_and_of_the_truth_share_no_cell(split_screen, within):
    found = HeldOutScreen.read(split_screen, within=within)
    dense = split_screen.X.toarray()
    rest = found.is_control & ~found.is_input
    for row, context in enumerate(found.row_contexts):
        here = found.contexts == context
        np.testing.assert_allclose(found.input_control[row], dense[found.is_input & here].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.truth.reference_control[row], dense[rest & here].mean(axis=0), rtol=1e-5)
        assert abs((found.is_input & here).sum() - (rest & here).sum()) <= 1
        assert found.is_input[found.controls(context, 5, seed=0)].all()
    # Nor does what training conditions are compared with.
    changed = split_screen.copy()
    dense[rest] = dense[rest][:, ::-1]
    changed.X = dense
    again = HeldOutScreen.read(changed, within=within)
    np.testing.assert_array_equal(again.train.effects, found.train.effects)


def test_perturbed_genes_do_not_count(split_screen):
    found = HeldOutScreen.read(split_screen)
    row = found.conditions.index("G2+G3")
    assert np.flatnonzero(found.truth.targets[row]).tolist() == [2, 3]
    assert not found.truth.top[row, [2, 3]].any()


def test_the_additive_baseline_wins_where_effects_add_up(split_screen):
    table = HeldOutScreen.read(split_screen).table({})
    assert set(table["method"]) == {
        "no_change", "perturbed_mean", "matching_mean", "additive", "scaled_additive", "linear", "kernel", "shrunken_mean", "perturbed_cells", "ceiling",
    }  # fmt: skip
    doubles = table[table["condition"].isin([name for name in HELD if "ctrl" not in name])]
    means = summarise_scores(doubles).set_index(["metric", "method"])["mean"]
    for metric in ("mse", "mse_weighted"):
        assert means[metric, "additive"] < means[metric, "perturbed_mean"]
        assert means[metric, "ceiling"] < means[metric, "additive"]
    for metric in ("pearson_perturbed_mean", "discrimination_l1", "centroid_accuracy"):
        assert means[metric, "ceiling"] > 0.8
    assert np.isnan(means["pearson_perturbed_mean", "perturbed_mean"])


def test_effects_are_those_of_the_screen(split_screen):
    found = HeldOutScreen.read(split_screen, within="batch")
    row = found.train.perturbed.index(("G3",))
    assert np.corrcoef(found.train.effects[row], effects()["G3"])[0, 1] > 0.8
    assert found.truth.contexts == tuple(name.split("_")[0] for name in found.truth.conditions)
    assert len(found.conditions) == 2 * len(HELD)


def test_a_context_has_its_own_controls(split_screen):
    found = HeldOutScreen.read(split_screen, within="batch")
    dense = split_screen.X.toarray()
    mine = (split_screen.obs["batch"] == "b") & (split_screen.obs["condition"] == "ctrl")
    row = found.truth.conditions.index("b_G0+ctrl")
    np.testing.assert_allclose(found.truth.control[row], dense[mine.to_numpy()].mean(axis=0), rtol=1e-5)


def test_groups_of_cells_can_be_held_out():
    adata = screen(30)
    pp.cell_split(adata, "batch", test=["b"])
    found = HeldOutScreen.read(adata, within="batch")
    assert all(name.startswith("b_") for name in found.truth.conditions)
    assert set(found.groups.values()) == {"seen_single", "combo_seen2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "val"}, "perturbed cells in the part 'val'"),
        ({"layer": "counts"}, "Found no key in `layers`"),
        ({"split": "parts"}, "Found no key in `obs`"),
    ],
)
def test_what_is_missing_is_named(split_screen, change, message):
    with pytest.raises((KeyError, ValueError), match=message):
        HeldOutScreen.read(split_screen, **change)


def test_counts_are_refused(split_screen):
    split_screen.layers["counts"] = np.expm1(split_screen.X.toarray()).round()
    with pytest.raises(ValueError, match="raw counts"):
        HeldOutScreen.read(split_screen, layer="counts")


@pytest.mark.parametrize("within", [None, "batch"])
def test_the_truth_holds_no_training_cell(within):
    """Where cells are held out, their conditions have training cells too, which are no part of the truth."""
    adata = screen(30)
    pp.cell_split(adata, "batch", test=["b"])
    before = HeldOutScreen.read(adata, within=within)
    held = ((adata.obs["batch"] == "b") & (adata.obs["condition"] == "G3+ctrl")).to_numpy()
    row = before.conditions.index("G3+ctrl")
    np.testing.assert_allclose(before.truth.true[row], adata.X.toarray()[held].mean(axis=0), rtol=1e-5)
    changed = adata.copy()
    trained = ((adata.obs["batch"] == "a") & (adata.obs["condition"] == "G3+ctrl")).to_numpy()
    dense = changed.X.toarray()
    dense[trained] = dense[trained][:, ::-1]
    changed.X = dense
    after = HeldOutScreen.read(changed, within=within)
    np.testing.assert_array_equal(after.truth.scores[row], before.truth.scores[row])
    np.testing.assert_array_equal(after.truth.true, before.truth.true)
    np.testing.assert_array_equal(after.ceiling.noise, before.ceiling.noise)


@pytest.mark.parametrize("within", [None, "batch"])
@pytest.mark.parametrize("rare", [("G7+ctrl",), ("G7+ctrl", "G1+G7")])
def test_a_training_condition_of_one_cell_counts_in_the_rest(split_screen, within, rare):
    """It is scored against nothing, so one cell of it is enough, and it is no reason to fail."""
    conditions = split_screen.obs["condition"].astype(str).to_numpy()
    keep = ~np.isin(conditions, rare)
    keep[[np.flatnonzero(conditions == name)[0] for name in rare]] = True
    few = split_screen[keep].copy()
    found = HeldOutScreen.read(few, within=within)
    assert np.isfinite(found.truth.scores).all()
    merged = few.copy()
    merged.obs["condition"] = merged.obs["condition"].astype(str).replace(dict.fromkeys(rare, "G1+ctrl"))
    # What the cells of the rest are called makes no difference to the held-out conditions.
    again = HeldOutScreen.read(merged, within=within)
    np.testing.assert_allclose(found.truth.weights, again.truth.weights)
    np.testing.assert_allclose(found.truth.scores, again.truth.scores)


@pytest.mark.parametrize("within", [None, "batch"])
def test_a_held_out_condition_of_one_cell_is_refused(split_screen, within):
    conditions = split_screen.obs["condition"].to_numpy()
    keep = conditions != "G2+G3"
    keep[np.flatnonzero(~keep)[0]] = True
    with pytest.raises(ValueError, match=r"at least two cells of every condition, found one for 1 .*G2\+G3"):
        HeldOutScreen.read(split_screen[keep].copy(), within=within)
