"""A screen, a model small enough to train in a moment, and a hub that has it under a released name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anndata as ad
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from hub_server import HubServer
from scgpt_tools import PerturbationData, scGPTConfig, settings
from scgpt_tools.models import CellModel, zoo
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

# Before version 1 the client had one session per thread.
close_session = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions


@pytest.fixture(autouse=True)
def _without_bars(without_bars):
    """No bars in any of these tests."""


@pytest.fixture
def adata() -> ad.AnnData:
    """Cells of a screen with parts; the columns and two more genes are known to the model."""
    adata = screen(2)
    adata.obs["split"] = np.array(["train", "train", "val", "test"], dtype=object)[np.arange(adata.n_obs) % 4]
    adata.obs["kind"] = np.array(["one", "two", "three"], dtype=object)[np.arange(adata.n_obs) % 3]
    return adata


@pytest.fixture
def dataset(adata) -> PerturbationData:
    return PerturbationData(adata)


@pytest.fixture
def config() -> scGPTConfig:
    """Small settings."""
    return scGPTConfig(d_model=16, nhead=2, d_hid=16, nlayers=1, dropout=0.1, do_mvc=True)


@pytest.fixture
def pretrained() -> CellModel:
    """A model in the form of the released ones, over another order of genes than the data have."""
    vocabulary = Vocabulary.from_genes([*(f"G{i}" for i in range(40)), "TP53", "ACTB"], special_first=False)
    torch.manual_seed(1)
    return CellModel(scgpt(vocabulary, dim=16, layers=1, heads=2, hidden=16), vocabulary, name="scgpt-human").eval()


@pytest.fixture
def folder(pretrained, tmp_path) -> Path:
    """That model as scGPT's releases have it, flash attention included."""
    return pretrained.export(tmp_path / "released", attention_names="fused")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub on this machine with that model; no request leaves the machine, and none waits."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    close_session()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer() as server, settings.override(cache_dir=tmp_path / "cache"):
        for name in ("human", "brain", "blood"):
            for branch in ("main", "v1.0"):
                server.add(f"perturblab/scgpt-{name}", files, branch=branch, large=("best_model.pt",))
        monkeypatch.setattr(zoo, "fetch", partial(zoo.fetch, endpoint=server.endpoint))
        yield server
    close_session()
