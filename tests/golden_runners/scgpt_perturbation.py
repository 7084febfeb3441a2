"""Runner of scGPT's perturbation metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scgpt_tools.metrics.perturbation_gears import HeldOutCells
from scgpt_tools.metrics.perturbation_scgpt import scgpt_means, scgpt_metrics


def run_metrics(folder: Path, case: dict) -> None:
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        given = dict(file)
    test = HeldOutCells.from_cells(given["pred"], given["truth"], given["pert_cat"])
    column = {str(gene): i for i, gene in enumerate(given["genes"])}
    expected = dict(case["expected"])
    raw = expected.pop("return_raw", None)
    scores = {}
    for kind, averages in expected.items():
        non_zero = kind == "non_zero_genes"
        lists = case["non_dropout_de" if non_zero else "de_genes"]
        by_condition = {name.split("_")[1]: genes for name, genes in lists.items()}
        top = np.array([[column[gene] for gene in by_condition[name][:20]] for name in test.conditions])
        control = given["ctrl"].mean(axis=0)
        scores[kind] = scgpt_metrics(test.predicted, test.true, control, top, non_zero_genes=non_zero)
        means = scgpt_means(scores[kind], test.true)
        for name, value in averages.items():
            np.testing.assert_allclose(means[name], value, **case["tolerance"], err_msg=f"{kind} {name}")
    for name, values in (raw or {}).items():
        kept = scores["all"][name][test.true.any(axis=1)]
        np.testing.assert_allclose(kept, values, **case["tolerance"], err_msg=name)


RUNNERS = {"compute_perturbation_metrics": run_metrics}
