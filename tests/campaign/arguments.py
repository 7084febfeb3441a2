"""Damaged arguments: the kind of every parameter of the public functions, and what is wrong for each kind.

A damaged argument has to be refused, whatever the function.  ``ALIKE`` holds other spellings of a good value, which have
to come to the same result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from campaign import inputs
from campaign.subjects import FIT, SUBJECTS, Subject
from scgpt_tools.train.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

NAN, INF = float("nan"), float("inf")
NO_NUMBER = {"text": "3", "flag": True, "list": [3], "NaN": NAN, "infinite": INF}
NO_INTEGER = {**NO_NUMBER, "half": 2.5}
NO_TEXT = {"number": 5, "NaN": NAN, "flag": True, "list": ["no such"]}

WRONG: dict[str, dict[str, Any]] = {
    "flag": {"text": "False", "one": 1, "list": [True], "NaN": NAN, "none": None},
    "count": {**NO_INTEGER, "zero": 0, "negative": -3, "none": None},
    "whole": {**NO_INTEGER, "negative": -3, "none": None},
    "seed": {**NO_INTEGER, "negative": -3, "none": None},
    "fraction": {**NO_NUMBER, "negative": -0.1, "above": 1.5, "none": None},
    "number": {**NO_NUMBER, "none": None},
    "positive": {**NO_NUMBER, "zero": 0.0, "negative": -1.0, "none": None},
    "not negative": {**NO_NUMBER, "negative": -1.0, "none": None},
    "choice": {**NO_TEXT, "unknown": "no such", "blank": "", "none": None},
    "present": {**NO_TEXT, "absent": "no such", "blank": "", "space": " ", "none": None},
    "present, one or more": {"number": 5, "absent": "no such", "blank": "", "one absent": ["no such"], "numbers": [5]},
    "new key": {
        **NO_TEXT,
        "blank": "",
        "space": " ",
        "dot": ".",
        "dots": "..",
        "slash": "a/b",
        "null": "a\0b",
        "none": None,
    },
    "text": {**NO_TEXT, "blank": "", "none": None},
    "any text": {"number": 5, "list": ["a"], "flag": True},
    "texts": {
        "text": "no such",
        "number": 5,
        "numbers": [1, 2],
        "blank": [""],
        "absent": ["no such"],
        "missing": [NAN],
    },
    "text or texts": {"number": 5, "numbers": [1, 2], "blank": "", "missing": [NAN]},
    "path": {"number": 5, "flag": True, "blank": "", "null": "a\0b", "list": ["a"]},
    "model": {"number": 5, "list": [], "blank": "", "absent folder": "no/such/folder", "none": None, "class": object},
    "encoder": {"number": 5, "list": ["a"], "blank": "", "none": None, "class": object},
    "function": {"number": 5, "list": ["a"], "text": "no such"},
    "names": {"number": 5, "list": ["no such"], "absent column": "no such", "blank": ""},
    "size of a figure": {"number": 5, "text": "wide", "one": (3.0,), "negative": (-1.0, 3.0), "NaN": (NAN, 3.0)},
    "colours": {"unknown": "no such", "number": 5, "list": ["viridis"], "blank": "", "none": None},
    "numbers of heads": {"number": 1, "text": "1", "beyond": [99], "fractions": [0.5], "empty": []},
    "number of a layer": {"text": "1", "beyond": 99, "fraction": 0.5, "NaN": NAN, "flag": True, "none": None},
    "palette": {"unknown": ["no such"], "number": 5, "text": "no such", "empty": []},
    "share or column": {"above": 1.5, "NaN": NAN, "negative": -0.1, "absent": "no such", "flag": True, "list": [0.1]},
    "share or names": {
        "above": 1.5,
        "NaN": NAN,
        "negative": -0.1,
        "text": "no such",
        "flag": True,
        "absent": ["no such"],
    },
    "parts": {"text": "train", "list": ["train"], "number": 5, "absent": {"train": ["no such"]}, "empty": {}},
    "two numbers": {"number": 5, "one": (0.9,), "text": "0.9", "above": (1.5, 0.9), "NaN": (NAN, 0.9)},
    "three shares": {"number": 5, "two": (0.5, 0.5), "sum": (0.9, 0.9, 0.9), "NaN": (NAN, 0.5, 0.5), "text": "abc"},
    "fields": {"text": "length", "list": ["length"], "number": 5, "unknown": {"no_such": 1}, "wrong": {"length": "9"}},
    "rank or settings": {"zero": 0, "negative": -1, "half": 2.5, "text": "8", "flag": True},
    "sets of genes": {
        "number": 5,
        "list": ["GENE0"],
        "absent file": "no/such.gmt",
        "empty": {},
        "text": {"a": "GENE0"},
        "none": None,
    },
    "programs": {"number": 5, "absent": "no such", "empty": {}, "text": {"a": "GENE0"}, "none": None},
    "predictions": {"number": 5, "text": "no/such/folder", "empty": {}, "none": None, "array": {"x": np.ones(3)}},
}

KINDS: dict[str, str] = {
    **dict.fromkeys(
        "CCE CLS ECS MVC adaptive_offset as_anndata cell_eval cells cluster compare controls copy deterministic do_sample "
        "drop_last exclude_perturbed gears gradient_checkpointing ignore_case kbet log1p only_test_genes only_use_test_perts "
        "resume return_fig return_numpy shuffle sort use_amp normalize".split(),
        "flag",
    ),
    **dict.fromkeys("scale standardize batch_parts show_progress".split(), "flag"),
    **dict.fromkeys(
        "accumulate batch_size checkpoint_steps chunk epochs k length log_interval max_pairs max_steps n n_cells "
        "n_controls n_genes n_jobs n_top_genes ncols num_samples patience processes save_interval scheduler_step "
        "step_epochs unfreeze_every".split(),
        "count",
    ),
    **dict.fromkeys(
        "min_cell_counts min_cell_genes min_gene_counts n_labels workers num_workers rank bins".split(), "whole"
    ),
    **dict.fromkeys(["rng", "seed"], "seed"),
    **dict.fromkeys(
        "dropout mask_ratio min_coverage test_fraction threshold train_genes train_seen2 val_fraction warmup "
        "end".split(),
        "fraction",
    ),
    **dict.fromkeys(
        "clip eps grad_clip head_lr layer_decay limit lr resolution scheduler_gamma size step_factor target_sum".split(),
        "positive",
    ),
    **dict.fromkeys("n_neighbors min_genes max_genes".split(), "count"),
    **dict.fromkeys("network program".split(), "present"),
    "weight_decay": "not negative",
    "decayed": "choice",
    "decoupled": "flag",
    "strong": "number",
    "warmup": "not negative",
    "gene_sets": "sets of genes",
    "programs": "programs",
    "background": "texts",
    "heads": "numbers of heads",
    "use_layer": "present",
    "gene": "present",
    "upstream": "flag",
    "mask_value": "number",
    **dict.fromkeys(
        "activation attention backend by draw duplicates embedding_type freeze gene_sampling how hvg_flavor include "
        "extend method metric missing mode pairing pooling precision recipe sampling schedule direction normalise split_type ties unknown unmeasured".split(),
        "choice",
    ),
    **dict.fromkeys(
        "batch batch_key condition_key count_key de_key group groupby groups key label label_key layer modality pairs part "
        "perturbation predicted source split tokens truth color monitor totals contexts".split(),
        "present",
    ),
    **dict.fromkeys("stratify use_rep within".split(), "present, one or more"),
    "key_added": "new key",
    "unassigned": "text",
    "delimiter": "text",
    "guide_pattern": "any text",
    "title": "any text",
    **dict.fromkeys(
        "baselines embeddings features metrics modalities perturbations test_conditions test_genes test_pert_genes "
        "test_perts titles".split(),
        "texts",
    ),
    **dict.fromkeys(["control", "distances", "perts", "targets"], "text or texts"),
    **dict.fromkeys(["folder", "output", "path", "save", "save_dir", "store"], "path"),
    **dict.fromkeys(["model", "retrained"], "model"),
    "encoder": "encoder",
    "stream": "present",
    "streams": "text or texts",
    "genes": "present",
    "mask_var": "present",
    "symbols": "names",
    "aliases": "names",
    "figsize": "size of a figure",
    "cmap": "colours",
    "palette": "palette",
    "validation": "share or column",
    **dict.fromkeys(["test", "val"], "share or names"),
    **dict.fromkeys(["parts", "split_dict"], "parts"),
    "betas": "two numbers",
    "split_ratio": "three shares",
    "tokenizer": "fields",
    "lora": "rank or settings",
    **dict.fromkeys(["prediction", "predictions"], "predictions"),
    **dict.fromkeys(["models", "start"], "model"),
    **dict.fromkeys(
        "analyses bootstrap calibrate contextual directed ensemble scgenept shift_controls".split(), "flag"
    ),
    **dict.fromkeys("cells_per_mean min_cells n_shuffles".split(), "count"),
    **dict.fromkeys("engine expression extend".split(), "choice"),
    **dict.fromkeys("n_null unfreeze_after".split(), "whole"),
    "retrain": "function",
    "reject": "fraction",
    "benchmarks": "texts",
    "n_seeds": "count",
    "overwrite": "flag",
    "level": "fraction",
    "index": "text",
    "n_held_out": "whole",
    "annotations": "path",
    "fdr": "fraction",
}
"""Kind of a parameter by its name."""

OTHER_KINDS: dict[str, str] = {
    "pl.confusion_matrix.normalize": "choice",
    "pl.embedding.color": "present, one or more",
    "pl.joint_embedding.color": "present, one or more",
    "pp.embed_gene_texts.source": "text",
    "tl.ablate_texts.how": "text or texts",
    "pl.perturbation_de.predicted": "present, one or more",
    "pl.perturbation_de.genes": "texts",
    "pl.perturbation_heatmap.genes": "texts",
    "pl.gene_network.genes": "texts",
    "pl.gene_network.programs": "present",
    "pl.program_heatmap.programs": "texts",
    "tl.attention.genes": "texts",
    **dict.fromkeys((f"train.finetune({task}).rng" for task in TASKS), "seed or none"),
    "tl.attention.layer": "number of a layer",
    "tl.attention_targets.group": "present",
    "tl.attention_targets.reference": "present",
    "tl.embed_store.rank": "whole",
    "tl.gene_network.genes": "texts",
    "tl.gene_network.threshold": "not negative",
    "tl.similar_genes.genes": "texts",
    "tl.similar_genes.query": "present, one or more",
    "tl.embed_store.source": "path",
    "tl.write_challenge.genes": "texts",
    **dict.fromkeys(("tl.knockout.genes", "tl.score_network.genes", "tl.compare_networks.genes"), "texts"),
}
"""Where a name means something else than elsewhere."""

NOT_WRONG: set[tuple[str, str]] = {
    ("pp.preprocess.bins", "none"),
    ("pl.embedding.titles", "absent"),
    # Not read where no gene is drawn.
    ("pl.embedding.layer", "absent"),
    # Not read where no expression is drawn.
    ("pl.joint_embedding.layer", "absent"),
    # Not read where perturbations are named.
    ("tl.predict_perturbation.pairs", "absent"),
    ("tl.predict_perturbation.within", "absent"),
    ("tl.predict_perturbation.within", "one absent"),
    # Not read where vectors are given.
    *(("tl.gene_network.model", damage) for damage in WRONG["model"]),
}
"""Single values that a function takes on purpose."""


@dataclass(frozen=True)
class Argument:
    """A damaged argument of a subject."""

    subject: Subject
    parameter: str
    damage: str
    value: Any

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.parameter}-{self.damage}"


def damaged() -> Iterator[Argument]:
    """Every parameter of every subject with everything that is wrong for its kind."""
    for subject in SUBJECTS.values():
        for name, parameter in subject.parameters().items():
            for damage, value in WRONG.get(kind_of(subject, name), {}).items():
                if value is None and takes_none(parameter):
                    continue
                if (f"{subject.name}.{name}", damage) not in NOT_WRONG:
                    yield Argument(subject, name, damage, value)


def kind_of(subject: Subject, name: str) -> str:
    """Kind of a parameter."""
    return OTHER_KINDS.get(f"{subject.name}.{name}", KINDS.get(name, ""))


def takes_none(parameter: inspect.Parameter) -> bool:
    """Whether a parameter may be None."""
    return "None" in str(parameter.annotation) or str(parameter.annotation) in ("Layers", "RngLike")


MISPLACED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a table": (inputs.cells, ("AnnData", "MuData", "Any")),
    "a model": (
        inputs.embedder,
        ("CellModel", "AnyModel", "HasTokenizer", "VocabularySource", "Prediction", "Encode", "Any"),
    ),
}
"""What is given in a wrong place, made when it is needed, and what annotations of its right places name."""


def misplaced() -> Iterator[Argument]:
    """Every parameter of every subject with a table or a model that belongs elsewhere."""
    for subject in SUBJECTS.values():
        for name, parameter in subject.parameters().items():
            for what, (make, words) in MISPLACED.items():
                if not any(word in str(parameter.annotation) for word in words):
                    yield Argument(subject, name, what, make)


ALIKE: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "flag": (np.bool_,),
    "count": (np.int64, np.int32),
    "whole": (np.int32,),
    "seed": (np.int64,),
    "fraction": (np.float64,),
    "positive": (np.float64,),
    "choice": (np.str_,),
    "present": (np.str_,),
    "new key": (np.str_,),
    "text": (np.str_,),
    "texts": (tuple, np.array, pd.Series, pd.Index),
    "path": (PurePosixPath,),
}
"""Other types of the same value."""


def spelled() -> Iterator[Argument]:
    """Every good or default value in its other types."""
    for subject in SUBJECTS.values():
        if subject.slow or subject.table == inputs.multiome:
            continue
        good = subject.good()
        for name, parameter in subject.parameters().items():
            value = good.get(name, parameter.default)
            if value is None or value is parameter.empty or (name in FIT and name not in good):
                continue
            for place, convert in enumerate(ALIKE.get(kind_of(subject, name), ())):
                if not isinstance(value, list | tuple) or len(value):
                    yield Argument(subject, name, f"alike {place}", convert(value))
