"""scGPT's model of several modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scgpt_tools.models.config import FromCellConfig
from scgpt_tools.models.modes import without_memory
from scgpt_tools.models.scgpt.base import pad_id_of
from scgpt_tools.models.scgpt.transformer import TransformerModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor


class MultiOmicTransformerModel(TransformerModel):
    """scGPT's model of several modalities, whose decoders are conditioned on that of each token :cite:p:`Cui2024`.

    Parameters
    ----------
    ntoken, d_model, nhead, d_hid, nlayers, nlayers_cls, n_cls, vocab, dropout, pad_token, pad_value
        As for :class:`TransformerModel`.
    do_mvc, do_dab, use_batch_labels, num_batch_labels, domain_spec_batchnorm, input_emb_style, n_input_bins
        As for :class:`TransformerModel`.
    cell_emb_style, mvc_decoder_style, ecs_threshold, explicit_zero_prob
        As for :class:`TransformerModel`.
    use_fast_transformer, fast_transformer_backend, pre_norm
        As for :class:`TransformerModel`.
    use_mod
        Show each token's modality to the decoders.
    ntokens_mod
        Rows of the modality table, special ones included.
    vocab_mod
        Mapping that knows the modality id of ``pad_token``.
    """

    def __init__(
        self,
        ntoken: int,
        d_model: int,
        nhead: int,
        d_hid: int,
        nlayers: int,
        nlayers_cls: int = 3,
        n_cls: int = 1,
        vocab: Mapping[str, int] | None = None,
        dropout: float = 0.5,
        pad_token: str = "<pad>",
        pad_value: int = 0,
        do_mvc: bool = False,
        do_dab: bool = False,
        use_batch_labels: bool = False,
        num_batch_labels: int | None = None,
        domain_spec_batchnorm: bool | str = False,
        input_emb_style: str = "continuous",
        n_input_bins: int | None = None,
        cell_emb_style: str = "cls",
        mvc_decoder_style: str = "inner product",
        ecs_threshold: float = 0.3,
        explicit_zero_prob: bool = False,
        use_fast_transformer: bool = False,
        fast_transformer_backend: str = "flash",
        pre_norm: bool = False,
        use_mod: bool = False,
        ntokens_mod: int | None = None,
        vocab_mod: Mapping[str, int] | None = None,
    ) -> None:
        with without_memory():
            super().__init__(
                ntoken=ntoken,
                d_model=d_model,
                nhead=nhead,
                d_hid=d_hid,
                nlayers=nlayers,
                nlayers_cls=nlayers_cls,
                n_cls=n_cls,
                vocab=vocab,
                dropout=dropout,
                pad_token=pad_token,
                pad_value=pad_value,
                do_mvc=do_mvc,
                do_dab=do_dab,
                use_batch_labels=use_batch_labels,
                num_batch_labels=num_batch_labels,
                domain_spec_batchnorm=domain_spec_batchnorm,
                input_emb_style=input_emb_style,
                n_input_bins=n_input_bins,
                cell_emb_style=cell_emb_style,
                mvc_decoder_style=mvc_decoder_style,
                ecs_threshold=ecs_threshold,
                explicit_zero_prob=explicit_zero_prob,
                use_fast_transformer=use_fast_transformer,
                fast_transformer_backend=fast_transformer_backend,
                pre_norm=pre_norm,
            )
        if use_mod and (ntokens_mod is None or vocab_mod is None):
            raise ValueError("`use_mod` needs `ntokens_mod` and `vocab_mod`.")
        self.use_mod = use_mod
        config = self._config
        context = replace(
            config.context,
            modalities=ntokens_mod or 0 if use_mod else 0,
            modality_pad=pad_id_of(vocab_mod, pad_token) if use_mod else None,
        )
        from_cell = config.heads.find("expression_from_cell", FromCellConfig)
        if from_cell is not None:
            from_cell = replace(from_cell, context_in_query=bool(context.batches or context.modalities))
        heads = config.heads.replace(expression_from_cell=from_cell)
        self._build(replace(config, family="scgpt_multiomic", context=context, heads=heads))

    def forward(
        self,
        src: Tensor,
        values: Tensor,
        src_key_padding_mask: Tensor,
        batch_labels: Tensor | None = None,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        do_sample: bool = False,
        mod_types: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the network as :meth:`TransformerModel.forward`; ``mod_types`` (B, S) are the tokens' modalities."""
        return self._forward(
            src,
            values,
            src_key_padding_mask,
            batch_labels,
            mod_types,
            CLS=CLS,
            CCE=CCE,
            MVC=MVC,
            ECS=ECS,
            do_sample=do_sample,
        )

    def encode_batch(
        self,
        src: Tensor,
        values: Tensor,
        src_key_padding_mask: Tensor,
        batch_size: int,
        batch_labels: Tensor | None = None,
        output_to_cpu: bool = True,
        time_step: int | None = None,
        return_np: bool = False,
        *,
        mod_types: Tensor | None = None,
    ) -> Tensor | np.ndarray:
        """Encode as :meth:`TransformerModel.encode_batch`; ``mod_types`` may be given, but the encoder sees none."""
        return super().encode_batch(
            src, values, src_key_padding_mask, batch_size, batch_labels, output_to_cpu, time_step, return_np
        )

    def generate(
        self,
        cell_emb: Tensor,
        src: Tensor,
        values: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        gen_iters: int = 1,
        batch_labels: Tensor | None = None,
        *,
        mod_types: Tensor | None = None,
    ) -> Tensor:
        """Predict as :meth:`TransformerModel.generate`; ``mod_types`` (B, S) are the tokens' modalities."""
        return self._generate(cell_emb, src, values, src_key_padding_mask, batch_labels, mod_types)
