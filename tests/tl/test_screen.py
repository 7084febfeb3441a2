"""In-silico screens: bounded, resumable, and the same as predictions cell by cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest

import scgpt_tools as sct
from generators import generator
from scgpt_tools.tl.screen import _table
from screen_tables import screen as screen_cells

PERTS = ["G0", "G1+G9", "G30", "G2+ctrl"]


pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    return screen_cells(6)


@pytest.fixture
def model(cells):
    return generator(cells.var_names)


def test_rows_are_means_over_the_predicted_controls(cells, model, unchanged):
    before = unchanged(cells)
    found = sct.tl.screen(cells, PERTS, model, n_controls=None, batch_size=5)
    assert unchanged(cells) == before
    assert list(found.obs_names) == ["G0", "G1+G9", "G30", "G2"]
    assert found.var_names.equals(cells.var_names)
    rows = (cells.obs["condition"] == "ctrl").to_numpy()
    sct.tl.predict_perturbation(cells, PERTS, model)
    control = cells.X.toarray()[rows].mean(axis=0)
    for name in found.obs_names:
        expected = cells.layers[f"predicted_{name}"][rows].astype(float)
        own = found[name]
        np.testing.assert_allclose(own.X[0], expected.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(own.layers["effect"][0], expected.mean(axis=0) - control, atol=1e-5)
        np.testing.assert_allclose(own.layers["dispersion"][0], expected.std(axis=0, ddof=1), rtol=1e-4, atol=1e-5)
    assert found.obs["n_genes"].tolist() == [1, 2, 1, 1]
    np.testing.assert_allclose(found.var["control_mean"], control, rtol=1e-5)
    effect = found.layers["effect"][1].copy()
    effect[[1, 9]] = 0
    assert found.obs["effect_size"].iloc[1] == pytest.approx(np.linalg.norm(effect), rel=1e-5)
    assert found.uns["screen"]["n_controls"] == rows.sum()


def test_effects_are_against_the_controls_that_were_averaged(cells):
    """Genes that the model does not read keep their value, so they have no effect."""
    model = generator(cells.var_names[:-8])
    means = model.adapt(tokenizer=replace(model.config.tokenizer, cells_per_mean=7)).eval()
    assert (cells.obs["condition"] == "ctrl").sum() % 7
    found = sct.tl.screen(cells, ["G0", "G1"], means, n_controls=None)
    np.testing.assert_allclose(found.layers["effect"][:, -8:], 0, atol=1e-6)
    assert (found.layers["effect"][:, :-8] != 0).any()


def test_controls_are_drawn_by_name(cells, model):
    found = sct.tl.screen(cells, PERTS, model, n_controls=7)
    turned = sct.tl.screen(cells[::-1].copy(), PERTS, model, n_controls=7)
    other = sct.tl.screen(cells, PERTS, model, n_controls=7, rng=1)
    np.testing.assert_allclose(found.X, turned.X, atol=1e-6)
    assert not np.allclose(found.X, other.X, atol=1e-6)
    assert found.uns["screen"]["n_controls"] == 7


def test_finished_perturbations_are_kept(cells, model, tmp_path, monkeypatch):
    store = tmp_path / "store"
    first = sct.tl.screen(cells, PERTS[:2], model, store=store)
    asked = []
    predict = sct.inference.perturbation.Predictor.predict

    def counting(self, rows, perturbed, **options):
        asked.append(perturbed[0])
        return predict(self, rows, perturbed, **options)

    monkeypatch.setattr("scgpt_tools.inference.perturbation.Predictor.predict", counting)
    more = sct.tl.screen(cells, [*PERTS, "G9+G1"], model, store=store)
    assert asked == [("G30",), ("G2",)]
    np.testing.assert_array_equal(more.X[:2], first.X)
    np.testing.assert_array_equal(more["G9+G1"].X, more["G1+G9"].X)
    plain = sct.tl.screen(cells, PERTS, model)
    np.testing.assert_array_equal(more.X[:4], plain.X)


@pytest.mark.parametrize("what", ["model", "controls", "values", "settings"])
def test_stores_of_other_screens_are_refused(cells, model, tmp_path, what):
    sct.tl.screen(cells, "G0", model, store=tmp_path)
    options, other = {}, cells
    if what == "model":
        model = generator(cells.var_names, seed=1)
    elif what == "controls":
        other = cells[cells.obs["batch"] == "a"].copy()
    elif what == "values":
        other = cells.copy()
        other.X = other.X * 0.5
    else:
        options = {"include": "batch-wise"}
    with pytest.raises(ValueError, match=rf"store .* to belong to this screen, found other .*{what}"):
        sct.tl.screen(other, "G0", model, store=tmp_path, **options)


def test_another_size_of_minibatches_goes_on(cells, model, tmp_path):
    first = sct.tl.screen(cells, "G0", model, store=tmp_path, batch_size=64)
    again = sct.tl.screen(cells, ["G0", "G2"], model, store=tmp_path, batch_size=3)
    np.testing.assert_array_equal(again.X[0], first.X[0])


def test_other_cells_of_the_same_mean_are_refused(cells, model, tmp_path):
    sct.tl.screen(cells, "G0", model, store=tmp_path, n_controls=None)
    other = cells.copy()
    rows = np.flatnonzero(cells.obs["condition"] == "ctrl")
    dense = other.X.toarray()
    dense[rows] = dense[rows[::-1]]
    other.X = dense
    with pytest.raises(ValueError, match="found other values"):
        sct.tl.screen(other, "G0", model, store=tmp_path, n_controls=None)


@pytest.mark.parametrize("damage", ["zeroed", "swapped", "cut", "empty", "another store's"])
def test_damaged_files_of_a_store_are_computed_again(cells, model, tmp_path, damage, caplog):
    first = sct.tl.screen(cells, ["G0", "G1+G9"], model, store=tmp_path / "store")
    one, two = sorted((tmp_path / "store").glob("*.f4"))
    contents = one.read_bytes(), two.read_bytes()
    if damage == "another store's":
        sct.tl.screen(cells, ["G0", "G1+G9"], model, store=tmp_path / "other", n_controls=5)
        for path in (tmp_path / "other").glob("*.f4"):
            (tmp_path / "store" / path.name).write_bytes(path.read_bytes())
    elif damage == "swapped":
        one.write_bytes(contents[1])
        two.write_bytes(contents[0])
    else:
        one.write_bytes({"zeroed": bytes(len(contents[0])), "cut": contents[0][:50], "empty": b""}[damage])
    with caplog.at_level("WARNING", logger="scgpt_tools"):
        again = sct.tl.screen(cells, ["G0", "G1+G9"], model, store=tmp_path / "store")
    assert "is damaged, or of something else" in caplog.text
    np.testing.assert_array_equal(again.X, first.X)
    assert (one.read_bytes(), two.read_bytes()) == contents


def test_a_store_whose_request_is_damaged_is_named(cells, model, tmp_path):
    sct.tl.screen(cells, "G0", model, store=tmp_path)
    (tmp_path / "request.json").write_text("{")
    with pytest.raises(ValueError, match=r"request.json to describe the store"):
        sct.tl.screen(cells, "G0", model, store=tmp_path)


def test_a_file_in_the_place_of_a_store_is_refused(cells, model, tmp_path, monkeypatch):
    (tmp_path / "store").write_text("mine")
    with pytest.raises(OSError, match="folder of the output|to be a folder"):
        sct.tl.screen(cells, "G0", model, store=tmp_path / "store" / "inner")
    monkeypatch.setenv("HOME", str(tmp_path))
    sct.tl.screen(cells, "G0", model, store="~/kept")
    assert len(list((tmp_path / "kept").glob("*.f4"))) == 1


SCRIPT = """
import sys, anndata, scgpt_tools as sct
sct.settings.show_progress = False
cells = anndata.read_h5ad(sys.argv[1])
sct.tl.screen(cells, [f"G{i}" for i in range(40)], sys.argv[2], store=sys.argv[3], device="cpu", batch_size=1)
"""


def test_a_killed_screen_goes_on(cells, model, tmp_path):
    model.save(tmp_path / "model")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    store = tmp_path / "store"
    paths = [str(tmp_path / "cells.h5ad"), str(tmp_path / "model"), str(store)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *paths], cwd=Path.cwd())
    try:
        deadline = time.monotonic() + 120
        while len(list(store.glob("*.f4"))) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in store.glob("*.f4")}
    assert 3 <= len(done) < 40
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    names = [f"G{i}" for i in range(40)]
    resumed = sct.tl.screen(cells, names, tmp_path / "model", store=store, device="cpu", batch_size=1)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    np.testing.assert_allclose(resumed.X, sct.tl.screen(cells, names, model).X, atol=1e-5)


def test_nothing_as_large_as_the_result_is_made_beside_it():
    """Mean and dispersion are there already, so the table costs one more matrix, of the changes."""
    wide = ad.AnnData(np.zeros((1, 2000), dtype=np.float32))
    results = np.ones((2, 60, 2000), dtype=np.float32)
    predictor = SimpleNamespace(tokens=SimpleNamespace(column={"0": 0}))
    wanted = {str(number): ("0",) for number in range(60)}
    tracemalloc.start()
    table = _table(wide, wanted, results, np.zeros(2000), predictor, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * results[0].nbytes
    assert np.shares_memory(table.X, results)
    np.testing.assert_allclose(table.obs["effect_size"], np.sqrt(1999))


def test_memory_does_not_grow_with_perturbations(cells, model):
    """What is held at once is one minibatch and three rows a perturbation."""

    def peak(n: int) -> int:
        tracemalloc.start()
        sct.tl.screen(cells, [f"G{i}" for i in range(n)], model, batch_size=8)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    # Mean, dispersion and effect: a row of float32 each, and what else a name costs.
    assert peak(40) - peak(2) < 38 * cells.n_vars * 4 * 12 + 50_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata: adata[adata.obs["condition"] != "ctrl"].copy(), "at least two control cells"),
        (lambda adata: adata[(adata.obs["condition"] != "ctrl") | (np.arange(adata.n_obs) == 0)].copy(), "found [01]"),
    ],
)
def test_controls_are_needed(cells, model, change, message):
    with pytest.raises(ValueError, match=message):
        sct.tl.screen(change(cells), "G0", model)


def test_unknown_genes_are_refused(cells, model, tmp_path):
    with pytest.raises(ValueError, match="no token for NOPE"):
        sct.tl.screen(cells, ["G0", "NOPE"], model, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
