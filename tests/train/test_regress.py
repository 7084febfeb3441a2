"""Learning numbers of cells, and predicting them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.models import CellModel
from scgpt_tools.models.config import RegressorConfig
from scgpt_tools.objectives import CellTargets
from scgpt_tools.tokens.batch import TokenBatch

QUICK = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}


@pytest.fixture
def base(make_model) -> CellModel:
    return make_model(dropout=0.0).eval()


@pytest.fixture
def numbers():
    """Function that gives cells an age by their kind and the share of some genes."""

    def give(cells):
        odd = (cells.obs["kind"] == "odd").to_numpy()
        share = np.asarray(cells.X[:, ::2].sum(axis=1)).ravel() / np.asarray(cells.X.sum(axis=1)).ravel()
        cells.obs["age"] = np.where(odd, 60.0, 20.0)
        cells.obs["share"] = share * 1e-3
        return cells

    return give


def test_several_numbers_are_learnt_and_predicted_in_their_units(base, cells, make_cells, numbers, tmp_path):
    model = sct.train.finetune(
        numbers(cells), base, task="regress", target_keys=["age", "share"], **QUICK | {"epochs": 20, "lr": 1e-2}
    )
    query = numbers(make_cells(40, seed=5, prefix="query"))
    sct.tl.predict(query, model.save(tmp_path / "model"))
    for name in ("age", "share"):
        found, true = query.obs[f"scgpt_predicted_{name}"], query.obs[name]
        assert np.corrcoef(found, true)[0, 1] > 0.9
        assert np.abs(found - true).mean() < 0.5 * np.abs(true - true.mean()).mean()
    assert list(query.uns["scgpt_predicted"]["targets"]) == ["age", "share"]
    assert query.uns["scgpt_predicted"]["model"]["checksum"] == model.checksum
    assert model.history["train_cell_targets"].iloc[-1] < 0.3
    assert model.name == "untrained (regress)"


def test_small_differences_of_large_numbers_are_kept(base, cells):
    cells.obs["seconds"] = 1.6e9 + np.arange(cells.n_obs) % 7
    head = sct.train.finetune(cells, base, task="regress", target_keys="seconds", validation=0, **QUICK).config.heads
    assert head["targets"].scale[0] == pytest.approx(cells.obs["seconds"].std(ddof=0))
    assert head["targets"].centre[0] == pytest.approx(cells.obs["seconds"].mean(), abs=1e-3)


def test_balanced_sampling_asks_for_classes(base, cells, numbers):
    with pytest.raises(ValueError, match="Expected `label_key`, the column of `obs` with classes"):
        sct.train.finetune(numbers(cells), base, task="regress", target_keys="age", sampling="balanced", **QUICK)


def test_unknown_numbers_teach_nothing(base, cells, numbers, caplog):
    numbers(cells)
    cells.obs.loc[cells.obs_names[:20], ["age", "share"]] = np.nan
    cells.obs.loc[cells.obs_names[20:30], "age"] = np.nan
    with caplog.at_level("INFO", logger="scgpt_tools"):
        model = sct.train.finetune(cells, base, task="regress", target_keys=["age", "share"], validation=0.25, **QUICK)
    assert "on 30 cells, validating on 10" in caplog.text
    assert np.isfinite(model.history["train_loss"]).all()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_loss_is_one_for_the_mean_and_skips_what_is_unknown():
    batch = TokenBatch(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool))
    true = torch.tensor([[1.0, torch.nan], [-1.0, 2.0], [torch.nan, torch.nan]])
    found = torch.zeros(3, 2, requires_grad=True)
    loss = CellTargets()({"first": {"targets": found}}, batch.replace(targets=true).check())
    assert loss.item() == pytest.approx((1 + 1 + 4) / 3)
    loss.backward()
    assert torch.equal(found.grad == 0, true.isnan())


def test_means_and_spreads_are_those_of_the_training_cells(base, cells, numbers):
    numbers(cells)
    cells.obs["split"] = ["train"] * 40 + ["val"] * 20
    model = sct.train.finetune(cells, base, task="regress", target_keys="age", validation="split", **QUICK)
    head = model.config.heads.find("targets", RegressorConfig)
    assert head.names == ("age",)
    assert head.centre[0] == pytest.approx(cells.obs["age"].iloc[:40].mean(), rel=1e-6)
    assert head.scale[0] == pytest.approx(cells.obs["age"].iloc[:40].std(ddof=0), rel=1e-6)


@pytest.mark.parametrize("options", [{"freeze": "backbone"}, {"freeze": "backbone", "unfreeze_after": 1}, {"lora": 2}])
def test_parts_are_frozen_as_for_classes(base, cells, numbers, options):
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    model = sct.train.finetune(
        numbers(cells), base, task="regress", target_keys=["age"], **QUICK | {"epochs": 2}, **options
    )
    moved = {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if name in before and not torch.equal(parameter, before[name])
    }
    assert moved - {"heads"} == (
        {"encoder", "embedder"} if "unfreeze_after" in options else {"encoder"} if "lora" in options else set()
    )


def test_everything_waits_for_its_epoch(base, cells):
    """With two epochs of waiting and two of training, the backbone is that of the base model until the third."""
    options = {"task": "annotate", "label_key": "kind", "freeze": "backbone", "validation": 0}
    held = sct.train.finetune(cells, base, **options, unfreeze_after=2, **QUICK | {"epochs": 2})
    released = sct.train.finetune(cells, base, **options, unfreeze_after=2, **QUICK | {"epochs": 3})
    name = "encoder.blocks.0.attention.query.weight"
    assert torch.equal(held.get_parameter(name), base.get_parameter(name))
    assert not torch.equal(released.get_parameter(name), base.get_parameter(name))


def test_a_run_goes_on_as_the_same_numbers_only(base, cells, numbers, tmp_path):
    options = {"task": "regress", "folder": tmp_path / "run", "resume": True, **QUICK}
    numbers(cells)
    whole = sct.train.finetune(cells, base, target_keys=["age"], task="regress", **QUICK | {"epochs": 2})
    sct.train.finetune(cells, base, target_keys=["age"], **options)
    resumed = sct.train.finetune(cells, base, target_keys=["age"], **options | {"epochs": 2})
    assert resumed.checksum == whole.checksum
    assert json.loads((tmp_path / "run" / "run.json").read_text())["description"]["targets"] == ["age"]
    with pytest.raises(ValueError, match="targets"):
        sct.train.finetune(cells, base, target_keys=["share"], **options)


def test_several_models_give_their_mean_and_empty_cells_get_none(base, cells, make_cells, numbers):
    models = [
        sct.train.finetune(numbers(cells), base, task="regress", target_keys=["age"], rng=seed, **QUICK)
        for seed in (0, 1)
    ]
    query = make_cells(10, seed=2)
    values = query.X.toarray()
    values[3] = 0
    query.X = sp.csr_matrix(values)
    found = []
    with pytest.warns(UserWarning, match="get no number but NaN"):
        for model in (*models, models):
            found.append(sct.tl.predict(query, model, copy=True).obs["scgpt_predicted_age"].to_numpy())
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, rtol=1e-5)
    assert np.isnan(found[2]).tolist() == [place == 3 for place in range(10)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target_keys": None}, ValueError, "Expected `target_keys`"),
        ({"target_keys": ["age", "age"]}, ValueError, "once"),
        ({"target_keys": "kind"}, TypeError, r"obs\['kind'\] to hold numbers, found category. .*task='annotate'"),
        ({"target_keys": "weight"}, KeyError, "weight"),
        ({"target_keys": "constant"}, ValueError, "times the same"),
        ({"target_keys": "infinite"}, ValueError, "infinite ones"),
        ({"target_keys": "missing"}, ValueError, "none in any cell"),
        ({"freeze": "nothing", "unfreeze_after": 1}, ValueError, "`unfreeze_after` goes with freeze='backbone' only"),
        ({"freeze": "backbone", "unfreeze_after": 1, "unfreeze_every": 1}, ValueError, "part by part"),
        ({"task": "annotate", "label_key": "kind"}, TypeError, "no `target_keys` for task='annotate'"),
        (
            {"task": "annotate", "label_key": "kind", "target_keys": None, "objectives": [CellTargets()]},
            ValueError,
            "task='regress'",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(base, cells, numbers, change, error, message):
    numbers(cells).obs["constant"], cells.obs["missing"] = 1.0, np.nan
    cells.obs["infinite"] = np.inf
    with pytest.raises(error, match=message):
        sct.train.finetune(cells, base, **{"task": "regress", "target_keys": "age", **QUICK, **change})


def test_a_model_without_numbers_predicts_none(base, cells):
    with pytest.raises(ValueError, match="task='regress'"):
        sct.tl.predict(cells, base)
    assert "scgpt_predicted" not in cells.uns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.0,)}, "above 0"),
        ({"centre": ()}, "a name, a centre and a scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"width": 0}, "width"),
    ],
)
def test_heads_that_make_no_sense_are_refused(change, message):
    head = RegressorConfig(names=("age",), centre=(1.0,), scale=(2.0,))
    with pytest.raises(ValueError, match=message):
        replace(head, **change)
