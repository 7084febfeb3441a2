"""What every metric of cells says of predictors whose worth is known: perfect, permuted, constant, and of no skill.

Conditions share nothing, so that cells of another one are as wrong as any.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.metrics.panel import CELL_EVAL, CELL_METRICS, METRICS, PERTPY, SCALES
from scgpt_tools.screens.predicted_cells import CellScores, Samples, score_cells

OWN = ("energy", "mmd", "energy_to_control")
DISTANCES = (*OWN, *(f"pertpy_{name}" for name in PERTPY))
AGREEMENT = tuple(f"celleval_{name}" for name in CELL_EVAL)
# Their optimal transport is regularised, so that no distance is 0.
REGULARISED = ("pertpy_wasserstein",)
# The mean of conditions with genes of their own moves all of these the right way, and without variance all are significant.
FOOLED = ("celleval_de_direction_match", "celleval_de_sig_genes_recall", "celleval_de_spearman_lfc_sig")
PACKAGES = {"own": None, "pertpy": "pertpy", "cell_eval": "cell_eval"}
OF_PACKAGE = {"own": OWN, "pertpy": DISTANCES[len(OWN) :], "cell_eval": AGREEMENT}
ROWS, GENES, CELLS = 4, 30, 60

pytestmark = pytest.mark.filterwarnings("ignore")


def samples() -> Samples:
    """Cells of conditions that change genes of their own, and those of predictors of known worth."""
    rng = np.random.default_rng(0)
    names = tuple(f"c{row}+ctrl" for row in range(ROWS))
    changes = np.zeros((ROWS, GENES))
    for row in range(ROWS):
        changes[row, row * 7 : row * 7 + 7] = np.resize([1.5, -1.5], 7)

    def draw(change=0.0):
        return (3 + change + rng.normal(0, 0.6, (CELLS, GENES))).clip(min=0).astype(np.float32)

    true = {name: draw(change) for name, change in zip(names, changes, strict=True)}
    controls = draw()
    mean = np.mean([cells.mean(axis=0) for cells in true.values()], axis=0)
    models = {
        "same": true,
        "perfect": {name: draw(change) for name, change in zip(names, changes, strict=True)},
        "permuted": {name: true[names[row - 1]] for row, name in enumerate(names)},
        "constant": {name: np.tile(mean, (CELLS, 1)) for name in names},
        "no skill": {name: draw() for name in names},
    }
    return Samples(
        rows=names,
        contexts=("",) * ROWS,
        genes=tuple(f"c{gene}" for gene in range(GENES)),
        true=true,
        halves=dict.fromkeys(names, np.arange(CELLS) % 2 == 0),
        controls={"": controls},
        shifts={"no_change": np.zeros((ROWS, GENES))},
        models=models,
    )


@pytest.fixture(scope="module", params=list(PACKAGES))
def scores(request) -> pd.DataFrame:
    """Means over conditions, one row a method and one column a metric."""
    if package := PACKAGES[request.param]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(package, reason=f"an extra brings {package}")
    wanted = {"own": {"own": True}, "pertpy": {"distances": PERTPY}, "cell_eval": {"cell_eval": True}}[request.param]
    table = score_cells(samples(), CellScores(**wanted))
    found = table.groupby(["method", "metric"])["value"].mean().unstack()
    assert set(found) == set(OF_PACKAGE[request.param])
    return found


def test_no_metric_is_forgotten():
    """Those of mean profiles are in ``test_metric_properties``, which looks for each of them itself."""
    assert {*DISTANCES, *AGREEMENT} == set(CELL_METRICS)
    assert {*METRICS, *CELL_METRICS} == set(SCALES)


def test_the_same_cells_are_perfect(scores):
    for metric, value in scores.loc["same"].items():
        if metric in OWN:
            # Without the distance of a cell to itself, the same cells are nearer than those of another sample.
            assert value <= 1e-6, metric
        elif metric in REGULARISED:
            assert value < scores.loc["perfect", metric], metric
        else:
            assert value == pytest.approx(SCALES[metric].perfect, abs=1e-3), metric


def test_other_cells_of_the_same_distribution_are_next_to_perfect(scores):
    for metric, value in scores.loc["perfect"].items():
        if metric in AGREEMENT:
            assert value > 0.8, metric
        elif metric in OWN:
            assert value < 0.25 * scores.loc["no skill", metric], metric
        else:
            # Those of pertpy 1.0 count the distance of a cell to itself, so small samples look farther apart.
            assert scores.loc["same", metric] < value < scores.loc["no skill", metric], metric


@pytest.mark.parametrize("method", ["permuted", "constant", "no skill", "no_change"])
def test_what_knows_nothing_of_the_condition_is_behind(scores, method):
    for metric, values in scores.items():
        sign = 1 if SCALES[metric].higher_is_better else -1
        values = values.fillna(0)  # no gene is found, so there is no share of those
        if method == "constant" and metric in FOOLED:
            assert values[method] > 0.8, metric
            continue
        assert sign * (values["perfect"] - values[method]) > 0.1 * abs(values["perfect"] - values["no skill"]), metric


def test_cells_of_another_condition_are_no_nearer_than_controls(scores):
    for metric in set(DISTANCES) & set(scores):
        assert scores.loc["permuted", metric] > scores.loc["no skill", metric], metric


def test_controls_have_the_distance_of_controls(scores):
    if "energy_to_control" not in scores:
        pytest.skip("a share of the energy distance, which comes with it")
    assert scores.loc["no_change", "energy_to_control"] == 1
    assert scores.loc["no skill", "energy_to_control"] == pytest.approx(1, abs=0.1)
    assert scores.loc["perfect", "energy_to_control"] == pytest.approx(0, abs=0.05)


def test_controls_find_no_gene(scores):
    if "celleval_de_sig_genes_recall" not in scores:
        pytest.skip("scores of cell-eval are by themselves")
    assert scores.loc["no_change", "celleval_de_sig_genes_recall"] == 0
    assert scores.loc["no skill", "celleval_de_sig_genes_recall"] < 0.1
    # Genes that change are a quarter of all, and a list without order has as many of them everywhere.
    assert scores.loc["permuted", "celleval_pr_auc"] < 0.5
