"""What shrinking measured effects by their noise is worth to predictions of conditions that were seen.

    python benchmarks/shrinkage.py FOLDER [--seeds 3] [--tasks hill-cells ...] [--most 12 24 48]

Baselines alone, in the tasks of ``means.py`` with at most so many cells of a condition and context: each condition is known by
six of ten of its cells, or by those of other replicates, and predicted in the rest.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
from means import SHOWN, TASKS, divide, screen

from scgpt_tools.screens.held_out import HeldOutScreen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["hill-cells", "norman-cells"])
    parser.add_argument("--most", nargs="+", type=int, default=[12, 24, 48])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    for task in arguments.tasks:
        read, direction, within, held_out = TASKS[task]
        for most in arguments.most:
            found = []
            for seed in range(arguments.seeds):
                adata = screen(read(arguments.folder), direction, within, most, seed)
                divide(adata, held_out, within, seed)
                table = HeldOutScreen.read(adata, within=within, seed=seed).table({})
                own = table[table["metric"].isin(SHOWN)]
                found.append(own.groupby(["method", "metric"], sort=False)["value"].mean().unstack())
            shown = pd.concat(found, keys=range(arguments.seeds))
            means = shown.groupby(level="method", sort=False).mean()[list(SHOWN)]
            means = means.join(shown["mse"].groupby(level="method").agg(["min", "max"]).add_prefix("mse "))
            print(f"\n{task}, at most {most} cells\n{means.to_string(float_format='{:.4f}'.format)}", flush=True)


if __name__ == "__main__":
    main()
