"""Each term against its definition, written out by other means, and the contracts that every term keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scgpt_tools.nn.heads import ExpressionConfig
from scgpt_tools.objectives import (
    OBJECTIVES,
    BatchAdversary,
    CellType,
    ContrastiveCells,
    ElasticSimilarity,
    MaskedExpression,
    MaskedExpressionFromCell,
    PerturbedExpression,
    RegeneratedExpression,
    ZeroLikelihood,
    ZeroLikelihoodFromCell,
)
from scgpt_tools.train.module import run_views

NAMES = sorted(OBJECTIVES)


def value(objective, model, batch):
    return objective(run_views(model, batch, [objective]), batch)


def batch_for(name, masked, generated):
    return generated if name == "regenerated_expression" else masked


def by_hand(prediction, batch, entry):
    """A mean over hidden places, one Python number at a time."""
    places = batch.hidden.nonzero().tolist()
    prediction = prediction.detach()
    terms = [entry(float(prediction[i, j]), float(batch.target[i, j])) for i, j in places]
    return sum(terms) / len(terms)


# ---------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("objective", "prediction"),
    [(MaskedExpression(), "expression"), (MaskedExpressionFromCell(), "expression_from_cell")],
)
def test_masked_expression_is_the_mean_over_hidden_places(objective, prediction, model, masked):
    model.eval()
    expected = by_hand(model(masked)[prediction], masked, lambda x, y: (x - y) ** 2)
    assert value(objective, model, masked).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "prediction"),
    [(ZeroLikelihood(), "expression_nonzero"), (ZeroLikelihoodFromCell(), "expression_from_cell_nonzero")],
)
def test_zero_likelihood_scores_the_probability_of_not_zero(objective, prediction, model, masked):
    model.eval()
    expected = by_hand(model(masked)[prediction], masked, lambda p, y: -math.log(p if y > 0 else 1 - p))
    assert value(objective, model, masked).item() == pytest.approx(expected, rel=1e-5)


def test_regenerated_expression_reads_a_pass_that_begins_with_the_cell(model, generated):
    model.eval()
    cell = model(generated, ()).cell
    second = model(generated, ("expression",), cell=cell)["expression"]
    expected = by_hand(second, generated, lambda x, y: (x - y) ** 2)
    assert value(RegeneratedExpression(), model, generated).item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(by_hand(model(generated)["expression"], generated, lambda x, y: (x - y) ** 2))


def test_perturbed_expression_runs_over_every_real_place(model, cells):
    model.eval()
    batch = cells.replace(target=cells.values + 1.5)
    expected = F.mse_loss(model(batch)["expression"][batch.mask], batch.target[batch.mask])
    torch.testing.assert_close(value(PerturbedExpression(), model, batch), expected)


def test_cell_type_is_cross_entropy_over_labelled_cells(model, cells):
    model.eval()
    batch = cells.replace(label=torch.where(torch.arange(len(cells)) < 4, -1, cells.label))
    expected = F.cross_entropy(model(batch)["cell_type"][4:], batch.label[4:])
    torch.testing.assert_close(value(CellType(), model, batch), expected)


def test_cell_type_of_unlabelled_cells_is_zero_and_not_nan(model, cells):
    batch = cells.replace(label=torch.full_like(cells.label, -1))
    assert value(CellType(), model, batch).item() == 0


def test_accuracy_counts_labelled_cells(model, cells):
    model.eval()
    views = run_views(model, cells, [CellType()])
    right = views["first"]["cell_type"].argmax(1)
    batch = cells.replace(label=torch.where(torch.arange(len(cells)) < 9, right, (right + 1) % 3))
    assert CellType().measures(views, batch)["accuracy"].item() == pytest.approx(9 / 12)
    batch = batch.replace(label=torch.where(torch.arange(len(cells)) < 6, -1, batch.label))
    assert CellType().measures(views, batch)["accuracy"].item() == pytest.approx(3 / 6)


def test_contrastive_cells_compares_two_passes(model, cells):
    model.train()
    torch.manual_seed(0)
    views = run_views(model, cells, [ContrastiveCells()])
    first, again = views["first"].cell, views["again"].cell
    assert not torch.equal(first, again)
    logits = torch.stack([F.cosine_similarity(cell[None], again) for cell in first]) / 0.5
    expected = torch.stack([-row.log_softmax(0)[i] for i, row in enumerate(logits)]).mean()
    torch.testing.assert_close(ContrastiveCells()(views, cells), expected)


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_elastic_similarity_sets_the_diagonal_to_zero_first(threshold, model, cells):
    model.eval()
    objective = ElasticSimilarity(threshold=threshold)
    embedding = model(cells, ()).cell
    total = 0.0
    for i, one in enumerate(embedding):
        for j, other in enumerate(embedding):
            similarity = 0.0 if i == j else max(0.0, F.cosine_similarity(one, other, dim=0).item())
            total += 1 - (similarity - threshold) ** 2
    assert value(objective, model, cells).item() == pytest.approx(total / len(cells) ** 2, rel=1e-5)


def test_batch_adversary_reverses_the_gradient_of_the_encoder_only(model, cells):
    model.eval()

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return model.encoder.blocks[0].feed_forward.expand.weight.grad, model.heads["batch"].out.weight.grad

    encoder, head = gradients(value(BatchAdversary(), model, cells))
    plain_head = model.heads["batch"]
    cell = model(cells, ()).cell
    encoder_plain, head_plain = gradients(F.cross_entropy(plain_head.out(plain_head.hidden(cell)), cells.batch_id))
    torch.testing.assert_close(encoder, -encoder_plain)
    torch.testing.assert_close(head, head_plain)


# ------------------------------------------------------------------------------------------------------ contracts


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_finite_scalars_with_gradients(name, model, masked, generated):
    batch = batch_for(name, masked, generated)
    loss = value(OBJECTIVES[name](), model, batch)
    assert loss.shape == ()
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    # Every term reaches the gene table through the encoder, and the head that it reads.
    for prefix in ("embedder.genes.table", "encoder.blocks.0", *(f"heads.{head}" for head in OBJECTIVES[name].heads)):
        reached = [gradient for key, gradient in gradients.items() if key.startswith(prefix)]
        assert reached
        assert any(gradient.abs().sum() > 0 for gradient in reached), prefix


@pytest.mark.parametrize("name", NAMES)
def test_hidden_truth_does_not_reach_the_network(name, model, masked, generated):
    """Other targets change the score of hidden values, and no output of any pass."""
    model.eval()
    batch = batch_for(name, masked, generated)
    other = batch.replace(target=batch.target + batch.hidden * 3.0)
    objective = OBJECTIVES[name]()
    before, after = (run_views(model, example, [objective]) for example in (batch, other))
    for view in before:
        assert torch.equal(before[view].cell, after[view].cell)
        for prediction, tensor in before[view].predictions.items():
            assert torch.equal(tensor, after[view].predictions[prediction])


@pytest.mark.parametrize("name", [name for name in NAMES if "expression" in name and name != "perturbed_expression"])
def test_what_is_not_hidden_is_not_scored(name, model, masked, generated):
    model.eval()
    batch = batch_for(name, masked, generated)
    other = batch.replace(target=torch.where(batch.hidden, batch.target, batch.target * 7 + 11))
    objective = OBJECTIVES[name]()
    assert torch.equal(value(objective, model, batch), value(objective, model, other))


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_on_a_tiny_batch(name, model, masked, generated):
    batch = batch_for(name, masked, generated)
    objective = OBJECTIVES[name]()
    model.eval()
    trained = model.heads["batch"] if name == "batch_adversary" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    before = value(objective, model, batch).item()
    for _ in range(15):
        optimizer.zero_grad()
        value(objective, model, batch).backward()
        optimizer.step()
    assert value(objective, model, batch).item() < before


def test_terms_are_computed_in_single_precision(model, masked):
    """Squares of bins overflow float16 when thousands of them are added up."""
    views = run_views(model, masked, [MaskedExpression()])
    views["first"].predictions["expression"] = torch.full_like(masked.values, 300.0).half()
    assert math.isfinite(MaskedExpression()(views, masked).item())


def test_a_missing_field_is_named(model, cells):
    with pytest.raises(ValueError, match="`hidden`"):
        value(MaskedExpression(), model, cells)
    with pytest.raises(ValueError, match="label"):
        value(CellType(), model, cells.replace(label=None))


EXPRESSION = {
    "masked_expression": MaskedExpression,
    "masked_expression_from_cell": MaskedExpressionFromCell,
    "regenerated_expression": RegeneratedExpression,
}


@pytest.mark.parametrize("delta", [None, 0.5, 3.0])
@pytest.mark.parametrize("name", ["masked_expression", "masked_expression_from_cell"])
def test_huber_is_linear_for_large_errors(name, delta, model, masked):
    model.eval()
    kind, limit = EXPRESSION[name], 1.0 if delta is None else delta
    prediction = model(masked)["expression" if name == "masked_expression" else "expression_from_cell"]

    def entry(x, y):
        error = abs(x - y)
        return error**2 / 2 if error <= limit else limit * (error - limit / 2)

    expected = by_hand(prediction, masked, entry)
    assert value(kind(loss="huber", delta=delta), model, masked).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", EXPRESSION)
def test_huber_with_a_large_delta_is_half_the_squared_error(name, model, masked, generated):
    model.eval()
    batch = batch_for(name, masked, generated)
    half, whole = (value(EXPRESSION[name](**how), model, batch) for how in ({"loss": "huber", "delta": 1e4}, {}))
    torch.testing.assert_close(2 * half, whole)


def test_huber_by_modality(model, masked):
    model.eval()
    cells = masked.replace(modality=(masked.genes > 15).long())
    huber, squared = MaskedExpression(loss="huber", delta=1e4, by_modality=True), MaskedExpression(by_modality=True)
    torch.testing.assert_close(2 * value(huber, model, cells), value(squared, model, cells))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MaskedExpression, {"loss": "Huber"}), (MaskedExpression, {"loss": "huber", "delta": 0.0}),
        (MaskedExpression, {"delta": 1.0}), (MaskedExpression, {"by_modality": "yes"}),
        (MaskedExpression, {"modality_weights": (1.0,)}),
        (MaskedExpression, {"by_modality": True, "modality_weights": (0.0, 0.0)}),
        (MaskedExpressionFromCell, {"visible": 1}), (CellType, {"weight": "1"}), (CellType, {"weight": math.nan}),
        (CellType, {"weight": -1.0}), (CellType, {"from_step": -1}), (CellType, {"from_step": 1.5}),
        (ContrastiveCells, {"temperature": 0.0}), (ContrastiveCells, {"temperature": math.nan}),
        (ElasticSimilarity, {"threshold": 1.5}), (BatchAdversary, {"reversal": -1.0}),
        (BatchAdversary, {"reversal": math.nan}),
    ],
)  # fmt: skip
def test_fields_are_checked(kind, options):
    with pytest.raises((TypeError, ValueError), match=f"^Expected `({'|'.join(options)})"):
        kind(**options)


# ---------------------------------------------------------------------------------------------------- what is read


def learnt(objective, model, batch):
    """Loss and gradients, and the tokens of the first pass."""
    model.zero_grad()
    views = run_views(model.eval(), batch, [objective])
    loss = objective(views, batch)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())], views["first"].tokens.detach()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_nothing_reads_are_spared_and_nothing_else_changes(
    name, pooling, packed, model, masked, generated, monkeypatch
):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", 0 if packed else 128)
    model.config = replace(model.config, pooling=pooling)
    objective, batch = OBJECTIVES[name](), batch_for(name, masked, generated)
    batch = batch.replace(target=batch.values) if objective.tokens == "all" else batch
    found, tokens = learnt(objective, model, batch)
    monkeypatch.setattr("scgpt_tools.train.module._read", lambda *_: "all")
    expected, every = learnt(objective, model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert (every[batch.mask] != 0).any(dim=-1).all()
    kept = batch.mask.clone()
    if batch.generated is None and (pooling == "cls" or not objective.cells):
        first = torch.arange(batch.mask.shape[1]) == 0
        if objective.tokens == "hidden" and packed:
            kept &= batch.hidden | first
        if objective.tokens == "none":
            kept &= first
    if tokens.shape[1] == 1:
        tokens = torch.cat((tokens, torch.zeros_like(every[:, 1:])), dim=1)
    torch.testing.assert_close(tokens, every * kept.unsqueeze(-1), atol=1e-6, rtol=1e-4)


def test_a_head_that_looks_at_other_tokens_is_given_them_all(model, masked, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", 0)
    monkeypatch.setattr(ExpressionConfig, "of_its_own", False)
    tokens = learnt(MaskedExpression(), model, masked)[1]
    assert (tokens[masked.mask] != 0).any(dim=-1).all()


def test_cells_that_nothing_reads_are_not_numbers(model, masked, monkeypatch):
    monkeypatch.setattr("scgpt_tools.nn.attention._LONG", 0)
    model.config = replace(model.config, pooling="mean")
    assert run_views(model, masked, [MaskedExpression()])["first"].cell.isnan().all()
    both = run_views(model, masked, [MaskedExpression(), CellType()])["first"]
    assert both.cell.isfinite().all()
