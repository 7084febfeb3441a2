"""A walk through a table keeps the memory that it will need again, and makes do with what a device has."""

from __future__ import annotations

import platform
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.inference.runner import Fitting
from scgpt_tools.models import CellModel
from scgpt_tools.tokens.batch import TokenBatch

CODE = """
import resource, torch
from scgpt_tools.inference.runner import _keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [torch.ones(2**20) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
_keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in other ways")
def test_freed_memory_is_used_again():
    """Ten times 24 MiB are 61,440 pages; a process that gives them back touches each anew."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 4096


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("MPS backend out of memory (allocated: 9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def some_cells(n):
    values = torch.rand(n, 3)
    return TokenBatch(genes=torch.ones(n, 3, dtype=torch.int64), values=values, mask=torch.ones(n, 3, dtype=torch.bool))


def small_device(error, most):
    """A function that a device has memory for ``most`` cells of, and the numbers of cells that it was given."""
    seen = []

    def compute(batch):
        seen.append(len(batch))
        if len(batch) > most:
            raise error
        return batch.values.sum(dim=1, keepdim=True)

    return compute, seen


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "mps", "library"])
def test_where_memory_is_short_a_minibatch_is_computed_in_parts(error):
    batch = some_cells(7)
    compute, seen = small_device(error, 2)
    fitting = Fitting(compute)
    with pytest.warns(
        UserWarning, match=r"memory for \d cells at once on the device, found too little; going on with [42]\."
    ):
        found = fitting(batch)
    torch.testing.assert_close(found, batch.values.sum(dim=1, keepdim=True))
    assert seen == [7, 4, 2, 2, 2, 1]
    seen.clear()
    fitting(batch)
    assert seen == [2, 2, 2, 1], "what fitted is remembered"


def test_other_errors_and_single_cells_are_not_tried_again():
    batch = some_cells(4)
    compute, seen = small_device(RuntimeError("shapes do not fit"), 2)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Fitting(compute)(batch)
    assert seen == [4]
    compute, _ = small_device(ERRORS[0], 0)
    with (
        pytest.warns(UserWarning, match=r"going on with [21]\."),
        pytest.raises(RuntimeError, match="CUDA out of memory"),
    ):
        Fitting(compute)(batch)


def test_embeddings_do_not_depend_on_what_fitted(monkeypatch):
    names = CellModel.from_pretrained("scgpt-demo", device="cpu").vocabulary.tokens[5:45]
    counts = np.random.default_rng(0).poisson(1.0, (30, 40)).astype(np.float32)
    cells = ad.AnnData(counts, var=pd.DataFrame(index=names))
    plain = sct.tl.embed(cells, "scgpt-demo", copy=True, device="cpu").obsm["X_scGPT"]
    whole = CellModel.embed_cells

    def embed(self, batch, **options):
        if len(batch) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(self, batch, **options)

    monkeypatch.setattr(CellModel, "embed_cells", embed)
    with pytest.warns(UserWarning, match="Expected memory for") as caught:
        again = sct.tl.embed(cells, "scgpt-demo", copy=True, device="cpu").obsm["X_scGPT"]
    np.testing.assert_allclose(again, plain, atol=1e-5)
    assert len(caught) < 8
