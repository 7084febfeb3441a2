"""What the campaign calls: the public functions, each with good arguments and the table that it takes first."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import zarr
from anndata import AnnData
from mudata import MuData

import scgpt_tools as sct
from campaign import inputs
from campaign.verdicts import contents, values
from scgpt_tools.train.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Subject:
    """A public function."""

    name: str
    function: Callable[..., Any]
    """Called with the table and the other arguments by name."""
    table: Callable[[], Any]
    """Makes what it takes first."""
    good: Callable[[], dict[str, Any]] = dict
    """Makes its other arguments."""
    signatures: tuple[Callable[..., Any], ...] = ()
    """Whose parameters it takes."""
    reads: frozenset[str] = frozenset()
    """Parts of the table that the result depends on: ``X``, ``genes`` (their names, by a vocabulary) and ``cells``."""
    columns: tuple[str, ...] = ()
    """Columns of ``obs`` that the result depends on."""
    embeddings: tuple[str, ...] = ()
    """Keys of ``obsm`` that the result depends on."""
    slow: bool = False
    """Whether a good call takes a second or more; a refusal does not."""

    def __call__(self, table: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call the function; what it returned or wrote, as something to compare."""
        before = set(contents(table))
        returned = self.function(table, **arguments)
        if returned is not None:
            found = contents(returned)
        else:
            found = {name: value for name, value in contents(table).items() if name not in before}
        return values({name: value for name, value in found.items() if name not in LEFT_OUT})

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its parameters that the campaign looks at."""
        every = {
            name: entry for source in self.signatures for name, entry in inspect.signature(source).parameters.items()
        }
        return {
            name: entry
            for name, entry in every.items()
            if name not in GIVEN | LEFT_TO_OTHERS and entry.kind is not entry.VAR_KEYWORD
        }


@cache
def expected(name: str) -> dict[str, Any]:
    """What a subject comes to with good inputs."""
    subject = SUBJECTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = subject(subject.table(), subject.good())
    plt.close("all")
    return found


def tables_in(*values: Any) -> list[Any]:
    """The tables among some values, those in mappings included."""
    flat = [entry for value in values for entry in (value.values() if isinstance(value, dict) else [value])]
    return [value for value in flat if isinstance(value, AnnData | MuData | pd.DataFrame)]


LEFT_OUT = {"uns", "epoch_times."}
"""Parts of results that say how they were made, or how long it took."""
GIVEN = {
    "texts",
    "self",
    "adata",
    "query",
    "mdata",
    "effects",
    "maps",
    "reference",
    "data",
    "screened",
    "scores",
    "table",
    "dataset",
    "task",
    "datasets",
    "knockouts",
    "sources",
}
"""What a subject takes first; the tables have damages of their own."""
LEFT_TO_OTHERS = {
    "device", "devices", "nodes", "strategy", "accelerator",  # what they mean depends on the machine
    "ax", "callbacks", "loggers", "objectives", "corruption", "config",  # objects of classes of their own
    "show", "force_download", "resume_download",
}  # fmt: skip
FIT = {"epochs": 1, "batch_size": 8, "accelerator": "cpu", "validation": 0.0}


def _subject(function: Callable[..., Any], table: Callable[[], Any], reads: str = "", **options: Any) -> Subject:
    good = options.pop("good", {})
    room = function.__module__.split(".")[1]
    options = {"name": f"{room}.{function.__name__}", "signatures": (function,)} | options
    make = good if callable(good) else lambda: dict(good)
    return Subject(function=function, table=table, good=make, reads=frozenset(reads.split()), **options)


def _finetune(task: str) -> Callable[..., Any]:
    def call(adata: AnnData, model: Any, **arguments: Any) -> Any:
        return sct.train.finetune(adata, model, task=task, **arguments)

    others = {field.name for kind in TASKS.values() for field in fields(kind)} - {
        field.name for field in fields(TASKS[task])
    }
    whole = inspect.signature(sct.train.finetune)
    takes = [entry for name, entry in whole.parameters.items() if name not in others]
    call.__signature__ = whole.replace(parameters=takes)  # type: ignore[attr-defined]
    return call


def _wrapper(kind: type, method: str) -> Callable[..., Any]:
    def call(adata: AnnData, **arguments: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = sct.scGPTConfig(d_model=16, nhead=2, d_hid=16, nlayers=1)
            model = kind(config, gene_list=list(inputs.GENES) + [f"G{i}" for i in range(40)], device="cpu")
        return getattr(model, method)(adata, **arguments)

    return call


def _dataset(method: str) -> Callable[..., Any]:
    def call(adata: AnnData, **arguments: Any) -> Any:
        dataset = sct.PerturbationData(adata)
        getattr(dataset, method)(**arguments)
        return {"obs": dataset.adata.obs, **dict(dataset.adata.obsm)}

    return call


def _preprocess(adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """The layers of the copy that it returns."""
    made = sct.pp.preprocess(adata, **arguments)
    return {name: made.layers[name] for name in made.layers if name not in (None, "counts")}


def _embed_store(adata: AnnData, **arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        places = {"source": Path(folder) / "cells.zarr", "output": Path(folder) / "out.zarr"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(places["source"])
        arguments = places | arguments
        sct.tl.embed_store(**arguments)
        return np.asarray(zarr.open_group(arguments["output"], mode="r")["obsm"]["X_scGPT"])


def _index_store(adata: AnnData, **arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        adata.write_h5ad(path)
        arguments = {"output": Path(folder) / "index"} | arguments
        index = sct.models.AtlasIndex.load(sct.tl.index_store(path, **arguments))
        return {"codes": np.asarray(index.codes), "classes": np.asarray(index.classes)}


def _write_challenge(adata: AnnData, **arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"path": Path(folder) / "prediction.h5ad"} | arguments
        found = ad.read_h5ad(sct.tl.write_challenge(adata, **arguments))
        return {"X": found.X.toarray(), "genes": list(found.var_names)}


def _predicted_screen() -> AnnData:
    adata = inputs.screen()
    adata.obs["n_counts"] = 4_000
    return adata


def _counted_screen() -> AnnData:
    adata = inputs.screen()
    adata.X = adata.X.copy()
    adata.X.data = np.rint(adata.X.data)
    adata.obs["context"] = "A"
    return adata


def _benchmark(adata: AnnData, models: Any, **arguments: Any) -> Any:
    return sct.tl.benchmark(models, adata, **arguments).table.drop(columns="reason")


def _truth() -> pd.DataFrame:
    """A method that predicts the control of every condition of the test part."""
    adata = inputs.screen()
    held = sorted(set(adata.obs.loc[adata.obs["split"] == "test", "condition"]))
    control = adata.X[(adata.obs["condition"] == "ctrl").to_numpy()].toarray().mean(axis=0)
    return pd.DataFrame([control] * len(held), index=held, columns=adata.var_names)


def _screened() -> AnnData:
    effects = inputs.effects()
    effects.uns["screen"] = {"n_controls": 3}
    return effects


SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        _subject(sct.pp.cell_split, inputs.cells, "cells", good={"stratify": "cell_type"}, columns=("cell_type",)),
        _subject(
            sct.pp.embed_gene_texts,
            lambda: {"G0": "a factor", "G1": ["a kinase", "of the nucleus"]},
            good={"encoder": lambda texts: np.array([[len(text), text.count("a")] for text in texts], dtype=float)},
        ),
        _subject(
            sct.pp.match_genes,
            inputs.cells,
            "genes",
            good=lambda: {"model": inputs.embedder().vocabulary},
        ),
        _subject(
            sct.pp.pair_controls,
            inputs.screen,
            "X cells",
            good={"method": "transport", "within": "batch", "key_added": "pairs"},
            columns=("condition", "batch"),
        ),
        _subject(sct.pp.parse_conditions, inputs.plain_screen, good={"key_added": "parsed"}, columns=("condition",)),
        _subject(sct.pp.perturbation_de, inputs.screen, "X", good={"key_added": "de"}, columns=("condition",)),
        _subject(
            sct.pp.perturbation_split,
            inputs.screen,
            good={"draw": "stable", "key_added": "parts"},
            columns=("condition",),
        ),
        _subject(
            _preprocess, inputs.cells, "X", name="pp.preprocess", good={"bins": 5}, signatures=(sct.pp.preprocess,)
        ),
        _subject(
            sct.pp.tokenize,
            inputs.cells,
            "X genes",
            good=lambda: {"model": inputs.embedder()},
        ),
        _subject(
            sct.tl.ablate_texts,
            inputs.screen,
            "X",
            good=lambda: {"model": inputs.texts(), "how": ["shuffled"], "n_controls": 2, "metrics": ["mse"]},
            columns=("condition", "split"),
            slow=True,
        ),
        _subject(
            sct.tl.annotate,
            inputs.cells,
            "X genes",
            good=lambda: {"model": inputs.annotator(), "key_added": "type"},
        ),
        _subject(
            sct.tl.embed,
            inputs.cells,
            "X genes",
            good=lambda: {"model": inputs.embedder(), "key_added": "X_new"},
        ),
        _subject(
            sct.tl.embed_genes,
            inputs.cells,
            "genes",
            good=lambda: {"model": inputs.embedder()},
        ),
        _subject(
            sct.tl.evaluate_perturbation,
            inputs.screen,
            "X",
            good=lambda: {"predictions": {"mine": _truth()}},
            columns=("condition", "split"),
        ),
        _subject(
            sct.tl.attention,
            inputs.cells,
            "X genes",
            good=lambda: {"model": inputs.embedder(), "genes": inputs.GENES[:8], "groupby": "cell_type"},
            columns=("cell_type",),
        ),
        _subject(sct.tl.attention_targets, inputs.attention, good={"gene": "GENE1", "group": "B"}),
        _subject(
            sct.tl.enrich_programs,
            inputs.network,
            good={"gene_sets": {"first": inputs.GENES[:8], "others": inputs.GENES[8:20]}},
        ),
        _subject(sct.tl.gene_network, inputs.network, good={"use_rep": "X_scGPT_genes", "key_added": "net"}),
        _subject(sct.tl.gene_programs, inputs.network, good={"key_added": "groups"}),
        _subject(sct.tl.score_programs, inputs.network, good={"groupby": "cell_type", "key_added": "scores"}),
        _subject(
            sct.tl.knockout,
            inputs.cells,
            "X genes",
            good=lambda: {
                "model": inputs.embedder(),
                "genes": inputs.GENES[:3],
                "groupby": "cell_type",
                "n_null": None,
                "min_cells": 1,
            },  # fmt: skip
            columns=("cell_type",),
        ),
        _subject(
            sct.tl.score_network,
            inputs.network,
            good=lambda: {"reference": pd.DataFrame({"source": inputs.GENES[:6], "target": inputs.GENES[1:7]})},
        ),
        _subject(sct.tl.compare_networks, inputs.network),
        _subject(sct.tl.similar_genes, inputs.network, good={"query": "GENE0"}),
        _subject(sct.pl.gene_network, inputs.network, good={"genes": inputs.GENES[:8], "return_fig": True}),
        _subject(sct.pl.program_heatmap, inputs.network, good={"groupby": "cell_type", "return_fig": True}),
        _subject(sct.tl.genetic_interactions, inputs.effects, ""),
        _subject(
            sct.tl.impute,
            inputs.multiome,
            "",
            good=lambda: {"model": inputs.joint(), "modality": "prot"},
        ),
        _subject(
            sct.tl.index_reference,
            inputs.cells,
            "",
            good={"label_key": "cell_type"},
            columns=("cell_type",),
            embeddings=("X_scGPT",),
        ),
        _subject(
            sct.tl.map_reference,
            inputs.cells,
            "",
            good=lambda: {"reference": inputs.cells(), "label_key": "cell_type", "k": 3},
            embeddings=("X_scGPT",),
        ),
        _subject(
            sct.tl.modality_weights,
            inputs.multiome,
            "",
            good=lambda: {"model": inputs.joint(), "key_added": "share"},
        ),
        _subject(
            sct.tl.predict_perturbation,
            inputs.screen,
            "X genes",
            good=lambda: {"perts": ["G0"], "model": inputs.perturber(), "key_added": "new"},
        ),
        _subject(sct.tl.predicted_counts, _predicted_screen, columns=("n_counts",)),
        _subject(
            _write_challenge,
            _counted_screen,
            name="tl.write_challenge",
            good=lambda: {"genes": list(inputs.screen().var_names), "contexts": "context"},
            columns=("condition", "context"),
            signatures=(sct.tl.write_challenge,),
        ),
        _subject(
            sct.tl.rank_perturbations,
            inputs.screen,
            "X",
            good=lambda: {"screened": _screened()},
            columns=("condition",),
        ),
        _subject(
            sct.tl.score_embedding,
            inputs.cells,
            "",
            good={"label_key": "cell_type", "batch_key": "batch", "embeddings": ["X_scGPT"], "baselines": []},
            columns=("cell_type", "batch"),
            embeddings=("X_scGPT",),
            slow=True,
        ),
        _subject(
            sct.tl.screen,
            inputs.screen,
            "X genes",
            good=lambda: {"perts": ["G0", "G1+G2"], "model": inputs.perturber(), "n_controls": 4},
            columns=("condition",),
        ),
        _subject(sct.pl.confidence, inputs.cells, "", good={"return_fig": True}, columns=("scgpt_cell_type",)),
        _subject(
            sct.pl.confusion_matrix,
            inputs.cells,
            "",
            good={"truth": "cell_type", "return_fig": True},
            columns=("cell_type", "scgpt_cell_type"),
        ),
        _subject(
            sct.pl.embedding,
            inputs.cells,
            "",
            good={"color": "cell_type", "use_rep": ["X_pca"], "return_fig": True},
            columns=("cell_type",),
            embeddings=("X_pca",),
        ),
        _subject(sct.pl.joint_embedding, inputs.multiome, "", good={"return_fig": True}),
        _subject(sct.pl.modality_weights, inputs.multiome, "", good={"groupby": "kind", "return_fig": True}),
        _subject(sct.pl.benchmark, inputs.benchmark_scores, "", good={"return_fig": True}),
        _subject(sct.pl.knockout, inputs.knockouts, "", good={"group": "B", "return_fig": True}),
        _subject(sct.pl.perturbation_benchmark, inputs.method_scores, "", good={"return_fig": True}),
        _subject(
            sct.pl.perturbation_de,
            inputs.screen,
            "",
            good={"perturbation": "G0", "return_fig": True},
            columns=("condition",),
        ),
        _subject(sct.pl.perturbation_heatmap, inputs.effects, "", good={"return_fig": True}),
        _subject(
            sct.pl.perturbation_scatter,
            inputs.screen,
            "",
            good={"perturbation": "G0", "return_fig": True},
            columns=("condition",),
        ),
        _subject(
            sct.pl.scores,
            lambda: pd.DataFrame({"a": [0.1, 0.9], "b": [0.2, 0.3]}, index=["x", "y"]),
            "",
            good={"return_fig": True},
        ),
        *(
            _subject(
                _finetune(task),
                inputs.cells,
                "X genes",
                name=f"train.finetune({task})",
                good=good,
                signatures=(_finetune(task),),
                columns=("cell_type",) if task == "annotate" else ("batch",),
                slow=True,
            )
            for task, good in {
                "annotate": lambda: {"model": inputs.embedder(), "label_key": "cell_type", **FIT},
                "integrate": lambda: {"model": inputs.embedder(), "batch_key": "batch", **FIT},
            }.items()
        ),
        _subject(
            _finetune("multiomic"),
            inputs.multiome,
            name="train.finetune(multiomic)",
            good=lambda: {"model": inputs.joint(), **FIT},
            signatures=(_finetune("multiomic"),),
            slow=True,
        ),
        _subject(
            _finetune("perturb"),
            inputs.screen,
            "X genes",
            name="train.finetune(perturb)",
            good=lambda: {"model": inputs.perturber(), **FIT, "validation": "split"},
            signatures=(_finetune("perturb"),),
            columns=("condition", "split"),
            slow=True,
        ),
        _subject(
            sct.tl.predict,
            inputs.cells,
            "X genes",
            good=lambda: {"model": inputs.regressor(), "key_added": "number"},
        ),
        _subject(
            _benchmark,
            inputs.cells,
            "X genes",
            name="tl.benchmark",
            good=lambda: {"models": inputs.embedder(), "baselines": [], "n_seeds": 1},
            columns=("cell_type",),
            signatures=(sct.tl.benchmark,),
        ),
        _subject(
            _index_store,
            inputs.cells,
            "",
            name="tl.index_store",
            good={"label_key": "cell_type", "index": "Flat", "n_held_out": 4},
            columns=("cell_type",),
            embeddings=("X_scGPT",),
            signatures=(sct.tl.index_store,),
        ),
        _subject(
            _embed_store,
            inputs.cells,
            "X genes",
            name="tl.embed_store",
            good=lambda: {"model": inputs.embedder()},
            signatures=(sct.tl.embed_store,),
        ),
        _subject(
            _wrapper(sct.scGPTModel, "predict_embeddings"),
            inputs.cells,
            "X genes",
            name="wrappers.predict_embeddings",
            signatures=(sct.scGPTModel.predict_embeddings,),
        ),
        _subject(
            _wrapper(sct.scGPTModel, "train_model"),
            inputs.cells,
            "X genes",
            name="wrappers.train_model(cells)",
            good={"epochs": 1},
            signatures=(sct.scGPTModel.train_model,),
            slow=True,
        ),
        _subject(
            _wrapper(sct.scGPTPerturbationModel, "predict_perturbation"),
            inputs.screen,
            "X genes",
            name="wrappers.predict_perturbation",
            signatures=(sct.scGPTPerturbationModel.predict_perturbation,),
            columns=("condition",),
        ),
        _subject(
            _wrapper(sct.scGPTPerturbationModel, "train_model"),
            inputs.screen,
            "X genes",
            name="wrappers.train_model(perturbation)",
            good={"epochs": 1},
            signatures=(sct.scGPTPerturbationModel.train_model,),
            columns=("condition", "split"),
            slow=True,
        ),
        *(
            _subject(
                _dataset(method),
                inputs.plain_screen,
                name=f"wrappers.{method}",
                good=good,
                signatures=(getattr(sct.PerturbationData, method),),
                columns=("condition",),
            )
            for method, good in {"split_data": {}, "pair_cells": {}, "compute_de_genes": {}}.items()
        ),
    )
}
"""By name."""
