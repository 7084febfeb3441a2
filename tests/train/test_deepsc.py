"""DeepSC through every task: pre-training, annotation, perturbations, embedding and mapping."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.models import CellModel, DeepSCClassifier, DeepSCModel
from scgpt_tools.models.families import FAMILIES
from scgpt_tools.tokens import FeatureTable
from scgpt_tools.train.pretrain import pretrain
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen as tiny_screen

SIZES = {"dim": 16, "layers": 2, "heads": 2, "hidden": 16, "dropout": 0.1}
FAST = {"epochs": 1, "batch_size": 16, "accelerator": "cpu"}


@pytest.fixture
def log_cells(cells):
    cells.X = cells.X.log1p()
    cells.obs["cell_type"] = cells.obs["kind"]
    return cells


@pytest.fixture
def screen():
    return tiny_screen(12)


@pytest.fixture
def screen_vocabulary(screen) -> Vocabulary:
    return Vocabulary.from_genes(screen.var_names[:-1])


@pytest.fixture
def model(tiny_vocabulary) -> CellModel:
    torch.manual_seed(0)
    return CellModel(FAMILIES["deepsc"](tiny_vocabulary, **SIZES), tiny_vocabulary, name="tiny").eval()


def config(**changes) -> dict:
    return {
        "data": {"paths": ["cells.h5ad"], "validation": 0.2},
        "family": {"name": "deepsc", **SIZES},
        "corruption": {"name": "mask_values", "ratio": 0.15, "count": "bernoulli"},
        "train": {**FAST, "lr": 1e-3, "schedule": "restarts", "warmup": 2},
    } | changes


@pytest.mark.parametrize(
    "corruption",
    [{"name": "mask_values", "ratio": 0.4}, {"name": "mask_bins", "chances": [0.1, 0.2, 0.3, 0.5, 0.7]}],
    ids=lambda corruption: corruption["name"],
)
def test_pretraining_learns_bins_and_values(tmp_path, log_cells, corruption):
    log_cells.write_h5ad(tmp_path / "cells.h5ad")
    pretrain(config(corruption=corruption), data=tmp_path, output=tmp_path / "model")
    history = pd.read_csv(tmp_path / "model" / "run" / "history.csv")
    assert {"validation_masked_bins", "validation_masked_expression", "validation_bin_accuracy"} <= set(history)
    assert np.isfinite(history["train_loss"]).all()
    again = CellModel.from_pretrained(tmp_path / "model", device="cpu")
    assert again.config.family == "deepsc"
    sct.tl.embed(log_cells, again, device="cpu")
    assert np.isfinite(log_cells.obsm["X_DeepSC"]).all()


def test_bins_are_counted_before_training(tmp_path, log_cells):
    """Once, for what is hidden and for the margins of rare bins; other epochs have other loss terms."""
    log_cells.write_h5ad(tmp_path / "cells.h5ad")
    terms = [{"name": "masked_bins", "balance": "alternating"}, {"name": "masked_expression"}]
    changes = {"corruption": {"name": "mask_bins"}, "objectives": terms, "train": {**FAST, "epochs": 2}}
    changes["family"] = {"name": "deepsc", **SIZES, "hidden": 4 * SIZES["dim"]}
    model = pretrain(config(**changes), data=tmp_path, output=tmp_path / "model")
    described = json.loads((tmp_path / "model" / "run" / "run.json").read_text())["description"]
    counts = described["objectives"]["masked_bins"]["counts"]
    trained = described["training cells"]["number"]
    assert counts[0] == 0
    assert sum(counts[1:]) == pytest.approx(trained * (log_cells.X > 0).sum() / log_cells.n_obs, rel=0.2)
    history = pd.read_csv(tmp_path / "model" / "run" / "history.csv")
    # Thirty times the margin in the first epoch, a mean over bins in the second.
    assert history["train_masked_bins"].iloc[0] > 2 * history["train_masked_bins"].iloc[1]
    # The cell token is the last one, as in tables of the original, so the model can be written for it.
    assert (model.vocabulary.pad_id, model.vocabulary.cls_id) == (0, len(model.vocabulary) - 1)
    model.export(tmp_path / "theirs")
    assert CellModel.from_pretrained(tmp_path / "theirs", device="cpu").vocabulary == model.vocabulary


def test_a_table_of_genes_is_a_vocabulary(tmp_path, log_cells):
    log_cells.write_h5ad(tmp_path / "cells.h5ad")
    names = list(log_cells.var_names)
    table = pd.DataFrame({"feature_name": [*names, "OLD"], "id": [*range(len(names)), 0]})
    table.to_csv(tmp_path / "gene_map.csv", index=False)
    model = pretrain(config(vocabulary={"path": "gene_map.csv"}), data=tmp_path, output=tmp_path / "model")
    assert model.vocabulary.ids(["OLD", names[1]]).tolist() == [1, 2]
    assert model.config.n_tokens == len(names) + 2


def test_counts_need_bins(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    other = config(corruption={"name": "mask_bins"}, family={"name": "scgpt", **SIZES})
    with pytest.raises(ValueError, match="tokenizer with `linear_bins`"):
        pretrain(other, data=tmp_path, output=tmp_path / "model")


def test_generated_tokens_are_refused(tmp_path, log_cells):
    log_cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="corruption that hides values for DeepSC"):
        pretrain(config(corruption={"name": "generate_values"}), data=tmp_path, output=tmp_path / "model")


@pytest.mark.parametrize("freeze", ["nothing", "backbone"])
def test_annotation(log_cells, model, freeze):
    tuned = sct.train.finetune(log_cells, model, task="annotate", label_key="cell_type", freeze=freeze, **FAST)
    sct.tl.annotate(log_cells, tuned, device="cpu")
    same = torch.equal(tuned.encoder.fuse.weight, model.encoder.fuse.weight)
    assert same or freeze == "nothing"
    assert tuned.config.encoder.pooled == "fused"


def test_annotators_are_what_the_original_computes(log_cells, tmp_path):
    """Its classifier reads the exported weights and says what ours says."""
    vocabulary = Vocabulary(["<pad>", *log_cells.var_names, "<cls>"])
    torch.manual_seed(0)
    plan = FAMILIES["deepsc"](vocabulary, **{**SIZES, "hidden": None})
    terms = [{"name": "cell_type", "balance": "classes"}]
    options = {"task": "annotate", "label_key": "cell_type", "objectives": terms, **FAST}
    tuned = sct.train.finetune(log_cells, CellModel(plan, vocabulary, name="tiny"), **options)
    tuned.export(tmp_path / "theirs")
    said = json.loads((tmp_path / "theirs" / "deepsc.json").read_text())
    sizes = {name: value for name, value in said.items() if name not in ("scgpt_tools", "classifier")}
    layers, style = (said["classifier"][name] for name in ("num_layers_cls", "cell_emb_style"))
    theirs = DeepSCClassifier(DeepSCModel(**sizes), len(said["classifier"]["id2type"]), layers, style).eval()
    theirs.load_state_dict(torch.load(tmp_path / "theirs" / "best_model.pt", weights_only=True))
    features = FeatureTable.from_var(log_cells.var, vocabulary)
    batch = tuned.tokenizer(log_cells.X, features, np.arange(log_cells.n_obs), rng=0)
    with torch.no_grad():
        expected = tuned(batch)["cell_type"]
        torch.testing.assert_close(theirs(batch.genes, batch.values, batch.bins), expected, atol=1e-5, rtol=1e-4)


def test_reference_mapping(log_cells, model):
    reference, query = log_cells[:30].copy(), log_cells[30:].copy()
    for table in (reference, query):
        sct.tl.embed(table, model, device="cpu")
    before = set(query.obs)
    sct.tl.map_reference(query, reference, label_key="cell_type", use_rep="X_DeepSC")
    (labels,) = (query.obs[name] for name in set(query.obs) - before if query.obs[name].dtype == "category")
    assert set(labels) <= set(reference.obs["cell_type"])


def test_gene_programs_have_the_rows_of_their_genes(log_cells):
    """The original looks up the row before: ids of its tables begin at 0, rows of genes at 1."""
    genes = list(log_cells.var_names)
    vocabulary = Vocabulary(["<pad>", *genes, "<cls>"])
    model = CellModel(FAMILIES["deepsc"](vocabulary, **SIZES), vocabulary, name="tiny").eval()
    groups = np.arange(len(genes)) % 3
    with torch.no_grad():
        table = model.get_parameter("embedder.genes.table.weight")
        directions = torch.eye(3, SIZES["dim"])[groups]
        table[1:-1] = directions + 0.01 * torch.randn(len(genes), SIZES["dim"])
    sct.tl.embed_genes(log_cells, model)
    (key,) = log_cells.varm
    np.testing.assert_array_equal(log_cells.varm[key], table[1:-1].detach().numpy())
    sct.tl.gene_network(log_cells, use_rep=key, n_neighbors=3)
    sct.tl.gene_programs(log_cells, min_genes=2, resolution=0.1)
    found = pd.Series(log_cells.var["gene_program"].astype(str).to_numpy()).groupby(groups).nunique()
    assert found.tolist() == [1, 1, 1]


@pytest.mark.parametrize("generation", ["v1", "v2"])
@pytest.mark.parametrize("include", ["all", "batch-wise"])
def test_perturbations(screen, screen_vocabulary, generation, include):
    torch.manual_seed(0)
    values = "bins" if generation == "v1" else "number"
    plan = FAMILIES["deepsc_perturbation"](screen_vocabulary, **SIZES, values=values)
    model = CellModel(plan, screen_vocabulary, name="tiny")
    options = {"validation": 0.0, "include": include, "unknown": "pad", **FAST}
    tuned = sct.train.finetune(screen, model, task="perturb", **options)
    assert tuned.config.tokenizer.linear_bins == (5 if generation == "v1" else None)
    gene = next(name for name in screen.obs["condition"].unique() if name != "ctrl").split("+")[0]
    sct.tl.predict_perturbation(screen, [gene], model=tuned, device="cpu")
    control = (screen.obs["condition"] == "ctrl").to_numpy()
    assert np.isfinite(screen.layers["predicted"][control]).all()


@pytest.mark.filterwarnings("ignore:The predictions of m are nearly the same")
def test_perturbations_from_means_of_cells(screen, screen_vocabulary):
    torch.manual_seed(0)
    base = CellModel(FAMILIES["deepsc"](screen_vocabulary, **SIZES), screen_vocabulary, name="tiny")
    tuned = sct.train.finetune(
        screen, base, task="perturb", validation=0.0, cells_per_mean=4, unmeasured="drop", **FAST
    )
    sct.pp.perturbation_split(screen, draw="stable")
    scores = sct.tl.evaluate_perturbation(screen, {"m": tuned}, analyses=True, device="cpu")
    assert np.isfinite(scores.means().loc["m", "mse"])


def test_base_models_keep_their_values_for_perturbations(screen, screen_vocabulary):
    torch.manual_seed(0)
    base = CellModel(FAMILIES["deepsc"](screen_vocabulary, **SIZES), screen_vocabulary, name="tiny")
    tuned = sct.train.finetune(screen, base, task="perturb", validation=0.0, **FAST)
    assert tuned.config.family == "deepsc_perturbation"
    assert tuned.transfer.missing == ("embedder.perturbation.weight",)
    with pytest.raises(ValueError, match="no head of expression for DeepSC"):
        sct.train.finetune(screen, base, task="perturb", validation=0.0, activation="ReLU", **FAST)


def test_the_door_trains_as_the_model(screen):
    names = list(screen.var_names)
    door = DeepSCModel(
        16, len(names), num_layers=2, num_heads=2, gene_embedding_participate_til_layer=1, generation="v1"
    )
    with pytest.raises(ValueError, match="vocabulary"):
        sct.train.finetune(screen, door.cell_model, task="perturb", validation=0.0, **FAST)


def test_what_its_head_cannot_tell_is_refused_before_training(model, log_cells):
    with pytest.raises(ValueError, match="for the term 'zero_likelihood', found one of its family's own"):
        sct.train.finetune(log_cells, model, task="integrate", batch_key="batch", **FAST)
