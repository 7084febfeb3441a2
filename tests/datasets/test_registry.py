"""Data by name: one's own folder first, downloads second."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import mudata as md
import pytest
import scanpy as sc

from mudatas import without_pulling
from scgpt_tools import datasets, settings
from scgpt_tools.datasets import _registry


@pytest.fixture
def folder(adata, tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.mkdir()
    monkeypatch.setenv("SCGPT_TOOLS_DATA", str(path))
    return path


@pytest.fixture
def scanpy_folder(tmp_path):
    before, sc.settings.datasetdir = sc.settings.datasetdir, tmp_path
    yield tmp_path
    sc.settings.datasetdir = before


@pytest.fixture
def downloads(adata, monkeypatch):
    """Downloads that were asked for; none is made."""
    asked = []
    for name, public in _registry.REGISTRY.items():
        monkeypatch.setitem(
            _registry.REGISTRY, name, replace(public, download=lambda name=name: asked.append(name) or adata)
        )
    return asked


def test_the_own_folder_comes_first(adata, folder, downloads):
    adata[:5].copy().write_h5ad(folder / "pbmc3k.h5ad")
    assert datasets.load("pbmc3k").n_obs == 5
    assert downloads == []


def test_what_is_not_there_is_downloaded(adata, folder, downloads):
    assert datasets.load("pbmc3k") is adata
    assert downloads == ["pbmc3k"]


def test_an_argument_beats_the_variable(adata, folder, downloads, tmp_path):
    adata[:5].copy().write_h5ad(folder / "mine.h5ad")
    adata[:4].copy().write_h5ad(tmp_path / "mine.h5ad")
    assert datasets.load("mine", folder=tmp_path).n_obs == 4


def test_mudata_too(adata, folder):
    with without_pulling():
        md.MuData({"rna": adata}).write(folder / "two.h5mu")
        assert isinstance(datasets.load("two"), md.MuData)


def test_without_a_folder_there_is_only_what_is_public(monkeypatch):
    monkeypatch.delenv("SCGPT_TOOLS_DATA", raising=False)
    table = datasets.available()
    assert list(table.index) == ["pbmc3k", "pbmc3k_processed", "norman", "adamson"]
    assert (table["file"] == "").all()
    assert table["source"].str.startswith("https://").all()
    assert (table["licence"] != "").all()


def test_the_table_lists_the_folder(adata, folder):
    adata.write_h5ad(folder / "mine.h5ad")
    table = datasets.available()
    assert table.loc["mine", "file"] == str(folder / "mine.h5ad")
    assert table.loc["pbmc3k", "file"] == ""


def test_unknown_names_are_refused(adata, folder):
    adata.write_h5ad(folder / "mine.h5ad")
    with pytest.raises(ValueError, match="Did you mean 'pbmc3k'.*'mine'"):
        datasets.load("pbmc3")


def test_a_missing_folder_is_refused(folder):
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match="SCGPT_TOOLS_DATA"):
        datasets.load("pbmc3k")


def test_nothing_is_downloaded_offline(adata, folder, downloads, scanpy_folder):
    with settings.override(offline=True):
        with pytest.raises(FileNotFoundError, match="10xgenomics"):
            datasets.load("pbmc3k")
        assert downloads == []
        (scanpy_folder / "pbmc3k_raw.h5ad").touch()
        assert datasets.load("pbmc3k") is adata


@pytest.mark.parametrize("name", sorted(_registry.REGISTRY))
def test_downloads_end_where_the_table_says(name, adata, scanpy_folder):
    """Scanpy reads its own earlier download, under the name that the table has."""
    public = _registry.REGISTRY[name]
    adata.write_h5ad(scanpy_folder / public.file)
    assert isinstance(public.download(), ad.AnnData)
    assert public.download().n_obs == adata.n_obs
