"""One model class for every family: embed, encode, pool, predict.

A family differs by its :class:`~scgpt_tools.models.config.ModelConfig`, not by code.  Weights, vocabulary and tokenizer
travel together.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_fraction, check_type
from scgpt_tools.models import formats, zoo
from scgpt_tools.models.executor import embed_cells, layout_of, visible_to
from scgpt_tools.models.families import original_format
from scgpt_tools.models.formats.base import check_parts, own_weights
from scgpt_tools.models.modes import without_memory
from scgpt_tools.models.precision import resolve_device
from scgpt_tools.models.publishing import push_folder
from scgpt_tools.models.summary import as_html, as_text
from scgpt_tools.models.transfer import Transfer, by_part, copy_weights
from scgpt_tools.nn.context import Context
from scgpt_tools.nn.embedders import Embedder
from scgpt_tools.nn.output import CellOutput
from scgpt_tools.nn.pooling import pool
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS
from scgpt_tools.nn.sockets import HeadInput
from scgpt_tools.tokens.batch import CHANNELS
from scgpt_tools.tokens.joint import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set
    from os import PathLike
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.executor import Read
    from scgpt_tools.models.zoo import VocabularySource
    from scgpt_tools.nn.attention import Layout
    from scgpt_tools.nn.sockets import Embedded, Encoded
    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer
    from scgpt_tools.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class CellModel(nn.Module):
    """A transformer over the genes of single cells.

    Printed, it says what it is: family, size, genes, what it reads and predicts, classes and batches.

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
        self.comparison: pd.DataFrame | None = None
        """How the training that made these weights scored on held-out cells, beside plain methods, one row each:
        ``accuracy``, ``macro_f1`` and the number of ``cells``; of a classifier only, and not saved with the model."""
        self.embedder = Embedder(config.embedder, config.sizes)
        self.encoder = config.encoder.build(config.sizes)
        self.context = Context(config.dim, **asdict(config.context))
        self.heads = nn.ModuleDict({name: head.build(config.sizes) for name, head in config.heads.items()})

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
        return next(self.embedder.parameters()).device

    @property
    def by_task(self) -> list[nn.Module]:
        """What a task brings with it: heads, context, and parts of the embedder such as flags of perturbed genes."""
        return [self.heads, self.context, *self.embedder.by_task]

    @property
    def checksum(self) -> str:
        """SHA-256 over names and values of all tensors and the vocabulary, whatever file they came from."""
        digest = hashlib.sha256(self._vocabulary.checksum.encode() if self._vocabulary is not None else b"")
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def architecture(self) -> str:
        """The tree of modules, as torch prints it.

        Returns
        -------
        Several lines of text.
        """
        return super().__repr__()

    # ------------------------------------------------------------------ computing

    def forward(
        self,
        batch: TokenBatch,
        heads: Sequence[str] | None = None,
        *,
        attention: str | None = None,
        cell: Tensor | None = None,
        read: Read = "all",
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
        read
            Tokens of which something is read after the encoder: ``"all"``, ``"hidden"`` for those of ``batch.hidden`` and the
            first of each cell, or ``"first"``.  Others may be 0, what is predicted of them has no meaning, and cells that are
            pooled from them are NaN.

        Returns
        -------
        Token, gene and cell embeddings and the predictions of the heads.
        """
        kinds = self.config.heads
        for_cells = bool(heads) and all(name in kinds and kinds[name].of_cells for name in heads or ())
        return self._run(batch, heads, layout_of(self, batch, attention, for_cells=for_cells, read=read), cell=cell)

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
        unseen = {"generated"} if values else {"generated", *CHANNELS}
        layout = layout_of(self, batch, "sdpa")
        return self._run(batch, ("expression",), layout, cell=cell, without=unseen)["expression"]

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
        return embed_cells(self, batch, attention=attention, pooling=pooling or self.config.pooling)

    def _run(
        self,
        batch: TokenBatch,
        heads: Sequence[str] | None,
        layout: Layout,
        *,
        cell: Tensor | None = None,
        without: Set[str] = frozenset(),
    ) -> CellOutput:
        """Embed, encode, pool, predict."""
        embedded, encoded = self.encode(batch, layout, cell=cell, without=without)
        whole = layout.keeps_all or self.config.pooling == "cls"
        pooled = (
            self.pool(encoded.tokens, batch) if whole else encoded.tokens.new_full((len(batch), self.dim), torch.nan)
        )
        predictions = self._predict(batch, embedded, encoded, pooled, self.heads if heads is None else heads)
        return CellOutput(
            encoded.tokens, pooled, embedded.parts, predictions, attention=encoded.weights, streams=encoded.streams
        )

    def encode(
        self,
        batch: TokenBatch | PackedTokens,
        layout: Layout,
        *,
        cell: Tensor | None = None,
        without: Set[str] = frozenset(),
    ) -> tuple[Embedded, Encoded]:
        """From tokens to what the embedder and the encoder make of them; see the sockets of both."""
        if cell is not None and self.encoder.parts:
            raise ValueError(
                f"Expected an encoder that reads one stream, in which cells can stand, found {self.config.encoder.kind!r}."
            )
        embedded = self.embedder(batch, without=without)
        if cell is not None:
            embedded = embedded.with_first(cell)
        packed = embedded.packed(layout.pack, self.encoder.parts)
        return embedded, self.encoder(packed, batch, layout).unpacked(layout.unpack)

    def pool(self, tokens: Tensor, batch: TokenBatch, pooling: str | None = None) -> Tensor:
        """Cells (B, D) from tokens (B, L, D), 0 at padding, or (B, 1, D) with ``cls`` pooling."""
        mask = visible_to(self.encoder, batch)
        if batch.generated is not None:
            mask = mask & ~batch.generated
            tokens = tokens * mask.unsqueeze(-1)
        return pool(pooling or self.config.pooling, tokens, mask, batch.values)

    def _predict(
        self, batch: TokenBatch, embedded: Embedded, encoded: Encoded, cell: Tensor, heads: Iterable[str]
    ) -> dict[str, Tensor]:
        seen = batch.mask if batch.generated is None else batch.mask & ~batch.generated
        context = self.context(
            batch.batch_id, batch.modality, pooling=self.config.pooling, mask=seen, values=batch.values
        )
        inputs = HeadInput(
            batch=batch,
            tokens=encoded.tokens,
            cell=cell,
            parts=embedded.parts,
            streams=encoded.streams,
            token_context=None if context is None else context.tokens,
            cell_context=None if context is None else context.cell,
        )
        predictions: dict[str, Tensor] = {}
        for name in heads:
            if name not in self.heads:
                raise ValueError(f"Expected a head among {list(self.heads)}, found {name!r}; add it with `adapt`.")
            predictions |= {f"{name}{end}": found for end, found in self.heads[name](inputs).items()}
        return predictions

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
        if {"tokenizer", "pooling"} & set(changes):
            # Cells that the model was trained on would lie elsewhere now.
            changes["heads"] = changes.get("heads", self.config.heads).replace(**{REFERENCE_CELLS: None})
        if vocabulary is not None:
            changes |= _extended(self.config, self.vocabulary, vocabulary)
        model = CellModel(replace(self.config, **changes), vocabulary or self._vocabulary, name=self.name)
        rows = (self.config.n_tokens, model.config.n_tokens)
        model.transfer = copy_weights(self.state_dict(), model.state_dict(), rows=rows)
        if model.transfer.missing:
            logger.info("%s", model.transfer)
        return model.to(self.device).train(self.training)

    def average_with(self, start: CellModel, *, share: float = 0.5) -> CellModel:
        """Make a new model of the mean of weights, between the model that training began from and this one.

        It keeps more of what the model knew before than this one does, and has cost no training more
        :cite:p:`Wortsman2022`.  Cells lie elsewhere in its embedding, so embed all of them anew.

        Parameters
        ----------
        start
            The model that this one was fine-tuned from.
        share
            Weight of ``start``: 0 leaves this model as it is, 1 undoes the training.

        Returns
        -------
        The new model, on the same device.  Parts that ``start`` lacks, such as a new head, are those of this model; parts
        that ``start`` alone has are left out, and logged.

        Raises
        ------
        ValueError
            If this model's vocabulary does not begin with that of ``start``, their networks have not the same parts, or
            ``start`` is this model with more parts, as where the two are taken for each other.
        """
        check_type("start", start, CellModel)
        check_fraction("share", share)
        known = start.vocabulary.tokens
        if self.vocabulary.tokens[: len(known)] != known:
            raise ValueError(
                f"Expected the model that {self.name!r} was fine-tuned from, found {start.name!r}, whose vocabulary is another."
            )
        # New pooling or not, cells lie elsewhere, so what is kept of cells is left behind.
        model = self.adapt(pooling=self.config.pooling)
        rows = (start.config.n_tokens, model.config.n_tokens)
        found = copy_weights(start.state_dict(), model.state_dict(), rows=rows, share=float(share))
        shaped = [f"{name!r} has the shape {reason}" for name, reason in found.dropped.items() if reason]
        if shaped or not any(name.startswith("encoder.") for name in found.used):
            raise ValueError(
                f"Expected the model that {self.name!r} was fine-tuned from, found {start.name!r}, in which "
                f"{shaped[0] if shaped else 'no part of the encoder is the same'}."
            )
        if found.dropped:
            parts = by_part(found.dropped)
            if not found.missing:
                raise ValueError(
                    f"Expected the model that {self.name!r} was fine-tuned from, found {start.name!r}, which has more parts: "
                    f"{parts}. Call `average_with` of the fine-tuned model, with the model before as `start`."
                )
            logger.info("Parts of %r that %r lacks are left out of their mean: %s.", start.name, self.name, parts)
        return model

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
        vocabulary: VocabularySource | None = None,
        settings: Mapping[str, Any] | str | PathLike[str] | None = None,
    ) -> CellModel:
        """Load a released model by name, a repository of the Hugging Face Hub, a folder, or a file of weights.

        Parameters
        ----------
        model
            A name in :func:`scgpt_tools.models.available` such as ``"scgpt-human"``, a repository id
            ``"organisation/name"``, or a folder: scGPT's (``args.json``, ``vocab.json``, ``best_model.pt`` or
            ``model.pt``) or ours (``config.json``, ``vocab.json``, ``model.safetensors``).  Or a file of weights
            (``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``, ``.bin``) of any of these formats, a checkpoint of a training
            loop included; which format it is, the names of its tensors tell.
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
        vocabulary
            Genes and their ids, in place of the file beside the weights: a vocabulary, a model, a file, or what ``model``
            takes.
        settings
            Settings in the words of the format, or a file of them, in place of the one beside the weights:
            ``{"nheads": 8}`` for scGPT, say.  Sizes are read off the tensors.

        Returns
        -------
        The model in eval mode.  Its ``transfer`` says what became of every tensor of the file.

        Raises
        ------
        FileNotFoundError
            If the folder or the repository lacks a file; the message lists what was found.
        ValueError
            If a tensor of the file has no place in the model or the model lacks one in the file, if weights are not
            finite, or if weights and vocabulary are not the ones that were saved together.
        """
        place = zoo.fetch(
            model,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            vocabulary=vocabulary is None,
            settings=settings is None,
        )
        checkpoint = formats.read(
            place,
            vocabulary=None if vocabulary is None else zoo.vocabulary_file(vocabulary),
            settings=settings if settings is None or isinstance(settings, Mapping) else as_path("settings", settings),
        )
        return cls._of_checkpoint(checkpoint, zoo.display_name(model)).to(resolve_device(device)).eval()

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
        """Write a folder that the original of the family loads, such as scGPT.

        All files take their place together, as for :meth:`save`.

        Parameters
        ----------
        folder
            Where to write ``args.json``, ``vocab.json`` and ``best_model.pt``, or what the original has instead, such as
            ``deepsc.json``, ``gene_map.csv`` and ``best_model.pt``.  What this function wrote there before is
            replaced.
        attention_names
            Spelling of the attention tensors: ``"torch"``, ``"fused"`` (releases up to 0.2.4 with flash attention) or
            ``"wrapped"`` (0.2.5 with flash attention).  Loaders that skip names which they do not know leave attention
            at random: helical does so with ``"wrapped"``; for it, take ``"fused"``.  Originals other than scGPT and
            scGenePT have one spelling.

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
        original = original_format(self.config)
        # No original keeps cells.
        config = replace(self.config, heads=self.config.heads.replace(**{REFERENCE_CELLS: None}))
        weights = {
            key: tensor for key, tensor in self.state_dict().items() if not key.startswith(f"heads.{REFERENCE_CELLS}.")
        }
        return formats.write(folder, config, self.vocabulary, weights, original, attention_names=attention_names)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str = "Upload model",
        token: str | bool | None = None,
    ) -> str:
        """Save the model to a repository of the Hugging Face Hub, from where :meth:`from_pretrained` loads it by name.

        Parameters
        ----------
        repository
            ``"organisation/name"``; it is made if there is none.
        private
            Of a new repository, whether it is hidden from others.
        revision
            Branch to write to, which has to exist; ``None`` for ``main``.
        message
            Of the commit.
        token
            Access token with the right to write; ``None`` takes the one of ``hf auth login``.

        Returns
        -------
        Address of the commit, which holds the files of :meth:`save` and a page about the model unless there is one.

        Raises
        ------
        PermissionError
            If the hub does not let you write there.
        ConnectionError
            If the hub does not answer, or the session is set offline.
        ValueError
            If ``repository`` is no name of a repository, or ``revision`` none of its branches.
        """
        with TemporaryDirectory(prefix="scgpt-tools-") as folder:
            place = self.save(as_path("folder", folder) / "model")
            return push_folder(place, repository, private=private, revision=revision, message=message, token=token)


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
