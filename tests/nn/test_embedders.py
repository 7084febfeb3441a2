"""Embeddings of genes and values, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.config import Named
from scgpt_tools.models.config import scgpt_embedder
from scgpt_tools.nn.embedders import (
    BinnedValue,
    ContinuousConfig,
    ContinuousValue,
    Embedder,
    EmbedderConfig,
    GenerationConfig,
    GenesConfig,
    LinearConfig,
    NormedTable,
    PerturbationConfig,
    ScaleConfig,
    ScaleValue,
    TableConfig,
    gene_table,
)
from scgpt_tools.nn.sockets import Sizes
from scgpt_tools.tokens.batch import TokenBatch

GENES = torch.tensor([[3, 1, 5], [0, 2, 2]])
VALUES = torch.tensor([[1.0, 2.5, 0.0], [-2.0, 7.0, 3.0]])


BATCH = TokenBatch(genes=GENES, values=VALUES, mask=torch.ones(2, 3, dtype=torch.bool))
FLAGS = torch.tensor([[0, 1, 2], [1, 1, 0]])


def build(config: EmbedderConfig, domains: int = 0) -> Embedder:
    torch.manual_seed(0)
    return Embedder(config, Sizes(dim=8, n_tokens=6, pad_id=2, domains=domains)).eval()


def embedder(domains: int = 0, **options) -> Embedder:
    return build(scgpt_embedder(**options), domains)


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


def test_parts_are_added_and_kept():
    part = embedder(perturbation_rows=3, perturbation_pad=0)
    found = part(BATCH.replace(perturbed=FLAGS))
    expected = {"genes": part.genes(GENES), "values": part.values(VALUES), "perturbation": part.perturbation(FLAGS)}
    torch.testing.assert_close(found.parts, expected)
    torch.testing.assert_close(found.tokens, sum(expected.values()))
    torch.testing.assert_close(found.total(["genes", "perturbation"]), expected["genes"] + expected["perturbation"])
    assert found.genes is found.parts["genes"]
    assert not part.perturbation.weight[0].any()
    assert part(BATCH).parts.keys() == {"genes", "values"}
    with pytest.raises(ValueError, match=r"among \['genes', 'values'\], found \['text'\]"):
        part(BATCH).total(["text"])


def test_scale_multiplies():
    part = embedder(values="scale")
    torch.testing.assert_close(part(BATCH).tokens, part.genes(GENES) * VALUES[..., None])


def test_fields_that_are_not_to_be_looked_at():
    part = embedder(generation=True)
    hidden = BATCH.replace(generated=torch.ones_like(BATCH.mask))
    torch.testing.assert_close(part(hidden, without={"values", "generated"}).tokens, part.genes(GENES))
    torch.testing.assert_close(part(hidden, without={"generated"}).tokens, part(BATCH).tokens)


def test_generated_tokens_have_the_flag_for_a_value():
    part = embedder(generation=True)
    generated = torch.tensor([[False, True, False], [True, False, True]])
    found = part(BATCH.replace(generated=generated))
    values = part.values(VALUES)
    values[generated] = part.generation.weight[1]
    torch.testing.assert_close(found.tokens, part.genes(GENES) + values)
    torch.testing.assert_close(found.parts["values"], values)


def test_packed_and_padded_tokens_are_the_same():
    part = embedder(perturbation_rows=3, norm="domain", domains=2)
    batch = BATCH.replace(perturbed=FLAGS, batch_id=torch.tensor([1, 0]))
    torch.testing.assert_close(part(batch.packed()).tokens, part(batch).tokens.flatten(0, 1))


def test_the_norm_comes_last():
    part = embedder(norm="batch")
    part.norm.running_mean.fill_(2.0)
    plain = part.genes(GENES) + part.values(VALUES)
    torch.testing.assert_close(part(BATCH).tokens, (plain - 2) / (1 + 6.1e-5) ** 0.5)
    torch.testing.assert_close(part(BATCH).genes, part.genes(GENES))


def test_layer_norm_and_dropout_of_the_sum():
    part = build(EmbedderConfig(norm="layer", dropout=0.5))
    plain = part.genes(GENES) + part.values(VALUES)
    torch.nn.init.normal_(part.norm.weight)
    expected = F.layer_norm(plain, (8,), part.norm.weight, part.norm.bias)
    torch.testing.assert_close(part(BATCH).tokens, expected)
    part.dropout.train()
    dropped = part(BATCH).tokens
    assert (dropped == 0).any()
    torch.testing.assert_close(dropped[dropped != 0], 2 * expected[dropped != 0])


def test_parts_of_any_field_with_and_without_norms():
    parts = {
        "genes": GenesConfig(norm=False),
        "numbers": LinearConfig(),
        "targets": TableConfig(rows=9, field="target", norm=False),
    }
    part = build(EmbedderConfig(parts=Named(parts)))
    assert {name: config.reads for name, config in parts.items()} == {
        "genes": ("genes",),
        "numbers": ("values",),
        "targets": ("target",),
    }
    target = VALUES.clamp(min=0)
    expected = part.genes.table.weight[GENES] + VALUES[..., None] * part.numbers.weight[:, 0] + part.numbers.bias
    expected = expected + part.targets.table.weight[target.long()]
    torch.testing.assert_close(part(BATCH.replace(target=target)).tokens, expected)
    with pytest.raises(ValueError, match="batch with `target`, which this model reads; found none"):
        part(BATCH)


def test_parts_by_name():
    part = embedder(perturbation_rows=3)
    assert part.part("genes") is part.genes
    assert part.by_task == [part.perturbation]
    with pytest.raises(ValueError, match="no part of the embedder 'gene'. Did you mean 'genes'"):
        part.part("gene")


def test_fields_that_batches_lack_are_refused():
    with pytest.raises(ValueError, match="no field of a token batch 'bin'. Did you mean 'bins'"):
        TableConfig(rows=3, field="bin")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "`parts` to begin with one to add to"),
        ({"values": ScaleConfig(), "genes": GenesConfig()}, "begin with one to add to"),
        ({"genes": GenesConfig(), "norm": ContinuousConfig()}, "name of its own, found 'norm'"),
        ({"genes": GenesConfig(), "forward": ContinuousConfig()}, "name of its own, found 'forward'"),
        (
            {"genes": GenesConfig(), "generation": GenerationConfig()},
            "a part 'values' that is added, which 'generation' stands",
        ),
        ({"genes": GenesConfig(), "a b": ContinuousConfig()}, "names of letters, digits and underscores, found 'a b'"),
        ({"genes": GenesConfig(), "flags": PerturbationConfig(rows=2)} | {"genes": 3}, "`parts.genes`"),
    ],
)
def test_parts_that_make_no_embedder_are_refused(parts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EmbedderConfig(parts=Named(parts))


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
        embedder(**options)(BATCH.replace(**inputs))


@pytest.mark.parametrize(("option", "near"), [("values", "continous"), ("norm", "domian")])
def test_unknown_parts_name_the_nearest(option, near):
    with pytest.raises((KeyError, ValueError), match="Did you mean|continuous|domain"):
        embedder(**{option: near})
