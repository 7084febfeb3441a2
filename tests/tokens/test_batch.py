"""What a batch holds is declared once; packing, padding, stacking and moving follow for every field."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from scgpt_tools.tokens import TokenBatch
from scgpt_tools.tokens.batch import DECLARED, PackedTokens

LENGTHS = (5, 2, 3)
PADDING = {"genes": 99, "values": -2.0, "modality": 3}


def full(lengths=LENGTHS, start: int = 0) -> TokenBatch:
    """Cells with every field that there is, other numbers in each."""
    n_cells, width = len(lengths), max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    made = {}
    for number, (name, declared) in enumerate(DECLARED.items(), start=start):
        shape = (n_cells, width) if declared.per == "token" else (n_cells,)
        entries = torch.arange(n_cells * width)[: torch.Size(shape).numel()].reshape(shape) + number
        made[name] = (entries % 2 == 0) if declared.dtype == torch.bool else entries.to(declared.dtype)
    return TokenBatch(**made | {"mask": mask}).check()


def test_every_field_is_declared_and_no_other():
    assert list(DECLARED) == [field.name for field in fields(TokenBatch)]
    for declared in DECLARED.values():
        assert declared.truth is None or DECLARED[declared.truth].dtype == declared.dtype


def test_packing_keeps_what_networks_read_of_real_tokens():
    batch = full()
    packed = batch.packed()
    assert isinstance(packed, PackedTokens)
    assert packed.lengths == LENGTHS
    assert set(packed.present()) == {name for name, declared in DECLARED.items() if declared.read}
    assert packed.batch_id.tolist() == [batch.batch_id[0]] * 5 + [batch.batch_id[1]] * 2 + [batch.batch_id[2]] * 3
    assert torch.equal(packed.positions, batch.positions[batch.mask])
    moved = packed.to("cpu")
    assert moved.lengths == LENGTHS
    assert torch.equal(moved.bins, packed.bins)


def test_stacking_pads_each_field_with_its_own():
    first, second = full(), full((2, 1), start=40)
    both = TokenBatch.stacked([first, second], PADDING)
    assert both.check().genes.shape == (5, 5)
    for name, declared in DECLARED.items():
        own, below = getattr(both, name), getattr(second, name)
        assert torch.equal(own[:3], getattr(first, name))
        if declared.per == "cell":
            assert torch.equal(own[3:], below)
        else:
            assert torch.equal(own[3:, :2], below)
            assert (own[3:, 2:] == PADDING.get(name, declared.padding)).all()
    assert torch.equal(both.select(slice(3, 5)).shortened(2).target_genes, second.target_genes)


def test_stacking_refuses_batches_that_differ():
    with pytest.raises(ValueError, match="same fields"):
        TokenBatch.stacked([full(), full().replace(bins=None)], PADDING)
    with pytest.raises(ValueError, match="padding of `genes`"):
        full().padded(7, {})


def test_tokens_behind_the_others():
    batch = full().replace(generated=None)
    longer = batch.appended(2, genes=torch.tensor([7, 8]), values=-1.0, mask=True, modality=1, generated=True)
    assert longer.check().genes[:, 5:].tolist() == [[7, 8]] * 3
    assert longer.generated.tolist() == [[False] * 5 + [True] * 2] * 3
    assert not longer.hidden[:, 5:].any()
    assert torch.equal(longer.index, batch.index)
    with pytest.raises(ValueError, match="Expected `modality` of the new tokens"):
        batch.appended(1, genes=7, values=0)


def test_tokens_at_some_places():
    batch = full()
    order = torch.tensor([[4, 0], [1, 1], [2, 0]])
    taken = batch.gathered(order)
    for name in batch.present("token"):
        assert torch.equal(getattr(taken, name), getattr(batch, name).gather(1, order))
    assert taken.label is batch.label


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bins": torch.zeros(3, 5)}, TypeError, "`bins` of a token batch to be torch.int64, found torch.float32"),
        (
            {"values": torch.zeros(3, 4)},
            ValueError,
            r"`values` of a token batch to have shape \(3, 5\), found \(3, 4\)",
        ),
        ({"label": torch.zeros(2).long()}, ValueError, r"`label` of a token batch to have shape \(3,\)"),
    ],
)
def test_wrong_tensors_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        full().replace(**changes).check()


def test_absent_fields_are_named():
    with pytest.raises(ValueError, match=r"with `bins`, found only \['genes', 'values', 'mask'\]"):
        full().replace(**dict.fromkeys(list(DECLARED)[3:])).require("bins")


@pytest.mark.parametrize(
    ("cells", "n_tokens", "expected"), [(6, 4, [1, 3, 1, 1]), (6, 100, [6]), (0, 4, [0]), (6, 1, [1, 1, 1, 2, 1])]
)
def test_parts_of_a_minibatch_keep_to_their_size(cells, n_tokens, expected):
    mask = torch.arange(5) < torch.tensor([5, 2, 2, 0, 1, 4])[:cells, None]
    batch = TokenBatch(genes=torch.arange(5 * cells).view(cells, 5), values=torch.zeros(cells, 5), mask=mask)
    parts = list(batch.divided(n_tokens))
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat([part.genes for part in parts]), batch.genes)
