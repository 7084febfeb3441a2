"""Checkpoint folders: reading, writing, embedding with them, and partial loading."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from golden_runners._compare import close, load
from golden_runners.scgpt_models import build
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models import CellModel, load_pretrained
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.tokens.features import FeatureTable

if TYPE_CHECKING:
    from collections.abc import Callable


def table(folder: Path, key: str) -> ad.AnnData:
    inputs, genes = load(folder / "inputs.safetensors"), json.loads((folder / "genes.json").read_text())
    data = inputs[f"{key}.data"].numpy() if f"{key}.data" in inputs else inputs[key].numpy()
    parts = (data, inputs["X.indices"].numpy(), inputs["X.indptr"].numpy())
    X = sp.csr_matrix(parts, shape=(len(parts[2]) - 1, len(genes)))
    return ad.AnnData(X, var=pd.DataFrame(index=genes))


def quietly(run: Callable[[Path, dict], None]) -> Callable[[Path, dict], None]:
    """Cases have genes that their small vocabularies lack, which is worth a warning elsewhere."""

    def runner(folder: Path, case: dict) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*match one of", category=UserWarning)
            run(folder, case)

    return runner


@quietly
def run_checkpoint(folder: Path, case: dict) -> None:
    expected = load(folder / "outputs.safetensors")
    checkpoint = folder / case["checkpoint"]["folder"]
    model = CellModel.from_pretrained(checkpoint, device="cpu")
    for call in case["calls"]:
        adata = table(folder, call["input"])
        before = adata.copy()
        for batch_size in (64, 5):
            sct.tl.embed(
                adata, model, length=call["max_length"], batch_size=batch_size, duplicates="all", show_progress=False
            )
            embedding = adata.obsm["X_scGPT"]
            wanted = expected[call["outputs"]["embedding"]].numpy()
            assert embedding.shape == wanted.shape
            if call.get("optional"):
                # Ties fall to other random draws; the cells must still be nearly the same.
                assert (embedding * wanted).sum(axis=1).min() > 0.95
            else:
                close(embedding, wanted, case["tolerance"], call["id"])
        assert (adata.X != before.X).nnz == 0
    check_tokens(folder, model, expected)
    check_round_trip(checkpoint, model)


def check_tokens(folder: Path, model: CellModel, expected: dict) -> None:
    """The recorded tokens of the first cells, as sets: the model knows no order."""
    keys = [key for key in expected if key.endswith(".genes")]
    adata = table(folder, "X_untied")
    features = FeatureTable.from_var(adata.var, model.vocabulary, duplicates="all")
    source = RowSource(adata)
    batch = model.tokenizer(source.take(np.arange(adata.n_obs)), features, source.keys)
    for key in keys:
        cell = int("".join(filter(str.isdigit, key.split(".")[0])))
        real = batch.mask[cell]
        genes, bins = expected[key].numpy(), expected[key.replace(".genes", ".bins")].numpy()
        ours = sorted(zip(batch.genes[cell][real].tolist(), batch.values[cell][real].tolist(), strict=True))
        theirs = sorted(zip(genes.tolist(), bins.astype(float).tolist(), strict=True))
        if len(theirs) == len(ours) - 1:
            ours = [token for token in ours if token[0] != model.vocabulary.cls_id]
        assert ours == theirs, key


def check_round_trip(checkpoint: Path, model: CellModel) -> None:
    """Our export holds the same tensors under the same names, and reads back the same; so does our own format."""
    weights = next(checkpoint / name for name in ("best_model.pt", "model.pt") if (checkpoint / name).is_file())
    original = read_contents(weights).weights
    spellings = {"_impl": "wrapped", "Wqkv": "fused"}
    layout = next((spellings[part] for part in spellings if any(part in key for key in original)), "torch")
    plain = {key.removeprefix("module."): tensor for key, tensor in original.items()}
    with tempfile.TemporaryDirectory() as written:
        exported = model.export(Path(written) / "scgpt", attention_names=layout)
        tensors = read_contents(exported / "best_model.pt").weights
        assert tensors.keys() == plain.keys()
        assert all(torch.equal(tensors[key], plain[key].to(tensors[key].dtype)) for key in plain)
        for folder in (exported, model.save(Path(written) / "native")):
            again = CellModel.from_pretrained(folder, device="cpu")
            assert again.config == model.config
            assert again.checksum == model.checksum


def run_partial_loading(folder: Path, case: dict) -> None:
    before, file = load(folder / "weights.safetensors"), load(folder / "inputs.safetensors")
    case = case | {"system": "TransformerModel"}
    for call in case["calls"]:
        model = build(case)
        model.load_state_dict(before, strict=True)
        assert load_pretrained(model, file, **call["flags"]) is model
        assert sorted(model.load_report.used) == sorted(call["changed"])
        after = model.state_dict()
        plain = {key.replace("_impl.", "").replace(".Wqkv.", ".in_proj_"): tensor for key, tensor in file.items()}
        for key, tensor in after.items():
            assert torch.equal(tensor, plain[key] if key in call["changed"] else before[key]), key


RUNNERS = {"checkpoint folder + embedding": run_checkpoint, "load_pretrained": run_partial_loading}
