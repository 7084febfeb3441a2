"""PerturbLab's ``scGPTModel``: embeddings, classes and masked expression of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_choice, check_fraction
from scgpt_tools.data.module import CellDataModule
from scgpt_tools.models.config import ClassifierConfig
from scgpt_tools.models.scgpt.transformer import TransformerModel
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.tokens.tokenizer import TokenizerConfig
from scgpt_tools.wrappers.base import Wrapper
from scgpt_tools.wrappers.batches import BatchLoader, CellsInParts, as_screen, in_parts, training_parts
from scgpt_tools.wrappers.config import BINS
from scgpt_tools.wrappers.embeddings import embed_cells, embed_genes
from scgpt_tools.wrappers.losses import BATCHES, LABELS, batch_of, losses_of, terms_of
from scgpt_tools.wrappers.tables import has_labels, open_table
from scgpt_tools.wrappers.training import History, run

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.wrappers.batches import BatchDict, Dataset
    from scgpt_tools.wrappers.config import scGPTConfig

# Rows of the value table that are no bins: that of padding and that of masks.
_MARKERS = 2


class scGPTModel(Wrapper):
    """scGPT for cells: embeddings, classes, masked expression and integration, with PerturbLab's methods.

    ``model`` is a :class:`~scgpt_tools.models.TransformerModel` and ``cell_model`` the same network as the rest of this
    package takes it.  Data are an :class:`~scgpt_tools.PerturbationData` or an AnnData; they are never changed.

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

    Examples
    --------
    >>> from scgpt_tools import scGPTConfig
    >>> config = scGPTConfig(d_model=16, nhead=2, d_hid=16, nlayers=1)
    >>> scGPTModel(config, gene_list=["CD3D", "LYZ"], device="cpu").vocab.tokens
    ('CD3D', 'LYZ', '<pad>', '<cls>')
    """

    model: TransformerModel

    _refused = ("embedder.perturbation.", "heads.expression.slope.", "context.modality.")
    _may_lose = ()

    # ------------------------------------------------------------------ minibatches

    @classmethod
    def mask_values(
        cls, values: Tensor, mask_ratio: float = 0.4, mask_value: float = -1, pad_value: float = 0, *, seed: int = 0
    ) -> Tensor:
        """Hide a part of the values of each cell that are not padding; a new tensor (B, L).

        Parameters
        ----------
        values
            (B, L) values.
        mask_ratio
            Part of each cell's values to hide.
        mask_value
            What stands in their place.
        pad_value
            Value of what is never hidden.
        seed
            Seed of the draw.
        """
        shown = TokenBatch(genes=torch.zeros_like(values, dtype=torch.int64), values=values, mask=values != pad_value)
        return MaskValues(ratio=mask_ratio, mask_value=mask_value, keep_first=0)(shown, rng=seed).values

    def prepare_dataloader(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        mask_ratio: float = 0.0,
        mask_value: float = -1,
        return_split: str | None = None,
        seed: int = 0,
    ) -> BatchLoader | dict[str, BatchLoader]:
        """Make minibatches of tokens, as the model was trained on: expressed genes, bins, the cell token first.

        Parameters
        ----------
        dataset
            Cells.
        batch_size
            Cells of a minibatch.
        shuffle
            Shuffle the part ``"train"``; other parts keep their order.
        drop_last
            Leave out a last minibatch that is smaller.
        num_workers
            Threads that prepare minibatches ahead.
        mask_ratio
            Part of the values of each cell to hide; 0 hides none.
        mask_value
            What the network sees in their place.
        return_split
            ``"all"`` cells, a part of ``obs["split"]`` by name, or ``None`` for a dictionary of its parts (without that
            column, of ``"all"``).
        seed
            Seed of the order, of the genes of long cells and of what is hidden.

        Returns
        -------
        Loaders of dictionaries: ``src`` (B, L) token ids, ``values``, ``masked_values`` (what the network sees),
        ``src_key_padding_mask`` (True at padding), ``index`` (B,) rows; with hidden values ``target_values``; where the
        model looks at batches ``batch_labels``, numbered alike in all parts; with several classes and their column
        ``celltype_labels``, -1 for unknown ones.
        """
        check_arguments(scGPTModel.prepare_dataloader, locals())
        adata = as_screen(dataset).adata
        table = open_table(self, adata, labels=has_labels(self, adata), batches=self.config.needs_batches)
        corruption = self._corruption(mask_ratio, mask_value)

        def make(name: str, rows: NDArray[np.int64]) -> BatchLoader:
            data = CellsInParts([table], self.cell_model.tokenizer, corruption=corruption, train=rows)
            data.shuffle, data.drop_last = shuffle and name == "train", drop_last
            return BatchLoader(
                data, _as_dict, shuffle=data.shuffle, batch_size=batch_size, workers=num_workers, seed=seed
            )

        return in_parts(adata, return_split, make)

    # ------------------------------------------------------------------ network and loss

    def forward(
        self,
        batch_data: BatchDict,
        *,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        do_sample: bool = False,
    ) -> BatchDict:
        """Run the network on a minibatch of :meth:`prepare_dataloader`.

        Parameters
        ----------
        batch_data
            The minibatch, on any device.
        CLS, CCE, MVC, ECS, do_sample
            Which further results to compute, as in :meth:`scgpt_tools.models.TransformerModel.forward`.

        Returns
        -------
        ``mlm_output`` (B, L), ``cell_emb`` (B, D), and as asked for or built in ``cls_output`` (B, classes),
        ``mvc_output``, ``mlm_zero_probs``, ``mvc_zero_probs``, ``loss_cce``, ``loss_ecs``, ``dab_output``.

        Raises
        ------
        ValueError
            If the model has no head for ``MVC``, or the minibatch has no labels that the model needs.
        """
        self._check_flags(MVC=MVC)
        data = {name: tensor.to(self.device) for name, tensor in batch_data.items()}
        shown = data.get("masked_values", data["values"])
        return self.model(
            data["src"],
            shown.float(),
            data["src_key_padding_mask"],
            data.get(BATCHES) if self.model.takes_labels else None,
            CLS=CLS,
            CCE=CCE,
            MVC=MVC,
            ECS=ECS,
            do_sample=do_sample,
        )

    __call__ = forward

    def compute_loss(
        self,
        batch_data: BatchDict,
        output_dict: BatchDict | None = None,
        *,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        do_sample: bool = False,
        mask_value: float = -1,
    ) -> dict[str, Tensor]:
        """Score the outputs of a minibatch.

        Unlike PerturbLab, which computes classes and the contrastive loss and leaves them out of the sum, all terms
        that are asked for count.

        Parameters
        ----------
        batch_data
            The minibatch, with hidden values.
        output_dict
            Outputs of :meth:`forward`; ``None`` computes them.
        CLS, CCE, MVC, ECS
            Which terms to have; ``CLS`` has one where the minibatch has labels.
        do_sample
            For :meth:`forward`.
        mask_value
            What marks hidden values.

        Returns
        -------
        ``loss``, the sum of the others: ``loss_mse`` of hidden values, ``loss_zero_prob`` (models with zero
        probabilities; those from the cell embedding are not scored, as in the original), ``loss_gepc`` (``MVC``),
        ``loss_cls``, ``loss_cce``, ``loss_ecs`` times 10 and ``loss_dab`` times its weight, or what the settings say
        instead.

        Raises
        ------
        ValueError
            If there is nothing to learn, or no value that ``mask_value`` marks.
        """
        if output_dict is None:
            output_dict = self.forward(batch_data, CLS=CLS, CCE=CCE, MVC=MVC, ECS=ECS, do_sample=do_sample)
        data = {name: tensor.to(self.device) for name, tensor in batch_data.items()}
        terms = terms_of(
            self.config, masked="target_values" in data, labels=CLS and LABELS in data, CCE=CCE, MVC=MVC, ECS=ECS
        )
        batch = batch_of(data, mask_value=mask_value)
        if batch.hidden is not None and not batch.hidden.any():
            raise ValueError(_nothing_hidden(batch, mask_value))
        return losses_of(terms, output_dict, batch)

    def train_model(
        self,
        dataset: Dataset,
        epochs: int = 10,
        batch_size: int = 32,
        lr: float = 1e-4,
        *,
        mask_ratio: float = 0.4,
        mask_value: float = -1,
        use_amp: bool = True,
        grad_clip: float | None = 1.0,
        log_interval: int = 100,
        save_dir: str | PathLike[str] | None = None,
        save_interval: int | None = None,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        scheduler_step: int = 1,
        scheduler_gamma: float = 0.99,
        seed: int = 0,
        **changes: Any,
    ) -> History:
        """Train on the part ``"train"``, validate on ``"val"`` (or ``"valid"``), and keep the best weights.

        Parameters
        ----------
        dataset
            Cells; without ``obs["split"]`` all are trained on and the last weights are kept.
        epochs, batch_size, lr
            Visits of every cell, cells of a minibatch, learning rate of Adam.
        mask_ratio, mask_value
            As for :meth:`prepare_dataloader`.
        use_amp
            Mixed precision on CUDA devices: bf16, or fp16 where that is missing.
        grad_clip
            Largest norm of the gradients; ``None`` does not clip.
        log_interval
            Minibatches between two lines of the log.
        save_dir
            Where to keep ``epoch_1``, ``epoch_2``, ... and ``best``, which :meth:`from_pretrained` reads, and in ``run``
            the history and what a run goes on from (``resume=True``); ``None`` keeps nothing.
        save_interval
            Minibatches between two further ones, ``checkpoint_epoch1_batch100``.
        CLS, CCE, MVC, ECS
            Terms of the loss, as for :meth:`compute_loss`; ``CLS`` needs classes.
        scheduler_step, scheduler_gamma
            Epochs after which the learning rate is multiplied by ``scheduler_gamma``.
        seed
            Seed of all draws.
        **changes
            Fields of :class:`~scgpt_tools.train.FitConfig` to change, such as ``patience``.

        Returns
        -------
        ``train_loss``, ``valid_loss`` (empty without validation) and ``epoch_times`` (seconds), one number an epoch.

        Raises
        ------
        ImportError
            If Lightning is not installed.
        ValueError
            If a term lacks its head, its labels or hidden values, or there is no cell to train on.
        """
        check_arguments(scGPTModel.train_model, locals())
        self._check_flags(MVC=MVC)
        adata = as_screen(dataset).adata
        if CLS and not has_labels(self, adata):
            raise ValueError(
                f"Expected classes in obs[{self.config.label_key!r}] and a model with n_cls above 1 for CLS=True, found "
                f"n_cls={self.config.n_cls} and the columns {list(adata.obs)}."
            )
        corruption = self._corruption(mask_ratio, mask_value)
        terms = terms_of(self.config, masked=corruption is not None, labels=CLS, CCE=CCE, MVC=MVC, ECS=ECS)
        train, held_out = training_parts(adata)
        data = CellDataModule(
            [open_table(self, adata, labels=CLS, batches=self.config.needs_batches)],
            self.cell_model.tokenizer,
            corruption=corruption,
            train=train,
            validation=held_out,
        )
        return run(
            self,
            data,
            list(terms.values()),
            {
                "epochs": epochs, "batch_size": batch_size, "lr": lr, "clip": grad_clip, "rng": seed,
                "step_epochs": scheduler_step, "step_factor": scheduler_gamma, **changes,
            },
            use_amp=use_amp,
            folder=save_dir,
            log_interval=log_interval,
            save_interval=save_interval,
        )  # fmt: skip

    # ------------------------------------------------------------------ results

    def predict_embeddings(
        self,
        dataset: Dataset | None = None,
        batch_size: int = 32,
        embedding_type: str = "cell",
        *,
        normalize: bool = True,
        precision: Precision = "auto",
        seed: int = 0,
    ) -> NDArray[np.float32]:
        """Embed cells or genes.

        Parameters
        ----------
        dataset
            Cells; ``None`` for the genes of the whole vocabulary.
        batch_size
            Cells computed at once; the result does not depend on it.
        embedding_type
            ``"cell"`` or ``"gene"``.
        normalize
            Scale cell embeddings to unit length, as scGPT's own function does.
        precision
            As for :func:`scgpt_tools.tl.embed`.
        seed
            Seed of the genes of long cells.

        Returns
        -------
        (cells, d_model) in the order of ``obs``, the same as :func:`scgpt_tools.tl.embed` writes; or (genes, d_model) in
        the order of ``var``, NaN for genes outside the vocabulary, and of the tokens without ``dataset``.
        """
        check_arguments(scGPTModel.predict_embeddings, locals())
        adata = None if dataset is None else as_screen(dataset).adata
        if check_choice("embedding_type", embedding_type, ("cell", "gene")) == "gene":
            return embed_genes(self, adata)
        if adata is None:
            raise ValueError("Expected `dataset`, the cells to embed, found None.")
        return embed_cells(self, adata, batch_size=batch_size, normalize=normalize, precision=precision, seed=seed)

    # ------------------------------------------------------------------ refusals

    def _check_flags(self, *, MVC: bool) -> None:
        if MVC and not self.config.do_mvc:
            raise ValueError(
                "Expected a model with do_mvc=True for MVC=True, found do_mvc=False. Set it in the configuration, or "
                "pass it to `from_pretrained`."
            )

    def _corruption(self, ratio: float, mask_value: float) -> MaskValues | None:
        if check_fraction("mask_ratio", ratio, one=False) == 0:
            return None
        bins = self.cell_model.config.bins
        rows = 0 if bins is None else bins.rows
        if bins is not None and not 0 <= mask_value < rows:
            raise ValueError(
                f"Expected `mask_value` to be a row of the value table, 0 to {rows - 1}, with input_emb_style='category', "
                f"found {mask_value}. The last row, {rows - 1}, is free for it."
            )
        return MaskValues(ratio=ratio, mask_value=mask_value)

    # ------------------------------------------------------------------ putting together

    def _resolved(self, config: scGPTConfig) -> scGPTConfig:
        return replace(config, n_input_bins=config.n_input_bins or BINS)

    def _network(self, config: scGPTConfig) -> TransformerModel:
        if config.needs_batches and config.num_batch_labels is None and config.domain_spec_batchnorm != "batchnorm":
            raise ValueError(
                "Expected `num_batch_labels`, the number of technical batches, with do_dab, use_batch_labels or "
                f"domain_spec_batchnorm, found None. Pass num_batch_labels=adata.obs[{config.batch_label_key!r}].nunique()."
            )
        names = ("do_dab", "use_batch_labels", "num_batch_labels", "input_emb_style", "n_input_bins")
        own = {name: getattr(config, name) for name in (*names, "use_generative_training")}
        return TransformerModel(**self._shared(config), **own)

    def _described(self, described: ModelConfig, checkpoint: ModelConfig | None) -> ModelConfig:
        embedder, heads, config = described.embedder, described.heads, self.config
        if embedder.norm == "domain_of_first":  # wrong for minibatches of several batches
            embedder = replace(embedder, norm="domain")
        # The released form has none, and the seed of a classifier costs nothing.
        classifier = heads.get("cell_type") or ClassifierConfig(classes=config.n_cls, layers=config.nlayers_cls)
        return replace(
            described,
            embedder=embedder,
            heads=heads.replace(cell_type=classifier),
            # The original's mean runs over padding too, so a cell would depend on its neighbours.
            pooling="mean" if described.pooling == "mean_with_padding" else described.pooling,
            tokenizer=_tokenizer(config)
            if checkpoint is None
            else replace(checkpoint.tokenizer, length=config.max_seq_len),
        )


def _tokenizer(config: scGPTConfig) -> TokenizerConfig:
    bins, category = config.n_input_bins or BINS, config.input_emb_style == "category"
    return TokenizerConfig(
        bins=bins - _MARKERS if category else bins,
        length=config.max_seq_len,
        cls_value=float(config.pad_value),
        pad_value=float(config.pad_value),
        mask_value=float(bins - 1) if category else -1.0,
    )


def _nothing_hidden(batch: TokenBatch, mask_value: float) -> str:
    changed = batch.values[batch.mask & (batch.values != batch.require("target"))]
    message = f"Expected values that mask_value={mask_value:g} marks as hidden, found none. "
    if changed.numel():
        return message + f"Pass mask_value={changed.mode().values.item():g}, which this minibatch seems to have."
    return message + "This minibatch hides nothing; pass a larger `mask_ratio` to `prepare_dataloader`."


def _as_dict(batch: TokenBatch) -> BatchDict:
    found = {
        "src": batch.genes,
        "values": batch.values if batch.target is None else batch.target,
        "masked_values": batch.values,
        "src_key_padding_mask": ~batch.mask,
        "target_values": batch.target,
        "index": batch.index,
        BATCHES: batch.batch_id,
        LABELS: batch.label,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}
