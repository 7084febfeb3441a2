"""Fine-tuning a generator from a pre-trained model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from anndata import AnnData

from scgpt_tools import pp, tl
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.train import finetune
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.starting import perturbation_model
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

QUICK = {"task": "perturb", "epochs": 1, "accelerator": "cpu", "lr": 1e-3}


@pytest.fixture
def cells():
    adata = screen(12)
    pp.perturbation_split(adata, draw="stable")
    pp.pair_controls(adata, within="batch")
    return adata


def pretrained(names, **options) -> CellModel:
    vocabulary = Vocabulary.from_genes(names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellModel(
            FAMILIES["scgpt"](vocabulary, dim=16, layers=1, heads=2, hidden=16, **options), vocabulary, name="tiny"
        ).eval()


def test_gene_table_values_and_transformer_are_taken_over(cells):
    base = pretrained(cells.var_names)
    generator = perturbation_model(base)
    transfer = generator.transfer
    before, after = base.state_dict(), generator.state_dict()
    for key in after:
        if key.startswith(("embedder.genes.", "embedder.values.", "encoder.")):
            assert key in transfer.used
            assert torch.equal(after[key], before[key])
    assert {key.split(".")[0] for key in transfer.missing} == {"embedder", "heads"}
    assert [key for key in transfer.missing if key.startswith("embedder")] == ["embedder.perturbation.weight"]
    assert all(key.startswith(("heads.", "embedder.generation")) for key in transfer.dropped)
    assert sorted((*transfer.used, *transfer.missing)) == sorted(after)
    assert "Weights taken over: embedder.genes (3 tensors), embedder.values" in str(transfer)
    assert "starting from scratch: embedder.perturbation (1 tensors), heads.expression (12 tensors)" in str(transfer)


def test_a_generator_keeps_everything(cells):
    first = perturbation_model(pretrained(cells.var_names))
    again = perturbation_model(first)
    transfer = again.transfer
    assert not transfer.missing
    assert not transfer.dropped
    assert again.config == first.config


def test_training_learns_and_reports_what_was_taken_over(cells, caplog):
    base = pretrained(cells.var_names)
    kept = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    caplog.set_level(logging.INFO, logger="scgpt_tools")
    state = torch.get_rng_state()
    model = finetune(cells, base, **(QUICK | {"epochs": 6}))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(base.state_dict()[key], kept[key]) for key in kept)
    assert "Weights taken over: embedder.genes" in caplog.text
    assert model.config.family == "scgpt_perturbation"
    assert model.history["train_loss"].iloc[-1] < 0.6 * model.history["train_loss"].iloc[0]
    assert {"validation_loss", "validation_perturbed_expression"} <= set(model.history)


def test_the_table_stays_as_it_is_and_the_seed_decides(cells):
    before = cells.copy()
    first, again, other = (
        finetune(cells, pretrained(cells.var_names), **QUICK, rng=seed).checksum for seed in (0, 0, 1)
    )
    assert first == again != other
    assert set(cells.obsm) == set(before.obsm)
    assert set(cells.uns) == set(before.uns)
    np.testing.assert_array_equal(cells.X.toarray(), before.X.toarray())


def test_early_stopping_on_held_out_conditions(cells):
    settings = QUICK | {"epochs": 40, "patience": 1, "lr": 0.02}
    model = finetune(cells, pretrained(cells.var_names), **settings, validation=0.3)
    assert 1 < len(model.history) < 40


def test_a_budget_of_steps_may_end_before_there_is_anything_to_stop_by(cells):
    settings = QUICK | {"max_steps": 1, "batch_size": 4}
    del settings["epochs"]
    model = finetune(cells, pretrained(cells.var_names), **settings, validation=0.3)
    assert len(model.history) == 1


def test_no_condition_to_validate_on_is_said(cells):
    """The recipe of this task stops early, which it cannot then."""
    cells.obs["split"] = cells.obs["split"].astype(str).replace("val", "test")
    with pytest.warns(
        UserWarning, match="Expected perturbed cells of the part 'val' in obs\\['split'\\] to stop early"
    ):
        model = finetune(cells, pretrained(cells.var_names), **QUICK)
    assert "validation_loss" not in model.history
    finetune(cells, pretrained(cells.var_names), patience=None, **QUICK)


def test_frozen_backbones_keep_their_weights_but_flags_are_learnt(cells):
    base = pretrained(cells.var_names)
    model = finetune(cells, base, **QUICK, freeze="backbone")
    with own_random_numbers(0):
        start = perturbation_model(base)
    for key, tensor in model.state_dict().items():
        if key.startswith(("encoder.", "embedder.genes", "embedder.values")):
            assert torch.equal(tensor, start.state_dict()[key]), key
    flags, before = model.embedder.perturbation.weight, start.embedder.perturbation.weight
    assert not torch.equal(flags[1], before[1])
    assert torch.equal(flags[2], before[2]), "a flag that does not occur is not trained"
    assert torch.equal(flags[0], torch.zeros(16)), "'not perturbed' adds nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"include": "batch-wise"},
        {"length": 10},
        {"length": 10, "gene_sampling": "original", "include": "batch-wise"},
        {"adaptive_offset": True, "activation": "ReLU"},
        {"controls": False, "within": "batch"},
        {"sampling": "balanced"},
        {"sampling": "blocks"},
        {"freeze": "backbone", "unfreeze_every": 1, "epochs": 3},
    ],
    ids=str,
)
def test_options(cells, options):
    model = finetune(cells, pretrained(cells.var_names), **QUICK | options)
    assert np.isfinite(model.history["train_loss"]).all()
    if "activation" in options:
        assert model.config.heads.expression.activation == "ReLU"


def test_gradual_unfreezing_begins_with_the_flags_and_the_head(cells):
    base = pretrained(cells.var_names)
    with own_random_numbers(0):
        start = perturbation_model(base)
    model = finetune(cells, base, **QUICK, freeze="backbone", unfreeze_every=1)
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, start.state_dict()[name])
    }
    assert changed == {"heads", "embedder"}
    assert not torch.equal(flags_of(model), flags_of(start))
    assert torch.equal(
        model.state_dict()["embedder.genes.table.weight"], start.state_dict()["embedder.genes.table.weight"]
    )


def test_genes_without_token_are_dropped_or_padding(cells):
    known = [name for name in cells.var_names if name not in ("G38", "G39")]
    dropped, padded = (finetune(cells, pretrained(known), **QUICK, unknown=unknown) for unknown in ("drop", "pad"))
    assert dropped.checksum != padded.checksum


@pytest.mark.parametrize(
    "options",
    [
        {"unknown": "pad"},
        {"unknown": "pad", "include": "batch-wise", "length": 12},
        {"unmeasured": "token", "gene_sampling": "original", "length": 12},
    ],
    ids=str,
)
def test_a_saved_model_reads_cells_as_in_training(cells, tmp_path, options):
    known = [name for name in cells.var_names if name not in ("G38", "G39")]
    model = finetune(cells, pretrained([*known, "ELSEWHERE"]), **QUICK, **options)
    tokenizer = model.config.tokenizer
    assert tokenizer.unknown == options.get("unknown", "drop")
    assert tokenizer.genes == options.get("include", "all")
    assert tokenizer.length == options.get("length", 1536)
    model.save(tmp_path / "saved")
    loaded = CellModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.config.tokenizer == tokenizer

    def predicted(own, **other):
        return tl.predict_perturbation(cells, "G0", own, **other, copy=True).layers["predicted"]

    np.testing.assert_array_equal(predicted(loaded), predicted(model))
    named = {key: options.get(key, usual) for key, usual in {"include": "all", "unknown": "drop"}.items()}
    np.testing.assert_array_equal(predicted(loaded), predicted(model, **named))
    if options.get("unknown") == "pad":
        assert not np.array_equal(predicted(loaded), predicted(model, unknown="drop"), equal_nan=True)
    if "unmeasured" in options:
        assert np.isfinite(predicted(loaded)[cells.obs["condition"] == "ctrl"]).all()
        tl.predict_perturbation(cells, "ELSEWHERE", loaded, copy=True)
        with pytest.raises(ValueError, match="no column for ELSEWHERE"):
            tl.predict_perturbation(cells, "ELSEWHERE", loaded, unmeasured="error")


def test_models_that_were_saved_without_these_settings_load(cells, tmp_path):
    model = perturbation_model(pretrained(cells.var_names))
    model.save(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    content = json.loads(path.read_text())
    for name in ("unknown", "unmeasured"):
        del content["model"]["tokenizer"][name]
    path.write_text(json.dumps(content))
    assert CellModel.from_pretrained(tmp_path / "saved", device="cpu").config == model.config


def test_genes_without_a_column(cells):
    few = cells[:, [name for name in cells.var_names if name != "G7"]].copy()
    base = pretrained(cells.var_names)
    with pytest.raises(ValueError, match=r"no column for G7\. .*unmeasured='token'"):
        finetune(few, base, **QUICK, validation=0.0)
    with pytest.warns(UserWarning, match="are left out"):
        finetune(few, base, **QUICK, validation=0.0, unmeasured="drop")
    assert len(finetune(few, base, **QUICK, validation=0.0, unmeasured="token").history) == 1


def test_bad_input_is_refused(cells):
    base = pretrained(cells.var_names)
    with pytest.raises(ValueError, match="log-normalised expression in `X`, found whole numbers"):
        counts = cells.copy()
        counts.X = np.rint(np.expm1(counts.X.toarray()))
        finetune(counts, base, **QUICK)
    with pytest.raises(ValueError, match="Expected a label"):
        unlabelled = cells.copy()
        unlabelled.obs["condition"] = unlabelled.obs["condition"].astype(object).where(np.arange(cells.n_obs) > 3)
        finetune(unlabelled, base, **QUICK)
    with pytest.raises(ValueError, match="Expected control cells to pair with"):
        perturbed = cells[cells.obs["condition"] != "ctrl"].copy()
        del perturbed.obsm["ctrl_indices"]
        finetune(perturbed, base, **QUICK)
    with pytest.raises(ValueError, match="found others"):
        finetune(cells[::2].copy(), base, **QUICK)
    with pytest.raises(TypeError, match="Did you mean 'epochs'"):
        finetune(cells, base, task="perturb", epoch=3)
    with pytest.raises(ValueError, match="`freeze` to be one of"):
        finetune(cells, base, **QUICK, freeze="backbones")
    with pytest.raises(ValueError, match="`lora` freezes the backbone itself"):
        finetune(cells, base, **QUICK, lora=2, freeze="backbone")
    with pytest.raises(ValueError, match="Expected validation cells"):
        finetune(cells, base, **QUICK, validation=0.0, patience=3)
    with pytest.raises(ValueError, match="`unmeasured` to be one of"):
        finetune(cells, base, **QUICK, unmeasured="ignore")
    with pytest.raises(ValueError, match="^Expected `sampling` to be one of 'random', 'balanced', 'blocks'"):
        finetune(cells, base, **QUICK, sampling="one_batch")


def test_cells_that_were_not_divided_are_told_how(cells):
    undivided = cells.copy()
    del undivided.obs["split"]
    with pytest.raises(KeyError, match="Run pp.perturbation_split, or pass a share of the conditions"):
        finetune(undivided, pretrained(cells.var_names), **QUICK)


def test_held_out_cells_do_not_reach_the_weights(cells):
    """Whatever the test cells hold, the same model comes out."""
    changed = cells.copy()
    held = np.flatnonzero(changed.obs["split"] == "test")
    assert held.size
    dense = changed.X.toarray()
    dense[held] = np.random.default_rng(5).permutation(dense[held], axis=1)
    changed.X = dense
    first, second = (finetune(table, pretrained(cells.var_names), **QUICK).checksum for table in (cells, changed))
    assert first == second


def test_genes_without_a_token_can_be_added(cells):
    """A target outside of the vocabulary gets a token of its own before training."""
    base = pretrained([name for name in cells.var_names if name != "G7"])
    with pytest.raises(ValueError, match=r"no token for G7\. .*extend='auto'"):
        finetune(cells, base, **QUICK, validation=0.0, extend="nothing")
    with pytest.raises(ValueError, match=r"no token for G7\. .*with unmeasured='token' besides"):
        few = cells[:, [name for name in cells.var_names if name != "G7"]].copy()
        finetune(few, base, **QUICK, validation=0.0, unmeasured="error")
    larger = base.adapt(vocabulary=base.vocabulary.extended(["G7"]))
    model = finetune(cells, larger, **QUICK, validation=0.0)
    kept = model.state_dict()["embedder.genes.table.weight"]
    assert model.vocabulary["G7"] == len(kept) - 1
    assert not torch.equal(kept[-1], larger.state_dict()["embedder.genes.table.weight"][-1])


def test_a_model_is_extended_where_it_has_to_be_and_says_so(cells, caplog):
    """By name too, for which nobody could add tokens beforehand."""
    base = pretrained([name for name in cells.var_names if name not in ("G7", "G39")])
    with caplog.at_level(logging.INFO):
        model = finetune(cells, base, **QUICK, validation=0.0)
    assert "Adding 1 token to the vocabulary for genes that it lacks: G7." in caplog.text
    assert set(model.vocabulary.tokens) - set(base.vocabulary.tokens) == {"G7"}
    assert "G7" not in base.vocabulary
    tl.predict_perturbation(cells, "G7", model)
    every = finetune(cells, base, **QUICK, validation=0.0, extend="all")
    assert set(every.vocabulary.tokens) - set(base.vocabulary.tokens) == {"G7", "G39"}


def test_what_training_dropped_is_left_out_of_predictions_too(cells):
    few = cells[:, [name for name in cells.var_names if name != "G7"]].copy()
    with pytest.warns(UserWarning, match="are left out"):
        model = finetune(few, pretrained(cells.var_names), **QUICK, validation=0.0, unmeasured="drop")
    lost = few.obs["condition"].str.contains("G7").to_numpy()
    assert lost.any()
    with pytest.warns(UserWarning, match="perturbations are left out, as in the training of 'tiny"):
        tl.predict_perturbation(few, model=model)
    np.testing.assert_array_equal(np.isnan(few.layers["predicted"]).any(axis=1), lost)
    with pytest.warns(UserWarning, match="no column for G7"):
        effects = tl.screen(few, ["G7", "G0"], model, n_controls=4)
    assert list(effects.obs_names) == ["G0"]
    with pytest.raises(ValueError, match="no column for G7"):
        tl.predict_perturbation(few, "G7", model)
    few.obs["split"] = np.where(lost | (few.obs["condition"] == "G0+ctrl"), "test", "train")
    with pytest.warns(UserWarning, match="perturbations are left out"):
        scores = tl.evaluate_perturbation(few, model, metrics=["mse"], n_controls=4)
    assert set(scores.table["condition"]) == {"G0+ctrl"}


def test_validation_that_loses_all_of_its_conditions_is_refused(cells):
    few = cells[:, [name for name in cells.var_names if name != "G7"]].copy()
    lost = few.obs["condition"].str.contains("G7").to_numpy()
    few.obs["split"] = np.where(lost, "val", "train")
    with (
        pytest.raises(ValueError, match="Expected some conditions to validate on"),
        pytest.warns(UserWarning, match="are left out"),
    ):
        finetune(few, pretrained(cells.var_names), **QUICK, unmeasured="drop")


def flags_of(model) -> torch.Tensor:
    return model.embedder.perturbation.weight.detach().clone()


def test_directions_have_a_flag_each_and_the_model_knows_which_it_was_shown(cells, tmp_path):
    base = pretrained(cells.var_names)
    start = flags_of(perturbation_model(base))
    usual = finetune(cells, base, **QUICK)
    assert usual.config.perturbation_flags == (1,)
    down = finetune(cells, base, direction="down", **QUICK)
    assert down.config.perturbation_flags == (2,)
    assert not torch.equal(flags_of(down)[2], flags_of(usual)[2])
    assert not torch.equal(flags_of(usual)[1], start[1]) or not torch.equal(flags_of(down)[2], start[2])
    both = finetune(cells, down, direction="up", **QUICK)
    assert both.config.perturbation_flags == (1, 2)
    both.save(tmp_path / "both")
    assert CellModel.from_pretrained(tmp_path / "both", device="cpu").config.perturbation_flags == (1, 2)
    both.export(tmp_path / "exported")
    assert CellModel.from_pretrained(tmp_path / "exported", device="cpu").config.perturbation_flags == (1, 2)


def test_the_direction_of_the_labels_is_taken(cells):
    pp.parse_conditions(cells, direction="down")
    assert cells.uns["condition_perturbed"]["flags"] == {"untouched": 0, "perturbed": 2}
    assert finetune(cells, pretrained(cells.var_names), **QUICK).config.perturbation_flags == (2,)


def test_a_flag_that_is_never_trained_is_refused(cells):
    base = pretrained(cells.var_names)
    config = FAMILIES["scgpt_perturbation"](base.vocabulary, dim=16, layers=1, heads=2, hidden=16, flag_pad=2)
    with pytest.raises(ValueError, match="Expected a model with a trained flag for direction='down'"):
        finetune(cells, CellModel(config, base.vocabulary), direction="down", **QUICK)
    with pytest.raises(ValueError, match="`direction` to be one of 'up', 'down'"):
        finetune(cells, base, direction="left", **QUICK)


def test_means_of_cells_are_learnt_and_predicted_from(cells, tmp_path):
    model = finetune(cells, pretrained(cells.var_names), **(QUICK | {"epochs": 3}), cells_per_mean=6)
    assert model.config.tokenizer.cells_per_mean == 6
    model.save(tmp_path / "saved")
    loaded = CellModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.config.tokenizer.cells_per_mean == 6
    controls = (cells.obs["condition"] == "ctrl").to_numpy()
    averaged = tl.predict_perturbation(cells, "G0", loaded, copy=True).layers["predicted"][controls]
    single = loaded.adapt(tokenizer=replace(loaded.config.tokenizer, cells_per_mean=1)).eval()
    alone = tl.predict_perturbation(cells, "G0", single, copy=True).layers["predicted"][controls]
    assert averaged.std(axis=0).sum() < 0.7 * alone.std(axis=0).sum()
    # Means over all controls in one: what the model makes of their mean profile.
    whole = loaded.adapt(tokenizer=replace(loaded.config.tokenizer, cells_per_mean=10_000)).eval()
    found = tl.screen(cells, "G0", whole, n_controls=None)
    profile = AnnData(np.asarray(cells.X[controls].mean(axis=0)), var=cells.var)
    expected = tl.predict_perturbation(profile, "G0", single, condition_key=None, as_anndata=True).X
    np.testing.assert_allclose(found.X, expected, atol=1e-5)
    assert (found.layers["dispersion"] == 0).all()
    own = tl.predict_perturbation(cells, model=loaded, copy=True).layers["predicted"]
    assert np.isfinite(own).all()


def test_what_is_learnt_where_nobody_says(cells, monkeypatch):
    """Means of 16 cells, for as many steps as it takes, at a rate for the width; by other families as their authors do."""
    monkeypatch.setattr("scgpt_tools.train.pacing.MOST", 40)
    model = finetune(cells, pretrained(cells.var_names), task="perturb", accelerator="cpu")
    assert model.config.tokenizer.cells_per_mean == 16
    per_epoch = model.history["step"].iloc[0]
    assert len(model.history) == max(15, -(-40 // per_epoch))
    assert model.history["lr"].iloc[0] == pytest.approx(1e-4 * 512 / 16)
    single = finetune(cells, pretrained(cells.var_names), **QUICK, cells_per_mean=1)
    assert single.config.tokenizer.cells_per_mean == 1
    for name in ("scgenept", "deepsc"):
        usual = FAMILIES[name].finetuning["perturb"]
        assert (usual["cells_per_mean"], usual["lr"]) == (1, 1e-4)


@pytest.mark.parametrize("options", [{}, {"cells_per_mean": 4}], ids=["cells", "means"])
def test_pairs_by_transport_are_learnt_from(cells, options):
    """Whether they were made before or are made here; and they are others than random ones."""
    base, made = pretrained(cells.var_names), {}
    layered = cells.copy()
    layered.layers["log"] = layered.X.copy()
    made["drawn"] = finetune(cells, base, within="batch", **QUICK, **options)
    made["here"] = finetune(layered, base, within="batch", pairing="transport", layer="log", **QUICK, **options)
    pp.pair_controls(cells, method="transport", within="batch")
    made["before"] = finetune(cells, base, **QUICK, **options)
    losses = {name: model.history["train_loss"].iloc[0] for name, model in made.items()}
    assert losses["here"] == losses["before"]
    assert losses["drawn"] != losses["here"]
    with pytest.raises(ValueError, match="Expected `pairs` or `pairing`, found both"):
        finetune(cells, base, pairs="ctrl_indices", pairing="transport", **QUICK)
    with pytest.raises(ValueError, match="`pairing` to be one of 'random', 'transport'"):
        finetune(cells, base, pairing="nearest", **QUICK)


@pytest.mark.parametrize("number", [0, 2.5, True])
def test_numbers_of_cells_that_cannot_be(cells, number):
    with pytest.raises((TypeError, ValueError), match="cells_per_mean"):
        finetune(cells, pretrained(cells.var_names), **QUICK, cells_per_mean=number)


def test_bf16_that_a_processor_computes_in_software_is_warned_of_once(cells, monkeypatch):
    monkeypatch.setattr("scgpt_tools.models.precision.lacks_bf16", lambda: True)
    with pytest.warns(UserWarning, match="no instructions for bf16") as found:
        finetune(cells, pretrained(cells.var_names), **QUICK, max_steps=1, precision="bf16")
    assert sum("no instructions for bf16" in str(entry.message) for entry in found) == 1
