"""Embeddings of genes and values, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.embedders import BinnedValue, ContinuousValue, Embedder, NormedTable, ScaleValue, gene_table

GENES = torch.tensor([[3, 1, 5], [0, 2, 2]])
VALUES = torch.tensor([[1.0, 2.5, 0.0], [-2.0, 7.0, 3.0]])


def embedder(**options) -> Embedder:
    torch.manual_seed(0)
    return Embedder(**{"genes": 6, "pad": 2, "dim": 8, "dropout": 0.0, **options}).eval()


def test_gene_table_starts_uniform_padding_included():
    torch.manual_seed(0)
    table = gene_table(1000, 8, 7)
    weight = table.table.weight
    assert weight[7].any()
    assert -0.1 <= weight.min() < -0.09
    assert 0.09 < weight.max() <= 0.1


def test_gene_table_never_trains_padding():
    table = gene_table(6, 8, 2)
    table(GENES).sum().backward()
    assert not table.table.weight.grad[2].any()


def test_a_table_is_a_look_up_and_a_norm():
    torch.manual_seed(0)
    table = NormedTable(6, 8)
    expected = F.layer_norm(table.table.weight[GENES], (8,), table.norm.weight, table.norm.bias)
    torch.testing.assert_close(table(GENES), expected)


def test_continuous_values_by_formula():
    torch.manual_seed(0)
    part = ContinuousValue(8, 0.0)
    hidden = (VALUES[..., None] * part.first.weight[:, 0] + part.first.bias).relu()
    expected = F.layer_norm(hidden @ part.second.weight.T + part.second.bias, (8,), part.norm.weight, part.norm.bias)
    torch.testing.assert_close(part(VALUES), expected)


def test_values_are_capped_above_and_not_below():
    torch.manual_seed(0)
    part = ContinuousValue(8, 0.0)
    capped, above, below, far_below = part(torch.tensor([512.0, 1e6, -600.0, -900.0]))
    torch.testing.assert_close(above, capped)
    assert not torch.allclose(below, far_below)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
def test_values_of_any_type_are_read(dtype):
    part = ContinuousValue(8, 0.0)
    torch.testing.assert_close(part(VALUES.round().to(dtype)), part(VALUES.round()))


def test_bins_are_cut_towards_zero():
    torch.manual_seed(0)
    part = BinnedValue(8, 4, 7)
    torch.testing.assert_close(part(torch.tensor([0.9, 3.2])), part(torch.tensor([0, 3])))


@pytest.mark.parametrize("wrong", [-1.0, -2.0, 8.0])
def test_bins_without_a_row_are_refused(wrong):
    with pytest.raises(ValueError, match=r"bins within 0 \.\. 7, found .*rows of their own"):
        BinnedValue(8, 4)(torch.tensor([0.0, wrong]))


def test_scale_leaves_the_number():
    assert torch.equal(ScaleValue()(VALUES), VALUES[..., None])


def test_parts_are_added():
    part = embedder(perturbation_rows=3, perturbation_pad=0)
    flags = torch.tensor([[0, 1, 2], [1, 1, 0]])
    found = part(GENES, VALUES, perturbed=flags)
    expected = part.genes(GENES) + part.values(VALUES) + part.perturbation(flags)
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(found.genes, part.genes(GENES))
    assert not part.perturbation.weight[0].any()


def test_scale_multiplies():
    part = embedder(values="scale")
    torch.testing.assert_close(part(GENES, VALUES).tokens, part.genes(GENES) * VALUES[..., None])


def test_genes_alone():
    part = embedder()
    torch.testing.assert_close(part(GENES, None).tokens, part.genes(GENES))


def test_generated_tokens_have_the_flag_for_a_value():
    part = embedder(generation=True)
    generated = torch.tensor([[False, True, False], [True, False, True]])
    found = part(GENES, VALUES, generated=generated).tokens
    values = part.values(VALUES)
    values[generated] = part.generation.weight[1]
    torch.testing.assert_close(found, part.genes(GENES) + values)


def test_packed_and_padded_tokens_are_the_same():
    part = embedder(perturbation_rows=3, norm="domain", domains=2)
    flags, domain = torch.zeros_like(GENES), torch.tensor([1, 0])
    padded = part(GENES, VALUES, perturbed=flags, domain=domain).tokens
    packed = part(
        GENES.flatten(), VALUES.flatten(), perturbed=flags.flatten(), domain=domain.repeat_interleave(3)
    ).tokens
    torch.testing.assert_close(packed, padded.flatten(0, 1))


def test_the_norm_comes_last():
    part = embedder(norm="batch")
    part.norm.running_mean.fill_(2.0)
    plain = part.genes(GENES) + part.values(VALUES)
    torch.testing.assert_close(part(GENES, VALUES).tokens, (plain - 2) / (1 + 6.1e-5) ** 0.5)
    torch.testing.assert_close(part(GENES, VALUES).genes, part.genes(GENES))


@pytest.mark.parametrize("shape", [(600,), (4, 150)], ids=str)
@pytest.mark.parametrize("n_different", [3, 51, 600])
def test_few_different_values_are_embedded_once(shape, n_different, monkeypatch):
    """And again after the weights have changed."""
    torch.manual_seed(0)
    part = ContinuousValue(8, 0.5).eval()
    values = (torch.arange(600) % n_different - 2.0).view(shape)
    computed, embed = [], part._embed
    monkeypatch.setattr(part, "_embed", lambda x: computed.append(x.numel()) or embed(x))
    for _ in range(2):
        expected = part(values)
        assert expected.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(part(values), expected, rtol=0, atol=1e-6)
            part.second.weight.mul_(1.5)
    assert computed == [600, n_different] * 2


def test_each_value_has_its_own_dropout():
    torch.manual_seed(0)
    with torch.no_grad():
        found = ContinuousValue(8, 0.5).train()(torch.ones(100))
    assert len(found.unique(dim=0)) > 50


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({}, {"perturbed": torch.zeros_like(GENES)}, "perturbation flags"),
        ({}, {"generated": torch.zeros_like(GENES).bool()}, "generation flag"),
        ({"values": "scale"}, {"generated": torch.zeros_like(GENES).bool()}, "generation flag"),
        ({"norm": "domain", "domains": 2}, {}, "batch labels"),
    ],
)
def test_inputs_that_a_model_has_no_part_for_are_refused(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        embedder(**options)(GENES, VALUES, **inputs)


@pytest.mark.parametrize(("option", "near"), [("values", "continous"), ("norm", "domian")])
def test_unknown_parts_name_the_nearest(option, near):
    with pytest.raises((KeyError, ValueError), match="Did you mean|continuous|domain"):
        embedder(**{option: near})
