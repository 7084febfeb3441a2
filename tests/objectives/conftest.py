"""A tiny network with every head, and minibatches that it can be asked about."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import (
    AdversaryConfig,
    BinsConfig,
    ClassifierConfig,
    ExpressionConfig,
    FromCellConfig,
    ModelConfig,
    Named,
    RegressorConfig,
    TokenClassesConfig,
    TransformerConfig,
    scgpt_embedder,
)
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues

N_TOKENS, CELLS, LENGTH, CLASSES, BATCHES = 30, 12, 14, 3, 2


@pytest.fixture
def model() -> CellModel:
    torch.manual_seed(3)
    config = ModelConfig(
        n_tokens=N_TOKENS,
        pad_id=0,
        dim=16,
        embedder=scgpt_embedder(generation=True),
        encoder=TransformerConfig(layers=2, heads=2, hidden=16, dropout=0.1),
        heads=Named(
            expression=ExpressionConfig(nonzero=True),
            expression_from_cell=FromCellConfig(nonzero=True),
            cell_type=ClassifierConfig(classes=CLASSES),
            batch=AdversaryConfig(classes=BATCHES),
            bins=BinsConfig(bins=5, stream=None),
            genes=TokenClassesConfig(),
            genes_from_cell=ClassifierConfig(classes=N_TOKENS, layers=2),
            targets=RegressorConfig(names=("age",), centre=(0.0,), scale=(1.0,)),
        ),
    )
    return CellModel(config)


@pytest.fixture
def cells() -> TokenBatch:
    """Cells of different lengths, the last positions of most being padding."""
    rng = np.random.default_rng(5)
    genes = torch.zeros(CELLS, LENGTH, dtype=torch.int64)
    mask = torch.zeros(CELLS, LENGTH, dtype=torch.bool)
    values = torch.full((CELLS, LENGTH), -2.0)
    for cell in range(CELLS):
        length = LENGTH - cell % 4
        genes[cell, 0], mask[cell, :length] = 1, True
        genes[cell, 1:length] = torch.from_numpy(rng.permutation(np.arange(2, N_TOKENS))[: length - 1])
        values[cell, 1:length] = torch.from_numpy(rng.integers(0, 6, length - 1)).float()
    return TokenBatch(
        genes,
        values,
        mask,
        index=torch.arange(CELLS),
        batch_id=torch.arange(CELLS) % BATCHES,
        label=torch.arange(CELLS) % CLASSES,
        targets=torch.arange(CELLS)[:, None] / CELLS,
    )


@pytest.fixture
def masked(cells) -> TokenBatch:
    batch = MaskValues(ratio=0.4)(cells, np.random.default_rng(0))
    return batch.replace(target_bins=batch.target.clamp(min=0).long(), target_genes=batch.genes)


@pytest.fixture
def generated(cells) -> TokenBatch:
    return GenerateValues(ratio=0.5)(cells, np.random.default_rng(0))
