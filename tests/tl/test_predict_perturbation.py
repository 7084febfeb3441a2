"""Predictions of perturbations, cell by cell."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch

import scgpt_tools as sct
from generators import generator
from scgpt_tools.models.scgpt import TransformerGenerator
from scgpt_tools.nn.attention import BACKENDS
from screen_tables import controls, screen

pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    adata = screen(4)
    sct.pp.pair_controls(adata)
    return adata


@pytest.fixture
def model(cells):
    return generator(cells.var_names)


def test_one_perturbation_predicts_every_control(cells, model):
    sct.tl.predict_perturbation(cells, "G0", model)
    predicted = cells.layers["predicted"]
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(predicted).all(axis=1), ~controls(cells))
    assert np.isfinite(predicted[controls(cells)]).all()
    about = cells.uns["predicted"]
    assert list(about["perturbations"]) == ["G0"]
    assert list(about["layers"]) == ["predicted"]
    assert about["model"]["checksum"] == model.checksum
    assert about["genes"]["n_exact"] == cells.n_vars


def test_several_have_a_layer_each(cells, model):
    sct.tl.predict_perturbation(cells, ["G0", "G1+G9", "G2+ctrl", "G30"], model)
    assert {"predicted_G0", "predicted_G1+G9", "predicted_G2", "predicted_G30"} == set(cells.layers) - {None}
    assert list(cells.uns["predicted"]["perturbations"]) == ["G0", "G1+G9", "G2", "G30"]
    alone = sct.tl.predict_perturbation(cells, "G1+G9", model, copy=True)
    np.testing.assert_array_equal(alone.layers["predicted"], cells.layers["predicted_G1+G9"])
    assert not np.allclose(cells.layers["predicted_G0"], cells.layers["predicted_G30"], equal_nan=True)


def test_every_cell_under_its_own_condition(cells, model):
    sct.tl.predict_perturbation(cells, None, model)
    sct.tl.predict_perturbation(cells, ["G0", "G0+G1"], model, key_added="asked")
    for name, layer in (("G0+ctrl", "asked_G0"), ("G0+G1", "asked_G0+G1")):
        rows = np.flatnonzero(cells.obs["condition"] == name)
        paired = cells.obsm["ctrl_indices"][rows, 0]
        np.testing.assert_allclose(cells.layers["predicted"][rows], cells.layers[layer][paired], atol=1e-6)


def test_the_true_cells_do_not_reach_their_predictions(cells, model):
    """Changing every perturbed cell changes no prediction."""
    changed = cells.copy()
    dense = changed.X.toarray()
    dense[~controls(cells)] = dense[~controls(cells)][:, ::-1]
    changed.X = dense
    for adata in (cells, changed):
        sct.tl.predict_perturbation(adata, None, model)
    perturbed = ~controls(cells)
    np.testing.assert_array_equal(cells.layers["predicted"][perturbed], changed.layers["predicted"][perturbed])


def test_the_batch_size_and_the_order_of_cells_do_not_matter(cells, model):
    whole = sct.tl.predict_perturbation(cells, "G3", model, copy=True)
    small = sct.tl.predict_perturbation(cells, "G3", model, batch_size=3, copy=True)
    turned = sct.tl.predict_perturbation(cells[::-1].copy(), "G3", model, copy=True)
    np.testing.assert_allclose(whole.layers["predicted"], small.layers["predicted"], atol=1e-6)
    np.testing.assert_allclose(whole.layers["predicted"], turned.layers["predicted"][::-1], atol=1e-6)


@pytest.mark.parametrize("include", ["all", "batch-wise"])
def test_padding_gives_the_numbers_of_the_original(cells, include):
    """Genes without a token take part under the token of padding, as ``pred_perturb`` has it."""
    known = [name for name in cells.var_names if name not in ("G5", "G38")]
    model = generator(known)
    vocabulary = model.vocabulary
    original = TransformerGenerator(
        len(vocabulary), 16, 2, 16, 1, 1, 1, {token: i for i, token in enumerate(vocabulary)}, 0.0, pert_pad_id=0
    )
    heads = {
        key: tensor for key, tensor in original.cell_model.state_dict().items() if key.startswith("heads.cell_type")
    }
    original.cell_model.load_state_dict(model.state_dict() | heads)
    chosen = cells[controls(cells)].copy()
    chosen.X[:, [3, 7]] = 0
    chosen.X.eliminate_zeros()
    ids = vocabulary.ids(chosen.var_names)
    flags = np.tile((chosen.var_names == "G0").astype(np.float32), (chosen.n_obs, 1))
    x = torch.from_numpy(np.stack([chosen.X.toarray(), flags], axis=-1).reshape(-1, 2))
    batch = SimpleNamespace(pert=["G0+ctrl"] * chosen.n_obs, x=x)
    expected = original.pred_perturb(batch, include, np.where(ids < 0, vocabulary.pad_id, ids), amp=False)
    options = {"unknown": "pad", "include": include, "condition_key": None, "batch_size": chosen.n_obs}
    sct.tl.predict_perturbation(chosen, "G0", model, **options)
    np.testing.assert_allclose(chosen.layers["predicted"], expected.detach().numpy(), atol=1e-5)


def test_genes_without_a_token_keep_the_value_of_the_control(cells):
    model = generator([name for name in cells.var_names if name not in ("G5", "G38")])
    sct.tl.predict_perturbation(cells, "G0", model)
    columns = [5, 38]
    rows = controls(cells)
    np.testing.assert_array_equal(cells.layers["predicted"][rows][:, columns], cells.X.toarray()[rows][:, columns])


def test_genes_without_a_column_are_an_error_or_bring_their_token(cells):
    model = generator([*cells.var_names, "ELSEWHERE"])
    with pytest.raises(ValueError, match=r"no column for ELSEWHERE\. .*unmeasured='token'"):
        sct.tl.predict_perturbation(cells, "ELSEWHERE", model)
    sct.tl.predict_perturbation(cells, ["ELSEWHERE", "G0"], model, unmeasured="token")
    rows = controls(cells)
    plain = sct.tl.predict_perturbation(cells, "G0", model, copy=True)
    np.testing.assert_array_equal(plain.layers["predicted"][rows], cells.layers["predicted_G0"][rows])
    assert not np.allclose(cells.layers["predicted_ELSEWHERE"][rows], plain.layers["predicted"][rows], atol=1e-3)


def test_saved_generators_predict_the_same_and_files_keep_the_result(cells, model, tmp_path):
    model.save(tmp_path / "model")
    sct.tl.predict_perturbation(cells, ["G0", "G1+G2"], tmp_path / "model", device="cpu")
    again = sct.tl.predict_perturbation(cells, ["G0", "G1+G2"], model, copy=True)
    np.testing.assert_array_equal(cells.layers["predicted_G0"], again.layers["predicted_G0"])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.layers["predicted_G1+G2"], cells.layers["predicted_G1+G2"])
    assert list(back.uns["predicted"]["layers"]) == ["predicted_G0", "predicted_G1+G2"]


def test_tables_of_controls_only_need_no_conditions(cells, model):
    chosen = cells[controls(cells)].copy()
    del chosen.obs["condition"]
    sct.tl.predict_perturbation(chosen, "G0", model, condition_key=None)
    assert np.isfinite(chosen.layers["predicted"]).all()


def _counts(adata):
    adata.X = np.rint(np.expm1(adata.X.toarray()))
    return adata


def _unlabelled(adata):
    adata.obs["condition"] = adata.obs["condition"].astype(object).where(np.arange(adata.n_obs) > 2)
    return adata


def _without_controls(adata):
    return adata[~controls(adata)].copy()


BAD = {
    "unknown gene": (lambda adata: adata, {"perts": "GENE0"}, "no token for GENE0.*before it is fine-tuned"),
    "unknown gene in a combination": (lambda adata: adata, {"perts": ["G1", "G0+NOPE"]}, "no token for NOPE"),
    "no perturbation": (lambda adata: adata, {"perts": []}, "Expected `perts` to name at least 1"),
    "control as perturbation": (lambda adata: adata, {"perts": "ctrl"}, "to name genes"),
    "counts": (_counts, {"perts": "G0"}, "Expected log-normalised expression"),
    "counts, own condition": (_counts, {"perts": None}, "Expected log-normalised expression"),
    "unlabelled": (_unlabelled, {"perts": "G0"}, "Expected a label"),
    "no controls": (_without_controls, {"perts": "G0"}, "Expected control cells"),
    "no controls, own condition": (_without_controls, {"perts": None}, "Expected control cells"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_the_table_as_it_was(cells, model, unchanged, case):
    change, arguments, message = BAD[case]
    adata = change(cells)
    before = unchanged(adata)
    with pytest.raises(ValueError, match=message):
        sct.tl.predict_perturbation(adata, model=model, **arguments)
    assert unchanged(adata) == before


def test_models_by_name_are_no_list(cells, model):
    with pytest.raises(
        TypeError, match="Expected `model` to be one or a list of them, whose mean is taken, found dict"
    ):
        sct.tl.predict_perturbation(cells, "G1", {"mine": model})


def test_models_without_flags_are_refused(cells, make_model):
    with pytest.raises(ValueError, match=r"fine-tuned to predict perturbations, found 'tiny'.*task='perturb'"):
        sct.tl.predict_perturbation(cells, "G0", make_model())
    with pytest.raises(TypeError, match="Expected `model`"):
        sct.tl.predict_perturbation(cells)
    with pytest.raises(KeyError, match="Did you mean 'condition'"):
        sct.tl.predict_perturbation(cells, "G0", generator(cells.var_names), condition_key="conditions")


def test_the_setting_for_attention_counts(cells, model, monkeypatch):
    used = []

    def eager(*arguments):
        used.append("eager")
        return BACKENDS["sdpa"](*arguments)

    monkeypatch.setitem(BACKENDS, "eager", eager)
    with sct.settings.override(attention="eager"):
        sct.tl.predict_perturbation(cells, "G0", model)
    assert used
    assert cells.uns["predicted"]["params"]["attention"] == "eager"


def trained_with(model, *flags):
    model.config = replace(model.config, perturbation_flags=flags)
    return model


def test_directions_are_flags_of_their_own(cells, model):
    layers = {}
    for direction in ("up", "down"):
        adata = cells.copy()
        sct.tl.predict_perturbation(adata, "G0", trained_with(model, 1, 2), direction=direction)
        layers[direction] = adata.layers["predicted"]
    assert adata.uns["predicted"]["params"]["flag"] == 2
    for name, flags in (("one", (1,)), ("other", (2,)), ("unknown", ())):
        adata = cells.copy()
        sct.tl.predict_perturbation(adata, "G0", trained_with(model, *flags))
        layers[name] = adata.layers["predicted"]
    np.testing.assert_array_equal(layers["one"], layers["up"])
    np.testing.assert_array_equal(layers["unknown"], layers["up"])
    np.testing.assert_array_equal(layers["other"], layers["down"])
    assert not np.allclose(layers["up"], layers["down"], equal_nan=True)


def test_the_direction_of_the_labels_counts(cells, model):
    sct.pp.parse_conditions(cells, direction="down")
    sct.tl.predict_perturbation(cells, "G0", trained_with(model, 1, 2))
    assert cells.uns["predicted"]["params"]["flag"] == 2


@pytest.mark.parametrize(
    ("flags", "direction", "message"),
    [
        ((1, 2), None, "Expected `direction` to be 'up' or 'down'"),
        ((1,), "down", "Expected direction='up', which the model was trained on, found 'down'"),
        ((2,), "up", "Expected direction='down'"),
    ],
)
def test_directions_that_the_model_was_not_shown_are_refused(cells, model, unchanged, flags, direction, message):
    before = unchanged(cells)
    with pytest.raises(ValueError, match=message):
        sct.tl.predict_perturbation(cells, "G0", trained_with(model, *flags), direction=direction)
    assert unchanged(cells) == before


def test_a_direction_of_which_nobody_knows_is_warned_of(cells, model):
    with pytest.warns(UserWarning, match="does not say what it was trained on") as caught:
        sct.tl.predict_perturbation(cells, "G0", model, direction="down")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("task", ["predict", "own", "screen", "evaluate"])
def test_predictions_that_are_not_finite_are_refused_at_once(cells, model, unchanged, monkeypatch, value, task):
    with torch.no_grad():
        model.embedder.perturbation.weight[1, 0] = value
    sct.pp.perturbation_split(cells, "combo_seen2", test_fraction=0.5, val_fraction=0.0)
    blocks = []
    take = sct.inference.perturbation.RowSource.take
    monkeypatch.setattr(
        sct.inference.perturbation.RowSource, "take", lambda self, rows: blocks.append(1) or take(self, rows)
    )
    calls = {
        "predict": lambda: sct.tl.predict_perturbation(cells, ["G0", "G1"], model, batch_size=4),
        "own": lambda: sct.tl.predict_perturbation(cells, None, model, batch_size=cells.n_obs),
        "screen": lambda: sct.tl.screen(cells, ["G0"], model, batch_size=4),
        "evaluate": lambda: sct.tl.evaluate_perturbation(cells, model, batch_size=4),
    }
    before = unchanged(cells)
    with pytest.raises(ValueError, match=r"Expected the weights of 'tiny generator' to be finite"):
        calls[task]()
    assert unchanged(cells) == before
    assert len(blocks) < 15


def test_predictions_that_overflow_are_refused_at_once(cells, model, unchanged):
    with torch.no_grad():
        model.heads["expression"].slope[0].weight.fill_(3e38)
    before = unchanged(cells)
    with pytest.raises(ValueError, match=r"Expected finite results, found NaN .*first: 'cell"):
        sct.tl.predict_perturbation(cells, ["G0", "G1"], model, batch_size=4)
    assert unchanged(cells) == before


def test_names_of_layers_that_no_file_can_keep_are_refused(unchanged):
    adata = screen(3)
    names = {"G0": "SPI1/PU1"}
    adata.var_names = [names.get(name, name) for name in adata.var_names]
    adata.obs["condition"] = adata.obs["condition"].astype(str).str.replace("G0", "SPI1/PU1")
    model = generator(adata.var_names)
    before = unchanged(adata)
    with pytest.raises(ValueError, match=r"without '/'.*'predicted_SPI1/PU1'"):
        sct.tl.predict_perturbation(adata, ["SPI1/PU1", "G1"], model)
    assert unchanged(adata) == before
    sct.tl.predict_perturbation(adata, "SPI1/PU1", model)
    assert list(adata.uns["predicted"]["perturbations"]) == ["SPI1/PU1"]


def test_without_a_model_it_is_said_how_to_make_one(cells):
    with pytest.raises(TypeError, match=r"Expected `model`.*finetune\(.*task='perturb'\), and pass model=model"):
        sct.tl.predict_perturbation(cells)


def test_named_perturbations_without_a_model_take_a_released_one(cells, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="scgpt_tools")
    with (
        sct.settings.override(offline=True, cache_dir=tmp_path),
        pytest.raises(FileNotFoundError, match=r"scgenept_go_c.*No `model` was passed.*'scgenept-demo'"),
    ):
        sct.tl.predict_perturbation(cells, perts=["G0"])
    assert "'scgenept_go_c-norman' (scgpt-human, then CRISPRa in K562" in caplog.text


@pytest.mark.parametrize("perts", [None, "G0", ["G0", "G1+G2"]])
def test_predictions_as_a_table_of_their_own(cells, perts, unchanged):
    model = generator(cells.var_names)
    before = unchanged(cells)
    table = sct.tl.predict_perturbation(cells, perts, model, as_anndata=True)
    assert unchanged(cells) == before
    sct.tl.predict_perturbation(cells, perts, model)
    layers = cells.uns["predicted"]["layers"]
    expected = [cells.layers[name][~np.isnan(cells.layers[name]).any(axis=1)] for name in layers]
    np.testing.assert_array_equal(table.X, np.concatenate(expected))
    assert table.obs_names.is_unique
    assert list(table.var_names) == list(cells.var_names)
    assert list(table.uns["predicted"]["perturbations"]) == list(cells.uns["predicted"]["perturbations"])
    start = cells.obs["condition"].astype(str)[table.obs["control_cell"]]
    if perts is None:
        assert table.obs["condition"].astype(str).tolist() == cells.obs["condition"].astype(str).tolist()
        assert table.obs_names.equals(cells.obs_names)
    else:
        assert set(table.obs["condition"]) == ({"G0+ctrl"} if perts == "G0" else {"G0+ctrl", "G1+G2"})
        assert set(table.obs_names) == {
            f"{cell}_{name}" for cell in set(start.index) for name in ([perts] if isinstance(perts, str) else perts)
        }
    assert set(start) == {"ctrl"}


def test_a_table_of_its_own_is_no_copy(cells):
    with pytest.raises(ValueError, match="`copy` or `as_anndata`"):
        sct.tl.predict_perturbation(cells, "G0", generator(cells.var_names), as_anndata=True, copy=True)


def test_a_pool_of_controls_is_drawn_once_each_or_as_the_original_does(cells):
    model = generator(cells.var_names)
    rows = np.flatnonzero(controls(cells))
    sct.tl.predict_perturbation(cells, "G0", model)
    every = cells.layers["predicted"].copy()
    few = sct.tl.predict_perturbation(cells, "G0", model, n_controls=5, copy=True).layers["predicted"]
    there = np.flatnonzero(np.isfinite(few).all(axis=1))
    assert there.size == 5
    np.testing.assert_allclose(few[there], every[there], atol=1e-6)
    pool = sct.tl.predict_perturbation(cells, "G0", model, n_controls=300, bootstrap=True, as_anndata=True, rng=7)
    np.random.seed(7)
    drawn = rows[np.random.randint(0, rows.size, 300)]
    assert pool.obs["control_cell"].tolist() == cells.obs_names[drawn].tolist()
    np.testing.assert_allclose(pool.X, every[drawn], atol=1e-6)
    assert pool.obs_names.is_unique
    mean = sct.tl.screen(cells, "G0", model, n_controls=300, bootstrap=True, rng=7)
    np.testing.assert_allclose(mean.X[0], pool.X.mean(axis=0), atol=1e-5)
    assert mean.uns["screen"]["n_controls"] == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perts": "G0", "bootstrap": True}, "as_anndata=True"),
        ({"perts": None, "n_controls": 5}, "with `perts` only"),
        ({"perts": "G0", "n_controls": 0}, "n_controls"),
    ],
)
def test_pools_that_cannot_be(cells, unchanged, options, message):
    before = unchanged(cells)
    with pytest.raises(ValueError, match=message):
        sct.tl.predict_perturbation(cells, model=generator(cells.var_names), **options)
    assert unchanged(cells) == before


def test_the_demo_predicts_offline():
    adata = sct.datasets.simulated_screen(n_cells=3)
    with sct.settings.override(offline=True):
        sct.tl.predict_perturbation(adata, perts=["SPI1"], model="scgenept-demo")
    ax = sct.pl.perturbation_de(adata, "SPI1", show=False)
    assert "predicted" in " ".join(text.get_text() for text in ax.get_legend().get_texts())
    rows = controls(adata)
    change = adata.layers["predicted"][rows].mean(axis=0) - np.asarray(adata.X[rows].mean(axis=0)).ravel()
    assert adata.var_names[change.argmin()] in ("SPI1", "S100A9", "S100A8", "LYZ", "TYROBP", "CST3", "FCER1G")


@pytest.mark.parametrize("several", [False, True])
def test_bf16_that_a_processor_computes_in_software_is_warned_of_once(cells, model, monkeypatch, several):
    monkeypatch.setattr("scgpt_tools.models.precision.lacks_bf16", lambda: True)
    models, perturbations = (model, "G1") if not several else ([model, model], ["G1", "G2"])
    with pytest.warns(UserWarning, match="no instructions for bf16") as found:
        sct.tl.predict_perturbation(cells, perturbations, models, precision="bf16")
    assert sum("no instructions for bf16" in str(entry.message) for entry in found) == 1
    assert found[0].filename == __file__
