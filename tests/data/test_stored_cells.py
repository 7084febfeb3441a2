"""Cells read from a store run by run are those that AnnData reads."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scgpt_tools.data.stored_cells import StoredCells
from scgpt_tools.data.stores import open_group

KINDS = ("h5ad", "zarr2", "zarr3")


@pytest.fixture
def stored(tmp_path):
    """Function that writes a table in one of :data:`KINDS` and returns its path."""

    def write(adata, kind):
        path = tmp_path / ("cells.h5ad" if kind == "h5ad" else "cells.zarr")
        if kind == "h5ad":
            adata.write_h5ad(path, compression="gzip")
            return path
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            ad.io.write_elem(zarr.open_group(path, mode="w", zarr_format=int(kind[4])), "/", adata)
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["csr", "dense", "int32"])
def test_any_run_of_cells(adata, as_form, stored, kind, form):
    twin = as_form(adata, form)
    with open_group(stored(twin, kind)) as group:
        cells = StoredCells(group, columns=("cell_type", "batch"))
        assert len(cells) == 12
        pd.testing.assert_frame_equal(cells.var, adata.var)
        for start, stop in ((0, 12), (3, 8), (11, 12), (5, 5)):
            found, expected = cells.read(start, stop), adata[start:stop]
            np.testing.assert_array_equal(sp.csr_matrix(found.X).toarray(), expected.X.toarray())
            assert list(found.obs_names) == list(expected.obs_names) == cells.names(start, stop)
            for column in ("cell_type", "batch"):
                assert list(found.obs[column].astype(str)) == list(expected.obs[column].astype(str))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_stays_a_layer(adata, stored, kind):
    adata.layers["counts"] = adata.X * 2
    adata.X = None
    with open_group(stored(adata, kind)) as group:
        found = StoredCells(group, layer="counts").read(2, 4)
        np.testing.assert_array_equal(found.layers["counts"].toarray(), adata.layers["counts"][2:4].toarray())
        assert found.X is None
        with pytest.raises(ValueError, match=r"Expected a matrix in `X`, found none.*counts"):
            StoredCells(group)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pd.array([1, None] * 6, dtype="Int64"), ["1", "nan"] * 6),
        (pd.array([True, False] * 6, dtype="boolean"), ["True", "False"] * 6),
        (np.arange(12), [str(i) for i in range(12)]),
        (pd.Categorical(["a", None] * 6), ["a", "nan"] * 6),
    ],
    ids=["nullable", "boolean", "numbers", "categories"],
)
def test_columns_of_every_kind(adata, stored, kind, values, shown):
    adata.obs["column"] = values
    with open_group(stored(adata, kind)) as group:
        found = StoredCells(group, columns=("column",)).read(1, 12).obs["column"]
    assert [str(value) for value in found] == shown[1:]


def test_the_digest_knows_names_and_their_order(adata, stored):
    def digest(table):
        with open_group(stored(table, "h5ad")) as group:
            return StoredCells(group).digest()

    other_names = adata.copy()
    other_names.obs_names = [*adata.obs_names[:-1], "another"]
    tables = [adata, adata[::-1].copy(), adata[:-1].copy(), adata[:, ::-1].copy(), other_names]
    assert len({digest(table) for table in tables}) == len(tables)
    assert digest(adata) == digest(adata.copy())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "count"}, KeyError, "'count'"),
        ({"columns": ("batches",)}, KeyError, "batches.*Did you mean 'batch'"),
    ],
)
def test_what_is_not_there_is_refused(adata, stored, options, error, message):
    with open_group(stored(adata, "h5ad")) as group, pytest.raises(error, match=message):
        StoredCells(group, **options)


def test_a_matrix_by_columns_is_refused(adata, stored):
    adata.X = adata.X.tocsc()
    with open_group(stored(adata, "h5ad")) as group, pytest.raises(ValueError, match="stored by rows.*'csc_matrix'"):
        StoredCells(group)
