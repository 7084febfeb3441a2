"""Batch label and modality as context of the heads."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn.context import Context

BATCH = torch.tensor([1, 0])
MODALITY = torch.tensor([[0, 1, 2], [2, 2, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
VALUES = torch.ones(2, 3)


def context(pooling: str = "cls", batch_id=BATCH, modality=MODALITY, **parts):
    torch.manual_seed(0)
    part = Context(4, **parts)
    return part, part(batch_id, modality, pooling=pooling, mask=MASK, values=VALUES)


def test_none_without_parts():
    assert context()[1] is None


def test_batch_is_the_same_for_all_tokens():
    part, found = context(batches=2)
    torch.testing.assert_close(found.cell, part.batch(BATCH))
    torch.testing.assert_close(found.tokens, part.batch(BATCH)[:, None].expand(2, 3, 4))


def test_modality_is_pooled_as_the_cell_is():
    part, found = context("mean", modalities=3)
    vectors = part.modality(MODALITY)
    torch.testing.assert_close(found.tokens, vectors)
    torch.testing.assert_close(found.cell, torch.stack([vectors[0].mean(0), vectors[1, :2].mean(0)]))
    torch.testing.assert_close(context("cls", modalities=3)[1].cell, vectors[:, 0])


def test_both_are_added():
    part, found = context(batches=2, modalities=3)
    labels, vectors = part.batch(BATCH), part.modality(MODALITY)
    torch.testing.assert_close(found.tokens, vectors + labels[:, None])
    torch.testing.assert_close(found.cell, vectors[:, 0] + labels)


@pytest.mark.parametrize(("parts", "name"), [({"batches": 2}, "batch_id"), ({"modalities": 3}, "modality")])
def test_absent_labels_are_named(parts, name):
    with pytest.raises(ValueError, match=f"with `{name}`"):
        context(**{name: None}, **parts)
