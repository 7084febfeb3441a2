"""Whole modalities are queried, and nothing of a query is visible."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.tokens import HideModalities, TokenBatch

RNA, PROT = 0, 1
INPUTS = ("genes", "values", "mask", "modality", "generated")


@pytest.fixture
def batch():
    """Forty cells of a cell token, six genes and three proteins; every fifth has no proteins."""
    n_cells = 40
    modality = torch.tensor([3] + [RNA] * 6 + [PROT] * 3).expand(n_cells, -1).clone()
    mask = torch.ones(n_cells, 10, dtype=torch.bool)
    mask[::5, 7:] = False
    modality[::5, 7:] = 2
    values = torch.arange(10.0).expand(n_cells, -1).clone()
    return TokenBatch(
        genes=torch.arange(10).expand(n_cells, -1), values=values, mask=mask, modality=modality,
        index=torch.arange(n_cells),
    )  # fmt: skip


def test_some_cells_are_asked_for_a_whole_modality_others_for_some_values(batch):
    hidden = HideModalities(modalities=(PROT,), whole=0.5, ratio=0.4)(batch, 0)
    asked = hidden.generated.any(1)
    assert 5 < asked.sum() < 30
    proteins = batch.mask & (batch.modality == PROT)
    torch.testing.assert_close(hidden.hidden[asked], proteins[asked])
    torch.testing.assert_close(hidden.generated, hidden.hidden & asked[:, None])
    assert (hidden.hidden[~asked].sum(1) == (0.4 * (batch.mask[~asked].sum(1) - 1)).long()).all()
    assert (hidden.values[hidden.hidden] == -1).all()
    torch.testing.assert_close(hidden.target, batch.values)
    torch.testing.assert_close(hidden.values[~hidden.hidden], batch.values[~hidden.hidden])


def test_a_cell_with_one_modality_is_never_asked_for_it(batch):
    hidden = HideModalities(modalities=(RNA, PROT), whole=1.0)(batch, 0)
    asked = hidden.generated.any(1)
    torch.testing.assert_close(asked, torch.arange(40) % 5 != 0)
    numbers = {batch.modality[row][hidden.generated[row]].unique().item() for row in torch.nonzero(asked).ravel()}
    assert numbers == {RNA, PROT}


def test_what_is_hidden_is_nowhere_among_the_inputs(batch):
    hide = HideModalities(modalities=(PROT,))
    seen = hide(batch, 3)
    other = hide(batch.replace(values=torch.where(seen.hidden, 99.0, batch.values)), 3)
    for name in INPUTS:
        torch.testing.assert_close(getattr(seen, name), getattr(other, name))


def test_a_cell_is_treated_alike_whatever_stands_beside_it(batch):
    hide = HideModalities(modalities=(PROT,))
    whole, some = hide(batch, 3), hide(batch.select(torch.tensor([7, 2])), 3)
    torch.testing.assert_close(some.hidden, whole.hidden[[7, 2]])


def test_models_without_the_flag_see_a_mask(batch):
    assert HideModalities(modalities=(PROT,), generate=False)(batch, 0).generated is None
    assert HideModalities(modalities=(), whole=0)(batch, 0).generated is None
    assert HideModalities(modalities=(PROT,), whole=1)(batch.replace(index=None), 0).generated.any()


def test_refusals(batch):
    with pytest.raises(ValueError, match="`modalities` that may be hidden whole"):
        HideModalities(modalities=())
    with pytest.raises(ValueError, match="`whole`"):
        HideModalities(modalities=(1,), whole=1.5)
    with pytest.raises(ValueError, match="with `modality`"):
        HideModalities(modalities=(1,))(batch.replace(modality=None), 0)
