from __future__ import annotations

from importlib import import_module

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgpt_tools as sct
from scgpt_tools import cli
from scgpt_tools.models import AtlasIndex

pytest.importorskip("faiss", reason="the extra `index` is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding:UserWarning", "ignore::zarr.errors.ZarrUserWarning"
)

ABOUT = {"model": {"name": "tiny", "checksum": "abc"}, "params": {"pooling": "cls", "normalize": True}}


@pytest.fixture
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    n = 120
    obs = pd.DataFrame(
        {"kind": rng.choice(["B", "T", "NK"], n), "donor": rng.choice(["one", "two"], n)},
        index=[f"cell{i}" for i in range(n)],
    )
    vectors = rng.normal(size=(n, 4)).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(vectors), obs=obs, obsm={"X_scGPT": vectors}, uns={"X_scGPT": dict(ABOUT)})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(import_module("scgpt_tools.tl.index_reference"), "_ROWS", 50)


def write(table: ad.AnnData, path) -> None:
    with ad.settings.override(zarr_write_format=3):
        getattr(table, f"write_{path.suffix[1:]}")(path)


def same(index: AtlasIndex, other: AtlasIndex, queries: np.ndarray) -> None:
    np.testing.assert_array_equal(index.codes, other.codes)
    assert index.classes == other.classes
    assert index.source == other.source
    for ours, theirs in zip(index.search(queries, 5), other.search(queries, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(index.calibration.distances, other.calibration.distances)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("use_rep", ["X_scGPT", "X"])
def test_tables_on_disk_are_indexed_like_one_in_memory(cells, tmp_path, suffix, use_rep):
    cells.uns["X"] = cells.uns["X_scGPT"]
    cells.obsm["in X"] = cells.X.toarray()
    expected = sct.tl.index_reference(cells, label_key="kind", batch_key="donor", index="Flat")
    paths = []
    for number, part in enumerate((cells[:70], cells[70:])):
        paths.append(tmp_path / f"part{number}.{suffix}")
        write(part.copy(), paths[-1])
    folder = sct.tl.index_store(
        paths,
        tmp_path / "atlas",
        label_key="kind",
        use_rep=use_rep,
        batch_key="donor",
        index="Flat",
        show_progress=False,
    )
    same(AtlasIndex.load(folder), expected, cells.obsm["X_scGPT"][:9])
    query = cells[:10].copy()
    sct.tl.map_reference(query, folder, k=1)
    assert query.obs["mapped_cell_type"].tolist() == query.obs["kind"].tolist()


def test_columns_may_be_in_another_table(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    bare = ad.AnnData(obs=cells.obs[[]], obsm=dict(cells.obsm), uns=dict(cells.uns))
    write(bare, tmp_path / "embedded.zarr")
    common = {"label_key": "kind", "index": "Flat", "show_progress": False}
    with pytest.raises(KeyError, match="'kind'"):
        sct.tl.index_store(tmp_path / "embedded.zarr", tmp_path / "atlas", **common)
    folder = sct.tl.index_store(
        tmp_path / "embedded.zarr", tmp_path / "atlas", annotations=tmp_path / "cells.h5ad", **common
    )
    same(
        AtlasIndex.load(folder),
        sct.tl.index_reference(cells, label_key="kind", index="Flat"),
        cells.obsm["X_scGPT"][:9],
    )
    cells[::-1].copy().write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(ValueError, match="in their order in"):
        sct.tl.index_store(
            tmp_path / "embedded.zarr", tmp_path / "other", annotations=tmp_path / "turned.h5ad", **common
        )


def test_cells_without_a_type_or_a_known_gene_are_left_out(cells, tmp_path):
    cells.obs.loc["cell3", "kind"] = None
    cells.uns["X_scGPT"]["empty"] = np.array(["cell5"], dtype=object)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match=r"found 1 of 120 without any .* 'cell5'"):
        folder = sct.tl.index_store(
            tmp_path / "cells.h5ad", tmp_path / "atlas", label_key="kind", index="Flat", show_progress=False
        )
    index = AtlasIndex.load(folder)
    assert len(index) == 118
    assert index.search(cells.obsm["X_scGPT"][[4, 6]], 1).rows.ravel().tolist() == [3, 4]


def test_what_does_not_belong_together_is_refused(cells, tmp_path):
    cells.write_h5ad(tmp_path / "one.h5ad")
    other = cells.copy()
    other.uns["X_scGPT"] = ABOUT | {"model": {"name": "tiny", "checksum": "def"}}
    other.write_h5ad(tmp_path / "two.h5ad")
    narrow = cells.copy()
    narrow.obsm["X_scGPT"] = narrow.obsm["X_scGPT"][:, :3]
    narrow.write_h5ad(tmp_path / "narrow.h5ad")
    common = {"label_key": "kind", "index": "Flat", "show_progress": False}
    with pytest.raises(ValueError, match="found checksum"):
        sct.tl.index_store([tmp_path / "one.h5ad", tmp_path / "two.h5ad"], tmp_path / "atlas", **common)
    with pytest.raises(ValueError, match=r"every source once, found .*one\.h5ad' twice"):
        sct.tl.index_store([tmp_path / "one.h5ad", f"{tmp_path}/./one.h5ad"], tmp_path / "atlas", **common)
    with pytest.raises(ValueError, match="embeddings of 4 dimensions"):
        sct.tl.index_store([tmp_path / "one.h5ad", tmp_path / "narrow.h5ad"], tmp_path / "atlas", **common)
    with pytest.raises(KeyError, match="'X_pca'"):
        sct.tl.index_store(tmp_path / "one.h5ad", tmp_path / "atlas", **common, use_rep="X_pca")
    with pytest.raises(ValueError, match="found 'exact'"):
        sct.tl.index_store(tmp_path / "one.h5ad", tmp_path / "atlas", **common | {"index": "exact"})
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, :0], lambda x: x[:, :, None], lambda x: x.astype(complex), lambda x: x.astype(str)],
    ids=["no dimension", "three axes", "complex", "text"],
)
def test_what_is_no_matrix_of_numbers_is_refused(cells, tmp_path, change):
    cells.obsm["X_scGPT"] = change(cells.obsm["X_scGPT"])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="Expected vectors of numbers as 'X_scGPT' in "):
        sct.tl.index_store(tmp_path / "cells.h5ad", tmp_path / "atlas", label_key="kind", index="Flat")
    assert not (tmp_path / "atlas").exists()


def test_vectors_that_are_no_numbers_are_refused(cells, tmp_path):
    cells.obsm["X_scGPT"][77, 0] = np.nan
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="X_scGPT of .* from row 50 on to be finite, .*first: row 27"):
        sct.tl.index_store(
            tmp_path / "cells.h5ad", tmp_path / "atlas", label_key="kind", index="Flat", show_progress=False
        )


def test_the_command_writes_what_the_function_does(cells, tmp_path, capsys):
    cells[:70].copy().write_h5ad(tmp_path / "one.h5ad")
    cells[70:].copy().write_h5ad(tmp_path / "two.h5ad")
    words = ["index", tmp_path / "one.h5ad", tmp_path / "two.h5ad", "-o", tmp_path / "atlas", "--label-key", "kind"]
    words = [*map(str, words), "--index", "Flat", "--batch-key", "donor", "--quiet"]
    assert cli.main(words) == 0
    expected = sct.tl.index_reference(cells, label_key="kind", batch_key="donor", index="Flat")
    same(AtlasIndex.load(tmp_path / "atlas"), expected, cells.obsm["X_scGPT"][:9])
    assert cli.main(words) == 2
    assert "Allow overwriting it." in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
