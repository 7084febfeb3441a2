"""Reading the files of a GEARS case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import sparse


def read(path: Path):
    return json.loads(path.read_text())


def arrays(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def matrix(found: dict):
    return sparse.csr_matrix((found["data"], found["indices"], found["indptr"]), shape=tuple(found["shape"]))
