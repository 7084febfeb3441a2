"""A data set with structure to learn, and a model small enough to train in a moment."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.tokens.corruptions import GenerateValues
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.vocabulary import Vocabulary

GENES = [f"GENE{i}" for i in range(24)]


@pytest.fixture(autouse=True)
def _without_bars(without_bars):
    """No bars in any of these tests."""


def _cells(n_cells: int, seed: int, prefix: str = "cell") -> ad.AnnData:
    """Two kinds of cells that differ in which genes are high."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n_cells)
    rates = np.where(kind[:, None] == (np.arange(len(GENES)) % 2), 6.0, 0.7)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["even", "odd"])[kind]),
            "batch": pd.Categorical(rng.choice(["a", "b"], n_cells)),
        },
        index=[f"{prefix}{i}" for i in range(n_cells)],
    )
    X = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture
def make_cells():
    return _cells


@pytest.fixture
def cells() -> ad.AnnData:
    return _cells(60, seed=0)


@pytest.fixture
def tiny_vocabulary() -> Vocabulary:
    return Vocabulary.from_genes(GENES)


@pytest.fixture
def make_model(tiny_vocabulary):
    def make(seed: int = 0, dropout: float = 0.1) -> CellModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CellModel(
                scgpt(tiny_vocabulary, dim=16, layers=1, heads=2, hidden=16, dropout=dropout), tiny_vocabulary
            )

    return make


@pytest.fixture
def make_data(cells, tiny_vocabulary, make_model):
    def make(**options) -> CellDataModule:
        table = CellTable(
            RowSource(cells),
            FeatureTable.from_var(cells.var, tiny_vocabulary),
            batch_id=cells.obs["batch"].cat.codes.to_numpy(np.int64),
            label=cells.obs["kind"].cat.codes.to_numpy(np.int64),
        )
        defaults = {"corruption": GenerateValues(ratio=0.4), "validation": np.arange(0, 60, 6)}
        return CellDataModule([table], make_model().tokenizer, **(defaults | options))

    return make
