"""Every notebook runs offline from top to bottom, and its stored output is what it gives now."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient

from scgpt_tools.datasets import available

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))

# A port where nobody answers: whatever looks for the network fails instead of downloading.
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE}

RESULTS = {
    "quickstart": """{
        "shape": adata.obsm["X_scGPT"].shape,
        "norms": float(np.abs(np.linalg.norm(adata.obsm["X_scGPT"], axis=1) - 1).max()),
        "bins": float(np.abs(adata.obsm["X_from_bins"] - adata.obsm["X_scGPT"]).max()),
        "matched": coverage.share,
        "scores": scores.to_dict("index"),
        "umap": adata.obsm["X_umap"].shape,
        "kept": sc.read_h5ad("pbmc_embedded.h5ad").obsm["X_scGPT"].shape,
    }""",
}
"""Expressions that are evaluated after the last cell of a notebook, for those with tests of their own below."""

DATA = {"perturbation": "papalexi2021_thp1_eccite"}
"""Files that notebooks read from the folder of ``SCGPT_TOOLS_DATA``; without them these are not executed."""

each_notebook = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


@cache
def executed(name: str) -> nbformat.NotebookNode:
    """The notebook after a run in a folder of its own, with its results as the output of one more cell."""
    if name in DATA and DATA[name] not in available().index:
        pytest.skip(f"no {DATA[name]}.h5ad in the folder of SCGPT_TOOLS_DATA")
    notebook = stored(name)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({RESULTS.get(name)}))"))
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        # As in Jupyter, whatever backend the tests themselves draw with.
        inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        client.execute(env=os.environ | OFFLINE | inline)
    return notebook


def results(name: str) -> dict:
    return json.loads(code_cells(executed(name))[-1].outputs[0].text)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows: the richest form of each output."""
    return [
        output.get("name") or max(output.data, key=("text/plain", "text/html", "image/png").index)
        for output in cell.outputs
    ]


def numbers(cell: nbformat.NotebookNode) -> list[float]:
    texts = [output.get("text") or output.data["text/plain"] for output in cell.outputs]
    return [float(number) for text in texts for number in re.findall(r"\b\d+(?:\.\d+)?\b", text)]


def test_a_tutorial_is_there():
    assert set(RESULTS) <= {path.stem for path in NOTEBOOKS}


@each_notebook
def test_stored_output_is_complete_and_small(name):
    cells = code_cells(stored(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert "image/png" in shown
    assert "stderr" not in shown
    text = (TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 400_000
    # Nothing of the machine that it was run on.
    assert re.findall(r"/(?:home|root|tmp|Users)/", text) == []


@each_notebook
def test_it_runs_offline_and_shows_what_is_stored(name):
    now = [kinds(cell) for cell in code_cells(executed(name))[:-1]]
    assert now == [kinds(cell) for cell in code_cells(stored(name))]


@each_notebook
def test_the_documentation_has_it(name):
    listing = (TUTORIALS.parent / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"^{name}$", listing, flags=re.MULTILINE)


def test_quickstart_embeds_cells():
    found = results("quickstart")
    assert found["shape"] == found["kept"] == [140, 64]
    assert found["umap"] == [140, 2]
    assert found["norms"] < 1e-5
    assert found["bins"] < 1e-5
    assert found["matched"] > 0.9


def test_quickstart_shows_that_the_model_has_learnt_something():
    scores = results("quickstart")["scores"]
    for score in ("NMI", "ARI", "ASW"):
        assert scores["scgpt-demo"][score] > scores["untrained, same size"][score] + 0.02


def test_scores_on_the_page_are_those_of_the_model():
    before, now = (
        numbers(next(cell for cell in code_cells(notebook) if cell.source.endswith("scores.round(2)")))
        for notebook in (stored("quickstart"), executed("quickstart"))
    )
    assert len(now) >= 9
    assert now == pytest.approx(before, abs=0.05)
