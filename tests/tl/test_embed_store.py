"""Embedding by chunks: the same as `tl.embed`, whoever computes what, and whatever dies on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
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
from scgpt_tools.models.config import (
    scgpt_embedder,
)

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


def test_the_key_is_that_of_the_family(source, make_model, tmp_path):
    assert embed(source, tmp_path / "out.zarr", make_model(config={"family": "toy"}))
    assert list(ad.read_zarr(tmp_path / "out.zarr").obsm) == ["X_toy"]


def test_an_encoder_that_sees_padding_goes_on_with_the_same_minibatches(adata, source, tmp_path):
    from scgpt_tools.models import FAMILIES, CellModel
    from scgpt_tools.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_genes(adata.var_names)
    sizes = {"dim": 8, "layers": 1, "heads": 2, "hidden": 8}
    model = CellModel(FAMILIES["deepsc"](vocabulary, **sizes), vocabulary).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert embed(source, tmp_path / "out.zarr", model, batch_size=4)
        with pytest.raises(ValueError, match="settings"):
            embed(source, tmp_path / "out.zarr", model, batch_size=2)
    assert ad.read_zarr(tmp_path / "out.zarr").uns["X_DeepSC"]["params"]["batch_size"] == 4


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
    model = make_model(config={"embedder": scgpt_embedder(norm="domain"), "domains": 2, "batch_names": ("a", "b")})
    with torch.no_grad():
        for number, domain in enumerate(model.embedder.norm.domains):
            domain.running_mean.fill_(2.0 * number)
    assert embed(source, tmp_path / "out.zarr", model, batch_key="batch")
    sct.tl.embed(adata, model, batch_key="batch", show_progress=False)
    np.testing.assert_allclose(ad.read_zarr(tmp_path / "out.zarr").obsm[KEY], adata.obsm[KEY], atol=1e-6)


def test_a_table_without_cells(adata, model, source, tmp_path):
    adata[:0].copy().write_h5ad(source)
    assert embed(source, tmp_path / "out.zarr", model)
    assert ad.read_zarr(tmp_path / "out.zarr").obsm[KEY].shape == (0, 16)


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 4, 20])
def test_the_number_of_processes_does_not_matter(model, source, tmp_path, processes, monkeypatch):
    """Not a byte of it, in whichever order they finish; most of twenty have nothing to do."""
    # How long ago the source was written is in the bytes, too.
    monkeypatch.setattr("scgpt_tools.data.whole._LATELY", -1.0)
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
    monkeypatch.setattr(
        ChunkedResult, "write", lambda self, *chunk, **known: (written.append(chunk[0]), write(self, *chunk, **known))
    )
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
    found, expected = contents(output), contents(tmp_path / "alone.zarr")
    # How long ago the source was written.
    assert {name for name in found if found[name] != expected[name]} <= {"zarr.json"}
    sct.tl.embed(adata, model, show_progress=False)
    np.testing.assert_allclose(ad.read_zarr(output).obsm[KEY], adata.obsm[KEY], atol=1e-6)


# Stores that are not whole, or of something else -----------------------------------------------------------------------


@pytest.fixture(params=["h5ad", "zarr"])
def large(request, adata, tmp_path) -> Path:
    """More cells than those that two calls are compared by at once, in several chunks a file."""
    cells = ad.concat([adata] * 30, index_unique="-")
    cells.var = adata.var
    path = tmp_path / f"large.{request.param}"
    if request.param == "h5ad":
        cells.write_h5ad(path)
        return path
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        root = zarr.open_group(path, mode="w")
        ad.io.write_elem(root, "/", cells)
        for name in ("data", "indices", "indptr"):
            values = root[f"X/{name}"][:]
            del root[f"X/{name}"]
            root["X"].create_array(name, data=values, chunks=(500,))
    return path


def change(path: Path, place: int, value: float) -> None:
    """Change one entry of the matrix on disk."""
    if path.suffix == ".zarr":
        zarr.open_group(path, mode="r+")["X/data"][place] = value
        return
    with h5py.File(path, "r+") as file:
        file["X/data"][place] = value


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_change_of_any_cell_is_noticed(adata, model, large, tmp_path, finished):
    output = tmp_path / "out.zarr"
    assert embed(large, output, model, chunk=100, rank=0, processes=1 if finished else 2) == finished
    assert embed(large, output, model, chunk=100, rank=0, processes=1 if finished else 2) == finished
    change(large, -1 if finished else 24 * adata.X.nnz - 9, 77.0)
    with pytest.raises(ValueError, match=r"other names, values or batches in cells (300 to 360|200 to 300)"):
        embed(large, output, model, chunk=100)


def test_cells_that_are_not_embedded_yet_may_be_mended(model, large, tmp_path):
    """A bad value late in the table costs nothing of what was computed before it."""
    change(large, -1, np.nan)
    with pytest.raises(ValueError, match="finite"):
        embed(large, tmp_path / "out.zarr", model, chunk=100)
    assert sorted(path.name for path in (tmp_path / "out.zarr.partial/finished").iterdir()) == ["0", "1", "2"]
    change(large, -1, 5.0)
    assert embed(large, tmp_path / "out.zarr", model, chunk=100)
    assert embed(large, tmp_path / "again.zarr", model, chunk=100)
    found, expected = (ad.read_zarr(tmp_path / f"{name}.zarr").obsm[KEY] for name in ("out", "again"))
    np.testing.assert_array_equal(found, expected)


def test_a_source_that_was_copied_is_the_same(model, large, tmp_path, monkeypatch):
    """Only its content counts where times and places of its files are others."""
    embed(large, tmp_path / "out.zarr", model, chunk=100, rank=0, processes=2)
    copy = tmp_path / f"copy{large.suffix}"
    (shutil.copytree if large.is_dir() else shutil.copy)(large, copy)
    written, write = [], ChunkedResult.write
    monkeypatch.setattr(
        ChunkedResult, "write", lambda self, *chunk, **known: (written.append(chunk[0]), write(self, *chunk, **known))
    )
    assert embed(copy, tmp_path / "out.zarr", model, chunk=100)
    assert written == [1, 3]


def test_a_source_that_changes_while_it_is_embedded_is_refused(model, large, tmp_path, monkeypatch):
    write = ChunkedResult.write

    def changing(self, number, *chunk, **known):
        write(self, number, *chunk, **known)
        os.utime(large if large.is_file() else large / "X/data/c/0")

    monkeypatch.setattr(ChunkedResult, "write", changing)
    with pytest.raises(ValueError, match="stay as it is while it is embedded"):
        embed(large, tmp_path / "out.zarr", model, chunk=100)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("what", ["deleted", "zeroed", "another's"])
@pytest.mark.parametrize("part", ["rows", "names"])
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_damaged_chunks_of_the_result_are_no_result(model, source, tmp_path, what, part, finished):
    output = tmp_path / "out.zarr"
    embed(source, tmp_path / "alone.zarr", model, chunk=2)
    embed(source, output, model, chunk=2, rank=0, processes=1 if finished else 2)
    store = output if finished else tmp_path / "out.zarr.partial" / "result.zarr"
    name = f"obsm/{KEY}/c/{{}}/0" if part == "rows" else "obs/_index/c/{}"
    file, other = store / name.format(2), store / name.format(4)
    if what == "deleted":
        file.unlink()
    else:
        file.write_bytes(other.read_bytes() if what == "another's" or part == "names" else bytes(file.stat().st_size))
    if finished:
        with pytest.raises(ValueError, match="cells 4 to 6 damaged or missing"):
            embed(source, output, model, chunk=2)
        return
    assert embed(source, output, model, chunk=2)
    found, expected = (ad.read_zarr(tmp_path / f"{name}.zarr") for name in ("out", "alone"))
    np.testing.assert_array_equal(found.obsm[KEY], expected.obsm[KEY])
    assert list(found.obs_names) == list(expected.obs_names)


def test_a_chunk_of_another_process_that_is_lost_is_computed_again(model, source, tmp_path):
    output = tmp_path / "out.zarr"
    embed(source, output, model, chunk=2, rank=0, processes=2)
    (tmp_path / f"out.zarr.partial/result.zarr/obsm/{KEY}/c/2/0").unlink()
    with pytest.raises(ValueError, match="chunk 2 of .* missing or cut. Call again"):
        embed(source, output, model, chunk=2, rank=1, processes=2)
    assert not embed(source, output, model, chunk=2, rank=1, processes=2)
    assert embed(source, output, model, chunk=2, rank=0, processes=2)
    assert np.isfinite(ad.read_zarr(output).obsm[KEY]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda partial: (partial / "result.zarr/zarr.json").write_text("{"), "something else at"),
        (lambda partial: (partial / f"result.zarr/obsm/{KEY}/zarr.json").write_text("{"), "found it damaged"),
        (lambda partial: shutil.rmtree(partial / "result.zarr/obs"), "found it damaged"),
    ],
    ids=["store", "array", "names"],
)
def test_damaged_stores_are_named(model, source, tmp_path, damage, message):
    embed(source, tmp_path / "out.zarr", model, chunk=2, rank=0, processes=2)
    damage(tmp_path / "out.zarr.partial")
    with pytest.raises((ValueError, FileExistsError), match=message):
        embed(source, tmp_path / "out.zarr", model, chunk=2)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"content": 1}'])
def test_marks_that_cannot_be_read_mark_nothing(model, source, tmp_path, content):
    embed(source, tmp_path / "out.zarr", model, chunk=2, rank=0, processes=2)
    finished = tmp_path / "out.zarr.partial" / "finished"
    (finished / "0").write_text(content)
    (finished / "77").write_text(content)
    (finished / "notes").write_text(content)
    assert embed(source, tmp_path / "out.zarr", model, chunk=2)


def test_a_source_without_one_chunk_is_refused(model, large, tmp_path):
    if large.suffix == ".zarr":
        (large / "X/data/c/3").unlink()
        with pytest.raises(ValueError, match="X/data.*all chunks, found 1 missing"):
            embed(large, tmp_path / "out.zarr", model)
    else:
        with h5py.File(large, "r+") as file:
            file["X"].attrs["shape"] = np.array([100, 30])
        with pytest.raises(ValueError, match="360 cells and 30 genes, found 100 x 30"):
            embed(large, tmp_path / "out.zarr", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == [large.name]


def test_two_that_are_the_same_process_do_not_share_a_chunk(model, source, tmp_path, monkeypatch):
    write = ChunkedResult.write

    def twice(self, *chunk, **known):
        monkeypatch.setattr(ChunkedResult, "write", write)
        with pytest.raises(FileExistsError, match=r"process \d+ on .* is writing chunk 0"):
            embed(source, tmp_path / "out.zarr", model)
        write(self, *chunk, **known)

    monkeypatch.setattr(ChunkedResult, "write", twice)
    assert embed(source, tmp_path / "out.zarr", model)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_killed_processes_left_is_cleared(model, source, tmp_path, when):
    """Killed while the folder was made, or after the result had got its name."""
    left = tmp_path / (".out.zarr.0123.layout" if when == "before" else "out.zarr.partial")
    (left / "finished").mkdir(parents=True)
    assert embed(source, tmp_path / "out.zarr", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.zarr"]


def test_a_disk_without_room_is_seen_before_work_begins(model, source, tmp_path, monkeypatch):
    monkeypatch.setattr("scgpt_tools._outputs.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="Expected room for"):
        embed(source, tmp_path / "out.zarr", model)


def test_paths_in_the_home_folder(model, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embed("~/cells.h5ad", "~/out.zarr", model)
    assert (tmp_path / "out.zarr").is_dir()


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
    "layers": ({"layer": {"rna": "counts"}}, TypeError, "`layer` to be a text"),
    "an unknown column": ({"genes": "symbols"}, KeyError, "symbol"),
    "an unknown batch": ({"batch_key": "batches"}, KeyError, "batches"),
    "a batch that nobody reads": ({"batch_key": "batch"}, ValueError, "no `batch_key` for a model"),
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


@pytest.mark.filterwarnings("ignore:Only .* match one of:UserWarning", "ignore:Expected cells with known:UserWarning")
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
