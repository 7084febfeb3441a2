"""A table on disk of which a part is missing is refused, for it would read as zeros."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scgpt_tools.data.stores import open_table
from scgpt_tools.data.whole import check_table, trace_of


@pytest.fixture
def write(adata, tmp_path):
    """Function that writes the table, sparse or dense, with several chunks an array; returns its path."""

    def write(kind: str, form: str) -> Path:
        adata.X = sp.csr_matrix(adata.X).toarray() if form == "dense" else adata.X.asformat(form)
        path = tmp_path / ("cells.h5ad" if kind == "h5ad" else "cells.zarr")
        if kind == "h5ad":
            with h5py.File(path, "w") as file:
                ad.io.write_elem(file, "/", adata)
                chunk = (4, 10) if form == "dense" else (7,)
                ad.io.write_elem(file, "X", adata.X, dataset_kwargs={"chunks": chunk})
            return path
        zarr.open_group(path, mode="w", zarr_format=int(kind[4]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            root = zarr.open_group(path, mode="r+")
            ad.io.write_elem(root, "/", adata)
            if form == "dense":
                ad.io.write_elem(root, "X", adata.X, dataset_kwargs={"chunks": (4, 10), "shards": None})
        return path

    return write


def chunks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("zarr", ".z")))


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message), open_table(path):
        pytest.fail("the table must not open")


@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_whole_tables_open(write, adata, kind, form):
    with open_table(write(kind, form)) as table:
        assert table.shape == (12, 30)
        np.testing.assert_array_equal(np.asarray(table.to_memory().X if form == "dense" else table.X[:].toarray()),
                                      adata.X if form == "dense" else adata.X.toarray())  # fmt: skip


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
@pytest.mark.parametrize("part", ["X/data", "X/indices", "X/indptr", "obs/_index", "var/_index"])
def test_a_missing_chunk_is_refused(write, kind, part):
    path = write(kind, "csr")
    chunks(path / part)[-1].unlink()
    refused(path, "all chunks|ascend from 0")


@pytest.mark.parametrize("number", range(9))
def test_a_missing_piece_of_a_dense_matrix_is_refused(write, number):
    path = write("zarr3", "dense")
    chunks(path / "X")[number].unlink()
    refused(path, "all chunks, found one missing of genes that other cells have")


def test_all_genes_of_some_cells_missing(write):
    path = write("zarr3", "dense")
    for chunk in chunks(path / "X")[:3]:
        chunk.unlink()
    refused(path, "none for the cells from number 0 on")


def test_genes_that_no_cell_expresses_need_no_chunk(write, adata):
    """As zarr writes them."""
    dense = adata.X.toarray()
    dense[:, 10:20] = 0
    adata.X = dense
    path = write("zarr3", "dense")
    assert len(chunks(path / "X")) == 6
    with open_table(path) as table:
        np.testing.assert_array_equal(np.asarray(table.X[:]), dense)


def test_hdf5_that_was_never_written_is_refused(write):
    path = write("h5ad", "csr")
    with h5py.File(path, "r+") as file:
        size = file["X/data"].shape
        del file["X/data"]
        file["X"].create_dataset("data", shape=size, dtype="f4", chunks=(7,))[:7] = 1
    refused(path, "X/data.*all chunks")


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.attrs.update(shape=np.array([9, 30])), "12 cells and 30 genes, found 9 x 30"),
        (lambda X: X.attrs.update(shape=np.array([12, 31])), "12 cells and 30 genes"),
        (lambda X: shorten(X, "indptr", 3), "13 pointers, found 10"),
        (lambda X: shorten(X, "indices", 3), "ascend from 0"),
        (lambda X: X["indptr"].__setitem__(4, 0), "ascend from 0"),
    ],
    ids=["cells", "genes", "pointers", "indices", "descending"],
)
def test_parts_that_do_not_fit_are_refused(write, kind, change, message):
    path = write(kind, "csr")
    if kind == "h5ad":
        with h5py.File(path, "r+") as file:
            change(file["X"])
    else:
        X = zarr.open_group(path, mode="r+")["X"]
        # zarr keeps attributes as JSON.
        change(_Lists(X)) if "attrs" in change.__code__.co_names else change(X)
    refused(path, message)


class _Lists:
    def __init__(self, group):
        self.attrs = self
        self._group = group

    def update(self, **values):
        self._group.attrs.update({name: value.tolist() for name, value in values.items()})


def shorten(X, name, by):
    values = X[name][:-by]
    del X[name]
    if isinstance(X, h5py.Group):
        X[name] = values
    else:
        X.create_array(name, data=values)


def test_columns_of_another_length_are_refused(write):
    path = write("h5ad", "csr")
    with h5py.File(path, "r+") as file:
        del file["obs/batch"]
        file["obs/batch"] = np.arange(5)
    refused(path, r"obs\['batch'\].*12 values")


def test_a_table_without_entries_is_whole(tmp_path):
    table = ad.AnnData(sp.csr_matrix((3, 2), dtype=np.float32), obs=pd.DataFrame(index=["a", "b", "c"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        ad.io.write_elem(zarr.open_group(tmp_path / "cells.zarr", mode="w"), "/", table)
    check_table(zarr.open_group(tmp_path / "cells.zarr", mode="r"))


def test_a_trace_tells_any_change(tmp_path):
    folder = tmp_path / "store"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0").write_bytes(b"1234")
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    seen = [trace_of(folder, file)]
    assert (seen[0].size, seen[0].settled) == (9, False)
    for change in (
        lambda: (folder / "c" / "0").write_bytes(b"4321"),
        lambda: (folder / "c" / "1").touch(),
        lambda: (folder / "c" / "0").unlink(),
        lambda: file.write_bytes(b"54321"),
    ):
        change()
        seen.append(trace_of(folder, file))
        assert len({trace.text for trace in seen}) == len(seen)
    for path in (folder / "c" / "1", file):
        os.utime(path, (1, 1))
    assert trace_of(folder, file).text not in {trace.text for trace in seen}
    assert trace_of(folder, file).text == trace_of(folder, file).text


@pytest.mark.parametrize(
    "content", [b"{}", b"\0" * 88, b"[1]", b'{"zarr_format": []}', b'{"zarr_format": 2, "shape": [{}]}', b"<html>"]
)
@pytest.mark.parametrize("name", ["obs/.zattrs", "obs/_index/.zarray", "X/data/.zarray"])
def test_damaged_metadata_are_refused_with_the_name_of_the_table(write, name, content):
    path = write("zarr2", "csr")
    (path / ".zmetadata").unlink(missing_ok=True)
    (path / name).write_bytes(content)
    with (
        pytest.raises((OSError, ValueError), match=r"^Expected .*(cells\.zarr|damaged)"),
        open_table(path) as table,
    ):
        assert table.n_obs
