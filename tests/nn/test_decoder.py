"""The decoder of a masked autoencoder: cells without padding give what they give beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scgpt_tools.nn.decoder import DecoderConfig
from scgpt_tools.nn.sockets import HeadInput, Sizes
from scgpt_tools.tokens.batch import TokenBatch

DIM, LENGTHS = 16, (9, 4, 6)


@pytest.fixture
def inputs() -> HeadInput:
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    batch = TokenBatch(
        genes=torch.randint(3, 20, mask.shape, generator=draw),
        values=torch.randint(0, 3, mask.shape, generator=draw).float(),
        mask=mask,
        hidden=mask & (torch.rand(mask.shape, generator=draw) < 0.5),
        positions=torch.arange(mask.shape[1]).expand(mask.shape),
    )
    tokens, genes = torch.randn(2, *mask.shape, DIM, generator=draw)
    return HeadInput(tokens=tokens, cell=tokens[:, 0], parts={"genes": genes}, batch=batch)


@pytest.mark.parametrize("options", [{}, {"genes": False, "positions": 12}, {"zeros": True}], ids=str)
def test_padding_left_out_changes_nothing(options, inputs, monkeypatch):
    torch.manual_seed(0)
    decoder = DecoderConfig(layers=2, heads=2, dropout=0.0, **options).build(Sizes(dim=DIM))
    found = []
    for long in (100, 1):
        monkeypatch.setattr("scgpt_tools.nn.attention._LONG", long)
        decoder.zero_grad()
        values = decoder(inputs)[""]
        values[inputs.batch.mask].square().sum().backward()
        found.append([values.detach() * inputs.batch.mask, *(one.grad.clone() for one in decoder.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert (values[~inputs.batch.mask] == 0).all()


def test_what_is_hidden_is_not_read(inputs):
    decoder = DecoderConfig(layers=1, heads=2, dropout=0.0).build(Sizes(dim=DIM)).eval()
    hidden = inputs.batch.hidden.unsqueeze(-1)
    others = replace(inputs, tokens=torch.where(hidden, torch.full_like(inputs.tokens, 7.0), inputs.tokens))
    torch.testing.assert_close(decoder(inputs)[""], decoder(others)[""], rtol=0, atol=0)
