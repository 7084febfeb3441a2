"""Models, tables and stores on disk with a damaged part are refused, or are read as what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scgpt_tools as sct
from campaign import inputs
from campaign.files import DamagedFile, damaged, is_another_setting
from campaign.sampling import chosen
from campaign.stores import DamagedStore, damaged_stores, verdict
from campaign.subjects import SUBJECTS, expected
from campaign.verdicts import difference, judge, not_finite


@pytest.mark.parametrize("case", chosen(damaged(), share=12))
def test_a_damaged_model_folder(case: DamagedFile, report, tmp_path):
    folder, annotate = case.folder(tmp_path / "model"), SUBJECTS["tl.annotate"]

    def load_and_use() -> dict[str, object]:
        model = sct.CellModel.from_pretrained(folder, device="cpu")
        assert all(torch.isfinite(part).all() for part in model.state_dict().values() if part.is_floating_point())
        return annotate(inputs.cells(), annotate.good() | {"model": model})

    def accept(found: dict[str, object]) -> str:
        if case.damage.startswith("chance") and case.file in ("config.json", "args.json"):
            whole = case.make(tmp_path / "whole") / case.file
            if is_another_setting(whole.read_text(), (folder / case.file).read_text()):
                return not_finite(found)
        return difference(expected("tl.annotate"), found, tolerance=1e-3)

    report(judge(load_and_use, accept=accept))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return inputs.embedder().save(tmp_path_factory.mktemp("models") / "embedder")


@pytest.mark.parametrize("case", chosen(damaged_stores(), share=6))
def test_a_damaged_table_on_disk(case: DamagedStore, report, apart, tmp_path, model):
    report(apart(verdict, case, tmp_path, model))
