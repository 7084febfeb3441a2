"""The bins of hidden values as a loss term."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.output import CellOutput
from scgpt_tools.objectives import CellType, MaskedBins
from scgpt_tools.objectives.cells import UNLABELLED
from scgpt_tools.tokens.batch import TokenBatch

LOGITS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
BATCH = TokenBatch(
    genes=torch.ones(2, 3, dtype=torch.int64),
    values=torch.ones(2, 3),
    mask=torch.ones(2, 3, dtype=torch.bool),
    hidden=torch.tensor([[False, True, True], [True, False, False]]),
    target_bins=torch.tensor([[4, 1, 1], [3, 2, 2]]),
)
VIEWS = {"first": CellOutput(LOGITS, LOGITS[:, 0], predictions={"bins": LOGITS})}
EACH = F.cross_entropy(LOGITS[BATCH.hidden], BATCH.target_bins[BATCH.hidden], reduction="none")


@pytest.mark.parametrize(
    ("balance", "expected"),
    [("values", EACH.mean()), ("bins", ((EACH[0] + EACH[1]) / 2 + EACH[2]) / 3)],
)
def test_values_or_bins_count_alike(balance, expected):
    torch.testing.assert_close(MaskedBins(balance=balance)(VIEWS, BATCH), expected)


def test_rare_or_unsure_bins_count_more():
    counts = (0.0, 90.0, 9.0, 1.0)
    assert MaskedBins(balance="margins", counts=counts)(VIEWS, BATCH) > EACH.mean()
    assert MaskedBins(balance="focal")(VIEWS, BATCH) < EACH.mean()
    with pytest.raises(ValueError, match="`counts` go with"):
        MaskedBins(counts=counts)
    for balance in ("margins", "alternating"):
        with pytest.raises(ValueError, match=f"`counts` of the bins for balance='{balance}', found None"):
            MaskedBins(balance=balance).check()


def test_balances_that_change_with_the_epoch():
    counts = (0.0, 90.0, 9.0, 1.0)
    alternating, adaptive = MaskedBins(balance="alternating", counts=counts), MaskedBins(balance="adaptive")
    for term, balances in ((alternating, ["margins", "bins"] * 2), (adaptive, ["values"] * 2 + ["bins"] * 2)):
        for epoch, balance in enumerate(balances):
            own = counts if balance == "margins" else None
            assert term.at_epoch(epoch) == MaskedBins(balance=balance, counts=own)
        torch.testing.assert_close(term(VIEWS, BATCH), term.at_epoch(0)(VIEWS, BATCH))
    assert MaskedBins(balance="focal").at_epoch(7) == MaskedBins(balance="focal")


def test_classes_count_alike():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 0, 1, UNLABELLED])
    each = F.cross_entropy(logits[:3], label[:3], reduction="none")
    views = {"first": CellOutput(logits[:, None], logits, predictions={"cell_type": logits})}
    batch = TokenBatch(torch.ones(4, 1, dtype=torch.int64), torch.ones(4, 1), torch.ones(4, 1).bool(), label=label)
    torch.testing.assert_close(CellType()(views, batch), each.mean())
    # No cell is of the third class, which counts as 0.
    torch.testing.assert_close(CellType(balance="classes")(views, batch), (each[:2].mean() + each[2]) / 3)


def test_accuracy_is_that_of_hidden_values():
    right = (LOGITS.argmax(-1) == BATCH.target_bins)[BATCH.hidden].float().mean()
    assert MaskedBins().measures(VIEWS, BATCH)["bin_accuracy"] == right
