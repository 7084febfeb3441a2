"""The scripts of the first day run on small parts of their files, without a warning of ours that nobody can act on.

Where the files are not at hand, tables of the same kind stand in for them.
"""

from __future__ import annotations

import os
import runpy
import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from mudatas import without_pulling

JOBS = sorted((Path(__file__).parents[1] / "tutorials" / "jobs").glob("*.py"))
SOURCE = Path(sct.__file__).parent
CELLS = 120
"""Cells of a part."""

# What the reader of a script can act on, and the script says how, or why not.
TOLD = {
    "embed_two_files": r"A model with more genes, such as 'scgpt-human'",
    "integrate_and_score": r"Expected cells with known features",
    "ensembl_ids": r"A model with more genes, such as 'scgpt-human'|choose with `duplicates=`",
    "mouse_cells": r"Only .* features|Expected cells with known features",
    "raw_counts": r"A model with more genes, such as 'scgpt-human'",
    "map_to_reference": r"A model with more genes, such as 'scgpt-human'",
    "annotate": r"A model with more genes, such as 'scgpt-human'",
    # After three epochs on few cells it is so, and a reader is to know it.
    "predict_perturbations": r"The predictions of generator are nearly the same for every perturbation",
}


def blood() -> ad.AnnData:
    """Bundled blood cells with the columns of the files."""
    cells = sct.datasets.pbmc_demo()
    cells.layers["counts"] = cells.X.expm1().rint()
    cells.obs["cell_type_harmonised"] = cells.obs["cell_type"]
    cells.obs["batch"] = pd.Categorical(np.resize(["3p_v1", "3p_v2", "5p"], cells.n_obs))
    cells.obs["condition"] = "control"
    return cells


def with_names(names: str, column: str) -> ad.AnnData:
    cells = blood()
    cells.var[column] = cells.var_names.astype(str)
    if names == "mouse":
        cells.var[column] = cells.var[column].str.capitalize()
    cells.var_names = [f"ENS{'MUS' if names == 'mouse' else ''}G{place:011d}" for place in range(cells.n_vars)]
    return cells


def screen() -> ad.AnnData:
    cells = sct.datasets.simulated_screen(n_cells=12, strength=3)
    renamed = dict(zip(["TYROBP", "SPI1"], ["STAT1", "IFNGR1"], strict=True))
    cells.obs["condition"] = (
        cells.obs["condition"].astype(str).replace({f"{old}+ctrl": f"{new}+ctrl" for old, new in renamed.items()})
    )
    cells.var_names = [renamed.get(name, name) for name in cells.var_names]
    cells.obs["batch"] = pd.Categorical(np.resize(["rep_1", "rep_2", "rep_3"], cells.n_obs))
    return cells


def cite_seq() -> md.MuData:
    rna = blood()
    rates = np.exp(rna[:, ["CD3D", "LYZ", "CD79A", "NKG7"]].X.toarray())
    counts = np.random.default_rng(0).poisson(rates).astype(np.float32)
    logs = np.log1p(counts)
    prot = ad.AnnData(
        logs - logs.mean(axis=1, keepdims=True),
        obs=rna.obs[["batch"]].copy(),
        var=pd.DataFrame(index=["CD3", "CD14", "CD19", "NK"]),
        layers={"counts": counts},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return md.MuData({"rna": rna, "prot": prot})


STAND_INS = {
    "pbmc3k_annotated": blood,
    "kang2018_ifnb_annotated": blood,
    "pbmc_3_chemistries": blood,
    "papalexi2021_thp1_eccite": screen,
    "pbmc_citeseq_2runs": cite_seq,
    "tian2019_cell_line_mixture": lambda: with_names("human", "gene_symbol"),
    "cd4_crispri_cellxgene_schema": lambda: with_names("human", "feature_name"),
    "mouse_brain_merfish_cellxgene": lambda: with_names("mouse", "feature_name"),
}
LOAD = sct.datasets.load


def part(name: str) -> ad.AnnData | md.MuData:
    """Some cells of a file, or of what stands in for it."""
    there = bool(os.environ.get("SCGPT_TOOLS_DATA")) and name in sct.datasets.available().index
    table = LOAD(name) if there else STAND_INS[name]()
    if name == "papalexi2021_thp1_eccite":
        return table  # the script takes some by itself
    drawn = np.random.default_rng(0).permutation(table.n_obs)[:CELLS]
    return table[np.sort(drawn)].copy()


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_it_runs_without_warnings_that_nobody_can_act_on(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sct.datasets, "load", part)
    monkeypatch.setattr(plt, "show", lambda: None)
    # One of the scripts sets the option of mudata, which is as before in the end.
    with (
        without_pulling(),
        warnings.catch_warnings(record=True) as said,
        sct.settings.override(device="cpu", show_progress=False),
    ):
        warnings.simplefilter("always")
        runpy.run_path(str(job), run_name="__main__")
    plt.close("all")
    # Ours name the line of the script that they are about.
    ours = [str(entry.message) for entry in said if entry.filename == str(job) and entry.category is UserWarning]
    assert [text for text in ours if job.stem not in TOLD or not pd.Series(text).str.contains(TOLD[job.stem])[0]] == []
    assert len(ours) == len(set(ours)), "a warning came twice"


def test_the_documentation_has_every_job():
    page = (Path(__file__).parents[1] / "docs" / "tutorials" / "jobs.md").read_text(encoding="utf-8")
    assert [f"tutorials/jobs/{job.name}" in page for job in JOBS] == [True] * len(JOBS)
