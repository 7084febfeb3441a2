"""Every family and every variant of its parts keeps the contracts; and each contract notices who breaks it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ContextConfig,
    DecoderConfig,
    EmbedderConfig,
    ExpressionConfig,
    FromCellConfig,
    GenesConfig,
    MixtureConfig,
    Named,
    ReferenceCellsConfig,
    TableConfig,
    TokenClassesConfig,
    scgpt_embedder,
)
from scgpt_tools.nn.embedders import LinearConfig

VOCABULARY = testing.tiny_vocabulary()
TINY = {"dim": 16, "layers": 2, "heads": 2, "hidden": 24, "dropout": 0.1}
NEEDS = {
    "scgenept": {"width": 6},
    "scgpt_multiomic": {"modalities": 4, "modality_pad": 0, "batches": 2},
    # Without, as DeepSC has it, a cell depends on the padding of its minibatch.
    "deepsc": {"padding_mask": True},
    "deepsc_perturbation": {"padding_mask": True},
}


def family(name: str) -> ModelConfig:
    return FAMILIES[name](VOCABULARY, **TINY, **NEEDS.get(name, {}))


def scgpt(**changes) -> ModelConfig:
    return replace(family("scgpt"), **changes)


def with_heads(**heads) -> ModelConfig:
    return scgpt(heads=family("scgpt").heads.replace(**heads))


BINNED = scgpt_embedder(values="binned", value_rows=54, value_pad=53)
BINS = TableConfig(rows=8, field="bins", norm=False)
RANKS = TableConfig(rows=30, field="positions")
CHANNELS = EmbedderConfig(parts=Named(genes=GenesConfig(), values=LinearConfig(), bins=BINS, ranks=RANKS))
CONTEXT = ContextConfig(batches=3, modalities=4)
PERTURBATION = family("scgpt_perturbation")

VARIANTS = {
    "binned values": scgpt(embedder=BINNED),
    "scaled values": scgpt(embedder=scgpt_embedder(values="scale")),
    "a bin and a rank beside the value": scgpt(embedder=CHANNELS),
    "a bin and no value": scgpt(embedder=EmbedderConfig(parts=Named(genes=GenesConfig(), bins=BINS))),
    "mean pooling": scgpt(pooling="mean"),
    "weighted pooling": scgpt(pooling="weighted"),
    "batch norm": scgpt(embedder=scgpt_embedder(norm="batch")),
    "norm by domain": scgpt(embedder=scgpt_embedder(norm="domain"), domains=3),
    "norm by domain of binned values": scgpt(embedder=replace(BINNED, norm="domain"), domains=2),
    "replaced stream": scgpt(encoder=replace(family("scgpt").encoder, norm="replace")),
    "told the batch": scgpt(context=ContextConfig(batches=3)),
    "told the modality": scgpt(context=ContextConfig(modalities=4, modality_pad=1)),
    "told both": scgpt(context=CONTEXT),
    "told both, in the query too": scgpt(
        context=CONTEXT,
        heads=Named(
            expression=ExpressionConfig(nonzero=True),
            expression_from_cell=FromCellConfig(nonzero=True, context_in_query=True),
        ),
    ),
    "pooled by mean and told the modality": scgpt(pooling="mean", context=CONTEXT),
    "probabilities": with_heads(
        expression=ExpressionConfig(nonzero=True), expression_from_cell=FromCellConfig(nonzero=True)
    ),
    **{
        f"from cell by {style}": with_heads(expression_from_cell=FromCellConfig(style=style))
        for style in ("inner", "inner_detached", "concat", "sum")
    },
    "classes and an adversary": with_heads(
        cell_type=ClassifierConfig(classes=9, names=tuple("ABCDEFGHI")), batch=AdversaryConfig(classes=3)
    ),
    "shallow classifier": with_heads(cell_type=ClassifierConfig(classes=2, layers=1)),
    "cells of the training beside": with_heads(reference_cells=ReferenceCellsConfig(cells=7, held_out=4, neighbours=3)),
    "text and GO, of which genes may lack one": FAMILIES["scgenept"](
        VOCABULARY, **TINY, model_type="scgenept_ncbi+uniprot_go_c", width={"text": 6, "go": 4}, masked=True
    ),
    "a corrected table of texts": FAMILIES["scgenept"](
        VOCABULARY, **TINY, model_type="scgenept_go_all_gpt_avg", width=5, frozen=True, rank=2
    ),
    "a decoder that knows places and no genes": replace(
        family("scmodelforge_autoencoder"),
        embedder=CHANNELS,
        heads=Named(expression=DecoderConfig(dim=8, layers=1, heads=2, genes=False, positions=30)),
    ),
    "classes of genes, bins and cells": with_heads(
        genes=TokenClassesConfig(),
        bins=TokenClassesConfig(classes=5),
        cell_type=ClassifierConfig(classes=3, layers=2, width=5, activation="gelu", norm=False, dropout=0.1),
    ),
    "affine with all options": replace(
        PERTURBATION,
        heads=Named(
            expression=AffineConfig(nonzero=True, activation="ELU", adaptive_offset=True),
            expression_from_cell=FromCellConfig(),
        ),
    ),
}
VARIANTS |= {
    "single stream with experts": FAMILIES["deepsc"](
        VOCABULARY,
        **TINY | {"layers": 3},
        gene_layers=1,
        streams="single",
        cross="B",
        mixture=MixtureConfig(layers=1, hidden=8, experts=3, active=2, score="sigmoid"),
        experts=0,
        padding_mask=True,
    ),
    "numbers in two streams": FAMILIES["deepsc_perturbation"](
        VOCABULARY, **TINY, values="number", cross="C", padding_mask=True
    ),
}
CONFIGS = {name: family(name) for name in FAMILIES} | VARIANTS


def build(config: ModelConfig) -> CellModel:
    torch.manual_seed(0)
    model = CellModel(config, VOCABULARY).eval()
    for name, tensor in model.embedder.state_dict().items():
        # Of a model that masks genes without a text, none has one yet.
        if name.endswith("table.weight") and not tensor.any():
            tensor[::2].uniform_(-0.1, 0.1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            # Running statistics that differ from one domain to the next, as after training.
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> CellModel:
    return build(CONFIGS[request.param])


@pytest.mark.parametrize("contract", testing.CONTRACTS)
def test_contract(model, contract):
    testing.CONTRACTS[contract](model, testing.tiny_batch(model))


@pytest.mark.parametrize("contract", testing.CONTRACTS)
def test_contracts_leave_the_model_as_it_was(contract):
    model = build(scgpt(embedder=scgpt_embedder(norm="batch")))
    before, mode = model.checksum, [part.training for part in model.modules()]
    testing.CONTRACTS[contract](model, testing.tiny_batch(model))
    assert model.checksum == before
    assert [part.training for part in model.modules()] == mode
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_contracts_with_cells_of_one_token(rows):
    """Cells with nothing but the cell token, anywhere among the others."""
    model = build(scgpt())
    lengths = [5, 4, 6, 5]
    lengths[rows] = 1
    batch = testing.tiny_batch(model, lengths=lengths)
    for contract in ("padding", "batching", "backends", "embed_cells"):
        testing.CONTRACTS[contract](model, batch)


def similarity(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.cosine_similarity(found.double(), expected.double()).min())


def test_half_precision_chosen_by_the_caller(model):
    """Autocast around a model of any kind: as good as the format allows, in evaluation and in training."""
    batch = testing.tiny_batch(model)
    with torch.no_grad():
        expected = model(batch).cell
        with torch.autocast("cpu", torch.bfloat16):
            assert similarity(model(batch).cell, expected) > 0.995
            assert similarity(model.embed_cells(batch), expected) > 0.995
    trained = copy.deepcopy(model).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = trained(batch)
        loss = output.cell.float().square().mean()
        loss = loss + sum(prediction.float().square().mean() for prediction in output.predictions.values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.99), (torch.float64, 1 - 1e-6)], ids=str)
def test_models_in_other_number_formats(model, dtype, least):
    batch, other = testing.tiny_batch(model), copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        expected, found = model(batch), other(batch)
        assert found.cell.dtype == dtype
        assert similarity(found.cell, expected.cell) > least
        for pooling in ("cls", "mean", "weighted"):
            cells = other.embed_cells(batch, pooling=pooling)
            assert cells.dtype == dtype
            assert similarity(cells, model.embed_cells(batch, pooling=pooling)) > least
        if not model.encoder.parts and "expression" in model.heads:
            assert other.generate(expected.cell, batch).isfinite().all()


# Contracts that could not fail would be worth nothing -----------------------------------------------------------------


def broken(contract: str, config: ModelConfig, change=None) -> None:
    model = build(config)
    if change is not None:
        change(model)
    with pytest.raises(AssertionError):
        testing.CONTRACTS[contract](model, testing.tiny_batch(model))


@pytest.mark.parametrize("contract", ["padding", "batching"])
def test_pooling_over_padding_is_noticed(contract):
    broken(contract, scgpt(pooling="mean_with_padding"))


def test_the_norm_of_the_first_cell_is_noticed():
    broken("batching", scgpt(embedder=scgpt_embedder(norm="domain_of_first"), domains=3))


def test_positions_are_noticed():
    def number_the_tokens(model):
        forward = model.encoder.forward
        model.encoder.forward = lambda x, *rest, **options: forward(
            x._replace(tokens=x.tokens + torch.arange(x.tokens.shape[-2])[:, None] / 10), *rest, **options
        )

    broken("gene order", scgpt(), number_the_tokens)


def test_values_that_nobody_reads_are_noticed():
    def forget_values(model):
        model.embedder.values = nn.Identity()
        model.embedder.values.forward = lambda values: values.new_zeros(*values.shape, model.dim)

    broken("depends on cell", scgpt(), forget_values)


def test_a_wrong_backend_is_noticed(monkeypatch):
    from scgpt_tools.nn import attention

    def shifted(*arguments):
        return attention.Attended(attention.sdpa(*arguments).context + 0.01)

    monkeypatch.setitem(attention.BACKENDS, "sdpa", shifted)
    broken("backends", scgpt())


def test_a_wrong_short_way_is_noticed():
    def scale(model):
        embed_cells = model.embed_cells
        model.embed_cells = lambda *arguments, **options: embed_cells(*arguments, **options) * 1.01

    broken("embed_cells", scgpt(), scale)


def test_a_lossy_file_is_noticed():
    def save_something_else(model):
        other = build(scgpt())
        nn.init.zeros_(other.heads["expression"].value[0].bias)
        model.save = other.save

    broken("saving", scgpt(), save_something_else)


def test_a_parameter_without_gradient_is_noticed():
    def add_one(model):
        model.heads["expression"].unused = nn.Linear(2, 2)

    broken("gradients", scgpt(), add_one)


def test_a_gradient_that_is_not_finite_is_noticed():
    def explode(model):
        model.heads["expression"].value[4].register_full_backward_pre_hook(
            lambda module, gradient: (gradient[0] * 1e39,)
        )

    broken("gradients", scgpt(), explode)


def test_dropout_in_eval_mode_is_noticed():
    def always_drop(model):
        model.embedder.values.dropout.forward = lambda x: nn.functional.dropout(x, 0.5)

    broken("modes", scgpt(), always_drop)


def test_statistics_that_stand_still_are_noticed():
    def freeze(model):
        model.embedder.norm.train = lambda mode=True: model.embedder.norm

    broken("modes", scgpt(embedder=scgpt_embedder(norm="batch")), freeze)
