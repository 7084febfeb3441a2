"""The same contracts on a CUDA device, where other kernels compute."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.executor import _fastest_attention

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model() -> CellModel:
    torch.manual_seed(0)
    vocabulary = testing.tiny_vocabulary()
    config = FAMILIES["scgpt"](vocabulary, dim=64, layers=2, heads=4, hidden=64, dropout=0.1)
    return CellModel(config, vocabulary).cuda().eval()


@pytest.mark.parametrize("contract", testing.CONTRACTS)
def test_contract(model, contract):
    testing.CONTRACTS[contract](model, testing.tiny_batch(model))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_half_precision_agrees_with_full(model, backend, precision, pooling):
    if backend == "flash" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    batch = testing.tiny_batch(model)
    with torch.no_grad():
        expected = model.embed_cells(batch, attention="sdpa", pooling=pooling)
        with torch.autocast("cuda", precision):
            found = model.embed_cells(batch, attention=backend, pooling=pooling).float()
    assert torch.cosine_similarity(found, expected).min() > 0.999


def test_the_packed_kernel_is_chosen_in_half_precision(model):
    assert _fastest_attention(model) == "sdpa"
    with torch.autocast("cuda", torch.bfloat16):
        capable = torch.cuda.get_device_capability() >= (8, 0) and find_spec("torch.nn.attention.varlen") is not None
        assert _fastest_attention(model) == ("varlen" if capable else "sdpa")


@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
def test_heads_that_the_packed_kernel_does_not_take(backend):
    """12 wide: the kernel wants multiples of 8."""
    vocabulary = testing.tiny_vocabulary()
    config = FAMILIES["scgpt"](vocabulary, dim=24, layers=2, heads=2, hidden=24)
    model = CellModel(config, vocabulary).cuda().eval()
    batch = testing.tiny_batch(model)
    with torch.no_grad():
        expected = model.embed_cells(batch)
        with torch.autocast("cuda", torch.bfloat16):
            assert _fastest_attention(model) == "sdpa"
            found = model.embed_cells(batch, attention=backend).float()
    assert torch.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1 - 1e-5), ("auto", 0.999)])
def test_embed_agrees_with_the_cpu(model, adata, precision, least):
    genes = [f"GENE{number}" for number in range(24)]
    adata = adata[:, genes].copy()
    sct.tl.embed(adata, model, precision=precision, key_added="gpu", show_progress=False)
    cpu = CellModel(model.config, model.vocabulary)
    cpu.load_state_dict(model.state_dict())
    sct.tl.embed(adata, cpu, precision="fp32", key_added="cpu", show_progress=False)
    assert (adata.obsm["gpu"] * adata.obsm["cpu"]).sum(axis=1).min() > least
