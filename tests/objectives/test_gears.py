"""The loss of GEARS."""

from __future__ import annotations

import torch

from scgpt_tools.objectives.gears import autofocus_direction


def cells():
    generator = torch.Generator().manual_seed(0)
    predicted, true = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return predicted, true, torch.randn(5, generator=generator, dtype=torch.float64), ["ctrl", "A", "A", "B", "B", "B"]


def test_conditions_count_alike_whatever_their_size():
    predicted, true, control, labels = cells()
    whole = autofocus_direction(predicted, true, control, labels, {})
    parts = []
    for name in ("ctrl", "A", "B"):
        rows = [i for i, label in enumerate(labels) if label == name]
        parts.append(autofocus_direction(predicted[rows], true[rows], control, [name] * len(rows), {}))
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_genes_outside_the_list_have_no_gradient():
    predicted, true, control, labels = cells()
    predicted.requires_grad_()
    kept = {"A": torch.tensor([0, 2]), "B": torch.tensor([1])}
    autofocus_direction(predicted, true, control, labels, kept).backward()
    touched = predicted.grad != 0
    assert touched[0].all()
    assert touched[1].tolist() == [True, False, True, False, False]
    assert touched[3].tolist() == [False, True, False, False, False]


def test_the_direction_term_teaches_nothing():
    gradients = []
    for weight in (0.0, 10.0):
        predicted, true, control, labels = cells()
        predicted.requires_grad_()
        loss = autofocus_direction(predicted, true, control, labels, {}, direction=weight)
        loss.backward()
        gradients.append((loss.item(), predicted.grad))
    torch.testing.assert_close(gradients[0][1], gradients[1][1])
    assert gradients[1][0] > gradients[0][0]
