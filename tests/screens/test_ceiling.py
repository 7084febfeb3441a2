"""The ceiling is what a prediction scores that knows the truth, in screens whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tools import pp
from scgpt_tools.metrics.evaluation import evaluation_table
from scgpt_tools.metrics.panel import METRICS
from scgpt_tools.screens.held_out import CEILING, HeldOutScreen

GENES, CONDITIONS, HELD = 120, 16, 8


def simulated(cells: int, *, size: float, seed: int, changed: int = GENES) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """A screen of normal cells in which so many genes change by condition and together, and the true means."""
    rng = np.random.default_rng(seed)
    base = rng.normal(3, 0.5, GENES)

    def effect() -> np.ndarray:
        return size * rng.normal(size=GENES) * (rng.permutation(GENES) < changed)

    shared = effect()
    names = ["ctrl", *(f"G{i}+ctrl" for i in range(CONDITIONS))]
    means = {name: base + (name != "ctrl") * (shared + effect()) for name in names}
    labels = np.repeat(names, [3 * cells, *[cells] * CONDITIONS])
    values = np.stack([means[name] for name in labels]) + rng.normal(size=(len(labels), GENES))
    obs = pd.DataFrame({"condition": labels}, index=[f"cell{i}" for i in range(len(labels))])
    adata = ad.AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))
    adata.X -= adata.X.min()
    adata.X /= 3.0
    shift = values.min()
    held = names[-HELD:]
    pp.perturbation_split(adata, "custom", parts={"train": [n for n in names if n not in held], "test": held})
    return adata, {name: (mean - shift) / 3.0 for name, mean in means.items()}


def scores(cells: int, *, size: float, seeds: int, changed: int = GENES) -> pd.DataFrame:
    """Mean score by metric of the ceiling, and of an oracle: the true means, changes referring to the true control."""
    found = []
    for seed in range(seeds):
        adata, means = simulated(cells, size=size, seed=seed, changed=changed)
        screen = HeldOutScreen.read(adata, seed=seed)
        truth = screen.truth
        changes = np.stack([means[name] - means["ctrl"] for name in screen.conditions])
        errors = evaluation_table({"oracle": np.stack([means[name] for name in screen.conditions])}, truth)
        oracle = evaluation_table({"oracle": truth.control + changes}, truth)
        # Errors are those of profiles, the other scores those of changes.
        down = errors["metric"].map(lambda name: not METRICS[name].higher_is_better)
        oracle.loc[down, "value"] = errors.loc[down, "value"]
        found.append(pd.concat([oracle, screen.ceiling.scores(CEILING)]))
    return pd.concat(found).pivot_table(index="metric", columns="method", values="value")


@pytest.mark.parametrize("changed", [GENES, 3], ids=["all genes change", "three genes change"])
@pytest.mark.parametrize(("cells", "apart", "ratio"), [(10, 0.1, 0.35), (40, 0.06, 0.25)])
def test_an_oracle_reaches_the_ceiling_in_every_metric(cells, apart, ratio, changed):
    """Whether all genes change a little or few of them much, so that most of what is measured is noise."""
    found = scores(cells, size=0.25 if changed == GENES else 1.0, seeds=6, changed=changed)
    assert set(found.index) == set(METRICS) - {"interaction"}
    if changed < GENES:  # genes that do not change have no direction to be right about
        found = found.drop("direction_de")
    for metric, row in found.iterrows():
        if METRICS[metric].higher_is_better:
            assert row[CEILING] == pytest.approx(row["oracle"], abs=apart), metric
        else:
            assert row[CEILING] == pytest.approx(row["oracle"], rel=ratio), metric


def test_where_nothing_happens_knowing_it_is_worth_nothing():
    found = scores(20, size=0.0, seeds=4)
    assert found.loc["pearson_control", CEILING] < 0.3
    # Variances that happen to be above that of the noise leave something.
    assert found.loc["centroid_accuracy", CEILING] < 0.75


def test_the_noise_floor_is_variance_over_n():
    adata, _ = simulated(20, size=0.25, seed=0)
    screen = HeldOutScreen.read(adata)
    dense = np.asarray(adata.X, dtype=np.float64)
    expected = []
    for row, name in enumerate(screen.conditions):
        own = dense[(adata.obs["condition"] == name).to_numpy()]
        expected.append((own.var(axis=0, ddof=1) / len(own))[screen.truth.scored[row]].mean())
    found = screen.ceiling.scores(CEILING, metrics=["mse"])["value"]
    np.testing.assert_allclose(found, expected, rtol=0.25)
    assert found.mean() == pytest.approx(np.mean(expected), rel=0.05)


def test_knowing_nothing_is_worth_nothing_against_controls_of_its_own():
    """Of a mean of perturbed cells without any effect, what is left is the noise of the controls on both sides."""
    shared, apart = [], []
    for seed in range(6):
        adata, _ = simulated(10, size=0.0, seed=seed)
        screen = HeldOutScreen.read(adata, seed=seed)
        constant = screen.baselines()["perturbed_cells"]
        apart.append(evaluation_table({"constant": constant}, screen.truth, metrics=["pearson_control"]))
        together = replace(screen.truth, reference_control=None)
        absolute = np.broadcast_to(screen.constant, constant.shape)
        shared.append(evaluation_table({"constant": absolute}, together, metrics=["pearson_control"]))
    assert pd.concat(shared)["value"].mean() > 0.2
    assert abs(pd.concat(apart)["value"].mean()) < 0.1
