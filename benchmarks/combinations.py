"""How well baselines predict double perturbations from singles, and from half of the other doubles.

    python benchmarks/combinations.py EFFECTS.h5ad [...] [--seeds 3]

Files have a row a condition with its change against the control, such as the pseudo-bulk effects of Norman et al. (2019) and
of Wessels et al. (2023).  Doubles are predicted from the singles alone, then half of them from the singles and the other half,
drawn by seed.  Errors are mean squares over all genes and conditions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scgpt_tools.metrics.baselines import BASELINES
from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.metrics.kernel_ridge import KernelModel
from scgpt_tools.screens.conditions import read_conditions
from scgpt_tools.tokens.perturbations import condition_genes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--condition-key", default="condition")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found = {}
    for file in arguments.files:
        table = ad.read_h5ad(file)
        perturbed = [condition_genes(name) for name in read_conditions(table, arguments.condition_key)]
        effects = np.asarray(table.to_df(), dtype=float)
        doubles = np.flatnonzero([len(genes) > 1 for genes in perturbed])
        singles = np.flatnonzero([len(genes) == 1 for genes in perturbed])
        divisions = {"no doubles": (singles, doubles)}
        for seed in range(arguments.seeds):
            drawn = np.random.default_rng(seed).permutation(doubles)
            half = len(drawn) // 2
            divisions[f"half, seed {seed}"] = (np.concatenate([singles, drawn[:half]]), drawn[half:])
        for name, (train, test) in divisions.items():
            learnt = TrainingEffects(
                tuple(table.var_names),
                np.zeros(table.n_vars),
                tuple(perturbed[row] for row in train),
                effects[train],
            )
            targets = [perturbed[row] for row in test]
            found[file.stem, name] = {
                method: np.mean((predict(learnt, targets).effects - effects[test]) ** 2)
                for method, predict in BASELINES.items()
            }
            model = KernelModel.fit(learnt)
            print(file.stem, name, model.settings, model.doubt() or "", sep="; ")
    print(pd.DataFrame(found).T.round(4).to_string())


if __name__ == "__main__":
    main()
