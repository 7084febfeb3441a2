"""Batch norm over tokens: which statistics, from which cells, and when they move."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn.norms import EPS, DomainNorm, SharedNorm


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1


LABELS = torch.tensor([1, 0, 1, 0])


def normalised(tokens: torch.Tensor) -> torch.Tensor:
    rows = tokens.flatten(0, -2)
    return ((tokens - rows.mean(0)) / (rows.var(0, unbiased=False) + EPS).sqrt()).view_as(tokens)


def test_shared_statistics_run_over_all_positions(x):
    norm = SharedNorm(5).train()
    torch.testing.assert_close(norm(x), normalised(x))
    rows = x.flatten(0, 1)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0, unbiased=True))


def test_shared_in_eval_mode(x):
    norm = SharedNorm(5).train()
    norm(x)
    norm.eval()
    expected = (x - norm.running_mean) / (norm.running_var + EPS).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)
    assert int(norm.num_batches_tracked) == 1


def test_each_cell_has_the_statistics_of_its_own_domain(x):
    norm = DomainNorm(5, 3).train()
    found = norm(x, LABELS)
    for label in (0, 1):
        torch.testing.assert_close(found[label == LABELS], normalised(x[label == LABELS]))
    assert [int(domain.num_batches_tracked) for domain in norm.domains] == [1, 1, 0]
    assert all(not list(domain.parameters()) for domain in norm.domains)


def test_a_domain_has_seen_its_own_cells_only(x):
    mixed, pure = DomainNorm(5, 2).train(), DomainNorm(5, 2).train()
    mixed(x, LABELS)
    for label in (0, 1):
        pure(x[label == LABELS], torch.full((2,), label))
    torch.testing.assert_close(mixed.state_dict(), pure.state_dict())


def test_of_first_is_the_original(x):
    norm = DomainNorm(5, 2, of_first=True).train()
    torch.testing.assert_close(norm(x, LABELS), normalised(x))
    assert [int(domain.num_batches_tracked) for domain in norm.domains] == [0, 1]


def test_of_first_and_own_agree_on_one_label(x):
    labels = torch.ones(4, dtype=torch.long)
    results = [DomainNorm(5, 2, of_first=of_first).train()(x, labels) for of_first in (True, False)]
    torch.testing.assert_close(*results)


def test_gradients_flow_through_every_domain(x):
    inputs = x.clone().requires_grad_()
    (DomainNorm(5, 2)(inputs, LABELS) ** 3).sum().backward()
    assert inputs.grad.abs().flatten(1).sum(1).min() > 0


def test_packed_tokens(x):
    norm = DomainNorm(5, 2).eval()
    norm.domains[1].running_mean.fill_(3.0)
    torch.testing.assert_close(norm(x.flatten(0, 1), LABELS.repeat_interleave(3)), norm(x, LABELS).flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_number_formats(x, dtype):
    norm = DomainNorm(5, 2).eval()
    if dtype == torch.float64:
        norm.double()
    found = norm(x.to(dtype), LABELS)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "batch labels for the domain-specific"),
        (torch.tensor([0, 1, 2, 0]), r"within 0 \.\. 1, found \[0, 1, 2\]"),
        (torch.tensor([0, -1, 1, 0]), r"within 0 \.\. 1"),
    ],
)
def test_labels_without_statistics_are_refused(x, labels, message):
    with pytest.raises(ValueError, match=message):
        DomainNorm(5, 2)(x, labels)
