"""The one model class: what it returns, refuses, adapts to, and where it lives."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig, executor
from scgpt_tools.models.config import (
    ClassifierConfig,
    ContextConfig,
    scgpt_embedder,
)
from scgpt_tools.models.formats.scgpt import to_scgpt
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = testing.tiny_vocabulary()
SCGPT = FAMILIES["scgpt"](VOCABULARY, dim=16, layers=2, heads=2, hidden=24, dropout=0.1)


def build(config: ModelConfig = SCGPT, vocabulary: Vocabulary | None = VOCABULARY) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config, vocabulary, name="tiny").eval()


@pytest.fixture
def model() -> CellModel:
    return build()


@pytest.fixture
def batch(model):
    return testing.tiny_batch(model)


def test_the_released_size_has_the_tensors_of_the_released_file():
    """163 tensors and 51.33 million parameters at 60,697 tokens, counted from the original."""
    with torch.device("meta"):
        model = CellModel(replace(FAMILIES["scgpt"](VOCABULARY), n_tokens=60_697))
    theirs = to_scgpt(model.state_dict(), "fused")
    assert len(theirs) == 163
    assert round(sum(tensor.numel() for tensor in theirs.values()) / 1e6, 2) == 51.33


def test_it_says_what_it_is_and_lists_modules_on_request():
    config = replace(
        SCGPT,
        heads=SCGPT.heads.replace(cell_type=ClassifierConfig(classes=2, names=("B", "T"))),
        domains=2,
        embedder=replace(SCGPT.embedder, norm="domain"),
        batch_names=("first", "second"),
        trained_genes=("G0", "G1"),
    )
    said = repr(build(config))
    for line in (
        "CellModel 'tiny'",
        "family     scgpt",
        "2 layers",
        f"{len(VOCABULARY) - len(VOCABULARY.specials)} in the vocabulary",
        "trained on 2 genes: G0, G1",
        "classes    2 of cell_type: B, T",
        "batches    2, each normalised by itself: first, second",
        "weights    untrained",
    ):
        assert line in said
    assert len(said.splitlines()) < 15
    assert "<th" in build(config)._repr_html_()
    assert "Linear(in_features=" in build(config).architecture()
    assert "tokens without names" in repr(build(vocabulary=None))


# Computing ------------------------------------------------------------------------------------------------------------


def test_shapes_and_names(model, batch):
    output = model(batch)
    assert output.tokens.shape == output.genes.shape == (*batch.genes.shape, 16)
    assert output.cell.shape == (4, 16)
    assert set(output.predictions) == {"expression", "expression_from_cell"}
    assert output["expression"].shape == batch.genes.shape
    assert output.attention is None
    assert not output.tokens[~batch.mask].any()


def test_only_the_heads_asked_for(model, batch):
    assert set(model(batch, ("expression",)).predictions) == {"expression"}
    assert model(batch, ()).predictions == {}
    with pytest.raises(ValueError, match=r"among \['expression', 'expression_from_cell'\], found 'cell_type'.*`adapt`"):
        model(batch, ("cell_type",))


def test_weights_of_attention(model, batch):
    attention = model(batch, attention="eager").attention
    assert len(attention) == 2
    assert attention[0].shape == (4, 2, 9, 9)


def test_an_unknown_backend_is_refused(model, batch):
    for call in (model, model.embed_cells):
        with pytest.raises((KeyError, ValueError), match="varlen"):
            call(batch, attention="varlan")


def test_a_given_cell_stands_at_the_first_place(model, batch):
    """Its own embedding of the first token is not read then."""
    cell = torch.randn(4, 16)
    values = batch.values.clone()
    values[:, 0] = 7
    first, second = model(batch, cell=cell), model(batch.replace(values=values), cell=cell)
    torch.testing.assert_close(first.tokens, second.tokens)
    assert not torch.allclose(first.tokens, model(batch).tokens)


def test_generate_is_forward_with_a_cell(model, batch):
    cell = torch.randn(4, 16)
    with_values = model.generate(cell, batch, values=True)
    torch.testing.assert_close(with_values, model(batch, cell=cell)["expression"])
    without = model.generate(cell, batch)
    torch.testing.assert_close(without, model.generate(cell, batch.replace(values=torch.zeros_like(batch.values))))
    assert not torch.allclose(without, with_values)
    other = model.generate(cell + 1, batch)
    assert not torch.allclose(without[batch.mask], other[batch.mask])


def test_hidden_values_are_not_seen(model, batch):
    """The prediction at a masked place does not know the truth."""
    seen = MaskValues(ratio=0.5)(batch, rng=0)
    assert seen.hidden.any()
    truth = torch.where(seen.hidden, batch.values + 9, batch.values)
    torch.testing.assert_close(model(seen).cell, model(MaskValues(ratio=0.5)(batch.replace(values=truth), rng=0)).cell)


def test_generated_values_are_not_seen(model, batch):
    """Not even the marker is: the flag stands for the value of a generated token."""
    split = GenerateValues(ratio=0.5)(batch, rng=0)
    changed = split.replace(values=torch.where(split.generated, split.values + 9, split.values))
    first, second = model(split), model(changed)
    torch.testing.assert_close(first.tokens, second.tokens)
    torch.testing.assert_close(first.predictions, second.predictions)


def test_a_cell_is_made_of_what_is_perceived(model, batch):
    """Tokens to be generated change nothing about the cell, by either way to its embedding."""
    split = GenerateValues(ratio=0.5)(batch, rng=0)
    perceived = split.replace(mask=split.mask & ~split.generated, generated=None)
    torch.testing.assert_close(model(split).cell, model(perceived).cell)
    for backend in (None, "sdpa", "eager", "varlen"):
        for pooling in ("cls", "mean", "weighted"):
            found = model.embed_cells(split, attention=backend, pooling=pooling)
            torch.testing.assert_close(found, model.embed_cells(perceived, pooling=pooling), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="'sdpa' or 'eager' attention for generated tokens, found 'varlen'"):
        model(split, attention="varlen")


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted"])
def test_a_cell_without_tokens_is_zero_and_harms_no_other(model, batch, place, pooling):
    mask = batch.mask.clone()
    mask[place] = False
    empty = batch.replace(mask=mask)
    others = [row for row in range(4) if row != place]
    expected = model.embed_cells(batch, pooling=pooling)
    for backend in (None, "sdpa", "varlen", "eager"):
        found = model.embed_cells(empty, attention=backend, pooling=pooling)
        assert not found[place].any()
        torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-6)
    for backend in ("sdpa", "varlen", "eager"):
        torch.testing.assert_close(model(empty, attention=backend).tokens[others], model(batch).tokens[others])


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "mean_with_padding"])
@pytest.mark.parametrize("n_tokens", [1, 12])
def test_groups_of_cells_are_the_whole(n_tokens, pooling, attention, model, batch, monkeypatch):
    """How many cells go through the layers at once is a matter of speed."""
    expected = model.embed_cells(batch, pooling=pooling, attention=attention)
    used, embed = [], executor._embed
    monkeypatch.setattr(executor, "_TOKENS", n_tokens)
    monkeypatch.setattr(executor, "_NUMBERS", 0)
    counted = lambda model, part, **how: used.append(len(part)) or embed(model, part, **how)
    monkeypatch.setattr(executor, "_embed", counted)
    found = model.embed_cells(batch, pooling=pooling, attention=attention)
    assert len(used) > 1
    assert sum(used) == len(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_first_label_counts_for_all_cells_of_a_minibatch(batch, monkeypatch):
    """Also where cells go through the layers in groups."""
    monkeypatch.setattr(executor, "_TOKENS", 1)
    model = build(replace(SCGPT, embedder=scgpt_embedder(norm="domain_of_first"), domains=2))
    with torch.no_grad():
        model.embedder.norm.domains[1].running_mean.add_(1)
    found = model.embed_cells(batch.replace(batch_id=torch.tensor([1, 0, 1, 0])))
    torch.testing.assert_close(found, model.embed_cells(batch.replace(batch_id=torch.tensor([1, 1, 1, 1]))))


def test_embed_cells_needs_no_labels_that_only_heads_read():
    model = build(replace(SCGPT, context=ContextConfig(batches=2, modalities=3)))
    batch = testing.tiny_batch(model)
    found = model.embed_cells(batch.replace(batch_id=None, modality=None))
    torch.testing.assert_close(found, model(batch).cell, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="with `modality`"):
        model(batch.replace(modality=None))


def test_a_norm_by_domain_needs_its_labels():
    model = build(replace(SCGPT, embedder=scgpt_embedder(norm="domain"), domains=2))
    batch = testing.tiny_batch(model)
    for call in (model, model.embed_cells):
        with pytest.raises(ValueError, match="batch labels"):
            call(batch.replace(batch_id=None))


def test_gradients_without_padding_are_those_with_it(batch, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", 1)
    model = build(replace(SCGPT, encoder=replace(SCGPT.encoder, dropout=0.0))).train()
    gradients = {}
    for attention in ("sdpa", "varlen", None):
        model.zero_grad()
        output = model(batch, attention=attention)
        sum(prediction.square().mean() for prediction in output.predictions.values()).backward()
        gradients[attention] = {
            name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None
        }
    assert gradients["varlen"]
    torch.testing.assert_close(gradients["varlen"], gradients["sdpa"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[None], gradients["varlen"], rtol=0, atol=0)


@pytest.mark.parametrize(("lengths", "expected"), [((6, 6), "sdpa"), ((6, 4), "varlen"), ((6, 0), "sdpa")])
def test_padding_is_left_out_where_there_is_some(lengths, expected, model, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", 6)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    batch = TokenBatch(genes=torch.full((2, 6), 3), values=torch.ones(2, 6), mask=mask)
    assert executor.layout_of(model, batch, None).backend == expected


@pytest.mark.parametrize(("long", "expected"), [(6, [6, 6, 52]), (7, [])])  # 52 of nothing: 64 together
def test_long_cells_go_one_by_one_in_training_with_dropout(long, expected, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", long)
    model = build(replace(SCGPT, encoder=replace(SCGPT.encoder, dropout=0.1)))
    batch = TokenBatch(genes=torch.full((2, 6), 3), values=torch.ones(2, 6), mask=torch.ones(2, 6, dtype=torch.bool))
    calls = []
    monkeypatch.setattr("scgpt_tools.nn.attention._one_cell", lambda q, *_: calls.append(len(q)) or q)
    model(batch)
    assert calls == []
    model.train()(batch)
    assert calls == expected * SCGPT.encoder.layers


def test_computing_draws_nothing_from_the_global_generators(model, batch):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model(batch)
    model.embed_cells(batch)
    model.generate(torch.zeros(4, 16), batch)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


# What travels with the weights ----------------------------------------------------------------------------------------


def test_tokenizer_and_vocabulary(model):
    assert isinstance(model.tokenizer, Tokenizer)
    assert model.tokenizer.config == SCGPT.tokenizer
    assert model.tokenizer.vocabulary is model.vocabulary
    assert (model.dim, model.device.type, model.name) == (16, "cpu", "tiny")


def test_a_bare_network_has_no_vocabulary(tmp_path):
    bare = build(vocabulary=None)
    for use in (lambda: bare.vocabulary, lambda: bare.tokenizer, lambda: bare.save(tmp_path)):
        with pytest.raises(ValueError, match="found a bare network"):
            use()
    assert len(bare.checksum) == 64


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (VOCABULARY.extended(["ONE MORE"]), "at most 27 tokens, .* found 28"),
        (Vocabulary(["<pad>", "<cls>", "A"]), "padding to have id 12, found 0"),
        (Vocabulary(["A", "B"]), "<pad>"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        CellModel(SCGPT, vocabulary)


def test_checksum_is_of_the_content(model):
    assert model.checksum == build().checksum == copy.deepcopy(model).checksum
    values = {model.checksum}
    with torch.no_grad():
        model.heads["expression"].value[0].bias[3] += 1e-6
    values.add(model.checksum)
    values.add(build(vocabulary=Vocabulary([*VOCABULARY.tokens[:-1], "OTHER"])).checksum)
    values.add(build(vocabulary=None).checksum)
    assert len(values) == 4


def test_checksum_of_integers_and_half_precision():
    model = build(replace(SCGPT, embedder=scgpt_embedder(norm="batch")))
    before = model.checksum
    model.embedder.norm.num_batches_tracked += 1
    assert model.checksum != before
    assert len(model.bfloat16().checksum) == 64


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_models_can_be_copied_and_sent_to_other_processes(model, batch, duplicate):
    twin = duplicate(model)
    assert twin.config == model.config
    assert twin.vocabulary == model.vocabulary
    torch.testing.assert_close(twin(batch).cell, model(batch).cell)
