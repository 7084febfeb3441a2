"""Results are added to tables on disk; nothing else of the table is read or changed."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.abc import CSRDataset
from anndata.tests.helpers import assert_equal

from mudatas import without_pulling
from scgpt_tools import _outputs
from scgpt_tools.data import stores
from scgpt_tools.data.changes import additions, contents
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.stores import check_target, open_table, write_results

KINDS = ("h5ad", "h5mu", "zarr2", "zarr3", "zarr3-consolidated", "mudata.zarr")
SLOTS = ("X", "layers", "obsm", "varm", "obsp", "varp", "raw", "uns")


@pytest.fixture
def rich(adata):
    """A table with something in every place."""
    adata.raw = adata.copy()
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.arange(2.0 * adata.n_obs).reshape(-1, 2)
    adata.obsm["frame"] = pd.DataFrame({"a": range(adata.n_obs)}, index=adata.obs_names)
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.obsp["distances"] = sp.identity(adata.n_obs, format="csr")
    adata.uns["colors"] = np.array(["red", "blue"])
    adata.uns["nested"] = {"seed": 0, "deep": {"text": "x"}}
    return adata


@pytest.fixture
def written(rich, tmp_path):
    """Function that writes the table in one of :data:`KINDS`; returns path and modality."""

    def write(kind, adata=rich):
        path = tmp_path / f"in.{kind if kind in ('h5ad', 'h5mu') else 'zarr'}"
        if kind == "h5ad":
            adata.write_h5ad(path, compression="gzip")
        elif kind == "h5mu":
            with without_pulling():
                _mudata(adata).write(path)
        elif kind == "mudata.zarr":
            root = zarr.open_group(path, mode="w", zarr_format=2)
            ad.io.write_elem(root.require_group("mod"), "rna", adata)
        else:
            root = zarr.open_group(path, mode="w", zarr_format=int(kind[4]))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="zarr v3 autosharding")
                ad.io.write_elem(root, "/", adata)
        if kind.endswith("consolidated"):
            with pytest.warns(UserWarning, match="Consolidated"):
                zarr.consolidate_metadata(path)
        return path, ("rna" if kind in ("h5mu", "mudata.zarr") else None)

    return write


def _mudata(adata):
    other = ad.AnnData(np.eye(adata.n_obs, 3, dtype=np.float32), obs=pd.DataFrame(index=adata.obs_names))
    other.var_names = ["p1", "p2", "p3"]
    return md.MuData({"rna": adata, "prot": other})


@pytest.fixture(params=KINDS)
def store(request, written):
    return written(request.param)


@pytest.fixture
def results(rich):
    """One new element for every slot, and one that replaces an old one."""
    bins = sp.csr_matrix(rich.X.toarray().astype(np.uint8))
    return {
        "obs": {"n_tokens": pd.Series(np.arange(rich.n_obs, dtype=np.int32), index=rich.obs_names)},
        "var": {"kind": pd.Series(pd.Categorical(["a", "b"] * (rich.n_vars // 2)), index=rich.var_names)},
        "obsm": {"X_scGPT": np.full((rich.n_obs, 4), 0.5, dtype=np.float32), "X_pca": np.zeros((rich.n_obs, 3))},
        "varm": {"X_genes": np.ones((rich.n_vars, 2), dtype=np.float32)},
        "layers": {"X_binned": bins},
        "uns": {"X_scGPT": {"params": {"seed": 0, "layer": None}, "model": {"name": "m"}}},
    }


def snapshot(path) -> dict[str, bytes]:
    """Content of every file of a store."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files if file.is_file()}


def read(path, modality=None):
    if path.suffix == ".zarr":
        root = zarr.open_group(path, mode="r")
        return ad.io.read_elem(root["mod"][modality] if modality else root)
    if path.suffix == ".h5mu":
        with without_pulling():
            return md.read_h5mu(path)[modality]
    return ad.read_h5ad(path)


def assert_equal_but(left, right, results):
    """All of ``right`` is in ``left``, unless it was replaced."""
    for slot in ("layers", "obsm", "varm", "obsp", "uns"):
        for name, value in getattr(right, slot).items():
            if name not in results.get(slot, {}):
                assert_equal(getattr(left, slot)[name], value, exact=True)
    assert_equal(left.X, right.X, exact=True)
    assert_equal(left.raw.X, right.raw.X, exact=True)
    pd.testing.assert_frame_equal(left.obs[right.obs.columns], right.obs)
    pd.testing.assert_frame_equal(left.var[right.var.columns], right.var)


def test_matrices_stay_on_disk(store, rich):
    path, modality = store
    with open_table(path, modality=modality) as table:
        assert isinstance(table.X, CSRDataset)
        assert isinstance(table.layers["counts"], CSRDataset)
        assert isinstance(table.layers["dense"], h5py.Dataset | zarr.Array)
        assert not table.obsm
        pd.testing.assert_frame_equal(table.obs, rich.obs)
        assert table.uns["nested"]["deep"]["text"] == "x"
        for layer in (None, "dense", "counts"):
            found = RowSource(table, layer=layer).take(np.arange(rich.n_obs))
            np.testing.assert_array_equal(found.toarray(), rich.X.toarray())


def test_results_are_added_and_nothing_is_lost(store, rich, results, tmp_path):
    path, modality = store
    before = snapshot(path)
    target = tmp_path / f"out{path.suffix}"
    write_results(path, target, results, modality=modality)
    assert snapshot(path) == before
    assert sorted(tmp_path.iterdir()) == sorted([path, target])
    written = read(target, modality)
    assert_equal_but(written, rich, results)
    assert list(written.obs) == [*rich.obs, "n_tokens"]
    np.testing.assert_array_equal(written.obs["n_tokens"], results["obs"]["n_tokens"])
    assert list(written.var["kind"]) == list(results["var"]["kind"])
    np.testing.assert_array_equal(written.obsm["X_scGPT"], results["obsm"]["X_scGPT"])
    assert written.obsm["X_pca"].shape == (rich.n_obs, 3)
    assert written.layers["X_binned"].dtype == np.uint8
    np.testing.assert_array_equal(written.layers["X_binned"].toarray(), results["layers"]["X_binned"].toarray())
    assert written.uns["X_scGPT"] == results["uns"]["X_scGPT"]


def test_matrices_are_never_read(written, results, tmp_path):
    """Damaged chunks of ``X``, which no library could unpack, arrive as they are."""
    path, _ = written("h5ad")
    damaged = b"no gzip at all"
    with h5py.File(path, "r+") as file:
        file["X/data"].id.write_direct_chunk((0,), damaged)
    with h5py.File(path) as file, pytest.raises(OSError, match="read"):
        file["X/data"][:]
    with open_table(path) as table:
        assert table.shape == (12, 30)
    write_results(path, tmp_path / "out.h5ad", results)
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["X/data"].id.read_direct_chunk((0,))[1] == damaged
        assert file["obsm/X_scGPT"].shape == (12, 4)


def test_other_modalities_stay(written, results, tmp_path):
    path, _ = written("h5mu")
    write_results(path, tmp_path / "out.h5mu", results, modality="rna")
    with without_pulling():
        before, after = md.read_h5mu(path), md.read_h5mu(tmp_path / "out.h5mu")
    assert_equal(after["prot"], before["prot"], exact=True)
    np.testing.assert_array_equal(after.obsm["prot"], before.obsm["prot"])
    assert (tmp_path / "out.h5mu").read_bytes()[:6] == b"MuData"


@pytest.mark.parametrize("kind", KINDS)
def test_in_place(kind, written, rich, results):
    path, modality = written(kind)
    path.chmod(0o750)
    write_results(path, path, results, modality=modality, overwrite=True)
    assert list(path.parent.iterdir()) == [path]
    again = read(path, modality)
    assert_equal_but(again, rich, results)
    assert "X_scGPT" in again.obsm
    if path.is_file():
        assert path.stat().st_mode & 0o777 == 0o750


def test_a_second_run_replaces_the_first(written, results, tmp_path):
    path, _ = written("h5ad")
    write_results(path, path, results, overwrite=True)
    results["obs"]["n_tokens"] += 1
    write_results(path, path, results, overwrite=True)
    again = read(path)
    assert list(again.obs).count("n_tokens") == 1
    assert again.obs["n_tokens"].iloc[0] == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda about: about["attributes"].update({"column-order": ["no such"]}), r"obs\['no such'\]"),
        (lambda about: about.update(zarr_format=7), "missing or damaged"),
    ],
)
def test_what_an_old_summary_of_a_zarr_folder_does_not_show_is_refused(written, tmp_path, damage, said):
    path, _ = written("zarr3-consolidated")
    about = json.loads((path / "obs" / "zarr.json").read_text())
    damage(about)
    (path / "obs" / "zarr.json").write_text(json.dumps(about))
    with pytest.raises((OSError, ValueError), match=f"^Expected .*{said}"):
        write_results(path, tmp_path / "out.zarr", {"obsm": {"X_new": np.ones((len(ad.read_zarr(path)), 2))}})
    assert not (tmp_path / "out.zarr").exists()


def test_summary_of_a_zarr_folder_is_brought_up_to_date(written, results, tmp_path):
    for kind, summarised in (("zarr3-consolidated", True), ("zarr3", False)):
        path, _ = written(kind)
        target = tmp_path / f"{kind}.zarr"
        write_results(path, target, results)
        summary = json.loads((target / "zarr.json").read_text())["consolidated_metadata"] if summarised else None
        assert (summary is not None) == summarised
        if summary:
            assert "obsm/X_scGPT" in summary["metadata"]


def test_summary_of_version_2_is_brought_up_to_date(written, results, tmp_path):
    path, _ = written("zarr2")
    zarr.consolidate_metadata(path)
    write_results(path, tmp_path / "out.zarr", results)
    assert "obsm/X_scGPT/.zarray" in json.loads((tmp_path / "out.zarr" / ".zmetadata").read_text())["metadata"]
    assert "X_scGPT" in read(tmp_path / "out.zarr").obsm


def test_layers_are_compressed_like_the_matrix(written, results, tmp_path):
    path, _ = written("h5ad")
    write_results(path, tmp_path / "out.h5ad", results)
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["layers/X_binned/data"].compression == "gzip"
        assert file["obsm/X_scGPT"].compression is None


def test_slots_that_the_file_lacks_are_made(written, results, tmp_path):
    path, _ = written("h5ad")
    with h5py.File(path, "r+") as file:
        for slot in ("obsm", "varm", "layers", "uns"):
            del file[slot]
    with open_table(path) as table:
        assert not table.layers
        assert not table.uns
    write_results(path, tmp_path / "out.h5ad", results)
    assert list(read(tmp_path / "out.h5ad").varm) == ["X_genes"]


def test_what_cannot_be_read_is_kept(written, results, tmp_path):
    """An element of an encoding that this version of AnnData does not know."""
    path, _ = written("h5ad")
    with h5py.File(path, "r+") as file:
        file["obsp/future"] = np.arange(3)
        file["obsp/future"].attrs["encoding-type"] = "of-the-future"
        file["extra"] = 1
    write_results(path, tmp_path / "out.h5ad", results)
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert list(file["obsp/future"]) == [0, 1, 2]
        assert "extra" in file


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("in_place", [False, True])
def test_an_interrupted_write_leaves_nothing_behind(kind, error, in_place, written, results, tmp_path, monkeypatch):
    path, _ = written(kind)
    before = snapshot(path)
    written_so_far = []
    write_elem = stores.write_elem

    def interrupted(group, name, value, **options):
        written_so_far.append(name)
        if len(written_so_far) > 2:
            raise error
        write_elem(group, name, value, **options)

    monkeypatch.setattr(stores, "write_elem", interrupted)
    with pytest.raises(type(error)):
        write_results(path, path if in_place else tmp_path / f"out{path.suffix}", results, overwrite=in_place)
    assert len(written_so_far) == 3
    assert list(tmp_path.iterdir()) == [path]
    assert snapshot(path) == before


def test_a_folder_that_cannot_be_replaced_comes_back(written, results, monkeypatch):
    """Where the system cannot exchange two folders, either."""
    path, _ = written("zarr3")
    before = snapshot(path)
    rename = type(path).rename

    def refuses_copies(self, target):
        if self.name == "copy.zarr":
            raise PermissionError("not now")
        return rename(self, target)

    monkeypatch.setattr(_outputs, "_exchange", lambda *_: False)
    monkeypatch.setattr(type(path), "rename", refuses_copies)
    with pytest.raises(PermissionError, match="not now"):
        write_results(path, path, results, overwrite=True)
    assert list(path.parent.iterdir()) == [path]
    assert snapshot(path) == before


@pytest.mark.parametrize("where", ["open", "write"])
def test_a_table_that_a_killed_process_had_moved_away_is_found(written, results, where, tmp_path):
    path, _ = written("zarr3")
    before = snapshot(path)
    aside = _outputs.aside_of(path)
    aside.mkdir()
    path.rename(aside / "previous")
    if where == "open":
        with open_table(path) as table:
            assert table.n_obs == 12
        assert snapshot(path) == before
    else:
        write_results(path, path, results, overwrite=True)
        assert "X_scGPT" in read(path).obsm
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared(written, results, tmp_path):
    path, _ = written("h5ad")
    aside = _outputs.aside_of(tmp_path / "out.h5ad")
    aside.mkdir()
    (aside / "copy.h5ad").write_bytes(b"half")
    (aside / "owner").write_text("process 1 on another")
    write_results(path, tmp_path / "out.h5ad", results)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "out.h5ad"]


def test_two_do_not_write_one_output(written, results, tmp_path):
    path, _ = written("h5ad")
    with stores.results_for(path, tmp_path / "out.h5ad") as write:
        with pytest.raises(FileExistsError, match=r"process \d+ on .* is writing '.*out.h5ad'"):
            write_results(path, tmp_path / "out.h5ad", results)
        write(results)
    assert "X_scGPT" in read(tmp_path / "out.h5ad").obsm
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "out.h5ad"]


def test_an_output_that_has_come_to_exist_meanwhile_is_kept(written, results, tmp_path):
    path, _ = written("h5ad")
    with stores.results_for(path, tmp_path / "out.h5ad") as write:
        (tmp_path / "out.h5ad").write_text("another's")
        with pytest.raises(FileExistsError, match="has come to exist"):
            write(results)
    assert (tmp_path / "out.h5ad").read_text() == "another's"


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
def test_a_source_that_changes_meanwhile_is_refused(written, rich, results, kind, tmp_path):
    path, _ = written(kind)
    with stores.results_for(path, tmp_path / f"out{path.suffix}") as write:
        written(kind, rich[::-1].copy())
        with pytest.raises(ValueError, match="has changed"):
            write(results)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_seen_before_work_begins(written, tmp_path, monkeypatch):
    path, _ = written("h5ad")
    monkeypatch.setattr(_outputs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="Expected room for .* GB"):
        check_target(path, tmp_path / "out.h5ad")


def test_a_result_that_was_not_written_as_it_is_never_takes_the_place(written, results, monkeypatch):
    path, _ = written("h5ad")
    before = snapshot(path)
    write_elem = stores.write_elem

    def loses_cells(group, name, value, **options):
        write_elem(group, name, value[:-1] if name == "X_scGPT" and hasattr(value, "shape") else value, **options)

    monkeypatch.setattr(stores, "write_elem", loses_cells)
    with pytest.raises(OSError, match="X_scGPT.*damaged"):
        write_results(path, path, results, overwrite=True)
    assert list(path.parent.iterdir()) == [path]
    assert snapshot(path) == before


def test_paths_in_the_home_folder(written, results, tmp_path, monkeypatch):
    path, _ = written("h5ad")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_results("~/in.h5ad", "~/out.h5ad", results)
    with open_table("~/out.h5ad") as table:
        assert table.n_obs == 12
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "out.h5ad"]


@pytest.mark.parametrize("what", ["a folder", "a folder beside a table", "a file", "a folder for a file"])
def test_what_is_no_table_is_never_replaced(written, results, tmp_path, what):
    path, _ = written("h5ad" if what.endswith("for a file") else "zarr3")
    target = tmp_path / f"out{path.suffix}"
    if what == "a file":
        target.write_text("notes")
    elif what.startswith("a folder beside"):
        write_results(path, target, results)
        (target / "notes.txt").write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="something else, or a folder"):
        write_results(path, target, results, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("outer", ["source", "target"])
def test_an_output_within_the_input_is_refused(written, results, outer):
    path, _ = written("zarr3")
    inner = path / "inner.zarr"
    source, target = (path, inner) if outer == "source" else (inner, path)
    with pytest.raises(ValueError, match="one within the other"):
        check_target(source, target, overwrite=True)


def test_a_link_is_followed(written, results, tmp_path):
    path, _ = written("h5ad")
    (tmp_path / "real").mkdir()
    real = path.rename(tmp_path / "real" / "data-without-suffix")
    path.symlink_to(real)
    write_results(path, path, results, overwrite=True)
    assert path.is_symlink()
    assert "X_scGPT" in read(path).obsm


def test_a_read_only_input_can_be_copied(written, results, tmp_path):
    path, _ = written("h5ad")
    path.chmod(0o444)
    write_results(path, tmp_path / "out.h5ad", results)
    assert "X_scGPT" in read(tmp_path / "out.h5ad").obsm


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("out.zarr", {}, ValueError, r"format of the input, \.h5ad, found 'out.zarr'"),
        ("out.csv", {}, ValueError, "format of the input"),
        ("in.h5ad", {}, FileExistsError, "is the input itself"),
        ("other.h5ad", {}, FileExistsError, "exists"),
        ("missing/out.h5ad", {"overwrite": True}, FileNotFoundError, "folder of the output"),
    ],
)
def test_bad_targets_are_refused(target, options, error, message, written, results, tmp_path):
    path, _ = written("h5ad")
    (tmp_path / "other.h5ad").touch()
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message):
        check_target(path, tmp_path / target, **options)
    with pytest.raises(error, match=message):
        write_results(path, tmp_path / target, results, **options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("protected", ["folder", "target"])
def test_targets_that_may_not_be_written_are_refused(protected, written, tmp_path, monkeypatch):
    path, _ = written("h5ad")
    locked = tmp_path if protected == "folder" else path
    monkeypatch.setattr(_outputs.os, "access", lambda place, mode: place != locked.resolve())
    with pytest.raises(PermissionError, match="may not"):
        check_target(path, path, overwrite=True)


@pytest.mark.parametrize("name", ["a/b", "", "."])
def test_names_that_are_paths_are_refused(name, written, tmp_path):
    path, _ = written("h5ad")
    with pytest.raises(ValueError, match="without '/'|not blank"):
        write_results(path, tmp_path / "out.h5ad", {"uns": {name: 1}})
    assert list(tmp_path.iterdir()) == [path]


def _refused(path, modality, error, message):
    with pytest.raises(error, match=message), open_table(path, modality=modality):
        pytest.fail("the table must not open")


def test_bad_inputs_are_refused(written, tmp_path):
    h5ad, _ = written("h5ad")
    h5mu, _ = written("h5mu")
    _refused(tmp_path / "absent.h5ad", None, FileNotFoundError, "found nothing")
    _refused(tmp_path / "cells.loom", None, FileNotFoundError, "found nothing")
    _refused(h5ad, "rna", ValueError, "with MuData only")
    _refused(h5mu, None, ValueError, r"\['rna', 'prot'\]|\['prot', 'rna'\]")
    _refused(h5mu, "rma", KeyError, "Did you mean 'rna'")
    (tmp_path / "cells.loom").touch()
    _refused(tmp_path / "cells.loom", None, ValueError, r"\.h5ad, \.h5mu, \.zarr")
    (tmp_path / "text.h5ad").write_text("not HDF5")
    _refused(tmp_path / "text.h5ad", None, ValueError, "Expected an HDF5 file")
    (tmp_path / "packed.zarr").touch()
    _refused(tmp_path / "packed.zarr", None, ValueError, "Expected a zarr folder")


def test_files_of_old_versions_are_refused(tmp_path):
    """Before version 0.7 the columns were one compound data set."""
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.array([(b"c1", 1.0)], dtype=[("index", "S2"), ("x", "f8")])
        file["X"] = np.ones((1, 1))
    _refused(tmp_path / "old.h5ad", None, ValueError, "version 0.7 or newer")


def test_changes_are_what_a_function_added_or_replaced(rich):
    before = contents(rich)
    assert additions(rich, before) == {}
    rich.obs["new"] = 1
    rich.obs["batch"] = "z"
    rich.obsm["X_pca"] = rich.obsm["X_pca"] + 1
    rich.uns["run"] = None
    found = additions(rich, before)
    assert {slot: sorted(elements) for slot, elements in found.items()} == {
        "obs": ["batch", "new"],
        "obsm": ["X_pca"],
        "uns": ["run"],
    }
