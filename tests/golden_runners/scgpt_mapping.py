"""Label transfer from nearest neighbours: search and both kinds of vote."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from golden_runners._compare import close
from scgpt_tools.metrics.mapping import vote
from scgpt_tools.models.reference import ReferenceIndex

BACKENDS = ("sklearn", "faiss") if find_spec("faiss") is not None else ("sklearn",)


def run_mapping(folder: Path, case: dict[str, Any]) -> None:
    if (folder / "arrays.npz").is_file():
        check_neighbours(dict(np.load(folder / "arrays.npz", allow_pickle=False)), case)
    for row in case.get("table", []):
        check_votes(row, case)


def check_neighbours(arrays: dict[str, np.ndarray], case: dict[str, Any]) -> None:
    classes, codes = np.unique(arrays["labels"], return_inverse=True)
    index = ReferenceIndex(arrays["reference"], codes.astype(np.int64), tuple(classes.tolist()))
    for backend in BACKENDS:
        found = index.search(arrays["query"], case["k"], backend=backend)
        np.testing.assert_array_equal(found.rows, arrays["indices"], err_msg=backend)
        close(found.distances, arrays["distances"], case["tolerance"], f"squared distances by {backend}")


def check_votes(row: dict[str, Any], case: dict[str, Any]) -> None:
    classes = sorted({*row["neighbours"], *case.get("proportions", {})})
    neighbours = [[classes.index(name) for name in row["neighbours"]]]
    for how, names, expected in (("majority", "vote", "vote_prob"), ("weighted", "weighted_vote", "weighted_prob")):
        if names not in row:
            continue
        proportions = [case["proportions"].get(name, 0.0) for name in classes] if how == "weighted" else None
        ballot = vote(neighbours, len(classes), how=how, proportions=proportions)
        shares = dict(zip(classes, ballot.shares[0], strict=True))
        # Shares by name are the same whatever the order among equals.
        close([shares[name] for name in row[names]], row[expected], case["tolerance"], f"{how} shares")
        best = max(row[expected])
        limit = case["tolerance"]["atol"] + case["tolerance"]["rtol"] * best
        assert row[expected][row[names].index(classes[ballot.winner[0]])] >= best - limit, f"{how} winner"
        close(ballot.confidence, [best], case["tolerance"], f"{how} confidence")


RUNNERS = {"reference mapping": run_mapping}
