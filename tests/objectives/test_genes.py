"""Hidden genes: cross-entropy over the vocabulary at hidden tokens only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.objectives import MaskedGenes, MaskedGenesFromCell


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


def test_one_distribution_of_the_cell_is_asked_for_all_its_hidden_genes(model, masked):
    output = model.eval()(masked, ("genes_from_cell",))
    assert output["genes_from_cell"].shape == (len(masked), model.config.n_tokens)
    loss = MaskedGenesFromCell()({"first": output}, masked)
    cells, _ = masked.hidden.nonzero(as_tuple=True)
    expected = F.cross_entropy(output["genes_from_cell"][cells], masked.target_genes[masked.hidden])
    torch.testing.assert_close(loss, expected)


def test_hidden_genes_teach_the_cell_token_only_if_the_cell_is_asked(model, masked):
    """Prediction from tokens alone never reads what the encoder makes of the cell token in its last layer."""
    model.eval()
    reached = []
    for objective in (MaskedGenes(), MaskedGenesFromCell()):
        output = model(masked, objective.heads)
        output.cell.retain_grad()
        objective({"first": output}, masked).backward()
        reached.append(output.cell.grad is not None and bool(output.cell.grad.abs().sum() > 0))
    assert reached == [False, True]


@pytest.mark.parametrize("objective", [MaskedGenes, MaskedGenesFromCell])
def test_shown_genes_can_be_left_out(model, masked, objective):
    """As a softmax over the tokens that the cell does not show, and over those that are asked for although they are shown."""
    model.eval()
    masked = masked.replace(genes=masked.genes.where(~masked.hidden | (torch.arange(14) % 4 == 0), 1))
    truth = masked.target_genes
    head = objective.heads[0]
    output = model(masked, (head,))
    loss = objective(among="unseen")({"first": output}, masked)
    terms = []
    for number, (cell, place) in enumerate(masked.hidden.nonzero().tolist()):
        asked = set(truth[cell][masked.hidden[cell]].tolist())
        candidates = sorted(set(range(30)) - (set(masked.genes[cell][masked.mask[cell]].tolist()) - asked))
        logits = output[head][number if objective is MaskedGenes else cell][candidates]
        terms.append(-logits.log_softmax(0)[candidates.index(int(truth[cell, place]))])
    torch.testing.assert_close(loss, torch.stack(terms).mean())
