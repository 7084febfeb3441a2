"""Two streams: what an encoder without a padding mask may and may not do."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.models import CellModel
from scgpt_tools.models.config import DualStreamConfig, MixtureConfig
from scgpt_tools.models.families import FAMILIES
from scgpt_tools.nn import dual_stream
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<pad>", *(f"GENE{number}" for number in range(200)), "<cls>"])


@pytest.fixture
def batch() -> TokenBatch:
    random = torch.Generator().manual_seed(0)
    genes = torch.stack([torch.randperm(200, generator=random)[:160] + 1 for _ in range(3)])
    mask = torch.arange(160) < torch.tensor([160, 90, 140])[:, None]
    bins = torch.randint(1, 6, genes.shape, generator=random)
    values = torch.rand(genes.shape, generator=random) * 4
    return TokenBatch(genes=genes * mask, values=values * mask, mask=mask, bins=bins * mask)


@pytest.mark.parametrize("streams", ["dual", "single"])
def test_cells_in_a_row_are_cells_in_a_rectangle(batch, streams, monkeypatch):
    torch.manual_seed(0)
    model = CellModel(FAMILIES["deepsc"](VOCABULARY, dim=16, layers=3, heads=2, streams=streams), VOCABULARY).eval()
    with torch.no_grad():
        found, cells = model(batch), model.embed_cells(batch)
        monkeypatch.setattr(dual_stream, "packing_pays", lambda *_, **__: False)
        expected = model(batch)
        torch.testing.assert_close(cells, model.embed_cells(batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    for name, prediction in expected.predictions.items():
        torch.testing.assert_close(found[name], prediction, rtol=1e-4, atol=1e-5)


def test_packed_backends_need_a_mask(batch):
    model = CellModel(FAMILIES["deepsc"](VOCABULARY, dim=16, layers=2, heads=2), VOCABULARY).eval()
    with pytest.raises(ValueError, match="'sdpa' or 'eager' attention for this encoder"):
        model(batch, attention="varlen")


def test_cells_have_no_place_in_two_streams(batch):
    model = CellModel(FAMILIES["deepsc"](VOCABULARY, dim=16, layers=2, heads=2), VOCABULARY).eval()
    with pytest.raises(ValueError, match="reads one stream, in which cells can stand, found 'dual_stream'"):
        model.generate(torch.zeros(3, 16), batch)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DualStreamConfig, {"gene_layers": 11}, r"`gene_layers` within 0 .. layers=10"),
        (DualStreamConfig, {"depth": 1}, "`depth` to be at least 2"),
        (DualStreamConfig, {"attention_dropout": 1.0}, "attention_dropout"),
        (DualStreamConfig, {"cross": "D"}, "`cross`"),
        (MixtureConfig, {"experts": 2, "active": 3}, "`active` to be at most experts=2"),
        (MixtureConfig, {"score": "relu"}, "`score`"),
    ],
)
def test_what_cannot_be_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)
