"""Distances to kept cells against their formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn import reference_cells
from scgpt_tools.nn.reference_cells import ReferenceCellsConfig, ReferenceCellsHead
from scgpt_tools.nn.sockets import Sizes


def filled(cells: int, neighbours: int, dim: int = 5) -> ReferenceCellsHead:
    head = ReferenceCellsHead(dim, cells=cells, held_out=2, neighbours=neighbours)
    head.vectors.copy_(F.normalize(torch.randn(cells, dim, generator=torch.Generator().manual_seed(0)), dim=1))
    return head


@pytest.mark.parametrize(("cells", "neighbours"), [(9, 3), (2, 3), (1, 1)])
def test_the_distance_is_the_mean_of_the_nearest(cells, neighbours):
    head = filled(cells, neighbours)
    asked = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    apart = torch.cdist(F.normalize(asked, dim=1), head.vectors).square()
    expected = apart.sort(dim=1).values[:, :neighbours].mean(dim=1)
    torch.testing.assert_close(head.distances(asked), expected)
    torch.testing.assert_close(head.distances(asked * 7), expected)


def test_many_cells_are_compared_in_parts(monkeypatch):
    head, asked = filled(9, 3), torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    whole = head.distances(asked)
    monkeypatch.setattr(reference_cells, "_AT_ONCE", 30)
    torch.testing.assert_close(head.distances(asked), whole)
    assert head.distances(asked[:0]).shape == (0,)


def test_nothing_of_it_is_trained():
    head = ReferenceCellsConfig(cells=3, held_out=2).build(Sizes(dim=4))
    assert not list(head.parameters())
    assert set(head.state_dict()) == {"vectors", "held_out", "held_out_classes"}


@pytest.mark.parametrize("field", ["cells", "held_out", "neighbours"])
def test_there_is_one_at_least(field):
    with pytest.raises(ValueError, match=f"Expected `{field}` to be at least 1, found 0"):
        ReferenceCellsConfig(**{"cells": 2, "held_out": 2, field: 0})
