"""The bins of hidden values as a loss term."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.output import CellOutput
from scgpt_tools.objectives import MaskedBins
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


def test_accuracy_is_that_of_hidden_values():
    right = (LOGITS.argmax(-1) == BATCH.target_bins)[BATCH.hidden].float().mean()
    assert MaskedBins().measures(VIEWS, BATCH)["bin_accuracy"] == right
