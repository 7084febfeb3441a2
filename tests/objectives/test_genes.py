"""Hidden genes: cross-entropy over the vocabulary at hidden tokens only."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scgpt_tools.objectives import MaskedGenes


def test_only_hidden_tokens_count(model, masked):
    model.eval()
    output = model(masked, ("genes",))
    assert output["genes"].shape == (int(masked.hidden.sum()), model.config.n_tokens)
    everything = model(masked.replace(hidden=None), ("genes",))["genes"]
    torch.testing.assert_close(output["genes"], everything[masked.hidden])
    loss = MaskedGenes()({"first": output}, masked)
    torch.testing.assert_close(loss, F.cross_entropy(output["genes"], masked.genes[masked.hidden]))


def test_accuracy(model, masked):
    output = model(masked, ("genes",))
    output.predictions["genes"] = F.one_hot(masked.genes[masked.hidden], model.config.n_tokens).float()
    assert MaskedGenes().measures({"first": output}, masked)["gene_accuracy"] == 1
