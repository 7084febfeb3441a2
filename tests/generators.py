"""Generators made on the fly for the screen of :mod:`screen_tables`."""

from __future__ import annotations

import torch

from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.vocabulary import Vocabulary


def generator(names, *, seed: int = 0, strength: float = 1.0) -> CellModel:
    """A small generator with random weights; ``strength`` scales what flags add."""
    vocabulary = Vocabulary.from_genes(list(names))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FAMILIES["scgpt_perturbation"](vocabulary, dim=16, layers=1, heads=2, hidden=16)
        model = CellModel(config, vocabulary, name="tiny generator")
        with torch.no_grad():
            model.embedder.perturbation.weight *= strength
    return model.eval()
