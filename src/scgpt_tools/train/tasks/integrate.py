"""Learning an embedding without technical batches."""

from __future__ import annotations

from dataclasses import dataclass

from scgpt_tools.objectives.recipes import INTEGRATE
from scgpt_tools.train.tasks.cells import CellTask


@dataclass(frozen=True, kw_only=True, eq=False)
class Integrate(CellTask):
    """Expression with a norm for each batch (DSBN), and an adversary that looks for the batch."""

    name = "integrate"
    recipe = INTEGRATE
    # The adversary's part of the loss is meant to rise, so the sum says nothing about progress.
    fit = {"epochs": 15, "batch_size": 64, "lr": 1e-4, "monitor": "validation_masked_expression"}
    # A minibatch of one batch keeps similarity between cells from being similarity between batches.
    defaults = {"validation": 0.1, "sampling": "one_batch", "batch_parts": True}
    authors = {}
    needs = ("batch_key",)
    # Whether a gene is zero can be learnt only from tokens that may be.
    reads = {"genes": "all"}
