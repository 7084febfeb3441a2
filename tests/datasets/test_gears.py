"""GEARS' archives, from a server on this machine."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from zipfile import ZipFile

import pytest
import scanpy as sc

from scgpt_tools import datasets, settings
from scgpt_tools.datasets import _gears


@pytest.fixture
def folder(tmp_path):
    before, sc.settings.datasetdir = sc.settings.datasetdir, tmp_path / "data"
    yield tmp_path / "data"
    sc.settings.datasetdir = before


@pytest.fixture
def served(adata, tmp_path, monkeypatch):
    """Content by path, with the screen in the place of Norman's."""
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with ZipFile(tmp_path / "norman.zip", "w") as archive:
        archive.write(tmp_path / "cells.h5ad", "norman/perturb_processed.h5ad")
    files = {"/6154020": (tmp_path / "norman.zip").read_bytes()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(_gears, "DATAVERSE", f"http://127.0.0.1:{server.server_port}")
    files["asked"] = asked
    yield files
    server.shutdown()
    server.server_close()


def test_a_screen_is_downloaded_once(adata, served, folder):
    for _ in range(2):
        found = datasets.load("norman")
        assert found.shape == adata.shape
        assert list(found.var_names) == list(adata.var_names)
    assert served["asked"] == ["/6154020"]
    assert [path.name for path in folder.iterdir()] == ["gears_norman.h5ad"]


@pytest.mark.parametrize("content", [None, b"<html>Too many requests</html>"], ids=["absent", "no archive"])
def test_what_is_no_screen_leaves_nothing_behind(content, served, folder):
    if content is None:
        del served["/6154020"]
    else:
        served["/6154020"] = content
    with pytest.raises(ConnectionError, match="did not send its file|Expected an archive with norman/perturb"):
        datasets.load("norman")
    assert list(folder.iterdir()) == []


def test_offline(served, folder, monkeypatch):
    monkeypatch.setattr(settings, "offline", True)
    with pytest.raises(FileNotFoundError, match="Get it from https://doi.org/10.7910/DVN/Q2ZV3E"):
        datasets.load("norman")
    assert served["asked"] == []
