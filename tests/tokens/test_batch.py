from __future__ import annotations

import pytest
import torch

from scgpt_tools.tokens import TokenBatch


@pytest.mark.parametrize(
    ("cells", "n_tokens", "expected"), [(6, 4, [1, 3, 1, 1]), (6, 100, [6]), (0, 4, [0]), (6, 1, [1, 1, 1, 2, 1])]
)
def test_parts_of_a_minibatch_keep_to_their_size(cells, n_tokens, expected):
    mask = torch.arange(5) < torch.tensor([5, 2, 2, 0, 1, 4])[:cells, None]
    batch = TokenBatch(genes=torch.arange(5 * cells).view(cells, 5), values=torch.zeros(cells, 5), mask=mask)
    parts = list(batch.divided(n_tokens))
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat([part.genes for part in parts]), batch.genes)
