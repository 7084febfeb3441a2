"""Run scGPT's own functions beside ours; its source lies outside this repository."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


class ScGPT:
    """scGPT's ``embed_data``, with loading (about 100 s for its vocabulary) done once.

    Parameters
    ----------
    source
        Folder that holds the package ``scgpt``.
    checkpoint
        Checkpoint folder.
    """

    def __init__(self, source: Path, checkpoint: Path) -> None:
        sys.path.insert(0, str(source))
        # A logging service that scGPT imports and this does not use.
        sys.modules.setdefault("wandb", ModuleType("wandb"))
        from scgpt.model import TransformerModel
        from scgpt.tasks.cell_emb import get_batch_cell_embeddings
        from scgpt.tokenizer import GeneVocab
        from scgpt.utils import load_pretrained

        self._embed = get_batch_cell_embeddings
        self.args = args = json.loads((checkpoint / "args.json").read_text())
        self.vocab = vocab = GeneVocab.from_file(checkpoint / "vocab.json")
        vocab.set_default_index(vocab["<pad>"])
        self.model = TransformerModel(
            ntoken=len(vocab),
            d_model=args["embsize"],
            nhead=args["nheads"],
            d_hid=args["d_hid"],
            nlayers=args["nlayers"],
            nlayers_cls=args["n_layers_cls"],
            n_cls=1,
            vocab=vocab,
            dropout=args["dropout"],
            pad_token=args["pad_token"],
            pad_value=args["pad_value"],
            do_mvc=True,
        )
        load_pretrained(self.model, torch.load(checkpoint / "best_model.pt", map_location="cpu"), verbose=False)
        self.model.eval()

    def embed(self, adata: AnnData, *, length: int, batch_size: int = 64) -> np.ndarray:
        """Embed ``X`` of cells whose genes all have a token."""
        return self._embed(
            adata,
            cell_embedding_mode="cls",
            model=self.model,
            vocab=self.vocab,
            max_length=length,
            batch_size=batch_size,
            model_configs=self.args,
            gene_ids=np.array(self.vocab(list(adata.var_names)), dtype=int),
        )
