from __future__ import annotations

from dataclasses import replace

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from mudatas import without_pulling
from scgpt_tools.models import CellModel, GeneClassifier
from scgpt_tools.models.config import (
    ClassifierConfig,
    Named,
    ReferenceCellsConfig,
)
from scgpt_tools.models.gene_classifier import log_normalised

CLASSES = ("B", "NK/T", "T")


@pytest.fixture
def annotator(make_model) -> CellModel:
    heads = Named(cell_type=ClassifierConfig(classes=3, names=CLASSES))
    model = make_model(config={"heads": heads}).eval()
    with torch.no_grad():
        # Untrained heads say nearly the same of every cell.
        model.heads["cell_type"].out.weight.mul_(20)
    return model


def annotated(adata, model, **arguments) -> ad.AnnData:
    return sct.tl.annotate(adata, model, show_progress=False, copy=True, **arguments)


def test_probabilities_are_the_softmax_of_the_head(adata, annotator):
    result = annotated(adata, annotator)
    sct.tl.embed(adata, annotator, normalize=False, show_progress=False)
    logits = annotator.heads["cell_type"].logits(torch.from_numpy(adata.obsm["X_scGPT"]))
    expected = logits.softmax(dim=1).detach().numpy()
    probabilities = result.obsm["scgpt_cell_type_probabilities"]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert probabilities.dtype == np.float32
    best = expected.argmax(axis=1)
    assert result.obs["scgpt_cell_type"].tolist() == [CLASSES[place] for place in best]
    np.testing.assert_allclose(result.obs["scgpt_cell_type_confidence"], expected.max(axis=1), atol=1e-5)
    assert len(set(best)) > 1


def test_names_of_classes_travel_with_the_folder(adata, annotator, tmp_path):
    ours = annotated(adata, annotator)
    theirs = annotated(adata, annotator.save(tmp_path / "annotator"))
    assert theirs.uns["scgpt_cell_type"]["classes"].tolist() == list(CLASSES)
    assert ours.obs["scgpt_cell_type"].equals(theirs.obs["scgpt_cell_type"])
    assert list(theirs.obs["scgpt_cell_type"].cat.categories) == list(CLASSES)


def test_several_models_vote_by_their_probabilities(adata, make_model, annotator, tmp_path):
    other = make_model(config={"heads": annotator.config.heads}).eval()
    with torch.no_grad():
        other.heads["cell_type"].out.weight.mul_(-10)
    alone = [annotated(adata, model).obsm["scgpt_cell_type_probabilities"] for model in (annotator, other)]
    assert not np.allclose(alone[0], alone[1], atol=0.01)
    result = annotated(adata, [annotator, other.save(tmp_path / "other")])
    expected = np.mean(alone, axis=0)
    np.testing.assert_allclose(result.obsm["scgpt_cell_type_probabilities"], expected, atol=1e-6)
    assert result.obs["scgpt_cell_type"].tolist() == [CLASSES[place] for place in expected.argmax(axis=1)]
    assert result.uns["scgpt_cell_type"]["model"]["checksum"] == f"{annotator.checksum}, {other.checksum}"


def test_models_that_vote_know_the_same_classes(adata, make_model, annotator, unchanged):
    heads = Named(cell_type=ClassifierConfig(classes=3, names=("B", "T", "NK/T")))
    before = unchanged(adata)
    with pytest.raises(ValueError, match="the same classes in the same order, found .*'NK/T', 'T'.* and .*'T', 'NK/T'"):
        sct.tl.annotate(adata, [annotator, make_model(config={"heads": heads})])
    with pytest.raises(ValueError, match="one `model` or more, found an empty list"):
        sct.tl.annotate(adata, [])
    assert unchanged(adata) == before


def test_cells_under_the_threshold_get_no_class(adata, annotator):
    sure = annotated(adata, annotator)
    confidence = sure.obs["scgpt_cell_type_confidence"].to_numpy()
    threshold = float(np.median(confidence))
    result = annotated(adata, annotator, threshold=threshold, unassigned="unknown")
    none = (result.obs["scgpt_cell_type"] == "unknown").to_numpy()
    np.testing.assert_array_equal(none, confidence < threshold)
    assert none.any()
    assert not none.all()
    kept = result.obs["scgpt_cell_type"].astype(str)[~none]
    assert kept.equals(sure.obs["scgpt_cell_type"].astype(str)[~none])
    np.testing.assert_array_equal(result.obs["scgpt_cell_type_confidence"], confidence)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_result_does_not_depend_on_the_size_of_minibatches(adata, annotator, batch_size):
    expected = annotated(adata, annotator).obsm["scgpt_cell_type_probabilities"]
    found = annotated(adata, annotator, batch_size=batch_size).obsm["scgpt_cell_type_probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_order_of_cells_does_not_matter(adata, annotator):
    expected = annotated(adata, annotator).obsm["scgpt_cell_type_probabilities"]
    found = annotated(adata[::-1].copy(), annotator).obsm["scgpt_cell_type_probabilities"]
    np.testing.assert_allclose(found[::-1], expected, atol=1e-5)


def test_bins_can_be_made_before(adata, annotator):
    expected = annotated(adata, annotator).obsm["scgpt_cell_type_probabilities"]
    sct.pp.tokenize(adata, annotator)
    found = annotated(adata, annotator, tokens="X_binned").obsm["scgpt_cell_type_probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_only_the_documented_keys_are_written(adata, annotator, unchanged):
    before = unchanged(adata)
    assert sct.tl.annotate(adata, annotator, key_added="kind", show_progress=False) is None
    assert set(adata.obs) == {"cell_type", "batch", "kind", "kind_confidence"}
    assert set(adata.obsm) == {"kind_probabilities"}
    assert set(adata.uns) == {"kind"}
    adata.obs = adata.obs[["cell_type", "batch"]]
    del adata.obsm["kind_probabilities"], adata.uns["kind"]
    assert unchanged(adata) == before


def test_the_result_can_be_kept_in_a_file(adata, annotator, tmp_path):
    result = annotated(adata, annotator, threshold=0.5)
    result.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert again.obs["scgpt_cell_type"].equals(result.obs["scgpt_cell_type"])
    assert again.uns["scgpt_cell_type"]["classes"].tolist() == list(CLASSES)
    assert again.uns["scgpt_cell_type"]["params"]["threshold"] == 0.5
    assert again.uns["scgpt_cell_type"]["model"]["checksum"] == annotator.checksum


def test_a_modality_of_a_mudata(adata, annotator):
    with without_pulling():
        mdata = mudata.MuData({"rna": adata.copy()})
        sct.tl.annotate(mdata, annotator, modality="rna", show_progress=False)
    expected = annotated(adata, annotator).obs["scgpt_cell_type"]
    assert mdata["rna"].obs["scgpt_cell_type"].tolist() == expected.tolist()


def test_a_model_of_several_batches_needs_to_know_them(adata, make_model, unchanged):
    heads = Named(cell_type=ClassifierConfig(classes=3, names=CLASSES))
    plain = make_model(config={"heads": heads})
    model = plain.adapt(
        embedder=replace(plain.config.embedder, norm="domain"), domains=2, batch_names=("a", "b")
    ).eval()
    with torch.no_grad():
        model.embedder.norm.domains[1].running_mean.add_(1.0)
    before = unchanged(adata)
    with pytest.raises(ValueError, match="normalises each of its 2 batches by itself: a, b"):
        sct.tl.annotate(adata, model, show_progress=False)
    assert unchanged(adata) == before
    result = annotated(adata, model, batch_key="batch")
    swapped = adata.copy()
    swapped.obs["batch"] = swapped.obs["batch"].map({"a": "b", "b": "a"})
    other = annotated(swapped, model, batch_key="batch")
    name = "scgpt_cell_type_probabilities"
    assert np.abs(result.obsm[name] - other.obsm[name]).max() > 1e-4
    swapped.obs["batch"] = "c"
    with pytest.raises(ValueError, match=r"named 'c'.*'a', 'b'"):
        annotated(swapped, model, batch_key="batch")


def test_what_cannot_be_annotated_is_refused(adata, annotator, model, unchanged):
    before = unchanged(adata)
    with pytest.raises(ValueError, match=r"fine-tuned to tell cell types apart, found 'tiny'.*finetune"):
        sct.tl.annotate(adata, model)
    with pytest.raises(ValueError, match="`unassigned` to be no class of the model, found 'T'"):
        sct.tl.annotate(adata, annotator, unassigned="T")
    with pytest.raises(ValueError, match="`threshold` to lie in"):
        sct.tl.annotate(adata, annotator, threshold=1.5)
    with pytest.raises(ValueError, match="no `batch_key` for a model that treats all batches alike"):
        sct.tl.annotate(adata, annotator, batch_key="batch")
    assert unchanged(adata) == before


def test_a_foreign_classifier_has_numbers_for_names(adata, make_model):
    model = make_model(config={"heads": Named(cell_type=ClassifierConfig(classes=4))}).eval()
    assert list(annotated(adata, model).obs["scgpt_cell_type"].cat.categories) == ["0", "1", "2", "3"]


# --- cells of no known type ---------------------------------------------------------------------------------------


@pytest.fixture
def tuned(adata, make_model) -> CellModel:
    """A model that keeps the cells of its training; its two classes express different genes."""
    reference = ad.concat([adata] * 4, index_unique="-", merge="same")
    reference.obs["cell_type"] = np.where(np.arange(reference.n_obs) % 2, "T", "B")
    return sct.train.finetune(
        reference, make_model(), task="annotate", label_key="cell_type", validation=0.5, epochs=1,
        batch_size=16, accelerator="cpu", compare=False,
    )  # fmt: skip


def test_cells_far_from_the_training_get_a_small_p_value(adata, tuned):
    """Cells of the training lie on cells that were held out; a cell of one gene does not."""
    strange = adata.copy()
    strange.X = strange.X.toarray() * 0
    strange.X[:, 8] = np.arange(1, strange.n_obs + 1)
    known, new = (annotated(cells, tuned).obs for cells in (adata, strange))
    assert known["scgpt_cell_type_distance"].max() < new["scgpt_cell_type_distance"].min()
    assert new["scgpt_cell_type_p_value"].max() == pytest.approx(1 / 25)
    assert known["scgpt_cell_type_p_value"].min() > 0.05
    rejected = annotated(strange, tuned, reject=0.05, unassigned="unknown").obs["scgpt_cell_type"]
    assert (rejected == "unknown").all()
    assert not (annotated(adata, tuned, reject=0.05).obs["scgpt_cell_type"] == "unassigned").any()


def test_the_kept_cells_travel_with_the_folder_and_not_to_the_original(adata, tuned, tmp_path):
    expected = annotated(adata, tuned).obs
    again = annotated(adata, tuned.save(tmp_path / "ours")).obs
    np.testing.assert_array_equal(again["scgpt_cell_type_distance"], expected["scgpt_cell_type_distance"])
    np.testing.assert_array_equal(again["scgpt_cell_type_p_value"], expected["scgpt_cell_type_p_value"])
    theirs = annotated(adata, tuned.export(tmp_path / "theirs"))
    assert "scgpt_cell_type_distance" not in theirs.obs
    np.testing.assert_allclose(
        theirs.obsm["scgpt_cell_type_probabilities"],
        annotated(adata, tuned).obsm["scgpt_cell_type_probabilities"],
        atol=1e-5,
    )


def test_states_of_the_run_have_no_kept_cells(adata, tuned, tmp_path):
    """They lie beside a configuration that knows of such cells."""
    folder = tuned.save(tmp_path / "tuned")
    state = {f"model.{key}": value for key, value in tuned.state_dict().items() if "reference_cells" not in key}
    torch.save({"state_dict": state}, folder / "best.ckpt")
    loaded = CellModel.from_pretrained(folder / "best.ckpt", device="cpu")
    assert "reference_cells" not in loaded.heads
    np.testing.assert_allclose(
        annotated(adata, loaded).obsm["scgpt_cell_type_probabilities"],
        annotated(adata, tuned).obsm["scgpt_cell_type_probabilities"],
        atol=1e-5,
    )


def test_a_model_without_kept_cells_rejects_none(adata, tuned, annotator, unchanged):
    before = unchanged(adata)
    with pytest.raises(ValueError, match="Expected a model with held-out cells to judge distances by"):
        sct.tl.annotate(adata, annotator, reject=0.05)
    assert unchanged(adata) == before
    sct.tl.annotate(adata, tuned, show_progress=False)
    assert "scgpt_cell_type_p_value" in adata.obs
    sct.tl.annotate(adata, annotator, show_progress=False)
    assert not {"scgpt_cell_type_p_value", "scgpt_cell_type_distance"} & set(adata.obs)


def test_a_level_below_all_p_values_is_said(adata, tuned):
    with pytest.warns(UserWarning, match="Expected 99 held-out cells or more to reject cells at 0.01, found 24"):
        sct.tl.annotate(adata, tuned, reject=0.01)


def test_each_class_needs_held_out_cells_enough(adata, tuned, recwarn):
    """Of 20 cells and more, a class is compared with its own only, however many there are of others."""
    codes = np.repeat([0, 1], [70, 30])
    head = ReferenceCellsConfig(cells=5, held_out=len(codes)).build(tuned.config.sizes)
    head.held_out.copy_(torch.linspace(0, 1, len(codes)))
    head.held_out_classes.copy_(torch.from_numpy(codes))
    tuned.heads["reference_cells"] = head
    with pytest.warns(UserWarning, match=r"Expected 49 held-out .* found 30, .* get one of 1 of 2 classes \(T\)"):
        annotated(adata, tuned, reject=0.02)
    recwarn.clear()
    annotated(adata, tuned, reject=0.04)
    assert not recwarn.list


def test_a_committee_takes_the_mean_of_distances(adata, tuned, annotator):
    alone = annotated(adata, tuned).obs
    heads = Named(cell_type=ClassifierConfig(classes=2, names=("B", "T")))
    other = tuned.adapt(heads=heads)
    together = annotated(adata, [tuned, other]).obs
    for name in ("distance", "p_value"):
        np.testing.assert_array_equal(together[f"scgpt_cell_type_{name}"], alone[f"scgpt_cell_type_{name}"])


def test_another_training_forgets_the_kept_cells(adata, tuned):
    reference = ad.concat([adata] * 4, index_unique="-", merge="same")
    again = sct.train.finetune(
        reference, tuned, task="annotate", label_key="cell_type", validation=0, epochs=1, accelerator="cpu"
    )
    assert "reference_cells" in tuned.heads
    assert "reference_cells" not in again.heads


# --- classifiers on genes -----------------------------------------------------------------------------------------


def test_columns_of_the_user_beside_a_new_key_are_kept(adata, tuned, unchanged):
    adata.obs["spot_distance"] = 1.0
    before = unchanged(adata)
    with pytest.raises(ValueError, match=r"obs\['spot_distance'\], which something else has written"):
        sct.tl.annotate(adata, tuned, key_added="spot")
    assert unchanged(adata) == before


def test_kept_cells_are_forgotten_where_the_model_changes(tuned):
    assert "reference_cells" in tuned.heads
    assert "reference_cells" in tuned.adapt().heads
    other = "mean" if tuned.config.pooling == "cls" else "cls"
    assert "reference_cells" not in tuned.adapt(pooling=other).heads


def test_a_trained_model_is_returned_whatever_follows(adata, make_model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory.")

    monkeypatch.setattr("scgpt_tools.train.tasks.annotate.known_cells", fail)
    reference = ad.concat([adata] * 4, index_unique="-", merge="same")
    reference.obs["kind"] = np.where(np.arange(reference.n_obs) % 2, "T", "B")
    with pytest.warns(UserWarning, match=r"The model is trained, but .* RuntimeError: out of memory\."):
        model = sct.train.finetune(
            reference, make_model(), task="annotate", label_key="kind", epochs=1, accelerator="cpu", compare=False
        )
    assert "reference_cells" not in model.heads
    assert model.history is not None


@pytest.fixture
def linear(adata) -> GeneClassifier:
    reference = adata.copy()
    reference.obs["cell_type"] = pd.Categorical(np.array(CLASSES)[np.arange(adata.n_obs) % 3])
    return sct.train.fit_gene_classifier(reference, label_key="cell_type")


def test_a_classifier_on_genes_takes_part_in_the_vote(adata, annotator, linear, tmp_path):
    network = annotated(adata, annotator).obsm["scgpt_cell_type_probabilities"]
    genes = log_normalised(adata.X)[:, [adata.var_names.get_loc(name) for name in linear.genes]]
    plain = linear.probabilities(genes, linear.vocabulary.ids(linear.genes))
    result = annotated(adata, [annotator, linear])
    np.testing.assert_allclose(result.obsm["scgpt_cell_type_probabilities"], (network + plain) / 2, atol=1e-5)
    assert result.uns["scgpt_cell_type"]["model"]["name"].endswith(", logistic regression on genes")
    again = annotated(adata, [annotator, linear.save(tmp_path / "genes.npz")])
    np.testing.assert_array_equal(
        again.obsm["scgpt_cell_type_probabilities"], result.obsm["scgpt_cell_type_probabilities"]
    )


def test_it_takes_part_beside_a_model_of_its_classes(adata, annotator, linear):
    with pytest.raises(ValueError, match="one `model` or more, found classifiers on genes alone"):
        sct.tl.annotate(adata, linear)
    adata.obs["cell_type"] = np.where(np.arange(adata.n_obs) % 2, "B", "T")
    two = sct.train.fit_gene_classifier(adata, label_key="cell_type")
    with pytest.raises(ValueError, match="the same classes in the same order, found .*logistic regression on genes"):
        sct.tl.annotate(adata, [annotator, two])
    sct.pp.tokenize(adata, annotator)
    with pytest.raises(ValueError, match="Expected values for a classifier on genes, found bins"):
        sct.tl.annotate(adata, [annotator, linear], tokens="X_binned")
