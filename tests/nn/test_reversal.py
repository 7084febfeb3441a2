"""Gradient reversal."""

from __future__ import annotations

import torch

from scgpt_tools.nn.reversal import reverse_gradient


def test_forward_is_the_identity_and_backward_its_negative():
    x = torch.randn(3, 2, requires_grad=True)
    weight = torch.randn(3, 2)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    (y * weight).sum().backward()
    torch.testing.assert_close(x.grad, -weight)


def test_twice_is_nothing():
    x = torch.randn(3, requires_grad=True)
    reverse_gradient(reverse_gradient(x)).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3))


def test_the_gradient_can_be_scaled():
    x = torch.randn(3, requires_grad=True)
    reverse_gradient(x, 2.5).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), -2.5))
