"""PerturbLab's ``scGPTPerturbationModel``: expression after perturbations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools.inference.cells import Request, planned
from scgpt_tools.inference.perturbation import Predictor
from scgpt_tools.models.families.scgpt import scgpt_perturbation
from scgpt_tools.models.formats.base import check_weights
from scgpt_tools.models.scgpt.generator import TransformerGenerator
from scgpt_tools.objectives import PerturbedExpression
from scgpt_tools.screens.batches import PerturbationBatches
from scgpt_tools.settings import settings
from scgpt_tools.tokens.perturbations import condition_genes
from scgpt_tools.wrappers.base import Wrapper
from scgpt_tools.wrappers.batches import BatchLoader, in_parts, training_parts
from scgpt_tools.wrappers.genes import needed
from scgpt_tools.wrappers.losses import batch_of, losses_of
from scgpt_tools.wrappers.screens import Screen
from scgpt_tools.wrappers.training import History, run

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.wrappers.batches import BatchDict, Dataset
    from scgpt_tools.wrappers.config import scGPTConfig


class scGPTPerturbationModel(Wrapper):
    """scGPT's generator: expression after a perturbation from that of a control, with PerturbLab's methods.

    ``model`` is a :class:`~scgpt_tools.models.TransformerGenerator` and ``cell_model`` the same network as the rest of
    this package takes it.  Data are an :class:`~scgpt_tools.PerturbationData`, or an AnnData with conditions such as
    ``"ctrl"``, ``"A+ctrl"`` or ``"A+B"`` in ``obs["condition"]`` (else ``obs["perturbation"]``), of log-normalised
    expression; they are never changed.

    From a pre-trained model :meth:`from_pretrained` takes over gene table, value embedding and transformer, names what
    starts from scratch and what is left behind.  ``load_state_dict(..., strict=False)`` takes over the same.

    Parameters
    ----------
    config
        Settings; binning has no place in this model.
    gene_list
        Genes of a model that starts from scratch, numbered as scGPT numbers them; or, if ``config`` is that of a
        checkpoint, the genes to read, of which absent ones are added.
    device
        Where to put the weights; ``None`` for CUDA or MPS if there is one, else CPU.  A device that is not there is
        replaced by the CPU, which is logged.
    """

    model: TransformerGenerator

    _refused = ("context.modality.",)
    _may_lose = ("",)

    # ------------------------------------------------------------------ minibatches

    def prepare_dataloader(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        mask_ratio: float = 0.0,
        return_split: str | None = None,
        seed: int = 0,
    ) -> BatchLoader | dict[str, BatchLoader]:
        """Make minibatches of controls and the perturbed cells that they are to become.

        Cells are paired as ``obsm["ctrl_indices"]`` says, else each with a control drawn by seed.

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
            Must be 0: nothing is hidden from this model.
        return_split
            ``"all"`` cells, a part of ``obs["split"]`` by name, or ``None`` for a dictionary of its parts (without that
            column, of ``"all"``).
        seed
            Seed of the order, of pairs and of genes, where there are more than ``max_seq_len``.

        Returns
        -------
        Loaders of dictionaries: ``src`` (B, L) token ids, ``values`` of the control, ``target_values`` of the cell,
        ``input_pert_flags``, ``src_key_padding_mask`` (True at padding), ``index`` (B,) rows.

        Warns
        -----
        UserWarning
            If cells are left out because a gene that they are perturbed in is no column or no token; all such genes are
            named.
        """
        check_arguments(scGPTPerturbationModel.prepare_dataloader, locals())
        if mask_ratio:
            raise ValueError(f"Expected `mask_ratio` to be 0 for a perturbation model, found {mask_ratio}.")
        screen = Screen(self, dataset, length=self.config.max_seq_len, seed=seed)

        def make(name: str, rows: NDArray[np.int64]) -> BatchLoader:
            data = screen.batches(screen.known(rows))
            data.shuffle, data.drop_last = shuffle and name == "train", drop_last
            return BatchLoader(
                data, _as_dict, shuffle=data.shuffle, batch_size=batch_size, workers=num_workers, seed=seed
            )

        return in_parts(screen.source.adata, return_split, make)

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
            Which further results to compute, as in :meth:`scgpt_tools.models.TransformerGenerator.forward`.

        Returns
        -------
        ``mlm_output`` (B, L), the expression of the perturbed cell, and as asked for the others.
        """
        if MVC and not self.config.do_mvc:
            raise ValueError("Expected a model with do_mvc=True for MVC=True, found do_mvc=False.")
        data = {name: tensor.to(self.device) for name, tensor in batch_data.items()}
        return self.model(
            data["src"],
            data["values"].float(),
            data["input_pert_flags"],
            data["src_key_padding_mask"],
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
        """Score predicted expression: the mean squared error over all genes.

        Parameters
        ----------
        batch_data
            The minibatch.
        output_dict
            Outputs of :meth:`forward`; ``None`` computes them.
        CLS, CCE, MVC, ECS
            Must be False: nothing else is scored.
        do_sample
            For :meth:`forward`.
        mask_value
            Has no effect.

        Returns
        -------
        ``loss`` and ``loss_mse``, which are the same.
        """
        _check_flags(CLS=CLS, CCE=CCE, MVC=MVC, ECS=ECS)
        if output_dict is None:
            output_dict = self.forward(batch_data, do_sample=do_sample)
        data = {name: tensor.to(self.device) for name, tensor in batch_data.items()}
        return losses_of({"loss_mse": PerturbedExpression()}, output_dict, batch_of(data, mask_value=mask_value))

    def train_model(
        self,
        dataset: Dataset,
        epochs: int = 10,
        batch_size: int = 32,
        lr: float = 1e-4,
        *,
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
        """Train on the part ``"train"``, controls included, validate on ``"val"`` (or ``"valid"``), keep the best weights.

        Parameters
        ----------
        dataset
            Cells; without ``obs["split"]`` all are trained on and the last weights are kept.
        epochs, batch_size, lr, use_amp, grad_clip, log_interval, save_dir, save_interval
            As for :meth:`scGPTModel.train_model`.
        CLS, CCE, MVC, ECS
            Must be False, as for :meth:`compute_loss`.
        scheduler_step, scheduler_gamma, seed, **changes
            As for :meth:`scGPTModel.train_model`.

        Returns
        -------
        ``train_loss``, ``valid_loss`` (empty without validation) and ``epoch_times`` (seconds), one number an epoch.

        Warns
        -----
        UserWarning
            As for :meth:`prepare_dataloader`.
        """
        check_arguments(scGPTPerturbationModel.train_model, locals())
        _check_flags(CLS=CLS, CCE=CCE, MVC=MVC, ECS=ECS)
        screen = Screen(self, dataset, length=self.config.max_seq_len, seed=seed)
        train, held_out = training_parts(screen.source.adata)
        data = PerturbationBatches(
            *screen.parts(), train=screen.known(train), validation=screen.known(held_out) if held_out.size else held_out
        )
        return run(
            self,
            data,
            [PerturbedExpression()],
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

    def predict_perturbation(
        self, dataset: Dataset, batch_size: int = 32, *, return_numpy: bool = True, seed: int = 0
    ) -> NDArray[np.float32] | Tensor:
        """Predict every cell under its own condition from the first of its paired controls.

        For perturbations that no cell has, see :func:`scgpt_tools.tl.predict_perturbation` with ``cell_model``.

        Parameters
        ----------
        dataset
            Cells.
        batch_size
            Cells computed at once; the result does not depend on it.
        return_numpy
            An array instead of a tensor on the CPU.
        seed
            Seed of the pairs, where there are none.

        Returns
        -------
        (cells, genes) in the order of ``obs`` and ``var``.  Genes outside the vocabulary keep the value of the control;
        rows of ignored labels are NaN.

        Raises
        ------
        ValueError
            If a perturbed gene is no column or no token, all of which are named, or a prediction is not finite.
        """
        check_arguments(scGPTPerturbationModel.predict_perturbation, locals())
        check_weights(self.cell_model.state_dict(), repr(self.cell_model.name))
        screen = Screen(self, dataset, length=None, seed=seed)
        rows = np.flatnonzero(screen.used)
        request = Request(batch_size=batch_size, precision="fp32", rng=seed)
        cells = planned(
            self.cell_model, screen.source, screen.tokens.features, request, tokenizer=screen.tokens.tokenizer
        )
        predictor = Predictor(cells, screen.tokens)
        perturbed = [condition_genes(condition) for condition in screen.conditions[rows]]
        predictor.check(perturbed)
        found = np.full((len(screen.source), screen.source.n_columns), np.nan, dtype=np.float32)
        with settings.progress((), total=len(rows), unit="cell") as bar:
            controls = screen.pairs[predictor.beside(rows, screen.conditions, None), 0]
            for part, expression in predictor.predict(controls, perturbed, keys=screen.source.keys[rows]):
                found[rows[part]] = expression
                bar.update(len(expression))
        return found if return_numpy else torch.from_numpy(found)

    # ------------------------------------------------------------------ putting together

    def _resolved(self, config: scGPTConfig) -> scGPTConfig:
        return config

    def _network(self, config: scGPTConfig) -> TransformerGenerator:
        own = {name: getattr(config, name) for name in ("pert_pad_id", "decoder_activation", "decoder_adaptive_bias")}
        return TransformerGenerator(**self._shared(config), **own)

    def _described(self, described: ModelConfig, checkpoint: ModelConfig | None) -> ModelConfig:
        plain = scgpt_perturbation(needed(self.config.vocab), dim=described.dim, heads=described.encoder.heads)
        trained = checkpoint is not None and checkpoint.perturbation is not None
        return replace(
            described,
            pooling="mean" if described.pooling == "mean_with_padding" else described.pooling,
            tokenizer=checkpoint.tokenizer if checkpoint is not None and trained else plain.tokenizer,
        )


def _check_flags(**flags: bool) -> None:
    if wanted := [name for name, flag in flags.items() if flag]:
        raise ValueError(f"Expected no terms but the error of expression for a perturbation model, found {wanted}.")


def _as_dict(batch: TokenBatch) -> BatchDict:
    return {
        "src": batch.genes,
        "values": batch.values,
        "target_values": batch.require("target"),
        "input_pert_flags": batch.require("perturbed"),
        "src_key_padding_mask": ~batch.mask,
        "index": batch.require("index"),
    }
