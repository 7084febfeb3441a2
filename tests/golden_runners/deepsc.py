"""DeepSC: one runner a variant, found by the name of the case where a variant has several kinds."""

from __future__ import annotations

from pathlib import Path

from golden_runners import _deepsc_data, _deepsc_losses, _deepsc_models, _deepsc_perturbation

VARIANTS = _deepsc_models.VARIANTS | _deepsc_data.VARIANTS | _deepsc_losses.VARIANTS | _deepsc_perturbation.VARIANTS


def run(folder: Path, case: dict) -> None:
    """Run by variant; several kinds of one variant are told apart by what they record."""
    VARIANTS[case["variant"]](folder, case)


RUNNERS = {"deepsc": run}
