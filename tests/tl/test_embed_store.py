"""Embedding by chunks: the same as `tl.embed`, whoever computes what, and whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import zarr

import scgpt_tools as sct
from mudatas import without_pulling
from scgpt_tools.data import chunked_result
from scgpt_tools.data.chunked_result import ChunkedResult
from scgpt_tools.models.config import EmbedderConfig

KEY = "X_scGPT"


@pytest.fixture
def source(adata, tmp_path) -> Path:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def embed(source, output, model, **options) -> bool:
    return sct.tl.embed_store(source, output, model, **{"chunk": 5, "show_progress": False} | options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The result ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h5ad", "dense", "h5mu", "zarr2", "zarr3"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_the_result_is_that_of_embed(adata, model, tmp_path, kind, chunk):
    path, options = tmp_path / f"cells.{kind if kind == 'h5mu' else 'h5ad'}", {}
    if kind == "h5mu":
        with without_pulling():
            md.MuData({"rna": adata}).write(path)
        options["modality"] = "rna"
    elif kind.startswith("zarr"):
        path = path.with_suffix(".zarr")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            ad.io.write_elem(zarr.open_group(path, mode="w", zarr_format=int(kind[4])), "/", adata)
    else:
        table = adata.copy()
        table.X = table.X.toarray() if kind == "dense" else table.X
        table.write_h5ad(path)
    assert embed(path, tmp_path / "out.zarr", model, chunk=chunk, **options)
    found = ad.read_zarr(tmp_path / "out.zarr")
    sct.tl.embed(adata, model, show_progress=False)
    np.testing.assert_allclose(found.obsm[KEY], adata.obsm[KEY], atol=1e-6)
    assert found.obsm[KEY].dtype == np.float32
    assert list(found.obs_names) == list(adata.obs_names)
    assert found.uns[KEY] == adata.uns[KEY]
    assert not (tmp_path / "out.zarr.partial").exists()


def test_arguments_are_those_of_embed(adata, model, source, tmp_path):
    adata.layers["counts"] = adata.X * 3
    adata.write_h5ad(source)
    options = {"layer": "counts", "genes": "symbol", "ignore_case": True, "pooling": "mean", "normalize": False}
    options |= {"rng": 3, "length": 6, "key_added": "X_mean"}
    assert embed(source, tmp_path / "out.zarr", model, **options)
    found = ad.read_zarr(tmp_path / "out.zarr")
    sct.tl.embed(adata, model, show_progress=False, **options)
    np.testing.assert_allclose(found.obsm["X_mean"], adata.obsm["X_mean"], atol=1e-5)
    assert found.uns["X_mean"] == adata.uns["X_mean"]


def test_each_cell_is_normalised_with_its_own_batch(adata, source, make_model, tmp_path):
    model = make_model(config={"embedder": EmbedderConfig(norm="domain"), "domains": 2, "batch_names": ("a", "b")})
    with torch.no_grad():
        for number, domain in enumerate(model.embedder.norm.domains):
            domain.running_mean.fill_(2.0 * number)
    assert embed(source, tmp_path / "out.zarr", model, batch="batch")
    sct.tl.embed(adata, model, batch="batch", show_progress=False)
    np.testing.assert_allclose(ad.read_zarr(tmp_path / "out.zarr").obsm[KEY], adata.obsm[KEY], atol=1e-6)


def test_a_table_without_cells(adata, model, source, tmp_path):
    adata[:0].copy().write_h5ad(source)
    assert embed(source, tmp_path / "out.zarr", model)
    assert ad.read_zarr(tmp_path / "out.zarr").obsm[KEY].shape == (0, 16)


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 4, 20])
def test_the_number_of_processes_does_not_matter(model, source, tmp_path, processes):
    """Not a byte of it, in whichever order they finish; most of twenty have nothing to do."""
    assert embed(source, tmp_path / "alone.zarr", model, chunk=2)
    order = np.random.default_rng(0).permutation(processes)
    whole = [embed(source, tmp_path / "out.zarr", model, chunk=2, rank=int(r), processes=processes) for r in order]
    assert whole[-1]
    assert sum(whole) == 1 + sum(r >= 6 for r in order[whole.index(True) + 1 :])
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "alone.zarr")


def test_no_two_processes_write_the_same_file(model, source, tmp_path):
    """Three processes, so that two of them leave the result unfinished."""
    partial, seen = tmp_path / "out.zarr.partial", []
    places = ("finished/", "result.zarr/obs/_index/c/", f"result.zarr/obsm/{KEY}/c/")
    for rank in (0, 2):
        before = contents(partial)
        assert not embed(source, tmp_path / "out.zarr", model, chunk=2, rank=rank, processes=3)
        after = contents(partial)
        assert {name: after[name] for name in before} == before
        seen.append({name for name in set(after) - set(before) if name.startswith(places)})
    files = ("finished/{}", "result.zarr/obs/_index/c/{}", f"result.zarr/obsm/{KEY}/c/{{}}/0")
    assert seen == [{file.format(chunk) for file in files for chunk in (rank, rank + 3)} for rank in (0, 2)]


def test_whoever_comes_when_all_is_done_changes_nothing(model, source, tmp_path):
    embed(source, tmp_path / "out.zarr", model)
    before = contents(tmp_path / "out.zarr")
    assert embed(source, tmp_path / "out.zarr", model, rank=3, processes=4)
    assert contents(tmp_path / "out.zarr") == before


def test_two_that_prepare_at_once_agree(model, source, tmp_path, monkeypatch):
    """The second one finds its folder made by the first while it was making its own."""
    write = chunked_result._write_layout

    def interrupted(path, layout):
        write(path, layout)
        monkeypatch.setattr(chunked_result, "_write_layout", write)
        assert not embed(source, tmp_path / "out.zarr", model, rank=0, processes=2)

    monkeypatch.setattr(chunked_result, "_write_layout", interrupted)
    assert embed(source, tmp_path / "out.zarr", model, rank=1, processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.zarr"]


# Interruption --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_only_what_is_missing_is_computed_again(model, source, tmp_path, monkeypatch, processes):
    """The call dies after the values of a chunk and before its mark."""
    assert embed(source, tmp_path / "alone.zarr", model, chunk=2)
    push = chunked_result._push_to_disk
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(chunked_result, "_push_to_disk", _fails_in("c/3", push))
        embed(source, tmp_path / "out.zarr", model, chunk=2)
    assert not (tmp_path / "out.zarr").exists()
    written, write = [], ChunkedResult.write
    monkeypatch.setattr(ChunkedResult, "write", lambda self, *chunk: (written.append(chunk[0]), write(self, *chunk)))
    for rank in range(processes):
        embed(source, tmp_path / "out.zarr", model, chunk=2, rank=rank, processes=processes, batch_size=1)
    assert sorted(written) == [3, 4, 5]
    found, expected = (ad.read_zarr(tmp_path / f"{name}.zarr") for name in ("out", "alone"))
    np.testing.assert_allclose(found.obsm[KEY], expected.obsm[KEY], atol=1e-6)


def _fails_in(chunk: str, push):
    def fails(path):
        if chunk in path.as_posix():
            raise OSError("disk is full")
        push(path)

    return fails


# Hangs within the third chunk: the values are written, the mark is not.
HANGS = """
import sys, time
from pathlib import Path
from scgpt_tools import cli
from scgpt_tools.data import chunked_result
def hangs(path):
    if path.parent.name == "2":
        Path(sys.argv[1]).touch()
        time.sleep(600)
chunked_result._push_to_disk = hangs
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_kill_9_and_two_new_processes_end_where_one_ends(adata, model, source, tmp_path):
    """Whole processes, started by torchrun, through the command."""
    folder, environment = model.save(tmp_path / "model"), os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["embed", str(source), "--model", str(folder), "--chunk", "2", "--quiet", "-o"]

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    marker, output = tmp_path / "hanging", tmp_path / "out.zarr"
    alone = start("-m", "scgpt_tools.cli", *command, str(tmp_path / "alone.zarr"))
    killed = start("-c", HANGS, str(marker), *command, str(output))
    try:
        deadline = time.monotonic() + 300
        while not marker.exists():
            assert killed.poll() is None, killed.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert sorted(path.name for path in (tmp_path / "out.zarr.partial" / "finished").iterdir()) == ["0", "1"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "scgpt_tools.cli")
    for process in (alone, start(*launcher, *command, str(output))):
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    assert contents(output) == contents(tmp_path / "alone.zarr")
    sct.tl.embed(adata, model, show_progress=False)
    np.testing.assert_allclose(ad.read_zarr(output).obsm[KEY], adata.obsm[KEY], atol=1e-6)


# Refusals ------------------------------------------------------------------------------------------------------------


def other_values(adata):
    adata.X = adata.X * 2


def other_names(adata):
    adata.obs_names = [f"other{i}" for i in range(12)]


def other_genes(adata):
    adata.var_names = [*adata.var_names[:2], "GENE2b", *adata.var_names[3:]]


DIFFERENT = {
    "chunks": (None, {"chunk": 3}, "`chunk`"),
    "a seed": (None, {"rng": 1}, "settings"),
    "a pooling": (None, {"pooling": "mean"}, "settings"),
    "a precision": (None, {"precision": "bf16"}, "settings"),
    "a length": (None, {"length": 4}, "settings"),
    "a key": (None, {"key_added": "other"}, "`key_added`"),
    "values": (other_values, {}, "values"),
    "cells": (other_names, {}, "cells"),
    "genes": (other_genes, {}, "cells, matching of genes"),
}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_result_of_something_else_is_not_gone_on_with(adata, model, source, tmp_path, name, finished):
    change, options, message = DIFFERENT[name]
    embed(source, tmp_path / "out.zarr", model, rank=0, processes=1 if finished else 2)
    before = contents(tmp_path)
    if change is not None:
        change(adata)
        adata.write_h5ad(source)
        before |= {source.name: source.read_bytes()}
    with pytest.raises(ValueError, match=f"found other {message}"):
        embed(source, tmp_path / "out.zarr", model, **options)
    assert contents(tmp_path) == before


def test_another_model_is_not_gone_on_with(make_model, source, tmp_path):
    first, second = make_model(), make_model()
    with torch.no_grad():
        second.embedder.genes.table.weight[3, 0] += 0.5
    embed(source, tmp_path / "out.zarr", first)
    with pytest.raises(ValueError, match="found other model"):
        embed(source, tmp_path / "out.zarr", second)


REFUSALS = {
    "no such file": ({"source": "absent.h5ad"}, FileNotFoundError, "absent.h5ad"),
    "not zarr": ({"output": "out.h5ad"}, ValueError, "ends in .zarr"),
    "no such folder": ({"output": "absent/out.zarr"}, FileNotFoundError, "folder of the output"),
    "something else there": ({"output": "there.zarr"}, FileExistsError, "something else at"),
    "an unknown layer": ({"layer": "count"}, KeyError, "'count'"),
    "layers": ({"layer": {"rna": "counts"}}, TypeError, "one layer"),
    "an unknown column": ({"genes": "symbols"}, KeyError, "symbol"),
    "an unknown batch": ({"batch": "batches"}, KeyError, "batches"),
    "a batch that nobody reads": ({"batch": "batch"}, ValueError, "no `batch` for a model"),
    "a modality": ({"modality": "rna"}, ValueError, "MuData only"),
    "an unknown pooling": ({"pooling": "max"}, ValueError, "`pooling`"),
    "chunks without cells": ({"chunk": 0}, ValueError, "`chunk` to be at least 1"),
    "minibatches without cells": ({"batch_size": 0}, ValueError, "`batch_size`"),
    "half of a process": ({"rank": 1}, ValueError, "`rank` and `processes` together"),
    "a path for a key": ({"key_added": "a/b"}, ValueError, "without '/'"),
    "a precision without a GPU": ({"precision": "fp16"}, ValueError, "needs a GPU"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_without_a_trace(model, source, tmp_path, monkeypatch, name):
    options, error, message = REFUSALS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zarr").mkdir()
    before = (contents(tmp_path), sorted(tmp_path.iterdir()))
    with pytest.raises(error, match=message):
        embed(**{"source": source, "output": "out.zarr", "model": model} | options)
    assert (contents(tmp_path), sorted(tmp_path.iterdir())) == before


def test_a_bad_value_is_named_and_what_was_finished_stays(adata, model, source, tmp_path):
    adata.X[7, 4] = -1
    adata.write_h5ad(source)
    with pytest.raises(ValueError, match=r"found -1.0 in cell 'cell7', gene 'GENE4'"):
        embed(source, tmp_path / "out.zarr", model, chunk=4)


def test_the_cell_token_of_a_model_that_has_none_is_refused(source, make_model, tmp_path):
    with pytest.raises(ValueError, match="'mean' or 'weighted' for a model without a cell token"):
        embed(source, tmp_path / "out.zarr", make_model(cls=False))
    assert list(tmp_path.iterdir()) == [source]


def test_models_of_several_modalities_are_refused(source, make_model, tmp_path):
    from scgpt_tools.tokens.modalities import ModalityConfig

    model = make_model(parts=(ModalityConfig(name="rna"),), modalities=("<pad>", "<cls>", "rna"))
    with pytest.raises(ValueError, match=r"a model of one modality, found one of \['rna'\]"):
        embed(source, tmp_path / "out.zarr", model)
    assert list(tmp_path.iterdir()) == [source]


def test_progress_is_drawn_by_the_first_process_only(model, source, tmp_path, capsys):
    with sct.settings.override(show_progress=True):
        embed(source, tmp_path / "out.zarr", model, rank=1, processes=2, show_progress=None)
        assert "cell" not in capsys.readouterr().err
        embed(source, tmp_path / "out.zarr", model, rank=0, processes=2, show_progress=None)
        assert "7/7" in capsys.readouterr().err


def test_names_are_strings_of_any_length(adata, model, source, tmp_path):
    names = [f"Zelle-{'ä' * i}-{i}" for i in range(12)]
    adata.obs_names = pd.Index(names)
    adata.write_h5ad(source)
    embed(source, tmp_path / "out.zarr", model)
    assert list(ad.read_zarr(tmp_path / "out.zarr").obs_names) == names


# Size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Only .* match one of:UserWarning")
def test_memory_does_not_grow_with_the_number_of_cells(make_model, tmp_path):
    """Not even by the result, the names and the row pointers: 10 MB more on disk are some kB more in memory."""
    import tracemalloc

    model, peaks, sizes = make_model(), [], []
    genes = [*[f"GENE{i}" for i in range(30)], *[f"other{i}" for i in range(970)]]
    for rows in (500, 2000, 8000):
        X = sp.random(rows, 1000, 0.2, format="csr", dtype=np.float32, random_state=0)
        sizes.append(X.data.nbytes + X.indices.nbytes)
        path = tmp_path / f"{rows}.h5ad"
        ad.AnnData(X, var=pd.DataFrame(index=genes)).write_h5ad(path)
        del X
        tracemalloc.start()
        assert embed(path, path.with_suffix(".zarr"), model, chunk=500, batch_size=250, length=8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes[2] - sizes[1] > 9e6
    assert peaks[2] - peaks[1] < 0.05 * (sizes[2] - sizes[1]), peaks
