"""Fine-tuning on a MuData: what a model keeps, what it learns, and how it is used afterwards."""

from __future__ import annotations

import json
from dataclasses import replace

import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from mudatas import PROTEINS, contents, make_base, make_mudata, without_pulling
from scgpt_tools.models import CellModel, MultiOmicTransformerModel
from scgpt_tools.models.families.scgpt import scgpt_multiomic
from scgpt_tools.models.growing import keep_narrow_heads
from scgpt_tools.objectives import BatchAdversary, MaskedExpression, MaskedExpressionFromCell
from scgpt_tools.objectives.recipes import MULTIOMIC
from scgpt_tools.tokens import ModalityConfig, TokenBatch
from scgpt_tools.train.modalities import for_modalities
from scgpt_tools.train.starting import modality_config

# A protein has the name of a gene on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:var_names are not unique")

QUICK = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu", "rng": 0}


@pytest.fixture(scope="module")
def trained() -> CellModel:
    """A model that has seen enough cells to tell proteins from genes."""
    with sct.settings.override(show_progress=False):
        return sct.train.finetune(
            make_mudata(120), make_base(), task="multiomic", batch_key="batch", **QUICK | {"epochs": 25, "lr": 5e-3}
        )


def test_old_rows_are_kept_and_new_ones_appended():
    base, mdata = make_base(), make_mudata()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = sct.train.finetune(mdata, base, task="multiomic", freeze="backbone", **QUICK)
    assert model.vocabulary.tokens == (*base.vocabulary.tokens, *(f"p_{name}" for name in PROTEINS))
    table = model.embedder.genes.table.weight
    torch.testing.assert_close(table[: len(base.vocabulary)], before["embedder.genes.table.weight"])
    assert table[len(base.vocabulary) :].abs().sum() > 0
    assert model.config.family == "scgpt_multiomic"
    assert "batch" not in model.config.heads
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


def test_wider_heads_predict_what_narrow_ones_did():
    base = make_base()
    tokenizer = scgpt_multiomic(base.vocabulary, modalities=["rna", "prot"], dim=16, heads=2).tokenizer
    heads = base.config.heads
    described = modality_config(base.config, tokenizer)
    wide = base.adapt(tokenizer=tokenizer, embedder=described.embedder, context=described.context)
    filled = keep_narrow_heads(base, wide)
    assert filled == ["heads.expression.value.0.weight", "heads.expression_from_cell.product.weight"]
    batch = TokenBatch(
        genes=torch.tensor([[1, 4, 7, 9]]), values=torch.tensor([[-2.0, 3, 1, 5]]),
        mask=torch.ones(1, 4, dtype=torch.bool), modality=torch.tensor([[3, 1, 1, 0]]),
    )  # fmt: skip
    for name in ("expression", "expression_from_cell"):
        torch.testing.assert_close(wide(batch)[name], base(batch)[name])
    assert "expression" in heads


def test_the_recipe_goes_by_the_columns_that_are_named():
    mdata = make_mudata()
    told = sct.train.finetune(mdata, make_base(), task="multiomic", batch_key="batch", label_key="kind", **QUICK)
    assert {"train_batch_adversary", "train_cell_type"} <= set(told.history.columns)
    assert (told.config.batch_names, told.config.context.batches, told.config.domains) == (("a", "b"), 2, 0)
    sct.tl.annotate(mdata, told)
    assert set(mdata.obs["scgpt_cell_type"]) <= {"even", "odd"}


def test_the_joint_embedding_and_kept_tokens(trained):
    mdata = make_mudata(60, seed=5)
    sct.tl.embed(mdata, trained)
    assert mdata.obsm["X_scGPT"].shape == (60, 16)
    assert mdata.uns["X_scGPT"]["tokenizer"]["modality prot"].startswith("values=clr")
    sct.pp.tokenize(mdata, trained)
    sct.tl.embed(mdata, trained, tokens="X_binned", key_added="again")
    np.testing.assert_allclose(mdata.obsm["again"], mdata.obsm["X_scGPT"], atol=1e-5)
    sct.tl.embed(mdata, trained, modalities=["rna"], key_added="X_rna")
    alone = md_of(mdata, "rna")
    sct.tl.embed(alone, trained)
    np.testing.assert_allclose(alone.obsm["X_scGPT"], mdata.obsm["X_rna"], atol=1e-5)
    assert np.abs(mdata.obsm["X_rna"] - mdata.obsm["X_scGPT"]).max() > 1e-3


def md_of(mdata, name):
    with without_pulling():
        return md.MuData({name: mdata[name].copy()})


def test_a_cell_that_lacks_a_modality_is_embedded_by_the_other(trained):
    whole, mosaic = make_mudata(40), make_mudata(40, mosaic=True)
    sct.tl.embed(whole, trained, modalities=["rna"], key_added="X_rna")
    sct.tl.embed(mosaic, trained)
    missing = ~mosaic.obs_names.isin(mosaic["prot"].obs_names)
    expected = pd.DataFrame(whole.obsm["X_rna"], index=whole.obs_names).loc[mosaic.obs_names[missing]]
    np.testing.assert_allclose(mosaic.obsm["X_scGPT"][missing], expected, atol=1e-5)


def test_files_are_read_where_they_lie(trained, tmp_path):
    mdata = make_mudata(30, mosaic=True)
    sct.tl.embed(mdata, trained)
    with without_pulling():
        mdata.write(tmp_path / "cells.h5mu")
        backed = md.read_h5mu(tmp_path / "cells.h5mu", backed="r")
        sct.tl.embed(backed, trained, key_added="backed")
        with pytest.raises(ValueError, match="found a backed one"):
            sct.tl.embed(backed, trained, copy=True)
    assert backed.isbacked
    np.testing.assert_allclose(backed.obsm["backed"], mdata.obsm["X_scGPT"], atol=1e-6)


def test_training_takes_cells_that_lack_a_modality():
    mdata = make_mudata(mosaic=True)
    before = contents(mdata)
    model = sct.train.finetune(mdata, make_base(), task="multiomic", **QUICK)
    assert np.isfinite(model.history["train_loss"]).all()
    assert contents(mdata) == before


def test_saved_and_exported_models_are_the_same(trained, tmp_path):
    mdata = make_mudata(20, seed=3)
    sct.tl.embed(mdata, trained)
    for key, folder in (
        ("saved", trained.save(tmp_path / "saved")),
        ("exported", trained.export(tmp_path / "exported")),
    ):
        sct.tl.embed(mdata, folder, key_added=key)
        np.testing.assert_allclose(mdata.obsm[key], mdata.obsm["X_scGPT"], atol=1e-6)
    weights = torch.load(tmp_path / "exported" / "best_model.pt", weights_only=True)
    assert {"mod_encoder.embedding.weight", "batch_encoder.embedding.weight"} <= set(weights)
    vocabulary = json.loads((tmp_path / "exported" / "vocab.json").read_text())
    theirs = MultiOmicTransformerModel(
        len(vocabulary), 16, 2, 16, 1, vocab=vocabulary, do_mvc=True, do_dab=True, use_batch_labels=True,
        num_batch_labels=2, use_mod=True, ntokens_mod=5, vocab_mod={"<pad>": 2},
    )  # fmt: skip
    report = sct.models.load_pretrained(theirs, weights)
    assert report is not None
    torch.testing.assert_close(
        theirs.state_dict()["mod_encoder.embedding.weight"], weights["mod_encoder.embedding.weight"]
    )


@pytest.mark.parametrize(
    ("task", "needs"), [("annotate", {"label_key": "kind"}), ("integrate", {"batch_key": "batch"})]
)
def test_other_tasks_take_a_mudata_too(task, needs):
    mdata = make_mudata()
    model = sct.train.finetune(mdata, make_base(), task=task, **needs, **QUICK)
    assert [part.name for part in model.config.tokenizer.parts] == ["rna", "prot"]
    assert model.config.tokenizer.parts[0].genes == ("all" if task == "integrate" else "expressed")
    sct.tl.embed(mdata, model, **({"batch_key": "batch"} if task == "integrate" else {}))
    assert np.isfinite(mdata.obsm["X_scGPT"]).all()
    again = sct.train.finetune(mdata, model, task=task, **needs, **QUICK)
    assert again.vocabulary == model.vocabulary


def test_each_modality_weighs_the_same():
    batch, views = _two_modalities()
    assert MaskedExpression()(views, batch) == 3
    assert MaskedExpression(by_modality=True)(views, batch) == 5
    assert MaskedExpression(by_modality=True)(views, batch.replace(hidden=~batch.require("hidden"))) == 0


def test_modalities_may_weigh_differently():
    batch, views = _two_modalities()
    assert MaskedExpression(by_modality=True, modality_weights=(0.25, 0.75))(views, batch) == 7
    assert MaskedExpression(by_modality=True, modality_weights=(0.0, 2.0))(views, batch) == 9
    # Of a minibatch without the others, the weight of what is there does not matter.
    alone = batch.replace(hidden=torch.tensor([[False, True, True, False]]))
    assert MaskedExpression(by_modality=True, modality_weights=(0.25, 0.75))(views, alone) == 1


@pytest.mark.parametrize("by_modality", [False, True])
def test_visible_values_are_predicted_from_the_cell_as_well(by_modality):
    batch, _ = _two_modalities()
    batch = batch.replace(hidden=torch.tensor([[False, True, False, False]]))
    views = {"first": {"expression_from_cell": torch.tensor([[9.0, 1.0, 1.0, 0.0]])}}
    hidden = MaskedExpressionFromCell(by_modality=by_modality)
    visible = MaskedExpressionFromCell(by_modality=by_modality, visible=True)
    assert hidden(views, batch) == 0
    # The cell token, the first one, has no value to ask for.
    assert visible(views, batch) == (4.5 if by_modality else 3)
    padded = batch.replace(mask=torch.tensor([[True, True, True, False]]))
    assert visible(views, padded) == 0


@pytest.mark.parametrize(
    ("weights", "arguments"), [((1.0, 1.0), {}), ((0.0, 0.0), {"by_modality": True}), ((-1.0, 2.0), {"by_modality": True})]
)  # fmt: skip
@pytest.mark.parametrize("term", [MaskedExpression, MaskedExpressionFromCell])
def test_weights_that_cannot_be_are_refused(term, weights, arguments):
    with pytest.raises(ValueError, match="Expected `modality_weights`"):
        term(modality_weights=weights, **arguments)


def test_panels_weigh_more_than_what_is_not_queried_whole():
    terms = MULTIOMIC.objectives
    both = scgpt_multiomic(make_base().vocabulary.extended(["p_CD4"]), modalities=["rna", "prot"]).tokenizer
    found = {term.name: term for term in for_modalities(terms, both)}
    # Modalities are numbered by name.
    assert found["masked_expression"].modality_weights[:2] == (1.0, 0.3)
    assert found["masked_expression_from_cell"].modality_weights[:2] == (1.0, 0.3)
    assert found["masked_expression_from_cell"].visible
    assert found["batch_adversary"] == BatchAdversary(weight=100.0)
    small = replace(both, parts=tuple(replace(part, values="log1p", bins=None, standard=False) for part in both.parts))
    assert {term.name: term for term in for_modalities(terms, small)}["batch_adversary"] == BatchAdversary(weight=1.0)
    genes = replace(both, modalities=("rna", *both.modalities[2:]), parts=both.parts[:1])
    assert [part.name for part in genes.parts] == ["rna"]
    assert for_modalities([MaskedExpression()], genes) == (MaskedExpression(by_modality=True),)


@pytest.fixture
def asked_for(monkeypatch):
    """What training is asked for, which then does not happen."""
    asked = {}

    def record(model, data, terms, settings, **_):
        asked.update(terms={term.name: term for term in terms}, settings=settings, corruption=data.corruption)

    monkeypatch.setattr("scgpt_tools.train.driver.fit", record)
    return asked


def test_the_recipe_of_several_modalities(asked_for):
    sct.train.finetune(make_mudata(40), make_base(), task="multiomic", batch_key="batch", accelerator="cpu")
    assert asked_for["terms"]["batch_adversary"].weight == 100
    assert asked_for["terms"]["masked_expression"].by_modality
    settings = asked_for["settings"]
    assert (settings.lr, settings.head_lr, settings.schedule) == (3e-4, 3e-3, "cosine")
    assert asked_for["corruption"].whole == 0.8
    assert asked_for["corruption"].modalities == (0,)


def test_other_tasks_keep_their_recipe_on_several_modalities(asked_for):
    sct.train.finetune(make_mudata(40), make_base(), task="integrate", batch_key="batch", accelerator="cpu")
    assert asked_for["terms"]["batch_adversary"] == BatchAdversary(weight=1.0)
    assert not asked_for["terms"]["masked_expression"].by_modality


def _two_modalities():
    batch = TokenBatch(
        genes=torch.zeros(1, 4).long(), values=torch.zeros(1, 4), mask=torch.ones(1, 4, dtype=torch.bool),
        hidden=torch.ones(1, 4, dtype=torch.bool), target=torch.tensor([[1.0, 1.0, 1.0, 3.0]]),
        modality=torch.tensor([[0, 0, 0, 1]]),
    )  # fmt: skip
    return batch, {"first": {"expression": torch.zeros(1, 4)}}


def _apart(mdata):
    """Two modalities without a cell in common."""
    with without_pulling():
        return md.MuData({"rna": mdata["rna"][:20].copy(), "prot": mdata["prot"][20:].copy()})


@pytest.mark.parametrize(
    ("change", "arguments", "error", "message"),
    [
        (lambda m: m, {"batch_key": "donor"}, KeyError, "'donor'"),
        (_apart, {}, ValueError, "measured in another one"),
        (lambda m: m["rna"], {}, TypeError, "Expected a MuData for task='multiomic'"),
        (lambda m: m, {"modalities": ["protein"]}, KeyError, "no modality 'protein'"),
        (lambda m: m, {"modalities": {"prot": {"extend": False}}}, ValueError, "found extend=False"),
        (lambda m: m, {"task": "annotate"}, ValueError, "Expected `label_key`"),
        (lambda m: m, {"modality": "rna", "modalities": ["rna"]}, ValueError, "Expected `modalities` with a MuData"),
    ],
)  # fmt: skip
def test_refusals_change_nothing(change, arguments, error, message):
    data = change(make_mudata())
    before = contents(data) if isinstance(data, md.MuData) else None
    with pytest.raises(error, match=message):
        sct.train.finetune(data, make_base(), **{"task": "multiomic"} | arguments | QUICK)
    assert before is None or contents(data) == before


def test_batches_have_to_be_known_for_every_cell():
    mdata = make_mudata()
    for table in mdata.mod.values():
        table.obs.loc["cell3", "batch"] = np.nan
    with pytest.raises(ValueError, match=r"value in obs\['batch'\] of every cell, found none for 1 cells"):
        sct.train.finetune(mdata, make_base(), task="multiomic", batch_key="batch", **QUICK)


def test_a_family_by_the_names_of_modalities():
    vocabulary = make_base().vocabulary.extended(["p_CD4"])
    config = scgpt_multiomic(vocabulary, modalities=["rna", ModalityConfig(name="prot", prefix="p_", extend=True)])
    assert config.tokenizer.modalities == ("prot", "rna", "<pad>", "<cls>", "<eoc>")
    assert (config.context.modalities, config.context.modality_pad) == (5, 2)


def test_heads_that_learn_nothing_of_the_new_modalities_are_left_out():
    """They would be asked for imputed proteins."""
    terms = [MaskedExpression(by_modality=True), MaskedExpressionFromCell(by_modality=True, weight=0)]
    model = sct.train.finetune(make_mudata(), make_base(), task="multiomic", objectives=terms, **QUICK)
    assert "expression_from_cell" in make_base().heads
    assert "expression_from_cell" not in model.heads
    assert "expression" in model.heads
    # What was learnt of them before stays.
    both = sct.train.finetune(make_mudata(), make_base(), task="multiomic", **QUICK)
    again = sct.train.finetune(make_mudata(), both, task="multiomic", objectives=terms[:1], **QUICK)
    assert "expression_from_cell" in again.heads


def test_weights_are_for_all_modalities():
    terms = [MaskedExpression(by_modality=True, modality_weights=(1.0, 0.5))]
    with pytest.raises(ValueError, match="`modality_weights` of 'masked_expression' to hold a number for each of"):
        sct.train.finetune(make_mudata(), make_base(), task="multiomic", objectives=terms, **QUICK)
