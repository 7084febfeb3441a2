"""Cases of scModelForge; which kind one is, its arguments tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from golden_runners._scmodelforge_data import run_orthologs, run_shard_folder
from golden_runners._scmodelforge_models import run_adapters, run_classification, run_export, run_model
from golden_runners._scmodelforge_tokens import run_masking, run_pipeline, run_selection, run_tokens
from golden_runners._scmodelforge_training import (
    run_decoding,
    run_network,
    run_probe,
    run_schedules,
    run_shards,
    run_steps,
    run_weighted,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def runner_of(case: dict) -> Callable[[Path, dict], None]:
    made, called = case["constructor_args"], case["call_args"]
    told = {
        run_adapters: "lora" in made,
        run_classification: "head" in made,
        run_export: "config.json" in called,
        run_pipeline: "preprocessing" in made,
        run_selection: "n_genes" in made,
        run_tokens: "max_len" in made,
        run_masking: "mask_action_ratio" in made,
        run_steps: "optimizer" in called,
        run_schedules: bool({"cosine_warmup", "cosine", "linear"} & set(called)),
        run_shard_folder: "shard_size" in made,
        run_orthologs: "canonical_organism" in made,
        run_weighted: "curriculum_warmup_epochs" in made,
        run_shards: "num_replicas" in made,
        run_probe: "cell_type_key" in made,
        run_decoding: "control_label" in made,
        run_network: "min_cells_per_gene" in made,
        run_model: "architecture" in made and "optimizer" not in called,
    }
    found = [runner for runner, yes in told.items() if yes]
    assert found, f"no runner for {case['case']!r}, which was made with {sorted(made)} and called with {sorted(called)}"
    return found[0]


def run(folder: Path, case: dict) -> None:
    runner_of(case)(folder, case)


RUNNERS = {"scmodelforge": run}
