"""A public bucket on this machine: listing, downloading, and the checkpoints and embeddings that are found in it."""

from __future__ import annotations

import json
import logging
import pickle
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep
from urllib.parse import parse_qs, unquote, urlsplit

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.datasets import _gene_embeddings
from scgpt_tools.models import FAMILIES, CellModel, bucket, zoo
from scgpt_tools.models.bucket import Bucket
from scgpt_tools.vocabulary import Vocabulary

GENES = ["A", "B", "C", "D"]
FOLDER = "models/finetuned/scgenept_go_all/norman"


def released(tmp_path) -> dict[str, bytes]:
    """Files as the bucket has them: a bare state dict of some name, scGPT's vocabulary, a pickle."""
    vocabulary = Vocabulary.from_genes(GENES)
    config = FAMILIES["scgenept"](
        vocabulary, model_type="scgenept_go_all", dim=512, layers=1, heads=8, hidden=8, width=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder = CellModel(config, vocabulary).export(tmp_path / "model", attention_names="fused")
    return {
        f"{FOLDER}/best_model_anything.pt": (folder / "best_model.pt").read_bytes(),
        "models/pretrained/scgpt/vocab.json": (folder / "vocab.json").read_bytes(),
        "models/gene_embeddings/NCBI+UniProt_embeddings-gpt3.5-ada.pkl": pickle.dumps({"A": [1.0, 2.0]}),
    }


class Server:
    """Lists and sends files, one a page, and remembers what was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked, self.cut, self.drip = files, [], 0, b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                url = urlsplit(self.path)
                content = outer.page(parse_qs(url.query)) if url.query else outer.files.get(unquote(url.path)[1:])
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write((content or b"")[: len(content or b"") - (0 if url.query else outer.cut)])
                with suppress(OSError):  # whoever reads gives up
                    while url.query and outer.drip:
                        self.wfile.write(outer.drip)
                        sleep(0.01)

            def log_message(self, *_):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, query: dict[str, list[str]]) -> bytes:
        keys = sorted(key for key in self.files if key.startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        shown = "".join(
            f"<Contents><Key>{key}</Key><ETag>x</ETag><Size>{len(self.files[key])}</Size></Contents>"
            for key in keys[start : start + 1]
        )
        more = f"<NextContinuationToken>{start + 1}</NextContinuationToken>" if start + 1 < len(keys) else ""
        return f'<?xml version="1.0"?><ListBucketResult>{shown}{more}</ListBucketResult>'.encode()


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = Server(released(tmp_path))
    monkeypatch.setattr(zoo, "SCGENEPT_BUCKET", found.url)
    monkeypatch.setattr(_gene_embeddings, "SCGENEPT_BUCKET", found.url)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_released_checkpoint_by_name(server, tmp_path):
    model = CellModel.from_pretrained("scgenept_go_all-norman", cache_dir=tmp_path / "cache", device="cpu")
    assert model.config.embedder.parts["go"].source == "go_all"
    assert model.config.encoder.heads == 8
    assert set(GENES) < set(model.vocabulary)
    asked = len(server.asked)
    with sct.settings.override(offline=True):
        again = CellModel.from_pretrained("scgenept_go_all-norman", cache_dir=tmp_path / "cache", device="cpu")
    assert again.checksum == model.checksum
    assert len(server.asked) == asked
    assert zoo.vocabulary_of("scgenept_go_all-norman", cache_dir=tmp_path / "other").tokens == model.vocabulary.tokens


def test_a_vocabulary_that_was_downloaded_is_found_offline(server, tmp_path):
    """By itself, or with the weights."""
    first = zoo.vocabulary_of("scgenept_go_all-norman", cache_dir=tmp_path / "a")
    CellModel.from_pretrained("scgenept_go_all-norman", cache_dir=tmp_path / "b", device="cpu")
    for place in ("a", "b"):
        found = zoo.vocabulary_of("scgenept_go_all-norman", cache_dir=tmp_path / place, local_files_only=True)
        assert found == first


def test_pages_of_a_list_and_odd_keys(server):
    server.files |= {"models/a/../b.pt": b"x", "models/a/c&amp;d.pt": b"y"}
    found = Bucket(server.url).entries("models/a/")
    assert [entry.key for entry in found] == ["models/a/c&d.pt"]
    assert len(Bucket(server.url).entries("models/")) == 4


@pytest.mark.parametrize("limit", ["_LIST_BYTES", "_LIST_SECONDS"])
def test_a_list_without_an_end_is_given_up(server, monkeypatch, limit):
    monkeypatch.setattr(bucket, limit, 5_000 if limit == "_LIST_BYTES" else 0.2)
    server.drip = b"<Contents>" * 20
    with pytest.raises(ConnectionError, match="did not list its files.* no end after"):
        Bucket(server.url).entries("models/")
    server.drip = b""
    server.page = lambda query: b"<ListBucketResult><NextContinuationToken>1</NextContinuationToken>"
    with pytest.raises(ConnectionError, match="did not list its files.* no end after"):
        Bucket(server.url).entries("models/")


def test_entries_without_a_size_are_left_out(server):
    entries = "".join(
        f"<Contents><Key>a{size}</Key><Size>{size}</Size></Contents>" for size in ("", "-1", "1" * 5000, "7")
    )
    server.page = lambda query: f"<ListBucketResult><Contents><Key>ab</Contents>{entries}".encode()
    assert Bucket(server.url).entries("a") == [("a7", 7)]


def test_a_file_that_is_longer_than_listed_is_given_up(server, tmp_path):
    [entry] = Bucket(server.url).entries(f"{FOLDER}/")
    found = Bucket(server.url, cache_dir=tmp_path)
    with pytest.raises(ConnectionError, match="more than the 7 bytes that it listed"):
        found.get(entry._replace(size=7))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "scgenept" in path.parts]


def test_what_is_missing_is_named(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one file of weights \(.pt\).*found nothing"):
        CellModel.from_pretrained("scgenept_ncbi-norman", cache_dir=tmp_path / "cache")
    server.files[f"{FOLDER}/second.pt"] = b"x"
    with pytest.raises(FileNotFoundError, match=r"best_model_anything.pt, .*second.pt"):
        CellModel.from_pretrained("scgenept_go_all-norman", cache_dir=tmp_path / "cache")
    # Of the cache, not of the bucket.
    with sct.settings.override(offline=True):
        for call in (CellModel.from_pretrained, zoo.vocabulary_of):
            with pytest.raises(FileNotFoundError, match=r"downloaded to .*cache.*`settings.offline` is on; found no"):
                call("scgenept_go_all-norman", cache_dir=tmp_path / "cache")
        with pytest.raises(FileNotFoundError, match=r"downloaded to .*cache.*`settings.offline` is on; found nothing"):
            sct.datasets.gene_embeddings("ncbi", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="revision"):
        CellModel.from_pretrained("scgenept_go_all-norman", revision="main")


def test_a_download_that_ends_early_leaves_nothing(server, tmp_path):
    server.cut = 1
    with pytest.raises(ConnectionError, match="received"):
        CellModel.from_pretrained("scgenept_go_all-norman", cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_no_bucket_answers(tmp_path, monkeypatch):
    other = Server({})
    other.page = lambda query: b"<html>"
    monkeypatch.setattr(zoo, "SCGENEPT_BUCKET", other.url)
    with pytest.raises(ConnectionError, match="Expected a list of files"):
        CellModel.from_pretrained("scgpt-norman", cache_dir=tmp_path)
    other.server.shutdown()
    other.server.server_close()
    with pytest.raises(ConnectionError, match="did not list its files"):
        CellModel.from_pretrained("scgpt-norman", cache_dir=tmp_path)


def test_gene_embeddings_by_name_and_from_a_folder(server, tmp_path):
    found = sct.datasets.gene_embeddings("ncbi+uniprot", cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(found.vectors, [[1.0, 2.0]])
    assert found.provenance["source"] == "ncbi+uniprot"
    with pytest.raises(FileNotFoundError, match="GO_C_gene_embeddings-gpt3.5-ada-avg.pickle"):
        sct.datasets.gene_embeddings("go_c_avg", cache_dir=tmp_path / "cache")
    (tmp_path / "NCBI_gene_embeddings-gpt3.5-ada.pickle").write_bytes(pickle.dumps({"A": [3.0]}))
    assert sct.datasets.gene_embeddings("ncbi", folder=tmp_path).width == 1


def test_the_default_model_of_predictions_says_what_it_is(server, tmp_path, monkeypatch, caplog):
    server.files = {name.replace("scgenept_go_all", "scgenept_go_c"): content for name, content in server.files.items()}
    adata = ad.AnnData(
        sp.csr_matrix(np.array([[0.0, 0.7, 1.2, 0.3]] * 3, dtype=np.float32)), var=pd.DataFrame(index=GENES)
    )
    caplog.set_level(logging.INFO, logger="scgpt_tools")
    with sct.settings.override(cache_dir=tmp_path / "cache"):
        sct.tl.predict_perturbation(adata, ["A", "B+C"], condition_key=None, show_progress=False)
    assert "scgenept_go_c-norman" in caplog.text
    assert "CRISPRa in K562 (Norman 2019)" in caplog.text
    assert adata.layers["predicted_B+C"].shape == (3, 4)


def test_the_table_has_seven_variants_of_two_screens():
    table = sct.models.available().query("family == 'scgenept' and bucket.notna()")
    assert len(table) == 14
    assert table["bucket"].nunique() == 14
    assert json.loads(table.to_json())
