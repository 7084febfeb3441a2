"""Heads against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.heads import (
    AdversaryHead,
    AffineExpressionHead,
    ClassifierHead,
    ExpressionHead,
    FromCellHead,
    FromCellInContextHead,
    sample_zeros,
)
from scgpt_tools.nn.output import CellOutput
from scgpt_tools.nn.sockets import HeadInput
from scgpt_tools.tokens.batch import TokenBatch

DIM = 6


@pytest.fixture
def inputs() -> HeadInput:
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    values = torch.tensor([[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 9.0]])
    batch = TokenBatch(genes=torch.zeros(2, 4, dtype=torch.int64), values=values, mask=mask)
    tokens, genes = draw(2, 4, DIM), draw(2, 4, DIM)
    return HeadInput(batch=batch, tokens=tokens, cell=draw(2, DIM), parts={"genes": genes})


@pytest.fixture
def in_context(inputs) -> HeadInput:
    random = torch.Generator().manual_seed(1)
    cell = torch.randn(2, DIM, generator=random)
    return replace(inputs, token_context=torch.randn(2, 4, DIM, generator=random), cell_context=cell)


def regress(x: torch.Tensor, stack) -> torch.Tensor:
    """Three linear maps with leaky ReLUs of slope 0.01."""
    for place in (0, 2):
        x = F.leaky_relu(x @ stack[place].weight.T + stack[place].bias, 0.01)
    return (x @ stack[4].weight.T + stack[4].bias)[..., 0]


def test_expression(inputs):
    head = ExpressionHead(DIM, DIM, nonzero=True)
    found = head(inputs)
    torch.testing.assert_close(found[""], regress(inputs.tokens, head.value))
    torch.testing.assert_close(found["_nonzero"], regress(inputs.tokens, head.nonzero).sigmoid())
    assert set(ExpressionHead(DIM, DIM)(inputs)) == {""}


def test_expression_in_context_reads_token_then_context(in_context):
    head = ExpressionHead(DIM, 2 * DIM)
    joint = torch.cat((in_context.tokens, in_context.token_context), dim=-1)
    torch.testing.assert_close(head(in_context)[""], regress(joint, head.value))


@pytest.mark.parametrize("activation", [None, "ReLU", "ELU"])
def test_affine_expression(inputs, activation):
    head = AffineExpressionHead(DIM, nonzero=True, activation=activation)
    act = torch.nn.Identity() if activation is None else getattr(torch.nn, activation)()
    slope, offset = act(regress(inputs.tokens, head.slope)), act(regress(inputs.tokens, head.offset))
    found = head(inputs)
    torch.testing.assert_close(found[""], slope * inputs.values + offset)
    torch.testing.assert_close(found["_nonzero"], regress(inputs.tokens, head.nonzero).sigmoid())


def test_adaptive_offset_is_scaled_by_the_mean_nonzero_value_of_real_tokens(inputs):
    head = AffineExpressionHead(DIM, adaptive_offset=True)
    offset = regress(inputs.tokens, head.offset) * torch.tensor([[1.5], [3.0]])
    found = head(inputs)[""]
    torch.testing.assert_close(found, regress(inputs.tokens, head.slope) * inputs.values + offset)


def test_adaptive_offset_of_an_empty_cell_is_zero_not_nan(inputs):
    head = AffineExpressionHead(DIM, adaptive_offset=True)
    assert not head(replace(inputs, batch=inputs.batch.replace(values=torch.zeros(2, 4))))[""].any()


@pytest.mark.parametrize("name", ["Relu", "functional", "no such thing"])
def test_an_activation_that_torch_has_not_is_refused(name):
    with pytest.raises(ValueError, match=r"class of torch\.nn"):
        AffineExpressionHead(DIM, activation=name)


def queries(head: FromCellHead, genes: torch.Tensor) -> torch.Tensor:
    return (genes @ head.query.weight.T + head.query.bias).sigmoid()


def test_from_cell_inner_product(inputs):
    head = FromCellHead(width=DIM, query=DIM, nonzero=True)
    found, q = head(inputs), queries(head, inputs.genes)
    product = torch.einsum("bld,wd,bw->bl", q, head.product.weight, inputs.cell)
    torch.testing.assert_close(found[""], product)
    logit = torch.einsum("blw,bw->bl", q @ head.nonzero.weight.T + head.nonzero.bias, inputs.cell)
    torch.testing.assert_close(found["_nonzero"], logit.sigmoid())


def test_from_cell_in_context_of_the_cell_only(in_context):
    head = FromCellHead(width=2 * DIM, query=DIM)
    cell = torch.cat((in_context.cell, in_context.cell_context), dim=-1)
    expected = torch.einsum("bld,wd,bw->bl", queries(head, in_context.genes), head.product.weight, cell)
    torch.testing.assert_close(head(in_context)[""], expected)


def test_from_cell_in_context_of_the_genes_too(in_context):
    head = FromCellInContextHead(width=2 * DIM, query=2 * DIM)
    cell = torch.cat((in_context.cell, in_context.cell_context), dim=-1)
    genes = torch.cat((in_context.genes, in_context.token_context), dim=-1)
    expected = torch.einsum("bld,wd,bw->bl", queries(head, genes), head.product.weight, cell)
    torch.testing.assert_close(head(in_context)[""], expected)


@pytest.mark.parametrize("style", ["concat", "sum"])
def test_from_cell_by_a_small_network(inputs, style):
    head = FromCellHead(width=DIM, query=DIM, style=style)
    q, cell = queries(head, inputs.genes), inputs.cell[:, None].expand(-1, 4, -1)
    joint = torch.cat((cell, q), dim=-1) if style == "concat" else cell + q
    hidden = F.prelu(joint @ head.expand.weight.T + head.expand.bias, head.activation.weight)
    expected = (hidden @ head.contract.weight.T + head.contract.bias)[..., 0]
    torch.testing.assert_close(head(inputs)[""], expected)
    assert head.query.out_features == (64 if style == "concat" else DIM)


@pytest.mark.parametrize(("style", "reaches"), [("inner", True), ("inner_detached", False)])
def test_detached_queries_keep_the_gradient_from_the_genes(inputs, style, reaches):
    genes = inputs.genes.clone().requires_grad_()
    cell = inputs.cell.clone().requires_grad_()
    head = FromCellHead(width=DIM, query=DIM, style=style)
    head(replace(inputs, parts={"genes": genes}, cell=cell))[""].sum().backward()
    assert (genes.grad is not None) == reaches
    assert cell.grad is not None
    assert head.query.weight.grad is not None


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_classifier_is_linear_activation_norm(inputs, layers):
    head = ClassifierHead(DIM, 3, layers)
    x = inputs.cell
    for layer in range(layers - 1):
        linear, _, norm = head.hidden[3 * layer : 3 * layer + 3]
        x = F.layer_norm((x @ linear.weight.T + linear.bias).relu(), (DIM,), norm.weight, norm.bias)
    torch.testing.assert_close(head(inputs)[""], x @ head.out.weight.T + head.out.bias)


def test_adversary_turns_the_gradient_of_the_cell_but_not_its_own(inputs):
    head = AdversaryHead(DIM, 2)
    turned, straight = (inputs.cell.clone().requires_grad_() for _ in range(2))
    head(replace(inputs, cell=turned))[""].square().sum().backward()
    own = head.out.weight.grad.clone()
    head.zero_grad()
    head.out(head.hidden(straight)).square().sum().backward()
    torch.testing.assert_close(turned.grad, -straight.grad)
    torch.testing.assert_close(head.out.weight.grad, own)
    assert isinstance(head.hidden[1], torch.nn.LeakyReLU)


def test_sampled_zeros_follow_the_probability_and_the_generator():
    prediction, nonzero = torch.full((100, 100), 2.0), torch.full((100, 100), 0.3)
    first, again = (sample_zeros(prediction, nonzero, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert abs(float((first != 0).float().mean()) - 0.3) < 0.02


def test_output_names_what_there_is():
    output = CellOutput(torch.zeros(1), torch.zeros(1), {"genes": torch.ones(2)}, {"expression": torch.ones(1)})
    assert output["expression"] == 1
    assert output.genes.tolist() == [1, 1]
    with pytest.raises(KeyError, match=r"'cell_type', found \['expression'\]"):
        output["cell_type"]
