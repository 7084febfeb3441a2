"""scGPT's model of perturbations."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch

from scgpt_tools._lookup import lookup
from scgpt_tools.models.config import AffineConfig, ClassifierConfig, ModelConfig, Named, scgpt_embedder
from scgpt_tools.models.formats.scgpt_config import POOLINGS
from scgpt_tools.models.scgpt.base import ScGPTModule, check_backend, encoder_of, from_cell_of, pad_id_of
from scgpt_tools.models.scgpt.parts import results_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor


class TransformerGenerator(ScGPTModule):
    """scGPT's model of perturbations: expression after, as an affine map of expression before :cite:p:`Cui2024`.

    Parameters
    ----------
    ntoken, d_model, nhead, d_hid, nlayers, nlayers_cls, n_cls, vocab, dropout, pad_token, pad_value
        As for :class:`TransformerModel`.
    pert_pad_id
        Flag that is never trained; 0 makes "not perturbed" add nothing.
    do_mvc, cell_emb_style, mvc_decoder_style, ecs_threshold, explicit_zero_prob
        As for :class:`TransformerModel`.
    domain_spec_batchnorm
        Has no effect, as in the original.
    n_input_bins
        Must be 0: the original's own binning inside the network cannot run.
    decoder_activation
        Name of a ``torch.nn`` activation on slope and offset.
    decoder_adaptive_bias
        Multiply the offset by the mean non-zero value of the cell.
    use_fast_transformer, fast_transformer_backend, pre_norm
        As for :class:`TransformerModel`.
    """

    def __init__(
        self,
        ntoken: int,
        d_model: int,
        nhead: int,
        d_hid: int,
        nlayers: int,
        nlayers_cls: int,
        n_cls: int,
        vocab: Mapping[str, int],
        dropout: float = 0.5,
        pad_token: str = "<pad>",
        pad_value: int = 0,
        pert_pad_id: int = 2,
        do_mvc: bool = False,
        domain_spec_batchnorm: bool | str = False,
        n_input_bins: int | None = 0,
        cell_emb_style: str = "cls",
        mvc_decoder_style: str = "inner product",
        decoder_activation: str | None = None,
        decoder_adaptive_bias: bool = False,
        ecs_threshold: float = 0.3,
        explicit_zero_prob: bool = False,
        use_fast_transformer: bool = False,
        fast_transformer_backend: str = "flash",
        pre_norm: bool = False,
    ) -> None:
        check_backend(fast_transformer_backend)
        if n_input_bins:
            raise ValueError(
                f"Expected `n_input_bins` to be 0, found {n_input_bins}: the original's binning inside the network "
                "cannot run. Pass log1p values, or bin them before."
            )
        config = ModelConfig(
            family="scgpt_perturbation",
            n_tokens=ntoken,
            pad_id=pad_id_of(vocab, pad_token),
            dim=d_model,
            embedder=scgpt_embedder(perturbation_rows=3, perturbation_pad=pert_pad_id),
            encoder=encoder_of(nhead, d_hid, nlayers, dropout, replace=pre_norm and use_fast_transformer),
            pooling=lookup(POOLINGS, cell_emb_style, "cell_emb_style"),
            heads=Named(
                {},
                expression=AffineConfig(
                    nonzero=explicit_zero_prob,
                    activation=decoder_activation,
                    adaptive_offset=decoder_adaptive_bias,
                ),
                expression_from_cell=from_cell_of(mvc_decoder_style, explicit_zero_prob) if do_mvc else None,
                cell_type=ClassifierConfig(classes=n_cls, layers=nlayers_cls),
            ),
        )
        super().__init__(
            config, ecs_threshold=ecs_threshold, use_fast_transformer=use_fast_transformer, pre_norm=pre_norm
        )
        self.pad_token_id, self.pad_value, self.pert_pad_id = config.pad_id, pad_value, pert_pad_id
        self.domain_spec_batchnorm, self.n_input_bins = domain_spec_batchnorm, n_input_bins
        self.cell_emb_style, self.explicit_zero_prob = cell_emb_style, explicit_zero_prob

    def forward(
        self,
        src: Tensor,
        values: Tensor,
        input_pert_flags: Tensor,
        src_key_padding_mask: Tensor,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        do_sample: bool = False,
    ) -> dict[str, Tensor]:
        """Run the network.

        Parameters
        ----------
        src
            (B, S) int64 token ids; no ``<cls>``.
        values
            (B, S) log-normalised control expression.
        input_pert_flags
            (B, S) int64: 0 untouched, 1 perturbed.
        src_key_padding_mask
            (B, S) True at padding.
        CLS, MVC, ECS, do_sample
            As for :class:`TransformerModel`.
        CCE
            Has no effect, as in the original.

        Returns
        -------
        ``mlm_output`` (B, S) and further results as asked for; no ``cell_emb``, as in the original.  With
        ``explicit_zero_prob`` predictions in eval mode are sampled, as in the original.
        """
        if self.explicit_zero_prob and not do_sample and not self.training:
            warnings.warn("Zero probabilities in eval mode: predictions are sampled.", stacklevel=2)
            do_sample = True
        tokens = self._encode(src, values, input_pert_flags, src_key_padding_mask)
        known = values.masked_fill(src_key_padding_mask, 0)
        results = results_of("mlm", self.decoder(tokens, known), sample=do_sample)
        cell, genes = self._cells_of(tokens, values, src_key_padding_mask), cast("Tensor", self.cur_gene_token_embs)
        return results | self._cell_results(cell, None, genes, None, CLS=CLS, MVC=MVC, ECS=ECS, do_sample=do_sample)

    def _encode(self, src: Tensor, values: Tensor, input_pert_flags: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        """(B, S) tokens to (B, S, D), 0 at padding."""
        flags = self.pert_encoder(input_pert_flags.long())
        self.cur_gene_token_embs, total = self._embed(src, values, None, flags)
        return self.transformer_encoder(total, src_key_padding_mask=src_key_padding_mask)

    def encode_batch(
        self,
        src: Tensor,
        values: Tensor,
        input_pert_flags: Tensor,
        src_key_padding_mask: Tensor,
        batch_size: int,
        output_to_cpu: bool = True,
    ) -> Tensor:
        """Encode many cells in slices of ``batch_size``, without gradients.

        The original forgets the flags and cannot run; they stand here where :meth:`forward` has them.

        Returns
        -------
        (N, S, D).
        """
        device = self.encoder.embedding.weight.device
        parts = []
        for start in range(0, len(src), batch_size):
            rows = slice(start, start + batch_size)
            inputs = (each[rows].to(device) for each in (src, values, input_pert_flags, src_key_padding_mask))
            with torch.no_grad():
                tokens = self._encode(*inputs)
            parts.append(tokens.cpu() if output_to_cpu else tokens)
        return torch.cat(parts)

    def pred_perturb(
        self,
        batch_data: Any,
        include_zero_gene: str = "batch-wise",
        gene_ids: Tensor | np.ndarray | None = None,
        amp: bool = True,
    ) -> Tensor:
        """Predict a GEARS minibatch.

        Parameters
        ----------
        batch_data
            Object with ``pert`` (one entry a cell) and ``x`` (cells * genes, 2): expression and flag.
        include_zero_gene
            ``"all"`` genes, or ``"batch-wise"`` those that some cell of the minibatch expresses.
        gene_ids
            (genes,) token ids; genes without a token carry the pad id and take part all the same, as in the original.
        amp
            Autocast on CUDA.

        Returns
        -------
        (cells, genes) float32; 0 for genes that did not take part.
        """
        if include_zero_gene not in ("all", "batch-wise"):
            raise ValueError(f"Expected `include_zero_gene` to be 'all' or 'batch-wise', found {include_zero_gene!r}.")
        if gene_ids is None:
            raise ValueError("Expected `gene_ids`, the token id of each gene; found none.")
        self.eval()
        device = self.encoder.embedding.weight.device
        n_cells = len(batch_data.pert)
        expression, flags = batch_data.x.to(device).view(n_cells, -1, 2).unbind(dim=-1)
        taken = torch.arange(expression.shape[1], device=device)
        if include_zero_gene == "batch-wise":
            taken = taken[expression.any(dim=0)]
        genes = torch.as_tensor(gene_ids, device=device).long()[taken].expand(n_cells, -1)
        predicted = torch.zeros_like(expression, dtype=torch.float32)
        if not len(taken):
            return predicted
        with torch.autocast(device.type, enabled=amp and device.type == "cuda"):
            padding = torch.zeros_like(genes, dtype=torch.bool)
            output = self(genes, expression[:, taken], flags[:, taken].long(), padding, do_sample=True)
        predicted[:, taken] = output["mlm_output"].float()
        return predicted
