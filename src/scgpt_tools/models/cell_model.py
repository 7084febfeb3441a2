"""One model class for every family: embed, encode, pool, predict.

A family differs by its :class:`~scgpt_tools.models.config.ModelConfig`, not by code.  Weights, vocabulary and tokenizer
travel together.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scgpt_tools.data.threads import in_threads
from scgpt_tools.models import formats, zoo
from scgpt_tools.models.formats.base import check_parts, own_weights
from scgpt_tools.models.modes import without_memory
from scgpt_tools.models.precision import resolve_device
from scgpt_tools.models.transfer import Transfer, copy_weights
from scgpt_tools.nn.attention import (
    PACKED,
    PackedLayout,
    PaddedLayout,
    has_packed_kernel,
    packing_pays,
    unpack,
)
from scgpt_tools.nn.context import Context
from scgpt_tools.nn.embedders import Embedder
from scgpt_tools.nn.heads import (
    AdversaryHead,
    AffineExpressionHead,
    ClassifierHead,
    ExpressionHead,
    FromCellHead,
    FromCellInContextHead,
    HeadInput,
)
from scgpt_tools.nn.output import CellOutput
from scgpt_tools.nn.pooling import pool
from scgpt_tools.nn.transformer import Transformer
from scgpt_tools.tokens.joint import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer
    from scgpt_tools.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Tokens to compute at once in a thread of a CPU: enough for its products, and what lies between them stays in the caches.
# Narrow models take more, so that threads seldom meet at Python's lock.
_TOKENS = 2048
_NUMBERS = 2**18


class CellModel(nn.Module):
    """A transformer over the genes of single cells.

    Parameters
    ----------
    config
        The parts of the model and their sizes.
    vocabulary
        Genes and their ids; ``None`` only for a network that is fed token ids by hand.
    name
        What to call the model in messages and in ``uns``.

    Raises
    ------
    ValueError
        If the vocabulary does not fit the gene table.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary | None = None, *, name: str = "untrained") -> None:
        super().__init__()
        _check_vocabulary(config, vocabulary)
        self.config, self.name = config, name
        self._vocabulary = vocabulary
        self.transfer: Transfer | None = None
        """Which weights came from the file or the model that this one was made of; ``None`` if it was made of neither."""
        self.history: pd.DataFrame | None = None
        """What the training that made these weights logged, one row per epoch; not saved with the model."""
        dim, encoder = config.dim, config.encoder
        self.embedder = Embedder(
            genes=config.n_tokens,
            pad=config.pad_id,
            dim=dim,
            dropout=encoder.dropout,
            domains=config.domains,
            **asdict(config.embedder),
        )
        self.encoder = Transformer(dim=dim, **asdict(encoder))
        self.context = Context(dim, **asdict(config.context))
        self.heads = _build_heads(config)

    # ------------------------------------------------------------------ what travels with the weights

    @property
    def vocabulary(self) -> Vocabulary:
        """Genes and their ids."""
        if self._vocabulary is None:
            raise ValueError("Expected a model with a vocabulary, found a bare network; pass one to `CellModel`.")
        return self._vocabulary

    @property
    def tokenizer(self) -> Tokenizer:
        """How cells become tokens for this model."""
        return tokenizer_of(self.config.tokenizer, self.vocabulary)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.config.dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedder.genes.table.weight.device

    @property
    def checksum(self) -> str:
        """SHA-256 over names and values of all tensors and the vocabulary, whatever file they came from."""
        digest = hashlib.sha256(self._vocabulary.checksum.encode() if self._vocabulary is not None else b"")
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    # ------------------------------------------------------------------ computing

    def forward(
        self,
        batch: TokenBatch,
        heads: Sequence[str] | None = None,
        *,
        attention: str | None = None,
        cell: Tensor | None = None,
    ) -> CellOutput:
        """Embed, encode, pool and predict.

        Parameters
        ----------
        batch
            Tokens of B cells, on the model's device.
        heads
            Names of the heads to run; ``None`` runs all.
        attention
            Backend: ``"sdpa"``, ``"varlen"``, ``"flash"`` or ``"eager"``, which also returns the weights; ``None`` takes
            ``"varlen"`` where it pays, on a CPU for cells of several lengths or with dropout, else ``"sdpa"``.
        cell
            (B, D) vectors to put at position 0 in place of its embedding.

        Returns
        -------
        Token, gene and cell embeddings and the predictions of the heads.
        """
        embedded = self.embedder(
            batch.genes, batch.values, perturbed=batch.perturbed, generated=batch.generated, domain=batch.batch
        )
        if attention is None:
            attention = "varlen" if self._packing_pays(batch) else "sdpa"
        tokens, weights = self._encode(embedded.tokens, batch, attention, cell)
        return self._predict(batch, tokens, embedded.genes, heads, weights)

    def generate(self, cell: Tensor, batch: TokenBatch, *, values: bool = False) -> Tensor:
        """Predict expression (B, L) from cell embeddings (B, D) placed at position 0.

        Parameters
        ----------
        cell
            (B, D) cell embeddings.
        batch
            Genes to predict; their values are seen only if ``values``.
        values
            Also embed the values of the batch.
        """
        embedded = self.embedder(
            batch.genes, batch.values if values else None, perturbed=batch.perturbed, domain=batch.batch
        )
        tokens, _ = self._encode(embedded.tokens, batch, "sdpa", cell)
        return self._predict(batch, tokens, embedded.genes, ("expression",), None)["expression"]

    def embed_cells(self, batch: TokenBatch, *, attention: str | None = None, pooling: str | None = None) -> Tensor:
        """Compute cell embeddings (B, D), doing only the work that they need.

        Padding is dropped before the first layer and, with ``cls`` pooling, the last layer computes one row a cell.

        Parameters
        ----------
        batch
            Tokens on any device; best on the CPU.
        attention
            Backend; ``None`` takes the fastest that this device and precision have.
        pooling
            ``"cls"``, ``"mean"`` or ``"weighted"``; ``None`` takes the model's own.
        """
        attention = attention or self._fastest_attention()
        pooling = pooling or self.config.pooling
        parts = self.parts(batch)
        embed = partial(self._embed_cells, attention=attention, pooling=pooling)
        with in_threads(several=self.divisible) as run:
            return torch.cat(list(run(embed, parts)))

    def parts(self, batch: TokenBatch) -> list[TokenBatch]:
        """Cut a minibatch into parts to compute one by one or beside each other: few cells on a CPU, else all."""
        return list(batch.divided(max(_TOKENS, _NUMBERS // self.dim))) if self.divisible else [batch]

    @property
    def divisible(self) -> bool:
        """Whether a minibatch is better computed in parts, and the same."""
        # A norm that takes the label of the first cell for all has to see the minibatch as it is.
        return not self.training and self.device.type == "cpu" and self.config.embedder.norm != "domain_of_first"

    def _embed_cells(self, batch: TokenBatch, attention: str, pooling: str) -> Tensor:
        first_only = pooling == "cls"
        if batch.generated is not None:
            # Nothing but themselves looks at generated tokens, so a cell is the same without them.
            batch = batch.replace(mask=batch.mask & ~batch.generated, generated=None)
        if attention in PACKED and not bool(batch.mask.any(dim=1).all()):
            attention = "sdpa"  # a cell without tokens has no place among packed ones
        if attention not in PACKED:
            # Asked before the batch moves, so that no GPU has to be waited for.
            full, batch = bool(batch.mask.all()), batch.to(self.device)
            x = self.embedder(batch.genes, batch.values, perturbed=batch.perturbed, domain=batch.batch).tokens
            x, _ = self.encoder(x, PaddedLayout.from_mask(batch.mask, full=full), attention, first_only=first_only)
            x = x * batch.mask[:, : x.shape[1], None]
            return pool(pooling, x, batch.mask, batch.values)
        packed = batch.packed().to(self.device, non_blocking=True)
        layout = PackedLayout.from_lengths(packed.lengths, self.device)
        x = self.embedder(packed.genes, packed.values, perturbed=packed.perturbed, domain=packed.batch).tokens
        x, _ = self.encoder(x, layout, attention, first_only=first_only)
        if first_only:
            return x
        batch = batch.to(self.device)
        return pool(pooling, unpack(x, batch.mask), batch.mask, batch.values)

    def _packing_pays(self, batch: TokenBatch) -> bool:
        """Whether to go cell by cell without padding, which generated tokens do not allow."""
        dropout = self.training and self.config.encoder.dropout > 0
        return batch.generated is None and packing_pays(batch.mask, dropout=dropout)

    def _fastest_attention(self) -> str:
        device, width = self.device, self.dim // self.config.encoder.heads
        if device.type == "cuda":
            return "varlen" if torch.is_autocast_enabled("cuda") and has_packed_kernel(device, width) else "sdpa"
        return "varlen" if device.type == "cpu" else "sdpa"

    def _encode(
        self, x: Tensor, batch: TokenBatch, attention: str, cell: Tensor | None
    ) -> tuple[Tensor, list[Tensor] | None]:
        """(B, L, D) to (B, L, D), 0 at padding."""
        if cell is not None:
            x = torch.cat((cell.unsqueeze(1).to(x.dtype), x[:, 1:]), dim=1)
        if attention not in PACKED:
            x, weights = self.encoder(x, PaddedLayout.from_mask(batch.mask, batch.generated), attention)
            return x * batch.mask.unsqueeze(-1), weights
        if batch.generated is not None:
            raise ValueError(f"Expected 'sdpa' or 'eager' attention for generated tokens, found {attention!r}.")
        layout = PackedLayout.from_lengths(tuple(batch.mask.sum(dim=1).tolist()), x.device)
        x, weights = self.encoder(x[batch.mask], layout, attention)
        return unpack(x, batch.mask), weights

    def _predict(
        self,
        batch: TokenBatch,
        tokens: Tensor,
        genes: Tensor,
        heads: Sequence[str] | None,
        weights: list[Tensor] | None,
    ) -> CellOutput:
        pooling = self.config.pooling
        seen = batch.mask if batch.generated is None else batch.mask & ~batch.generated
        cell = pool(pooling, tokens * seen.unsqueeze(-1), seen, batch.values)
        context = self.context(batch.batch, batch.modality, pooling=pooling, mask=seen, values=batch.values)
        inputs = HeadInput(
            tokens=tokens,
            genes=genes,
            cell=cell,
            values=batch.values,
            mask=batch.mask,
            token_context=None if context is None else context.tokens,
            cell_context=None if context is None else context.cell,
        )
        output = CellOutput(tokens=tokens, cell=cell, genes=genes, attention=weights)
        for name in self.heads if heads is None else heads:
            if name not in self.heads:
                raise ValueError(f"Expected a head among {list(self.heads)}, found {name!r}; add it with `adapt`.")
            output.predictions.update(self.heads[name](inputs))
        return output

    # ------------------------------------------------------------------ changing

    def adapt(self, vocabulary: Vocabulary | None = None, **changes: Any) -> CellModel:
        """Make a new model with other parts, keeping every weight that still fits; this one stays as it is.

        Parameters
        ----------
        vocabulary
            A vocabulary that extends this model's; new genes get fresh rows of the gene table.
        **changes
            Fields of :class:`~scgpt_tools.models.config.ModelConfig` to exchange, such as ``heads``.

        Returns
        -------
        The new model, on the same device.  Its ``transfer`` says which weights it has of this one; parts that start from
        scratch are logged too.
        """
        if vocabulary is not None:
            changes |= _extended(self.config, self.vocabulary, vocabulary)
        model = CellModel(replace(self.config, **changes), vocabulary or self._vocabulary, name=self.name)
        rows = (self.config.n_tokens, model.config.n_tokens)
        model.transfer = copy_weights(self.state_dict(), model.state_dict(), rows=rows)
        if model.transfer.missing:
            logger.info("%s", model.transfer)
        return model.to(self.device).train(self.training)

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
        device: str | torch.device | None = None,
        local_files_only: bool = False,
    ) -> CellModel:
        """Load a released model by name, a repository of the Hugging Face Hub, or a folder.

        Parameters
        ----------
        model
            A name in :func:`scgpt_tools.models.available` such as ``"scgpt-human"``, a repository id
            ``"organisation/name"``, or a folder: scGPT's (``args.json``, ``vocab.json``, ``best_model.pt`` or
            ``model.pt``) or ours (``config.json``, ``vocab.json``, ``model.safetensors``).
        revision
            Branch, tag or commit of the repository.
        cache_dir
            Where downloads are kept; ``None`` takes ``settings.cache_dir``, then the Hub's own default.
        token
            Access token for a private repository.
        device
            Where to put the weights; ``None`` for CUDA or MPS if there is one, else CPU.
        local_files_only
            Never use the network.

        Returns
        -------
        The model in eval mode.

        Raises
        ------
        FileNotFoundError
            If the folder or the repository lacks a file; the message lists what was found.
        ValueError
            If a tensor of the file has no place in the model or the model lacks one in the file, if weights are not
            finite, or if weights and vocabulary are not the ones that were saved together.
        """
        folder = zoo.fetch(
            model, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        return cls._of_checkpoint(formats.read(folder), zoo.display_name(model)).to(resolve_device(device)).eval()

    @classmethod
    def _of_checkpoint(cls, checkpoint: formats.Checkpoint, name: str) -> CellModel:
        check_parts(checkpoint.config, checkpoint.weights)
        # Built without memory, then given the tensors of the file: no weight is made that another replaces.
        with without_memory():
            model = cls(checkpoint.config, checkpoint.vocabulary, name=name)
        _give_weights(model, checkpoint)
        model.transfer = checkpoint.transfer
        return model

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write weights (safetensors), configuration and vocabulary to a folder.

        The files take their place together: whatever happens meanwhile, the folder holds the old model or this one.
        ``config.json`` holds the checksums of the others, which are compared when the model is loaded.

        Parameters
        ----------
        folder
            Where to write; it is made if there is none.  A model that this function wrote there before is replaced.

        Returns
        -------
        The folder.

        Raises
        ------
        ValueError
            If the folder holds a checkpoint of another format.
        FileExistsError
            If it holds files of these names that this package did not write.
        """
        return formats.write(folder, self.config, self.vocabulary, self.state_dict(), "native")

    def export(self, folder: str | PathLike[str], *, attention_names: str = "torch") -> Path:
        """Write a folder that the original scGPT loads; all files take their place together, as for :meth:`save`.

        Parameters
        ----------
        folder
            Where to write ``args.json``, ``vocab.json`` and ``best_model.pt``.  What this function wrote there before is
            replaced.
        attention_names
            Spelling of the attention tensors: ``"torch"``, ``"fused"`` (releases up to 0.2.4 with flash attention) or
            ``"wrapped"`` (0.2.5 with flash attention).  Loaders that skip names which they do not know leave attention
            at random: helical does so with ``"wrapped"``; for it, take ``"fused"``.

        Returns
        -------
        The folder.

        Raises
        ------
        ValueError
            If the folder holds a checkpoint of another format, or the original's layers of that spelling compute
            something else.
        FileExistsError
            If it holds files of these names that this package did not write, such as a release of the original.
        """
        return formats.write(
            folder, self.config, self.vocabulary, self.state_dict(), "scgpt", attention_names=attention_names
        )


def _build_heads(config: ModelConfig) -> nn.ModuleDict:
    dim, heads = config.dim, config.heads
    width = 2 * dim if config.context.batches or config.context.modalities else dim
    built: dict[str, nn.Module] = {}
    if (expression := heads.expression) is not None:
        if expression.style == "affine":
            built["expression"] = AffineExpressionHead(
                dim,
                nonzero=expression.nonzero,
                activation=expression.activation,
                adaptive_offset=expression.adaptive_offset,
            )
        else:
            built["expression"] = ExpressionHead(dim, width, nonzero=expression.nonzero)
    if (from_cell := heads.expression_from_cell) is not None:
        kind = FromCellInContextHead if from_cell.context_in_query else FromCellHead
        query = width if from_cell.context_in_query else dim
        built["expression_from_cell"] = kind(width=width, query=query, style=from_cell.style, nonzero=from_cell.nonzero)
    if (classifier := heads.cell_type) is not None:
        built["cell_type"] = ClassifierHead(dim, classifier.classes, classifier.layers)
    if (adversary := heads.batch) is not None:
        built["batch"] = AdversaryHead(dim, adversary.classes, adversary.layers)
    return nn.ModuleDict(built)


def _check_vocabulary(config: ModelConfig, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        return
    if len(vocabulary) > config.n_tokens:
        raise ValueError(
            f"Expected a vocabulary of at most {config.n_tokens} tokens, the rows of the gene table, found "
            f"{len(vocabulary)}."
        )
    if vocabulary.pad_id != config.pad_id:
        raise ValueError(f"Expected padding to have id {config.pad_id}, found {vocabulary.pad_id} in the vocabulary.")


def _extended(config: ModelConfig, old: Vocabulary, new: Vocabulary) -> dict[str, Any]:
    if new.tokens[: len(old)] != old.tokens:
        raise ValueError("Expected a vocabulary that begins with the model's own tokens; make it with `extended`.")
    return {"n_tokens": max(config.n_tokens, len(new))}


def _give_weights(model: CellModel, checkpoint: formats.Checkpoint) -> None:
    """Put the tensors of a file into a model without memory; every name has to be used and every one filled."""
    wanted = {key: tensor.shape for key, tensor in model.state_dict().items()}
    found = {key: tensor.shape for key, tensor in checkpoint.weights.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        lines = [f"{key}: expected {_shape(wanted.get(key))}, found {_shape(found.get(key))}" for key in wrong[:8]]
        raise ValueError(
            f"{len(wrong)} tensors of the checkpoint do not fit the model that its configuration describes:\n  "
            + "\n  ".join(lines)
        )
    kinds = {key: tensor.is_floating_point() for key, tensor in model.state_dict().items()}
    for key, tensor in checkpoint.weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_floating_point() != kinds[key]:
            expected = "plain floating-point numbers" if kinds[key] else "plain whole numbers"
            raise ValueError(f"Expected {key} of the checkpoint to hold {expected}, found {tensor.dtype}.")
    model.load_state_dict(own_weights(checkpoint.weights, model.name), assign=True)


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
