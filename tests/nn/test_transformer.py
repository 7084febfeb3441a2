"""Blocks against their formula, written with functions instead of modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.attention import PackedLayout, PaddedLayout
from scgpt_tools.nn.sockets import Embedded
from scgpt_tools.nn.transformer import ACTIVATIONS, Transformer, TransformerConfig
from scgpt_tools.tokens.batch import TokenBatch

DIM, LENGTHS = 12, (5, 2, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


BATCH = TokenBatch(genes=torch.zeros(3, 5, dtype=torch.int64), values=torch.zeros(3, 5), mask=MASK)


def build(norm: str = "post", dropout: float = 0.0, **options) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(layers=3, heads=2, hidden=20, dropout=dropout, norm=norm, **options)
    stack = Transformer(config, DIM).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stack.eval()


FIRST = PaddedLayout.from_mask(MASK).keeping_first()


def run(stack: Transformer, x: torch.Tensor, layout: PaddedLayout | PackedLayout | None = None):
    return stack(Embedded(x, {}), BATCH, PaddedLayout.from_mask(MASK) if layout is None else layout)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 5, DIM, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def layer_norm(x, module, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * module.weight + module.bias


def feed_forward(x, part):
    hidden = (x @ part.expand.weight.T + part.expand.bias).clamp(min=0)
    return hidden @ part.contract.weight.T + part.contract.bias


def by_formula(stack: Transformer, x: torch.Tensor, norm: str) -> torch.Tensor:
    layout = PaddedLayout.from_mask(MASK)
    for block in stack.blocks:
        attend = lambda x, block=block: block.attention(x, layout, "eager").context
        if norm == "post":
            x = layer_norm(x + attend(x), block.attention_norm)
            x = layer_norm(x + feed_forward(x, block.feed_forward), block.feed_forward_norm)
        elif norm == "pre":
            x = x + attend(layer_norm(x, block.attention_norm))
            x = x + feed_forward(layer_norm(x, block.feed_forward_norm), block.feed_forward)
        else:
            x = layer_norm(x, block.attention_norm)
            x = x + attend(x)
            x = layer_norm(x, block.feed_forward_norm)
            x = x + feed_forward(x, block.feed_forward)
    return x


@pytest.mark.parametrize("norm", ["post", "pre", "replace"])
def test_formula(x, norm):
    stack = build(norm)
    found = run(stack, x)
    assert found.weights is None
    torch.testing.assert_close(found.tokens[MASK], by_formula(stack, x, norm)[MASK])


def test_final_norm(x):
    stack = build("pre", final_norm=True)
    expected = layer_norm(by_formula(stack, x, "pre"), stack.norm)
    torch.testing.assert_close(run(stack, x).tokens[MASK], expected[MASK])
    torch.testing.assert_close(run(stack, x, FIRST).tokens, expected[:, :1])


@pytest.mark.parametrize("norm", ["post", "pre", "replace"])
def test_the_first_tokens_alone(x, norm):
    stack = build(norm)
    every = run(stack, x).tokens
    torch.testing.assert_close(run(stack, x, FIRST).tokens, every[:, :1])
    layout = PackedLayout.from_lengths(LENGTHS, "cpu", mask=MASK)
    torch.testing.assert_close(run(stack, x[MASK], layout.keeping_first()).tokens, every[:, 0])
    some = MASK & torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(run(stack, x[MASK], layout.keeping(some)).tokens, every[some])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(x, activation):
    part = build(activation=activation).blocks[0].feed_forward
    torch_s = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation]
    expected = torch_s(x @ part.expand.weight.T + part.expand.bias) @ part.contract.weight.T + part.contract.bias
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_causal_encoder_sees_nothing_that_comes_later(x, backend):
    stack = build(causal=True)
    layout = PaddedLayout.from_mask(MASK, backend=backend)
    later = x.clone()
    later[:, 2:] += 1
    before, after = run(stack, x, layout).tokens, run(stack, later, layout).tokens
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[0, 2:], after[0, 2:])
    short = run(stack, x[:, :2], PaddedLayout.from_mask(MASK[:, :2], backend=backend)).tokens
    torch.testing.assert_close(before[:, :2], short)
    torch.testing.assert_close(run(stack, x, layout.keeping_first()).tokens, before[:, :1])


def test_without_a_mask_padding_is_seen(x):
    stack, every = build(padding_mask=False), torch.ones_like(MASK)
    found = run(stack, x).tokens
    torch.testing.assert_close(found, run(build(), x, PaddedLayout.from_mask(every)).tokens)
    assert not torch.allclose(found[MASK], run(build(), x).tokens[MASK])


def test_what_is_added_to_variances(x):
    stack = build("pre", final_norm=True, eps=0.5)
    found = run(stack, x).tokens[MASK]
    assert torch.allclose(found, layer_norm(_before_the_last_norm(stack, x), stack.norm, 0.5)[MASK])
    block = stack.blocks[0]
    assert torch.allclose(block.attended(x), layer_norm(x, block.attention_norm, 0.5))
    assert block.feed_forward_norm.eps == 0.5
    with pytest.raises(ValueError, match="`eps` above 0, found 0"):
        TransformerConfig(eps=0.0)


def _before_the_last_norm(stack, x):
    layout = PaddedLayout.from_mask(MASK)
    for block in stack.blocks:
        x, _ = block(x, layout)
    return x


@pytest.mark.parametrize("options", [{"causal": True}, {"padding_mask": False}])
def test_encoders_that_need_padding_say_so(x, options):
    stack = build(**options)
    assert not stack.packs
    assert build().packs
    with pytest.raises(ValueError, match="Expected 'sdpa' or 'eager' attention"):
        run(stack, x[MASK], PackedLayout.from_lengths(LENGTHS, "cpu"))


def test_stages_and_maps():
    stack = build(final_norm=True)
    assert stack.stages == list(stack.blocks)
    expected = [f"blocks.{layer}.{name}" for layer in range(3) for name in ("attention.key", "feed_forward.expand")]
    assert stack.maps(["expand", "key"]) == expected
    assert len(stack.maps(stack.adapted)) == 18
    with pytest.raises(ValueError, match="no linear map of the encoder 'keys'. Did you mean 'key'"):
        stack.maps(["keys"])


def test_weights_of_every_layer(x):
    weights = run(build(), x, PaddedLayout.from_mask(MASK, backend="eager")).weights
    assert [tuple(layer.shape) for layer in weights] == [(3, 2, 5, 5)] * 3
    assert not torch.equal(weights[0], weights[1])


def test_post_norm_is_torchs_encoder_layer(x):
    """An independent implementation of the same layer."""
    stack = build("post")
    for block in stack.blocks:
        theirs = torch.nn.TransformerEncoderLayer(DIM, 2, 20, 0.0, batch_first=True).double()
        attention = block.attention
        parts = (attention.query, attention.key, attention.value)
        theirs.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
                "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
                **{f"self_attn.out_proj.{key}": value for key, value in attention.out.state_dict().items()},
                **{f"linear1.{key}": value for key, value in block.feed_forward.expand.state_dict().items()},
                **{f"linear2.{key}": value for key, value in block.feed_forward.contract.state_dict().items()},
                **{f"norm1.{key}": value for key, value in block.attention_norm.state_dict().items()},
                **{f"norm2.{key}": value for key, value in block.feed_forward_norm.state_dict().items()},
            }
        )
        ours, _ = block(x, PaddedLayout.from_mask(MASK))
        torch.testing.assert_close(ours[MASK], theirs(x, src_key_padding_mask=~MASK)[MASK])


def test_dropout_has_its_four_places():
    """Attention weights, after attention, within and after the feed-forward part: each alone changes the result."""
    stack = Transformer(TransformerConfig(layers=1, heads=2, hidden=20, dropout=0.5), DIM)
    block = stack.blocks[0]
    assert block.attention.dropout == block.dropout.p == block.feed_forward.dropout.p == 0.5
    torch.manual_seed(0)
    x, ones = torch.randn(1, 50, DIM), torch.ones(1, 50).bool()
    attended = block.attention.eval()(x, PaddedLayout.from_mask(ones), "sdpa").context
    block.train()
    block.attention.eval()
    block.feed_forward.eval()
    torch.manual_seed(1)
    found, _ = block(x, PaddedLayout.from_mask(ones))
    torch.manual_seed(1)
    y = block.attention_norm(x + F.dropout(attended, 0.5))
    expected = block.feed_forward_norm(y + F.dropout(block.feed_forward(y), 0.5))
    torch.testing.assert_close(found, expected)


def test_layers_is_the_name_that_scripts_know():
    stack = build("post")
    assert stack.layers is stack.blocks
    assert not any(key.startswith("layers.") for key in stack.state_dict())


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_a_compiled_network_gives_the_same_numbers(backend):
    """What only oneDNN does by itself is not known to the compiler."""
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(layers=2, heads=2, hidden=24, dropout=0.0), 16).eval()
    x = torch.randn(2, 200, 16)
    layout = PaddedLayout.from_mask(torch.ones(2, 200, dtype=torch.bool))
    if backend == "varlen":
        x, layout = x.flatten(0, 1), PackedLayout.from_lengths((200, 200), "cpu")
    compiled = torch.compile(network, backend="aot_eager")
    with torch.no_grad():
        found, expected = (stack(Embedded(x, {}), BATCH, layout).tokens for stack in (compiled, network))
        torch.testing.assert_close(found, expected)
