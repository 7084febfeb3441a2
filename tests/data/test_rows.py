"""Rows come out the same from every kind of table, a block at a time, and never with a value that no cell has."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from mudata import MuData

from mudatas import without_pulling
from scgpt_tools.data import matrices
from scgpt_tools.data.rows import RowSource, plain_vectors, row_keys, table_of


def whole(source: RowSource, rows: int = 5) -> np.ndarray:
    return sp.vstack([block.X for block in source.blocks(rows)]).toarray()


# --- every kind of table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 12, 100])
def test_blocks_are_the_table(twin, counts, rows):
    source = RowSource(twin)
    blocks = list(source.blocks(rows))
    assert np.array_equal(np.concatenate([block.index for block in blocks]), np.arange(12))
    assert all(block.X.shape == (len(block.index), 30) for block in blocks)
    assert all(len(block.index) <= rows for block in blocks)
    np.testing.assert_array_equal(sp.vstack([block.X for block in blocks]).toarray(), counts.toarray())
    assert (len(source), source.n_columns) == (12, 30)


@pytest.mark.parametrize("indices", [[3], [0, 1, 2], [11, 0, 5], [4, 4, 2], [], range(12)])
def test_rows_are_taken_in_any_order(twin, counts, indices):
    taken = RowSource(twin).take(list(indices))
    assert taken.has_canonical_format
    assert taken.indices.dtype == np.int32
    np.testing.assert_array_equal(taken.toarray(), counts.toarray()[list(indices)])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", "float32"), ("float64", "float64"), ("int32", "float64"), ("int64", "float64"), ("uint8", "float32")],
)
def test_floats_keep_their_precision(adata, dtype, expected):
    adata.X = adata.X.astype(dtype)
    assert {block.X.dtype for block in RowSource(adata).blocks(5)} == {np.dtype(expected)}


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_files(adata, counts, tmp_path, store, form, recwarn):
    matrix = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[form]
    if store == "h5ad":
        adata.X = matrix
        adata.write_h5ad(tmp_path / "cells.h5ad")
        table = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    else:
        group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=2)
        ad.io.write_elem(group, "X", matrix)
        X = group["X"] if form == "dense" else ad.io.sparse_dataset(group["X"])
        table = ad.AnnData(X=X, obs=adata.obs, var=adata.var)
    source = RowSource(table)
    by_columns = [warning for warning in recwarn if "stored by columns" in str(warning.message)]
    assert len(by_columns) == (form == "csc")
    recwarn.clear()
    np.testing.assert_array_equal(whole(source), counts.toarray())
    np.testing.assert_array_equal(source.take([7, 2]).toarray(), counts.toarray()[[7, 2]])
    if table.isbacked:
        table.file.close()


def test_a_file_by_columns_is_read_in_runs_of_columns(adata, counts, tmp_path, monkeypatch):
    monkeypatch.setattr(matrices, "_COLUMN_ENTRIES", 20)
    adata.X = counts.tocsc()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad") as file, pytest.warns(UserWarning, match="stored by columns"):
        X = ad.io.sparse_dataset(file["X"])
        source = RowSource(ad.AnnData(X=X, obs=adata.obs, var=adata.var))
        np.testing.assert_array_equal(whole(source), counts.toarray())


@pytest.mark.parametrize("rows", [slice(None), slice(8, 1, -2), [5, 1, 9], [True, False] * 6])
@pytest.mark.parametrize("columns", [slice(None), slice(20, 3, -1), [4, 2, 29]])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "backed", "dask"])
def test_views(adata, as_form, form, rows, columns):
    table = as_form(adata, form)
    view = table[rows, columns]
    source = RowSource(view)
    np.testing.assert_array_equal(whole(source, 2), adata.X.toarray()[rows][:, columns])
    assert list(source.names) == list(adata.obs_names[rows])


@pytest.mark.parametrize("form", ["csr", "view", "backed", "dask"])
def test_layers(adata, counts, as_form, form):
    adata.layers["tripled"] = 3 * counts
    if form == "view":
        table = adata[::-1, 2:9]
        expected = 3 * counts.toarray()[::-1, 2:9]
    else:
        table, expected = as_form(adata, form), 3 * counts.toarray()
    np.testing.assert_array_equal(whole(RowSource(table, layer="tripled")), expected)


def test_columns_can_be_chosen(twin, counts):
    blocks = RowSource(twin).blocks(5, columns=[7, 3])
    np.testing.assert_array_equal(sp.vstack([block.X for block in blocks]).toarray(), counts.toarray()[:, [7, 3]])


def test_unsorted_columns_and_rows(adata, counts, rng):
    def shuffled(matrix):
        """The same matrix with the entries of each row (or column) in another order."""
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            order = rng.permutation(stop - start)
            matrix.indices[start:stop] = matrix.indices[start:stop][order]
            matrix.data[start:stop] = matrix.data[start:stop][order]
        matrix.has_sorted_indices = False
        return matrix

    for form in (sp.csr_matrix, sp.csc_matrix):
        table = ad.AnnData(shuffled(form(counts, copy=True)), obs=adata.obs, var=adata.var)
        before = table.X.indices.copy()
        np.testing.assert_array_equal(whole(RowSource(table)), counts.toarray())
        np.testing.assert_array_equal(table.X.indices, before)


def test_sparse_arrays(adata, counts):
    for form in (sp.csr_array, sp.csc_array):
        table = ad.AnnData(form(counts), obs=adata.obs, var=adata.var)
        np.testing.assert_array_equal(whole(RowSource(table)), counts.toarray())


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["backed", "dense on disk", "csr", "csc", "view of a file"])
def test_memory_is_bounded_by_a_block(tmp_path, monkeypatch, form):
    """10 times the cells need no more memory; dense, they would need 80 MB."""
    monkeypatch.setattr(matrices, "_DENSE_BYTES", 2**18)

    def peak(n_cells: int) -> int:
        X = sp.random(n_cells, 1000, density=0.01, format="csr", dtype=np.float32, rng=0)
        table = ad.AnnData(X.tocsc() if form == "csc" else X.toarray() if form == "dense on disk" else X)
        if form not in ("csr", "csc"):
            table.write_h5ad(tmp_path / f"{n_cells}.h5ad")
            table = ad.read_h5ad(tmp_path / f"{n_cells}.h5ad", backed="r")
        table = table[:, ::2] if form.startswith("view") else table
        source = RowSource(table)
        next(source.blocks(500))  # what is loaded once does not count
        tracemalloc.start()
        for _ in source.blocks(500):
            pass
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(2000), peak(20000)
    assert large < small + 400_000, (small, large)
    assert large < 2_000_000


# --- MuData -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mdata(adata, counts) -> MuData:
    protein = ad.AnnData(counts[:8, :3], obs=adata.obs.iloc[:8][[]], var=pd.DataFrame(index=["P1", "P2", "P3"]))
    with without_pulling():
        return MuData({"rna": adata, "prot": protein})


def test_a_modality_by_name(mdata, counts):
    np.testing.assert_array_equal(whole(RowSource(mdata, modality="prot")), counts.toarray()[:8, :3])
    assert len(RowSource(mdata, modality="rna")) == 12


def test_modalities_are_named(mdata, adata):
    with pytest.raises(ValueError, match=r"Expected `modality` to name one of \['rna', 'prot'\], found None"):
        RowSource(mdata)
    with pytest.raises(KeyError, match=r"Found no modality 'RNA'. .*Available: 'rna', 'prot'"):
        RowSource(mdata, modality="RNA")
    with pytest.raises(ValueError, match="Expected `modality` with MuData only, found 'rna'"):
        RowSource(adata, modality="rna")
    with pytest.raises(TypeError, match="Expected an AnnData or a MuData, found DataFrame"):
        table_of(adata.obs)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["dense", "csr", "csc", "float64", "view", "backed", "zarr", "dask"])
def test_bad_values_are_named(adata, as_form, form, value):
    dense = adata.X.toarray()
    dense[7, 13] = value
    adata.X = sp.csr_matrix(dense)
    message = f"not negative in `X`, found {value} in cell 'cell7', gene 'GENE13'"
    source = RowSource(as_form(adata, form))
    for rows in (1, 5, 100):
        with pytest.raises(ValueError, match=message):
            list(source.blocks(rows))
    with pytest.raises(ValueError, match=message):
        source.check()
    with pytest.raises(ValueError, match=message):
        RowSource(adata[:, ::-1]).take([2, 7])


def test_bad_values_of_a_layer(adata):
    adata.layers["scaled"] = adata.X - 1.0 * sp.eye(12, 30)
    with pytest.raises(ValueError, match="not negative in layer 'scaled', found -1.0 in cell 'cell"):
        RowSource(adata, layer="scaled").check()


def test_what_is_absent(adata):
    adata.layers["counts"] = adata.X
    with pytest.raises(KeyError, match=r"Did you mean 'counts'\? Available: 'counts'"):
        RowSource(adata, layer="count")
    bare = ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    with pytest.raises(ValueError, match=r"Expected a matrix in `X`, found none. Pass `layer=` one of \['counts'\]"):
        RowSource(bare)
    with pytest.raises(TypeError, match="Expected a matrix in memory, on disk or of dask, found list"):
        matrices.reader([[1, 2]])
    with pytest.raises(ValueError, match="Expected `rows` to be at least 1"):
        next(RowSource(adata).blocks(0))


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["object", "string", "category", "list", "array"])
def test_keys_depend_on_the_names_only(kind):
    names = ["AAACATACAACCAC-1", "b", "Zelle Ü", "b"]
    forms = {"list": names, "array": np.array(names)}
    index = forms[kind] if kind in forms else pd.Index(names, dtype=kind)
    keys = row_keys(index)
    assert keys.dtype == np.uint64
    # Written down once: other numbers would draw other genes for everybody.
    assert keys.tolist() == [KEYS[0], KEYS[1], KEYS[2], KEYS[1]]


KEYS = [14535326059163626444, 12688059582079114975, 1488903806949005521]


def test_samples_are_from_all_over(adata, monkeypatch):
    monkeypatch.setattr("scgpt_tools.data.rows._RUN", 1)
    assert RowSource(adata).sample().shape == (8, 30)
    assert RowSource(adata[:3]).sample().shape == (3, 30)
    assert RowSource(adata[:0]).sample().shape == (0, 30)


@pytest.mark.parametrize("shape", [(3, 0), (3,), (3, 2, 1)])
def test_what_is_no_embedding_is_refused(shape):
    with pytest.raises((TypeError, ValueError), match=r"Expected .*dimension.* in obsm\['X'\]"):
        plain_vectors(np.zeros(shape), "obsm['X']")
