"""DeepSC's predictor of perturbations and its command."""

from __future__ import annotations

import json
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.cli import main
from scgpt_tools.deepsc import PredictorArguments
from scgpt_tools.models import CellModel, DeepSCModel
from scgpt_tools.models.formats.deepsc import to_deepsc
from scgpt_tools.models.formats.deepsc_training import load_optimizer, optimizer_to_deepsc
from screen_tables import screen

pytestmark = pytest.mark.filterwarnings("ignore:The predictions of model are nearly the same")
SIZES = {"num_layers": 2, "num_heads": 2, "gene_embedding_participate_til_layer": 1, "attention_stream": 2}


@pytest.fixture
def cells():
    adata = screen(12)
    sct.pp.perturbation_split(adata, draw="stable")
    return adata


@pytest.fixture
def table(cells, tmp_path):
    path = tmp_path / "gene_map.csv"
    names = list(cells.var_names)[:-1]
    pd.DataFrame({"feature_name": names, "id": range(len(names))}).to_csv(path, index=False)
    return path


def arguments(table, tmp_path, **more) -> dict:
    given = {"csv_path": str(table), "output_dir": str(tmp_path / "out"), "epoch": 1, "accelerator": "cpu"}
    return given | more


@pytest.mark.parametrize("generation", ["base", "v2"])
def test_training_writes_what_the_original_does(cells, table, tmp_path, generation):
    network = DeepSCModel(16, cells.n_vars - 1, **SIZES, generation=generation)
    gene = next(name for name in cells.obs["condition"].unique() if name != "ctrl").split("+")[0]
    args = SimpleNamespace(**arguments(table, tmp_path, perts_to_plot=[f"{gene}+ctrl"]))
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    predictor = sct.PerturbationPredictor(args, fabric, network, cells)
    assert predictor.matched["unmatched"] == 1
    scores = predictor.train()
    out = tmp_path / "out"
    assert {"pearson", "pearson_delta", "mse", "frac_correct_direction_20"} <= set(scores)
    assert any(name.startswith("test_") and name.endswith("_pearson_top20_de_non_dropout") for name in scores)
    assert set(json.loads((out / "test_metrics.json").read_text())) == set(scores)
    kept = torch.load(out / "checkpoints" / "best_model.pt", weights_only=True)
    assert "pert_encoder.weight" in kept["model"]
    assert kept["epoch"] == 1
    (group,) = kept["optimizer"]["param_groups"]
    assert len(group["params"]) == len(kept["model"])
    (figure,) = predictor.plot_predictions()
    assert figure.stat().st_size > 1000
    profiles = predictor.predict([[gene]], pool_size=5)
    assert profiles[gene].shape == (cells.n_vars,)
    assert np.isfinite(profiles[gene]).all()
    again = CellModel.from_pretrained(
        out / "checkpoints" / "best_model.pt",
        vocabulary=table,
        settings={"num_heads": 2, "cross_attention_architecture": "A"},
        device="cpu",
    )
    assert again.config.family == "deepsc_perturbation"


def test_checkpoints_are_read_again_with_the_state_of_the_optimiser(cells, table, tmp_path, monkeypatch):
    network = DeepSCModel(16, cells.n_vars - 1, **SIZES)
    first = sct.PerturbationPredictor(arguments(table, tmp_path, epoch=2), None, network, cells)
    first.train()
    folder = tmp_path / "out" / "checkpoints"
    best = torch.load(folder / "best_model.pt", weights_only=True)
    weights = {name: tensor.cpu() for name, tensor in to_deepsc(first.tuned.state_dict(), first.tuned.config).items()}
    torch.testing.assert_close(best["model"], weights)
    again = sct.PerturbationPredictor(arguments(table, tmp_path), None, network, cells)
    again.load(folder / "best_model.pt")
    pert = [next(name for name in cells.obs["condition"] if name != "ctrl").split("+")[0]]
    np.testing.assert_allclose(*(next(iter(each.predict([pert]).values())) for each in (first, again)), rtol=1e-5)
    moments = []
    monkeypatch.setattr(
        "scgpt_tools.deepsc.load_optimizer",
        lambda optimizer, model, state: (
            load_optimizer(optimizer, model, state),
            moments.append(deepcopy(optimizer_to_deepsc(optimizer, model)["state"])),
        ),
    )
    again.train()
    torch.testing.assert_close(moments, [best["optimizer"]["state"]])
    with pytest.raises(ValueError, match="state of an optimiser of"):
        load_optimizer(torch.optim.Adam(network.parameters()), network.cell_model, best["optimizer"])
    torch.save({"model": network.state_dict()}, tmp_path / "base.pt")
    with pytest.raises(ValueError, match=r"pert_encoder.*`pretrained_model_path`"):
        again.load(tmp_path / "base.pt")


def test_the_command_does_the_same(cells, table, tmp_path):
    (tmp_path / "data").mkdir()
    cells.write_h5ad(tmp_path / "data" / "tiny.h5ad")
    sizes = ["--embedding_dim", "8", "--num_layers", "2", "--num_heads", "2", "--epoch", "1", "--accelerator", "cpu"]
    places = ["--data_path", str(tmp_path / "data"), "--csv_path", str(table), "--output_dir", str(tmp_path / "out")]
    gene = next(name for name in cells.obs["condition"].unique() if name != "ctrl").split("+")[0]
    assert main(["deepsc-perturb", "--data_name", "tiny", *places, *sizes, "--perts_to_plot", f"{gene}+ctrl"]) == 0
    assert (tmp_path / "out" / "visualizations" / f"{gene}+ctrl.png").is_file()


def test_the_command_says_what_is_wrong_before_it_trains(cells, tmp_path, capsys):
    cells.write_h5ad(tmp_path / "tiny.h5ad")
    command = [
        "deepsc-perturb",
        "--data_name",
        "tiny",
        "--data_path",
        str(tmp_path),
        "--csv_path",
        str(tmp_path / "no.csv"),
    ]
    assert main(command) == 2
    assert "table of genes" in capsys.readouterr().err
    pd.DataFrame({"feature_name": list(cells.var_names), "id": range(cells.n_vars)}).to_csv(tmp_path / "no.csv")
    sizes = ["--embedding_dim", "8", "--num_layers", "2", "--num_heads", "2"]
    assert main([*command, *sizes, "--pretrained_model", "--seed", "1"]) == 2
    assert "Expected `pretrained_model_path`" in capsys.readouterr().err
    assert main([*command, *sizes, "--pretrained_model", "--pretrained_model_path", str(tmp_path / "gone.pt")]) == 2
    assert "weights of DeepSC at" in capsys.readouterr().err
    assert main([*command, *sizes, "--perts_to_plot", "NOPE+ctrl"]) == 2
    assert "`perts_to_plot`, found ['NOPE']" in capsys.readouterr().err
    assert main([*command, *sizes, "--attention_stream", "3"]) == 2
    assert "`attention_stream`" in capsys.readouterr().err


def test_arguments_are_known_and_of_their_kind():
    with pytest.raises(ValueError, match=r"named 'learning_rat'. Did you mean 'learning_rate'\?"):
        PredictorArguments.of({"learning_rat": 1e-3})
    with pytest.raises(TypeError, match="Expected `epoch` to be int"):
        PredictorArguments.of(SimpleNamespace(epoch="three"))
    known = PredictorArguments.of({"num_layers": 12, "log_interval": 100, "amp": False, "perts_to_plot": ["A+ctrl"]})
    assert known == PredictorArguments(amp=False, perts_to_plot=("A+ctrl",))


@pytest.mark.parametrize(("amp", "precision"), [(True, "auto"), (False, "fp32")])
def test_half_precision_is_a_choice(cells, table, tmp_path, monkeypatch, amp, precision):
    class Asked(Exception):
        pass

    def finetune(*_, **options):
        assert options["precision"] == precision
        raise Asked

    monkeypatch.setattr("scgpt_tools.deepsc.finetune", finetune)
    network = DeepSCModel(16, cells.n_vars - 1, **SIZES)
    with pytest.raises(Asked):
        sct.PerturbationPredictor(arguments(table, tmp_path, amp=amp), None, network, cells).train()


def test_what_is_missing_is_said(cells, table, tmp_path):
    network = DeepSCModel(16, cells.n_vars - 1, **SIZES)
    with pytest.raises(FileNotFoundError, match=r"cells at one of .*norman"):
        sct.PerturbationPredictor({"data_path": str(tmp_path)}, None, network)
    with pytest.raises(FileNotFoundError, match="`csv_path`"):
        sct.PerturbationPredictor({}, None, network, cells)
    with pytest.raises(ValueError, match="`pretrained_model_path` with"):
        sct.PerturbationPredictor(arguments(table, tmp_path, pretrained_model=True), None, network, cells)
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    wrong = arguments(table, tmp_path, pretrained_model_path=str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="tensors of DeepSC's layers"):
        sct.PerturbationPredictor(wrong, None, network, cells)
    others = cells.copy()
    others.var_names = [f"OTHER{number}" for number in range(others.n_vars)]
    with pytest.raises(ValueError, match="genes of the table, found none"):
        sct.PerturbationPredictor(arguments(table, tmp_path), None, network, others)
    with pytest.raises(ValueError, match=r"after `train\(\)`"):
        sct.PerturbationPredictor(arguments(table, tmp_path), None, network, cells).predict([["A"]])
