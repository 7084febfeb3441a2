"""What both wrappers are: a network with scGPT's names, its settings and its genes; and their way from and to files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from scgpt_tools.models import formats, zoo
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import AdversaryConfig, ClassifierConfig, ModelConfig
from scgpt_tools.models.formats.scgpt import WEIGHTS
from scgpt_tools.models.formats.scgpt_config import transformer_of
from scgpt_tools.models.modes import without_memory
from scgpt_tools.models.precision import resolve_device
from scgpt_tools.models.transfer import Transfer
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.wrappers.config import args_with, changed, check_changes, config_of, genes_of
from scgpt_tools.wrappers.genes import listed, needed, vocabulary_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike
    from pathlib import Path
    from typing import Self

    from scgpt_tools.models.scgpt.base import ScGPTModule
    from scgpt_tools.vocabulary import Vocabulary
    from scgpt_tools.wrappers.config import scGPTConfig

logger = logging.getLogger(__name__)

# What no model can do without; everything else may be new.
_CORE = ("embedder.genes.", "embedder.values.", "encoder.")
_PLAIN = WEIGHTS[1]


class Wrapper(ABC):
    """A network in ``model``, its settings in ``config``, its genes in ``vocab``.

    Parameters
    ----------
    config
        Settings.
    gene_list
        Genes of a model that starts from scratch, numbered as scGPT numbers them; or, if ``config`` is that of a
        checkpoint, the genes to read, of which absent ones are added.
    device
        Where to put the weights; ``None`` for CUDA or MPS if there is one, else CPU.  A device that is not there is
        replaced by the CPU, which is logged.
    """

    config: scGPTConfig
    model: ScGPTModule
    gene_list: tuple[str, ...] | None
    """Genes that are read; ``None`` for all that the model knows."""

    _refused: ClassVar[tuple[str, ...]]
    """Beginnings of tensors that make a checkpoint one for something else, if they have no place."""
    _may_lose: ClassVar[tuple[str, ...]]
    """Beginnings of tensors that may be left behind."""

    def __init__(
        self,
        config: scGPTConfig,
        gene_list: Iterable[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        genes = None if gene_list is None else listed(gene_list)
        vocabulary = vocabulary_of(config, genes)
        rows = max(config.ntoken or 0, len(vocabulary))
        self._assemble(replace(config, ntoken=rows, vocab=vocabulary), genes if config.vocab is not None else None)
        self.to(device)

    @abstractmethod
    def _network(self, config: scGPTConfig) -> ScGPTModule:
        """Build the network of some settings."""

    @abstractmethod
    def _described(self, described: ModelConfig, checkpoint: ModelConfig | None) -> ModelConfig:
        """Complete the description that the network makes of itself, with what a checkpoint adds."""

    @abstractmethod
    def _resolved(self, config: scGPTConfig) -> scGPTConfig:
        """Fill in what the settings leave open."""

    # ------------------------------------------------------------------ what is inside

    @property
    def cell_model(self) -> CellModel:
        """The same network as the other functions of this package take it, with genes and tokenizer."""
        return self.model.cell_model

    @property
    def vocab(self) -> Vocabulary:
        """Genes and their ids."""
        return self.cell_model.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cell_model.device

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Switch dropout on (or off); returns the wrapper."""
        self.model.train(mode)
        return self

    def eval(self) -> Self:
        """Switch dropout off; returns the wrapper."""
        return self.train(mode=False)

    def to(self, device: str | torch.device | None) -> Self:
        """Move the weights; returns the wrapper."""
        self.model.to(_available(device))
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cell_model.name!r}, {len(self.vocab)} tokens, {self.cell_model.dim} wide)"

    # ------------------------------------------------------------------ files

    def save(self, directory: str | PathLike[str]) -> Path:
        """Write ``model.pt``, ``args.json`` and ``vocab.json``, which take their place together.

        Parameters
        ----------
        directory
            Folder to write; :meth:`from_pretrained`, :meth:`scgpt_tools.models.CellModel.from_pretrained` and the original
            read it.  A model in scGPT's format that this package wrote there is replaced.

        Returns
        -------
        The folder.

        Raises
        ------
        ValueError
            If the folder holds a checkpoint of another format.
        FileExistsError
            If it holds files of these names that this package did not write, such as a release of the original.
        """
        cells = self.cell_model
        # The original has no layers with that norm and torch's spelling.
        spelling = "fused" if transformer_of(cells.config).norm == "replace" else "torch"
        return formats.write(
            directory,
            cells.config,
            cells.vocabulary,
            cells.state_dict(),
            "scgpt",
            attention_names=spelling,
            file=_PLAIN,
            amend=lambda args: args_with(args, self.config, self.gene_list),
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        device: str | torch.device | None = None,
        gene_list: Iterable[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        **changes: Any,
    ) -> Self:
        """Load a released model by name, a repository of the Hugging Face Hub, or a folder.

        Parameters
        ----------
        model
            What :meth:`scgpt_tools.models.CellModel.from_pretrained` takes, such as ``"scgpt-human"``.
        device
            As for the class.
        gene_list
            Genes to read; the others are left out of the cells.  The vocabulary stays the checkpoint's, and genes that
            it lacks are appended with untrained rows.
        revision, token, cache_dir
            As for :meth:`scgpt_tools.models.CellModel.from_pretrained`.
        force_download
            Download the files again although they are in the cache.
        resume_download
            Has no effect: the client always goes on where a transfer broke off.
        **changes
            Settings to change, such as ``n_cls=5`` or ``do_dab=True``; parts that are new start from scratch.

        Returns
        -------
        The wrapper in eval mode.

        Raises
        ------
        ValueError
            If a tensor of the checkpoint has no place in the model and no change asks for that, or the model has a part
            that cannot do without the checkpoint.
        """
        check_changes(changes)
        folder = zoo.fetch(model, revision=revision, cache_dir=cache_dir, token=token, force_download=force_download)
        checkpoint = formats.read(folder)
        source = CellModel._of_checkpoint(checkpoint, zoo.display_name(model)).eval()
        args = checkpoint.settings
        config = changed(config_of(source.config, source.vocabulary, args), changes)
        genes = genes_of(args) if gene_list is None else listed(gene_list)
        wrapper = cls.__new__(cls)
        wrapper._take_over(source, config, genes, changed=bool(changes))
        return wrapper.to(device).eval()

    # ------------------------------------------------------------------ putting together

    def _assemble(self, config: scGPTConfig, genes: tuple[str, ...] | None) -> None:
        """Start from scratch."""
        self.config, self.gene_list = self._resolved(config), genes
        # The classes with scGPT's names know no genes: they lend their methods, and the description of their network.
        with without_memory():
            self.model = self._network(self.config)
        self.model.cell_model = CellModel(self._described(self.model.cell_model.config, None), config.vocab)

    def _take_over(
        self, source: CellModel, config: scGPTConfig, genes: tuple[str, ...] | None, *, changed: bool
    ) -> None:
        """Start from trained weights."""
        vocabulary = source.vocabulary.extended(genes or ())
        if new := vocabulary.tokens[len(source.vocabulary) :]:
            logger.warning("%d genes are new to %s; their rows are not trained: %s.", len(new), source.name, _some(new))
        rows = max(source.config.n_tokens, len(vocabulary))
        self.config, self.gene_list = self._resolved(replace(config, ntoken=rows, vocab=vocabulary)), genes
        with without_memory():
            self.model = self._network(self.config)
        wanted = _with_names(self._described(self.model.cell_model.config, source.config), source.config)
        # What is new is drawn by a seed of its own, so that equal calls give equal models.
        with own_random_numbers(0):
            inner = source.adapt(vocabulary, **{each.name: getattr(wanted, each.name) for each in fields(ModelConfig)})
        self._report(source.name, inner.transfer or Transfer(), changed=changed)
        self.model.cell_model = inner

    @staticmethod
    def _shared(config: scGPTConfig) -> dict[str, Any]:
        """Arguments that both of scGPT's classes have."""
        genes = needed(config.vocab)
        names = (
            *("ntoken", "d_model", "nhead", "d_hid", "nlayers", "nlayers_cls", "n_cls", "dropout", "pad_token"),
            *("pad_value", "do_mvc", "domain_spec_batchnorm", "cell_emb_style", "mvc_decoder_style", "ecs_threshold"),
            *("explicit_zero_prob", "use_fast_transformer", "fast_transformer_backend", "pre_norm"),
        )
        return {"vocab": {config.pad_token: genes.pad_id}} | {name: getattr(config, name) for name in names}

    def _report(self, source: str, transfer: Transfer, *, changed: bool) -> None:
        """Name the tensors that were not taken over, or refuse."""
        lost = [key for key in transfer.missing if key.startswith(_CORE)]
        # Cells of the training, which answers do not depend on.
        may_lose = (*self._may_lose, f"heads.{REFERENCE_CELLS}.")
        lost += [
            key
            for key in transfer.dropped
            if key.startswith(self._refused) or not (changed or key.startswith(may_lose))
        ]
        if lost:
            raise ValueError(
                f"Expected a checkpoint for {type(self).__name__}, found one that does not fit: {transfer} Load it with "
                "`scgpt_tools.CellModel.from_pretrained`, or with the other wrapper."
            )
        if transfer.dropped or any(not key.startswith("heads.cell_type.") for key in transfer.missing):
            logger.warning("%s: %s", source, transfer)


def _with_names(new: ModelConfig, old: ModelConfig) -> ModelConfig:
    """Names of classes and batches, which settings have no place for, from the checkpoint."""
    before, classifier = (config.heads.find("cell_type", ClassifierConfig) for config in (old, new))
    if before is not None and classifier is not None:
        same = before.classes == classifier.classes
        classifier = replace(classifier, names=before.names if same else None)
    adversary = new.heads.find("batch", AdversaryConfig)
    batches = max(new.domains, new.context.batches, adversary.classes if adversary else 0)
    known = old.batch_names if old.batch_names is not None and len(old.batch_names) == batches else None
    return replace(new, heads=new.heads.replace(cell_type=classifier), batch_names=known)


def _available(device: str | torch.device | None) -> torch.device:
    """As asked for, or the CPU in place of a GPU that is not there."""
    try:
        return resolve_device(device)
    except ValueError:
        if not str(device).startswith(("cuda", "mps")):
            raise
        logger.warning("There is no device %r here; the CPU is used.", str(device))
        return torch.device("cpu")


def _some(names: tuple[str, ...], *, shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
