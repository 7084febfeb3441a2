"""Every notebook runs offline from top to bottom and shows what its page shows.

Pages of measured cells were stored with the data at hand; without it their notebooks take stand-ins, so numbers are
compared for the quickstart, and kinds of output for all.
"""

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

import scgpt_tools as sct

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))

# A port where nobody answers: whatever looks for the network fails instead of downloading.
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE}

# numba, which scanpy calls, turns the threads of torch back on; where cores are busy they wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

RESULTS = {
    "annotation": """{
        "tables": {
            " | ".join(column): values for column, values in scores.dropna(axis=1).to_dict().items()
        },
        "thresholds": thresholds["right among them"].tolist(),
        "named": thresholds["cells with a name"].tolist(),
        "new tokens": len(base.vocabulary) - known,
    }""",
    "gene_networks": """{
        "program": list(programs[chosen]),
        "enriched": enriched["gene_set"][0],
        "judged": judged.to_dict("index"),
        "agreement": agreement.groupby(["first", "second"])["spearman"].mean().to_list(),
        "within": sum(key.startswith("within_") for key in adata.varm),
        "shifts": table.set_index(["gene", "group"])[["shift", "expected_shift", "q_value"]].reset_index().to_dict("list"),
    }""",
    "integration": """scores.to_dict("index")""",
    "pretraining": """{
        "scores": scores.to_dict("index"),
        "losses": history["train_loss"].iloc[[0, -1]].tolist(),
    }""",
    "own_model": """{
        "accuracy": scores.summary().query("metric == 'accuracy'").set_index("model")[["mean", "low", "high"]].T.to_dict(),
        "losses": history["validation_loss"].iloc[[0, -1]].tolist(),
        "kept": sorted(sct.metrics.BenchmarkScores.read("scores.json").table["model"].unique()),
        "annotated": [found.accuracy, float((test.obs["cell_type"] == largest).mean())],
    }""",
    "reference_mapping": """{
        "scores": {" | ".join(key): score for key, score in scores.items()},
        "largest": float(query.obs["type"].value_counts(normalize=True).iloc[0]),
        "missing": roc_auc_score(new, query.obs["without_distance"]),
    }""",
    "quickstart": """{
        "shape": adata.obsm["X_scGPT"].shape,
        "norms": float(np.abs(np.linalg.norm(adata.obsm["X_scGPT"], axis=1) - 1).max()),
        "bins": float(np.abs(adata.obsm["X_from_bins"] - adata.obsm["X_scGPT"]).max()),
        "matched": coverage.share,
        "scores": scores.to_dict("index"),
        "umap": adata.obsm["X_umap"].shape,
        "kept": sc.read_h5ad("pbmc_embedded.h5ad").obsm["X_scGPT"].shape,
    }""",
    "perturbation": """{
        "measured": "simulated" not in adata.uns,
        "errors": errors.to_dict("index"),
        "unseen": found.means()["mse"].to_dict(),
        "weighted": scores.means()["mse_weighted"].to_dict(),
        "metrics": sorted(set(scores.table["metric"])),
        "screened": effects.shape,
        "cells": distances.to_dict("index"),
    }""",
    "gene_texts": """{
        "measured": "simulated" not in adata.uns,
        "texts": [len(embeddings), embeddings.width],
        "loss": model.history["train_loss"].iloc[[0, -1]].tolist(),
        "models": list(scores.models),
        "means": scores.means()["mse"].to_dict(),
        "differences": differences["verdict"].tolist(),
        "like": near.shape[0],
    }""",
    "deepsc": """{
        "scores": table.to_dict("index"),
        "bins": counts.tolist(),
        "gates": float((gates.sum(dim=1) - 1).abs().max()),
        "exported": again.checksum == theirs.checksum,
        "losses": {name: model.history["train_loss"].iloc[[0, -1]].tolist() for name, model in tuned.items()},
        "originals": sorted(set(originals["metric"])),
    }""",
    "multiomics": """{
        "cells": [mdata.n_obs, *mdata.obsm["X_scGPT"].shape],
        "moved": float(np.abs(mdata.obsm["X_scGPT"] - mdata.obsm["X_rna_only"]).max()),
        "weights": float(mdata.obs[["rna:mod_weight", "prot:mod_weight"]].sum(axis=1).sub(1).abs().max()),
        "imputed": [len(imputed), test.n_obs, list(imputed.columns) == list(test["prot"].var_names)],
        "correlation": correlation.mean().to_dict(),
    }""",
}
"""Expressions that are evaluated after the last cell of a notebook, for those with tests of their own below."""

each_notebook = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


@cache
def executed(name: str) -> nbformat.NotebookNode:
    """The notebook after a run in a folder of its own, with its results as the output of one more cell."""
    notebook = stored(name)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({RESULTS.get(name)}))"))
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        # As in Jupyter, whatever backend the tests themselves draw with.
        inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        client.execute(env=os.environ | OFFLINE | ONE_THREAD | inline)
    return notebook


def results(name: str) -> dict:
    return json.loads(code_cells(executed(name))[-1].outputs[0].text)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def messages(notebook: nbformat.NotebookNode) -> list[bool]:
    """Which cells give messages; how many streams they come in depends on when the kernel sends them."""
    return [any(output.get("name") == "stderr" for output in cell.outputs) for cell in code_cells(notebook)]


def shown(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Outputs of a cell but for messages.

    These part other text wherever the kernel sends them, are others of stand-ins than of measured cells, and name folders,
    so that not every page is stored with them.
    """
    return [output for output in cell.outputs if output.get("name") != "stderr"]


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows: streams by name, else pictures and texts; versions of mudata differ in who has HTML.

    That messages part other text does not count.
    """
    named = [output.get("name") or ("image" if "image/png" in output.data else "text") for output in shown(cell)]
    return [kind for kind, before in zip(named, [None, *named], strict=False) if (kind, before) != ("stdout", "stdout")]


def numbers(cell: nbformat.NotebookNode) -> list[float]:
    texts = [output.get("text") or output.data["text/plain"] for output in shown(cell)]
    return [float(number) for text in texts for number in re.findall(r"\b\d+(?:\.\d+)?\b", text)]


def test_a_tutorial_is_there():
    assert set(RESULTS) <= {path.stem for path in NOTEBOOKS}


@each_notebook
def test_stored_output_is_complete_and_small(name):
    cells = code_cells(stored(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "image" in [kind for cell in cells for kind in kinds(cell)]
    text = (TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 400_000
    # Nothing of the machine that it was run on.
    assert re.findall(r"/(?:home|root|tmp|Users)/", text) == []


@each_notebook
def test_it_runs_offline_and_shows_what_is_stored(name):
    now = [kinds(cell) for cell in code_cells(executed(name))[:-1]]
    assert now == [kinds(cell) for cell in code_cells(stored(name))]


def test_the_quickstart_shows_its_messages():
    """It takes the same cells everywhere, so the same cells of the notebook have something to say."""
    assert any(messages(stored("quickstart")))
    assert messages(executed("quickstart"))[:-1] == messages(stored("quickstart"))


def stored_table(name: str, start: str) -> dict[str, list[float]]:
    """Rows of a table on a page, as shown by the cell that starts so."""
    cell = next(cell for cell in code_cells(stored(name)) if cell.source.startswith(start))
    lines = cell.outputs[-1].data["text/plain"].splitlines()
    rows = (re.fullmatch(r"(\S.*?)((?: +-?\d+\.\d+)+) *\\?", line) for line in lines)
    table: dict[str, list[float]] = {}
    for row in filter(None, rows):
        table.setdefault(row[1], []).extend(map(float, row[2].split()))
    return table


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


def test_the_stored_perturbations_were_measured():
    """Without its file the notebook simulates, which is for tests and not for readers."""
    assert "measured cells\n" in [
        output.get("text") for cell in code_cells(stored("perturbation")) for output in cell.outputs
    ]


def test_a_generator_beats_no_change_where_something_changes():
    found = results("perturbation")
    assert found["measured"] == ("papalexi2021_thp1_eccite" in sct.datasets.available().index)
    effects = [row for row in found["errors"].values() if row["no_change"] > 2 * row["matching_mean"]]
    assert len(effects) >= 2
    assert sum(row["generator"] for row in effects) < sum(row["no_change"] for row in effects)
    assert found["weighted"]["generator"] < found["weighted"]["no_change"]


def test_a_benchmark_holds_baselines_ceiling_and_cells():
    found = results("perturbation")
    rows = {"no_change", "perturbed_mean", "additive", "linear", "kernel", "shrunken_mean", "ceiling"}
    assert rows | {"generator"} <= set(found["unseen"])
    assert {"energy", "mmd", "mse", "discrimination_l1"} <= set(found["metrics"])
    assert found["screened"][0] >= 9


def test_shifted_controls_vary_as_cells_do_and_those_of_a_generator_do_not():
    cells = results("perturbation")["cells"]
    generated, shifted = cells["generator"], cells["generator, shifted"]
    assert generated["variance"] < 0.5
    assert 0.7 < shifted["variance"] < 1.3
    assert shifted["energy"] < generated["energy"]


def test_texts_reach_a_model_that_learns_and_the_ablation_has_every_arm():
    found = results("gene_texts")
    assert found["measured"] == ("papalexi2021_thp1_eccite" in sct.datasets.available().index)
    assert found["texts"][0] > 10
    assert found["loss"][1] < 0.5 * found["loss"][0]
    arms = [f"{how}texts {other}" for how in ("", "retrained, ") for other in ("zeroed", "shuffled")]
    assert found["models"] == ["with texts", *arms]
    assert {*arms, "no_change", "perturbed_mean", "ceiling"} <= set(found["means"])
    assert len(found["differences"]) == len(arms)
    assert found["like"] > 3


def test_the_stored_texts_were_embedded_by_a_language_model():
    """Without it the notebook counts words, which is for tests and not for readers."""
    texts = [output.get("text") for cell in code_cells(stored("gene_texts")) for output in cell.outputs]
    assert "measured cells\n" in texts
    assert any(text and text.startswith("all-MiniLM-L6-v2") for text in texts)


def test_deepsc_and_scgpt_learn_from_the_same_cells():
    found = results("deepsc")
    assert {"DeepSC", "scGPT", "no_change", "matching_mean", "ceiling"} <= set(found["scores"])
    for name, losses in found["losses"].items():
        assert losses[1] < 0.9 * losses[0], name
        assert found["scores"][name]["mse"] < found["scores"]["no_change"]["mse"], name
        assert found["scores"][name]["spread"] >= 0, name
    assert len(found["originals"]) == 4


def test_deepsc_fills_its_lowest_bin_most_and_can_be_written_for_the_original():
    found = results("deepsc")
    assert found["bins"][0] == max(found["bins"])
    assert found["gates"] < 1e-5
    assert found["exported"]


def test_multiomics_predicts_proteins_of_cells_that_have_none():
    found = results("multiomics")
    cells, rows, width = found["cells"]
    assert (cells, width) == (rows, 64)
    assert found["moved"] > 0.01
    assert found["weights"] < 1e-5
    assert found["imputed"][0] == found["imputed"][1]
    assert found["imputed"][2]
    assert found["correlation"]["imputed"] > 0.35


def test_the_page_on_several_modalities_says_what_its_tables_show():
    table = stored_table("multiomics", "def clr(table)")
    joint, alone, components = (table[name][:2] for name in ("X_scGPT", "RNA alone", "X_pca"))
    assert all(ours > theirs for ours, theirs in zip(joint, alone, strict=True))
    assert all(ours > theirs for ours, theirs in zip(joint, components, strict=True))
    proteins = stored_table("multiomics", "def components")
    imputed, nearest = (sum(row[column] for row in proteins.values()) / len(proteins) for column in (0, 1))
    assert len(proteins) == 14
    assert abs(imputed - nearest) < 0.01


def test_annotation_compares_with_plain_methods():
    found = results("annotation")
    accuracy = found["tables"]["across chemistries | accuracy"]
    largest = accuracy.pop("most frequent type")
    assert set(accuracy) == {
        "fine-tuned and linear, vote", "fine-tuned, vote", "fine-tuned, alone", "logistic regression on genes",
        "logistic regression on PCA", "k nearest neighbours on PCA",
    }  # fmt: skip
    assert all(score > max(0.6, largest) for score in accuracy.values())
    assert found["new tokens"] > 0


def test_a_threshold_names_fewer_cells_and_more_of_them_rightly():
    found = results("annotation")
    assert found["named"] == sorted(found["named"], reverse=True)
    assert found["thresholds"][-1] > found["thresholds"][0]


EMBEDDINGS = {
    "X_fine_tuned", "X_half_way", "X_zero_shot", "X_few_genes", "X_random", "X_pca",
    "X_fine_tuned_harmony", "X_half_way_harmony", "X_zero_shot_harmony", "X_pca_harmony",
}  # fmt: skip


def test_integration_is_scored_beside_what_needs_no_training():
    found = results("integration")
    assert set(found) == EMBEDDINGS
    others = [scores["Bio conservation"] for name, scores in found.items() if name != "X_random"]
    assert found["X_random"]["Bio conservation"] < min(others)
    assert found["X_fine_tuned"]["Total"] > found["X_random"]["Total"]


def test_the_page_on_integration_says_what_its_table_shows():
    table = stored_table("integration", 'for key in ("X_fine_tuned"')
    assert set(table) == EMBEDDINGS
    kept, mixed, total = zip(*(table[name] for name in ("X_fine_tuned", "X_zero_shot")), strict=True)
    assert kept[0] > kept[1]
    assert mixed[0] < mixed[1]
    assert total[0] > total[1] > table["X_few_genes"][2]
    assert total[1] > table["X_pca"][2]
    assert total[0] - total[1] == pytest.approx(0.01, abs=0.005)
    assert all(half > max(ends) for half, ends in zip(table["X_half_way"], (kept, mixed, total), strict=True))
    first, second, *corrected = (
        table[f"X_{name}_harmony"][2] for name in ("half_way", "fine_tuned", "zero_shot", "pca")
    )
    assert first > second > max(corrected)
    assert (first, second) == pytest.approx((0.74, 0.73), abs=0.005)
    assert min(corrected) > total[0] + 0.03
    assert corrected == pytest.approx([0.71, 0.71], abs=0.005)
    assert table["X_random"][2] == pytest.approx(0.5, abs=0.03)
    assert table["X_random"][1] >= max(numbers[1] for numbers in table.values()) - 0.03


def test_the_page_on_annotation_says_what_its_table_shows():
    table = stored_table("annotation", 'if measured("pbmc3k_annotated")')
    together, voted, alone, genes, linear, neighbours, most = (
        table[name]
        for name in (
            "fine-tuned and linear, vote",
            "fine-tuned, vote",
            "fine-tuned, alone",
            "logistic regression on genes",
            "logistic regression on PCA",
            "k nearest neighbours on PCA",
            "most frequent type",
        )
    )
    # Accuracy and macro F1 across chemistries, then across laboratories.
    assert {len(row) for row in table.values()} == {4}
    for place in (0, 2):
        assert genes[place] == max(row[place] for row in table.values())
        assert 0 < genes[place] - min(voted[place], together[place]) < 0.02
    assert voted[1] == max(row[1] for row in table.values())
    assert voted[1] - genes[1] < 0.01
    assert together[3] == max(row[3] for row in table.values())
    assert all(score > other for score, other in zip(voted, alone, strict=True))
    assert all(score >= max(others) for score, *others in zip(voted, linear, neighbours, most, strict=True))


def test_pretraining_finds_cell_types_that_an_untrained_model_mixes():
    found = results("pretraining")
    assert found["losses"][1] < 0.9 * found["losses"][0]
    assert found["scores"]["pre-trained"]["nmi"] > found["scores"]["untrained"]["nmi"] + 0.1


def test_a_model_of_ones_own_is_ahead_of_fresh_weights():
    found = results("own_model")
    own, fresh = found["accuracy"]["own model"], found["accuracy"]["own model, untrained"]
    assert own["low"] > fresh["high"]
    assert found["losses"][1] < found["losses"][0]
    assert found["kept"] == ["PCA", "all genes", "own model", "own model, untrained"]
    accuracy, largest = found["annotated"]
    assert accuracy > largest + 0.15


def test_mapping_finds_types_and_tells_what_the_reference_lacks():
    found = results("reference_mapping")
    for use_rep in ("X_scGPT", "X_pca"):
        assert found["scores"][f"{use_rep} | majority"]["accuracy"] > found["largest"] + 0.2
    assert found["missing"] > 0.8


def test_a_program_is_found_that_a_file_of_gene_sets_knows():
    found = results("gene_networks")
    assert found["enriched"] == "antigen presentation"
    assert [gene for gene in found["program"] if not gene.startswith("HLA-")] == ["CD74"]
    assert found["within"] == 7  # six kinds of cells, and the numbers of cells


def test_the_page_on_networks_says_what_its_tables_show():
    found = results("gene_networks")
    vectors, attention, together = (
        found["judged"][name] for name in ("cosine of X_scGPT_genes", "attention, all cells", "co-expression")
    )
    assert vectors["auroc"] > together["auroc"] > 0.9
    assert vectors["auroc_hubs"] < 0.8
    assert attention["auroc"] < 0.65
    assert abs(attention["auroc"] - attention["auroc_hubs"]) < 0.1
    assert len(found["agreement"]) == 6
    assert abs(found["agreement"][1]) < 0.25 < found["agreement"][4]
    shifts = {key: dict(zip(zip(found["shifts"]["gene"], found["shifts"]["group"], strict=True), column, strict=True))
              for key, column in found["shifts"].items()}  # fmt: skip
    for pair in (("CD79A", "B cell"), ("MS4A1", "B cell"), ("GZMB", "NK cell")):
        assert 3 < shifts["shift"][pair] / shifts["expected_shift"][pair] < 5
    assert min(q for q in found["shifts"]["q_value"] if q == q) > 0.05
