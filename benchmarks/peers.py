"""Run others beside us: scGPT's own functions, helical's copy of it, torch's own encoder.

The source of the first two lies outside this repository.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
import time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from torch import Tensor

    from scgpt_tools import CellModel
    from scgpt_tools.nn.attention import PaddedLayout
    from scgpt_tools.tokens.batch import TokenBatch


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
        service = sys.modules.setdefault("wandb", ModuleType("wandb"))
        # Others ask where a module comes from before they use it.
        service.__spec__ = ModuleSpec("wandb", loader=None)
        service.log = lambda _: None
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

    def trainee(self, model: CellModel, cells: TokenBatch, *, recipe: str, batch_size: int) -> ScGPTTraining:
        """The weights of a model of ours in scGPT's class, with tokens to train on."""
        return ScGPTTraining(self, model, cells, recipe=recipe, batch_size=batch_size)


class Helical:
    """helical's scGPT, from ``process_data`` to ``get_embeddings``, without its downloads.

    Parameters
    ----------
    source
        Folder that holds the package ``helical``.
    checkpoint
        Checkpoint folder with fused names, the only ones that it reads.
    """

    def __init__(self, source: Path, checkpoint: Path) -> None:
        sys.path.insert(0, str(source))
        from helical.models.scgpt import scGPT, scGPTConfig
        from helical.models.scgpt.scgpt_utils import load_model

        logging.getLogger().setLevel(logging.WARNING)
        # Its constructor fetches a released checkpoint; the rest of it is repeated here.
        self.model = model = scGPT.__new__(scGPT)
        model.config = scGPTConfig(emb_mode="cls", batch_size=64, device="cpu").config
        model.config["model_path"] = checkpoint / "best_model.pt"
        model.model, model.vocab = load_model(model.config)
        model.accelerator = None

    def embed(self, adata: AnnData, *, length: int) -> np.ndarray:
        """Embed raw counts in ``X``."""
        self.model.config["MAX_LENGTH"] = length
        # It wants whole numbers where it is told that they are counts, and writes to the table that it is given.
        cells = self.model.process_data(adata.copy(), use_raw_counts=False)
        return np.asarray(self.model.get_embeddings(cells))


class TorchEncoder(torch.nn.Module):
    """``torch.nn.TransformerEncoder`` with our weights in place of our encoder, with its fast path for evaluation.

    Parameters
    ----------
    model
        Model whose encoder is rebuilt.
    """

    def __init__(self, model: CellModel) -> None:
        super().__init__()
        config = model.config.encoder
        layer = torch.nn.TransformerEncoderLayer(
            model.dim, config.heads, config.hidden, config.dropout, batch_first=True
        )
        self.stack = torch.nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=True).eval()
        for theirs, ours in zip(self.stack.layers, model.encoder.blocks, strict=True):
            maps = (ours.attention.query, ours.attention.key, ours.attention.value)
            theirs.self_attn.in_proj_weight.data = torch.cat([part.weight.data for part in maps])
            theirs.self_attn.in_proj_bias.data = torch.cat([part.bias.data for part in maps])
            theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
            theirs.linear1.load_state_dict(ours.feed_forward.expand.state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward.contract.state_dict())
            theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
            theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())

    def forward(self, x: Tensor, layout: PaddedLayout, *_: object, **options: object) -> tuple[Tensor, None]:
        """Encode padded tokens."""
        tokens = self.stack(x, src_key_padding_mask=~layout.mask)
        return (layout.first(tokens) if options.get("first_only") else tokens), None


def with_torch_encoder(model: CellModel) -> CellModel:
    """A copy of a model that is encoded by torch's own class; run it with ``attention="sdpa"``."""
    other = copy.deepcopy(model)
    other.encoder = TorchEncoder(model)
    return other


class ScGPTTraining:
    """scGPT's ``trainer.train`` on tokens that are there already.

    Parameters
    ----------
    peer
        Arguments of the checkpoint and its vocabulary.
    model
        Model whose weights and dropout are taken.
    cells
        Tokens of all cells, hidden values included, padded to the longest as scGPT pads them.
    recipe
        ``"annotate"`` or ``"masked"``.
    batch_size
        Cells of a minibatch.
    """

    def __init__(self, peer: ScGPT, model: CellModel, cells: TokenBatch, *, recipe: str, batch_size: int) -> None:
        # The trainer passes modalities, which this one of scGPT's classes takes.
        from scgpt.model import MultiOmicTransformerModel

        classifier, args = model.config.heads.cell_type, peer.args
        self.network = MultiOmicTransformerModel(
            ntoken=len(peer.vocab),
            d_model=args["embsize"],
            nhead=args["nheads"],
            d_hid=args["d_hid"],
            nlayers=args["nlayers"],
            nlayers_cls=3 if classifier is None else classifier.layers,
            n_cls=1 if classifier is None else classifier.classes,
            vocab=peer.vocab,
            dropout=model.config.encoder.dropout,
            pad_token=args["pad_token"],
            pad_value=args["pad_value"],
            do_mvc=recipe == "masked",
        )
        with tempfile.TemporaryDirectory() as folder:
            weights = torch.load(model.export(folder) / "best_model.pt", map_location="cpu", weights_only=True)
        missing = [key for key in self.network.state_dict() if key not in weights]
        if missing and recipe == "masked":
            missing = [key for key in missing if not key.startswith("cls_decoder")]
        if missing:
            raise SystemExit(f"The model lacks weights that scGPT's needs: {missing}.")
        self.network.load_state_dict(weights, strict=False)
        self.vocab, self.batch_size, self.recipe = peer.vocab, batch_size, recipe
        n_cells = len(cells)
        self.tokens = {
            "gene_ids": cells.genes,
            "values": cells.values,
            "target_values": cells.values if cells.target is None else cells.target,
            "batch_labels": torch.zeros(n_cells, dtype=torch.long),
            "celltype_labels": torch.zeros(n_cells, dtype=torch.long) if cells.label is None else cells.label,
        }

    def loss(self) -> float:
        """Loss of the first cells, without dropout."""
        from scgpt.loss import masked_mse_loss

        part = {name: tensor[: self.batch_size] for name, tensor in self.tokens.items()}
        self.network.eval()
        with torch.no_grad():
            output = self.network(
                part["gene_ids"],
                part["values"],
                src_key_padding_mask=part["gene_ids"].eq(self.vocab["<pad>"]),
                CLS=self.recipe == "annotate",
                MVC=self.recipe == "masked",
            )
        if self.recipe == "annotate":
            return float(torch.nn.functional.cross_entropy(output["cls_output"], part["celltype_labels"]))
        hidden = part["values"].eq(-1)
        return sum(
            float(masked_mse_loss(output[n], part["target_values"], hidden)) for n in ("mlm_output", "mvc_output")
        )

    def steps(self, number: int) -> list[float]:
        """Seconds of each step but the first."""
        from scgpt.loss import masked_mse_loss
        from scgpt.trainer import prepare_dataloader, train

        few = {name: tensor[: number * self.batch_size] for name, tensor in self.tokens.items()}
        loader = prepare_dataloader(few, batch_size=self.batch_size, shuffle=True)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, eps=1e-8)
        times: list[float] = []
        optimizer.register_step_post_hook(lambda *_: times.append(time.perf_counter()))
        train(
            self.network,
            loader,
            self.vocab,
            masked_mse_loss,
            None,
            torch.nn.CrossEntropyLoss(),
            torch.amp.GradScaler("cpu", enabled=False),
            optimizer,
            None,
            "cpu",
            _settings(self.recipe),
            logging.getLogger("scgpt"),
            1,
        )
        return np.diff(times).tolist()


def _settings(recipe: str) -> Any:
    annotate = recipe == "annotate"
    off = dict.fromkeys(("amp", "use_batch_labels", "DSBN", "ESC", "DAR", "use_mod", "explicit_zero_prob"), False)
    names = {"task": "annotation", "pad_token": "<pad>", "mask_value": -1, "log_interval": 10**9, "dab_weight": 1.0}
    return SimpleNamespace(**off, **names, CLS=annotate, GEP=not annotate, GEPC=not annotate)
