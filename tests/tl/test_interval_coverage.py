"""Whether intervals of scores hold what they say, on simulated screens whose expected scores are known.

What a method gets wrong about a perturbation is the same in all replicates, so scores of its replicates are no independent ones.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from scgpt_tools.metrics import PerturbationScores, Truth, evaluation_table

PERTURBATIONS, REPLICATES, CELLS, GENES = 10, 3, 4, 12
SCREENS = 200
# Standard deviations of what two methods get wrong, and of a cell.
WRONG, OTHER, NOISE = 0.6, 0.4, 0.3
EXPECTED = {"model": WRONG**2 + NOISE**2 / CELLS, "difference": WRONG**2 - OTHER**2}

pytestmark = pytest.mark.filterwarnings("ignore:Expected whole:UserWarning")


def simulate(seed: int) -> tuple[ad.AnnData, dict[str, pd.DataFrame]]:
    """Cells of conditions in replicates, whose levels differ, and what two methods predict of their means."""
    rng = np.random.default_rng(seed)
    conditions = ["ctrl", *(f"P{number}+ctrl" for number in range(PERTURBATIONS))]
    effects = np.vstack([np.zeros(GENES), rng.normal(0, 0.5, (PERTURBATIONS, GENES))])
    replicates = [f"r{number}" for number in range(REPLICATES)]
    means = 5 + rng.normal(0, 0.2, (REPLICATES, 1, GENES)) + effects
    cells = means[:, :, None] + rng.normal(0, NOISE, (REPLICATES, len(conditions), CELLS, GENES))
    names = pd.MultiIndex.from_product([replicates, conditions, range(CELLS)], names=["replicate", "condition", "cell"])
    obs = names.to_frame(index=False).astype(str)
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(cells.reshape(-1, GENES), obs, pd.DataFrame(index=[f"G{gene}" for gene in range(GENES)]))
    rows = [f"{replicate}_{condition}" for replicate in replicates for condition in conditions]
    methods = {}
    for method, size in (("model", WRONG), ("other", OTHER)):
        wrong = rng.normal(0, size, (len(conditions), GENES))
        methods[method] = pd.DataFrame((means + wrong).reshape(-1, GENES), rows, adata.var_names)
    return adata, methods


def scores_of(seed: int) -> PerturbationScores:
    """Scores of one screen, computed from its means at once, which whole evaluations take a second for."""
    adata, methods = simulate(seed)
    labels = (adata.obs["replicate"] + "_" + adata.obs["condition"]).to_numpy()
    means = adata.to_df().groupby(labels).mean()
    perturbed = [name for name in means.index if not name.endswith("_ctrl")]
    true = means.loc[perturbed].to_numpy()
    truth = Truth(tuple(perturbed), true, control=true, perturbed_mean=None)
    table = evaluation_table(
        {name: profiles.loc[perturbed].to_numpy() for name, profiles in methods.items()},
        truth,
        perturbations={name: name.split("_")[1] for name in perturbed},
        metrics=["mse"],
    )
    return PerturbationScores(table.assign(role="model"), table.iloc[:0], pd.Series(dtype=float), "")


def test_scores_are_those_of_a_whole_evaluation():
    adata, methods = simulate(0)
    whole = sct.tl.evaluate_perturbation(adata, methods, split=None, within="replicate", metrics=["mse"])
    found = [
        scores.table.query("role == 'model'").set_index(["method", "condition", "perturbation"])["value"]
        for scores in (scores_of(0), whole)
    ]
    pd.testing.assert_series_equal(found[0].sort_index(), found[1].sort_index())


@pytest.fixture(scope="module")
def screens() -> list[PerturbationScores]:
    return [scores_of(seed) for seed in range(SCREENS)]


def covered(scores: PerturbationScores) -> tuple[bool, bool]:
    """Whether the intervals of a mean and of a difference hold the expected ones."""
    mean = scores.summary().set_index("method").loc["model"]
    difference = scores.compare("model", others=["other"]).iloc[0]
    return (
        bool(mean["low"] <= EXPECTED["model"] <= mean["high"]),
        bool(difference["low"] <= EXPECTED["difference"] <= difference["high"]),
    )


def as_if_independent(scores: PerturbationScores) -> PerturbationScores:
    return PerturbationScores(scores.table.drop(columns="perturbation"), scores.originals, scores.spread, "")


def test_intervals_of_95_percent_cover(screens):
    found = np.mean([covered(scores) for scores in screens], axis=0)
    assert ((found >= 0.9) & (found <= 0.99)).all(), found
    assert screens[0].summary()[["n", "n_rows"]].iloc[0].tolist() == [PERTURBATIONS, PERTURBATIONS * REPLICATES]


def test_pairs_of_condition_and_replicate_as_independent_scores_do_not(screens):
    found = np.mean([covered(as_if_independent(scores)) for scores in screens], axis=0)
    assert (found < 0.85).all(), found


def test_the_mean_is_right_on_average(screens):
    means = [scores.means().loc["model", "mse"] for scores in screens]
    assert np.mean(means) == pytest.approx(EXPECTED["model"], abs=4 * np.std(means) / np.sqrt(SCREENS))
