"""Attention against its formula, in every layout and backend."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from scgpt_tools.nn.attention import Attention, PackedLayout, PaddedLayout

DIM, HEADS, LENGTH = 12, 3, 6
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(DIM, HEADS, 0.0).double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, LENGTH, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def raw(attention: Attention, x: torch.Tensor, query: int, keys: list[int]) -> torch.Tensor:
    """What one token of one cell (L, D) reads from some tokens, before the last map: the formula, head by head."""
    q, k, v = attention.query(x[query]), attention.key(x[keys]), attention.value(x[keys])
    width, parts = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        weights = (k[:, part] @ q[part] / width**0.5).softmax(dim=0)
        parts.append(weights @ v[:, part])
    return torch.cat(parts)


def packed(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, PackedLayout]:
    return x[mask], PackedLayout.from_lengths(tuple(mask.sum(dim=1).tolist()), "cpu")


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_padded_formula(attention, x, backend):
    context, _ = attention(x, PaddedLayout.from_mask(MASK), backend)
    for cell, length in enumerate(MASK.sum(dim=1).tolist()):
        for token in range(length):
            expected = attention.out(raw(attention, x[cell], token, list(range(length))))
            torch.testing.assert_close(context[cell, token], expected)


def test_packed_formula(attention, x):
    tokens, layout = packed(x, MASK)
    context, weights = attention(tokens, layout, "varlen")
    assert weights is None
    expected = [
        attention.out(raw(attention, x[cell], token, list(range(length))))
        for cell, length in enumerate(MASK.sum(dim=1).tolist())
        for token in range(length)
    ]
    torch.testing.assert_close(context, torch.stack(expected))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK)], ids=["padded", "full"])
def test_first_token_alone_padded(attention, x, backend, mask):
    layout = PaddedLayout.from_mask(mask)
    every = attention(x, layout, backend)
    first = attention(x, layout.keeping_first(), backend, last=True)
    torch.testing.assert_close(first.context, every.context[:, :1])
    if backend == "eager":
        torch.testing.assert_close(first.weights, every.weights[:, :, :1])


@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK), MASK[2:]], ids=["padded", "full", "one token"])
def test_first_token_alone_packed(attention, x, mask):
    tokens, layout = packed(x[: len(mask)], mask)
    every = attention(tokens, layout, "varlen")
    layout = layout.keeping_first()
    first = attention(tokens, layout, "varlen", last=True)
    assert len(first.context) == len(mask)
    torch.testing.assert_close(first.context, layout.keep(every.context))


def test_weights_are_shares_of_the_real_tokens(attention, x):
    _, weights = attention(x, PaddedLayout.from_mask(MASK), "eager")
    assert weights.shape == (3, HEADS, LENGTH, LENGTH)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, HEADS, LENGTH, dtype=torch.double))
    assert not weights[(~MASK)[:, None, None, :].expand_as(weights)].any()
    assert attention(x, PaddedLayout.from_mask(MASK), "sdpa").weights is None


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("generated", [False, True])
def test_a_cell_of_padding_alone_is_finite(attention, x, backend, generated):
    """Forward and backward: a softmax over nothing would be NaN, and NaN would reach all weights."""
    mask = MASK.clone()
    mask[1] = False
    marks = torch.zeros_like(mask)
    marks[:, 4:] = True
    layout = PaddedLayout.from_mask(mask, marks if generated else None)
    context, _ = attention(x, layout, backend)
    assert context.isfinite().all()
    context.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_gradients_of_the_backends_agree(attention, x):
    gradients = []
    for backend in ("eager", "sdpa", "varlen"):
        attention.zero_grad()
        inputs = x.clone().requires_grad_()
        if backend == "varlen":
            attention(*packed(inputs, MASK), backend).context.square().sum().backward()
        else:
            attention(inputs, PaddedLayout.from_mask(MASK), backend).context[MASK].square().sum().backward()
        gradients.append([inputs.grad, *(parameter.grad.clone() for parameter in attention.parameters())])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


# Tokens to be generated -----------------------------------------------------------------------------------------------

GENERATED = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
REAL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1]]).bool()


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_generated_tokens_see_the_perceived_ones_and_themselves(attention, x, backend):
    context, _ = attention(x, PaddedLayout.from_mask(REAL, GENERATED), backend)
    for cell in range(3):
        perceived = torch.nonzero(REAL[cell] & ~GENERATED[cell]).flatten().tolist()
        for token in perceived:
            torch.testing.assert_close(context[cell, token], attention.out(raw(attention, x[cell], token, perceived)))
        for token in torch.nonzero(REAL[cell] & GENERATED[cell]).flatten().tolist():
            # The raw result, without the last map: the pre-training form of scGPT.
            torch.testing.assert_close(context[cell, token], raw(attention, x[cell], token, [*perceived, token]))


def test_nothing_sees_a_generated_token_but_itself(attention, x):
    layout = PaddedLayout.from_mask(REAL, GENERATED)
    other = x.clone()
    other[0, 5] += 1
    before, after = (attention(tokens, layout, "sdpa").context for tokens in (x, other))
    changed = (before != after).any(dim=-1)
    assert torch.nonzero(changed).tolist() == [[0, 5]]


# Attention to other tokens --------------------------------------------------------------------------------------------


def cross(attention: Attention, tokens: tuple[torch.Tensor, ...], mask: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values of three sets of tokens, head by head."""
    q, k, v = (
        part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part, x in zip((attention.query, attention.key, attention.value), tokens, strict=True)
    )
    scores = (q @ k.mT / (DIM / HEADS) ** 0.5).masked_fill(~mask[:, None, None, :], float("-inf"))
    return attention.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("same", ["keys and values", "queries and keys", "none"])
def test_queries_keys_and_values_may_be_of_different_tokens(attention, x, backend, same):
    genes, expression = x, torch.randn_like(x)
    queries, keys, values = {
        "keys and values": (expression, genes, genes),
        "queries and keys": (genes, genes, expression),
        "none": (genes, expression, torch.randn_like(x)),
    }[same]
    expected = cross(attention, (queries, keys, values), MASK)[MASK]
    layout = PaddedLayout.from_mask(MASK, backend=backend)
    if backend == "varlen":
        queries, keys, values = (tokens[MASK] for tokens in (queries, keys, values))
        layout = PackedLayout.from_lengths(tuple(MASK.sum(dim=1).tolist()), "cpu")
    found = attention(queries, layout, keys=keys, values=values).context
    torch.testing.assert_close(found if backend == "varlen" else found[MASK], expected)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_causal_attention(attention, x, backend):
    context = attention(x, PaddedLayout.from_mask(MASK, backend=backend).causal()).context
    for cell, length in enumerate(MASK.sum(dim=1).tolist()):
        for token in range(length):
            expected = attention.out(raw(attention, x[cell], token, list(range(token + 1))))
            torch.testing.assert_close(context[cell, token], expected)
    assert context.isfinite().all()


def test_layouts_pack_and_unpack(x):
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    padded = PaddedLayout.from_mask(mask)
    assert padded.pack(x) is x
    around = PackedLayout.from_lengths(tuple(mask.sum(dim=1).tolist()), "cpu", mask=mask)
    assert torch.equal(around.pack(x), x[mask])
    assert torch.equal(around.unpack(around.pack(x)), padded.unpack(x))
    inside = PackedLayout.from_lengths(around.lengths, "cpu")
    assert inside.unpack(inside.pack(x[mask])).equal(x[mask])


# Choices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "eager", "varlen"])
def test_attention_dropout_is_for_training(backend, x):
    torch.manual_seed(0)
    attention = Attention(DIM, HEADS, 0.5).double()
    inputs = packed(x, MASK) if backend == "varlen" else (x, PaddedLayout.from_mask(MASK))
    attention.train()
    assert not torch.equal(*(attention(*inputs, backend).context for _ in range(2)))
    attention.eval()
    assert torch.equal(*(attention(*inputs, backend).context for _ in range(2)))


def test_attention_dropout_keeps_the_mean(x):
    torch.manual_seed(0)
    attention = Attention(DIM, HEADS, 0.2)
    tokens, layout = packed(x.float(), MASK)
    with torch.no_grad():
        expected = attention.eval()(tokens, layout, "varlen").context
        attention.train()
        mean = torch.stack([attention(tokens, layout, "varlen").context for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.gpu
def test_packed_attention_on_cuda_has_no_dropout(x):
    attention = Attention(DIM, HEADS, 0.5).to("cuda", torch.bfloat16).train()
    tokens, _ = packed(x.bfloat16(), MASK)
    layout = PackedLayout.from_lengths(tuple(MASK.sum(dim=1).tolist()), "cuda")
    with pytest.raises(ValueError, match="no attention dropout, found 0.5; train with 'sdpa'"):
        attention(tokens.cuda(), layout, "varlen")


@pytest.mark.parametrize("scores", [1, 2**25], ids=["query by query", "at once"])
@pytest.mark.parametrize("first_only", [False, True])
def test_bf16_on_a_cpu_is_fp32_to_its_precision(scores, first_only, x, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._SCORES", scores)
    torch.manual_seed(0)
    attention = Attention(DIM, HEADS, 0.0).eval()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        tokens, layout = packed(x.to(dtype), MASK)
        context = attention.to(dtype)(tokens, layout.keeping_first(), "varlen", last=first_only).context
        results.append(context.float())
    assert results[0].shape == results[1].shape
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.02)


def test_an_unknown_backend_is_refused(attention, x):
    with pytest.raises((KeyError, ValueError), match="sdpa"):
        attention(x, PaddedLayout.from_mask(MASK), "sdap")


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_says_how_to_install_it(attention, x):
    with pytest.raises(ImportError, match="extra 'flash' of scgpt-tools"):
        attention(*packed(x, MASK), "flash")


def test_layouts():
    assert PaddedLayout.from_mask(torch.ones_like(MASK)).visible is None
    # Masks on "meta" hold no values, as if those on a GPU were not to be waited for.
    assert PaddedLayout.from_mask(MASK.to("meta"), full=True).visible is None
    assert PaddedLayout.from_mask(MASK.to("meta"), full=False).visible.shape == (3, 1, 1, LENGTH)
    layout = PackedLayout.from_lengths((3, 1, 2), "cpu")
    assert layout.offsets.tolist() == [0, 3, 4, 6]
    assert layout.offsets.dtype == torch.int32
    assert layout.keeps_all
    assert layout.keep(torch.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]
    first = layout.keeping_first()
    assert not first.keeps_all
    assert first.keep(torch.arange(6)).tolist() == [0, 3, 4]
    parts = [part.kept for part in first.divided([1, 2])]
    assert [(part.places.tolist(), part.lengths) for part in parts] == [([0], (1,)), ([0, 1], (1, 1))]


def test_what_is_kept_of_a_padded_batch():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    layout = PackedLayout.from_lengths((3, 2), "cpu", mask=mask)
    kept = torch.tensor([[True, False, True, False], [False, True, False, False]])
    layout = layout.keeping(kept)
    x = torch.arange(8.0).view(2, 4, 1)
    packed = layout.keep(layout.pack(x))
    assert packed.flatten().tolist() == [0, 2, 5]
    assert layout.kept.lengths == (2, 1)
    torch.testing.assert_close(layout.unpack(packed), x * kept.unsqueeze(-1))
    first = layout.keeping_first()
    torch.testing.assert_close(first.unpack(first.keep(layout.pack(x)))[:, 0], x[:, 0])


@pytest.mark.parametrize(
    ("kept", "room", "queries"), [(None, 43, 43), (3, 107, 61), (25, 43, 39), (64, 107, 64)], ids=str
)
def test_a_cell_of_nothing_rounds_numbers_of_tokens(kept, room, queries):
    layout = PackedLayout.from_lengths((40, 33, 12), "cpu", mask=torch.arange(40) < torch.tensor([[40], [33], [12]]))
    if kept is not None:
        chosen = layout.mask.flatten().cumsum(0).view(3, 40) <= kept
        layout = layout.keeping(layout.mask & chosen)
    x = torch.randn(85, 4)
    longer = layout.rounded(x)
    assert longer.lengths == (40, 33, 12, room)
    assert longer.queries(longer.keep(longer.lengthen(x)))[-1] == queries
    assert sum(longer.lengths) % 64 == longer.n_kept % 64 == 0
    found = longer.keep(longer.lengthen(x))
    torch.testing.assert_close(found[: layout.n_kept], layout.keep(x))
    assert (found[layout.n_kept :] == 0).all()
    assert longer.rounded(x) is longer


def test_numbers_are_not_rounded_where_others_compute(monkeypatch):
    layout = PackedLayout.from_lengths((3, 2), "cpu")
    assert layout.rounded(torch.zeros(5, 4, device="meta")) is layout
    monkeypatch.setattr("scgpt_tools.nn.products.onednn", lambda: None)
    assert layout.rounded(torch.zeros(5, 4)) is layout
