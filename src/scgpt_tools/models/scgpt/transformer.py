"""scGPT's model of one modality."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import torch

from scgpt_tools._lookup import lookup
from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ContextConfig,
    ExpressionConfig,
    FromCellConfig,
    ModelConfig,
    Named,
)
from scgpt_tools.models.formats.scgpt_config import POOLINGS
from scgpt_tools.models.scgpt.base import (
    ScGPTModule,
    check_backend,
    embedder_of,
    encoder_of,
    from_cell_of,
    labels_of,
    norm_of,
    pad_id_of,
)
from scgpt_tools.models.scgpt.parts import results_of
from scgpt_tools.tokens.batch import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor


class TransformerModel(ScGPTModule):
    """scGPT's model of one modality: expression, cell type and batch from masked expression :cite:p:`Cui2024`.

    Parameters
    ----------
    ntoken
        Rows of the gene table.
    d_model, nhead, d_hid, nlayers
        Width, attention heads, feed-forward width and number of layers.
    nlayers_cls, n_cls
        Layers and classes of the classifier.
    vocab
        Mapping that knows the id of ``pad_token``.
    dropout
        Probability in the value encoder and the layers.
    pad_token, pad_value
        Padding token, and the value that padding carries (used by the ``"category"`` style).
    do_mvc, do_dab
        Build the decoder from the cell embedding, the batch discriminator.
    use_batch_labels, num_batch_labels
        Show the batch label to the decoders; number of labels.
    domain_spec_batchnorm
        ``True`` or ``"dsbn"`` for a norm per batch label, ``"batchnorm"`` for one, ``"do_affine"`` for none.
    input_emb_style, n_input_bins
        ``"continuous"``, ``"category"`` (with that many bins) or ``"scaling"``.
    cell_emb_style
        ``"cls"``, ``"avg-pool"`` (over padding too) or ``"w-pool"``.
    mvc_decoder_style
        ``"inner product"``, ``"inner product, detach"``, ``"concat query"`` or ``"sum query"``.
    ecs_threshold
        Threshold of the elastic similarity.
    explicit_zero_prob
        Also predict the probability of a non-zero value.
    use_fast_transformer, fast_transformer_backend, pre_norm
        Kept for old scripts: attention is chosen by backend here and needs no flag.  With ``pre_norm`` the fused
        layers' own order of norms is used.
    use_generative_training
        Build the form of the released checkpoints, for :meth:`generative_forward`.

    Notes
    -----
    With several batch labels in one minibatch the domain-specific norm takes the first cell's label for all of them,
    as the original does; :class:`~scgpt_tools.models.CellModel` uses each cell's own.
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
        *,
        use_generative_training: bool = False,
    ) -> None:
        check_backend(fast_transformer_backend)
        norm = norm_of(domain_spec_batchnorm)
        labels = labels_of(num_batch_labels, needed=use_batch_labels or do_dab or norm == "domain_of_first")
        config = ModelConfig(
            family="scgpt",
            n_tokens=ntoken,
            pad_id=pad_id_of(vocab, pad_token),
            dim=d_model,
            embedder=embedder_of(input_emb_style, n_input_bins, pad_value, norm, generation=use_generative_training),
            encoder=encoder_of(nhead, d_hid, nlayers, dropout, replace=pre_norm and use_fast_transformer),
            pooling=lookup(POOLINGS, cell_emb_style, "cell_emb_style"),
            context=ContextConfig(batches=labels if use_batch_labels else 0),
            heads=Named(
                {},
                expression=ExpressionConfig(nonzero=explicit_zero_prob),
                expression_from_cell=from_cell_of(mvc_decoder_style, explicit_zero_prob) if do_mvc else None,
                # The released form has a classifier only where there are classes; the others always have one.
                cell_type=ClassifierConfig(classes=n_cls, layers=nlayers_cls)
                if n_cls > 1 or not use_generative_training
                else None,
                batch=AdversaryConfig(classes=labels) if do_dab else None,
            ),
            domains=labels if norm == "domain_of_first" else 0,
        )
        super().__init__(
            config, ecs_threshold=ecs_threshold, use_fast_transformer=use_fast_transformer, pre_norm=pre_norm
        )
        self.do_dab, self.use_batch_labels, self.use_mod = do_dab, use_batch_labels, False
        self.domain_spec_batchnorm, self.explicit_zero_prob = domain_spec_batchnorm, explicit_zero_prob
        self.input_emb_style, self.cell_emb_style = input_emb_style, cell_emb_style
        self.takes_labels = bool(use_batch_labels or domain_spec_batchnorm)

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
    ) -> dict[str, Tensor]:
        """Run the network.

        Parameters
        ----------
        src
            (B, S) int64 token ids, ``<cls>`` first.
        values
            (B, S) values.
        src_key_padding_mask
            (B, S) True at padding.
        batch_labels
            (B,) int64, if the model was built with batch labels or a batch norm.
        CLS, CCE, MVC, ECS
            Which further results to compute.
        do_sample
            Set predictions to zero at random by their predicted probability.

        Returns
        -------
        ``mlm_output`` (B, S), ``cell_emb`` (B, D) and, as asked for, ``mlm_zero_probs``, ``cls_output``, ``mvc_output``,
        ``mvc_zero_probs``, ``loss_cce``, ``loss_ecs``, ``dab_output``.  Zero probabilities are those of a *non-zero*
        value, as the original has them.
        """
        return self._forward(
            src, values, src_key_padding_mask, batch_labels, CLS=CLS, CCE=CCE, MVC=MVC, ECS=ECS, do_sample=do_sample
        )

    def _forward(
        self,
        src: Tensor,
        values: Tensor,
        padding: Tensor,
        batch_labels: Tensor | None,
        mod_types: Tensor | None = None,
        *,
        CLS: bool,
        CCE: bool,
        MVC: bool,
        ECS: bool,
        do_sample: bool,
    ) -> dict[str, Tensor]:
        tokens = self._encode(src, values, padding, batch_labels)
        beside, beside_cell = self._context(values, padding, batch_labels, mod_types)
        results = results_of("mlm", self.decoder(_joint(tokens, beside)), sample=do_sample)
        results["cell_emb"] = cell = self._cells_of(tokens, values, padding)
        return results | self._cell_results(
            cell,
            beside_cell,
            self._query(beside),
            (lambda: self._cells_of(self._encode(src, values, padding, batch_labels), values, padding))
            if CCE
            else None,
            CLS=CLS,
            MVC=MVC,
            ECS=ECS,
            do_sample=do_sample,
        )

    def _encode(
        self, src: Tensor, values: Tensor, src_key_padding_mask: Tensor, batch_labels: Tensor | None = None
    ) -> Tensor:
        """(B, S) tokens to (B, S, D), 0 at padding."""
        self._check_batch_labels(batch_labels)
        self.cur_gene_token_embs, total = self._embed(src, values, batch_labels)
        return self.transformer_encoder(total, src_key_padding_mask=src_key_padding_mask)

    def _check_batch_labels(self, batch_labels: Tensor | None) -> None:
        """Refuse labels that are absent, or that the network has no use for."""
        if batch_labels is not None and not self.takes_labels:
            raise ValueError("Expected no `batch_labels`: the model was built without batch labels or batch norm.")
        if batch_labels is None and self.takes_labels:
            raise ValueError("Expected `batch_labels`, which this model was built with; found none.")

    def _context(
        self, values: Tensor, padding: Tensor, batch_labels: Tensor | None, mod_types: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What stands beside tokens (B, S, D) and beside cells (B, D): batch and modality, added where there are both."""
        tokens: Tensor | None = None
        cell: Tensor | None = None
        if self.use_mod:
            if mod_types is None:
                raise ValueError("Expected `mod_types`, which this model was built with; found none.")
            tokens = self.mod_encoder(mod_types)
            cell = self._cells_of(tokens, values, padding)
        if self.use_batch_labels:
            labels = self.batch_encoder(batch_labels)
            each = labels.unsqueeze(1)
            tokens = each.expand(-1, padding.shape[1], -1) if tokens is None else tokens + each
            cell = labels if cell is None else cell + labels
        return tokens, cell

    def _query(self, beside: Tensor | None) -> Tensor:
        """What the decoder from the cell asks for: (B, S, D) genes; a model of several modalities adds the context."""
        genes, head = (
            cast("Tensor", self.cur_gene_token_embs),
            self._config.heads.find("expression_from_cell", FromCellConfig),
        )
        return _joint(genes, beside) if head is not None and head.context_in_query else genes

    def generative_forward(
        self,
        pcpt_genes: Tensor,
        pcpt_values: Tensor,
        pcpt_key_padding_mask: Tensor,
        gen_genes: Tensor | None = None,
        gen_key_padding_mask: Tensor | None = None,
        batch_labels: Tensor | None = None,
        CLS: bool = False,
        CCE: bool = False,
        MVC: bool = False,
        ECS: bool = False,
        do_sample: bool = False,
        input_cell_emb: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict the expression of genes whose values are hidden, from visible ones (pre-training form).

        Parameters
        ----------
        pcpt_genes, pcpt_values, pcpt_key_padding_mask
            (B, P) tokens whose values are seen.
        gen_genes, gen_key_padding_mask
            (B, G) tokens whose values are to be predicted.
        batch_labels, CLS, CCE, MVC, ECS, do_sample
            As in :meth:`forward`.
        input_cell_emb
            (B, D) cell embeddings to put at position 0.

        Returns
        -------
        ``pcpt_preds`` (B, P), ``gen_preds`` (B, G), ``cell_emb`` (B, D) and further results as in :meth:`forward`,
        ``mvc_output`` over both parts (B, P + G).
        """
        self._check_batch_labels(batch_labels)
        seen = pcpt_genes.shape[1]
        src, values, padding, generated = pcpt_genes, pcpt_values, pcpt_key_padding_mask, None
        if gen_genes is not None:
            src, values, padding, generated = _with_generated(src, values, padding, gen_genes, gen_key_padding_mask)

        def encode() -> tuple[Tensor, Tensor]:
            self.cur_gene_token_embs, total = self._embed_generated(src, values, batch_labels, generated)
            if input_cell_emb is not None:
                total = torch.cat((input_cell_emb.unsqueeze(1).to(total.dtype), total[:, 1:]), dim=1)
            tokens = self.transformer_encoder(total, src_key_padding_mask=padding, generated=generated)
            return tokens, self._cells_of(tokens[:, :seen], pcpt_values, pcpt_key_padding_mask)

        tokens, cell = encode()
        beside, beside_cell = self._context(values, padding, batch_labels, None)
        predicted = results_of("mlm", self.decoder(_joint(tokens, beside)), sample=do_sample)["mlm_output"]
        results = {"pcpt_preds": predicted[:, :seen], "cell_emb": cell}
        if gen_genes is not None:
            results["gen_preds"] = predicted[:, seen:]
        return results | self._cell_results(
            cell,
            beside_cell,
            self._query(beside),
            (lambda: encode()[1]) if CCE else None,
            CLS=CLS,
            MVC=MVC,
            ECS=ECS,
            do_sample=False,
        )

    def _embed_generated(
        self, src: Tensor, values: Tensor, batch_labels: Tensor | None, generated: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if generated is None:
            return self._embed(src, values, batch_labels)
        flag = self._part("flag_encoder", "`use_generative_training=True`")(torch.ones_like(src[:1, :1]))
        genes = self.encoder(src)
        shown = torch.where(generated.unsqueeze(-1), flag, self.value_encoder(values))
        return genes, self._normed(genes + shown, batch_labels)

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
    ) -> Tensor | np.ndarray:
        """Encode many cells in slices of ``batch_size``, without gradients.

        Returns
        -------
        (N, S, D) float32, or (N, D) for one position ``time_step``; a NumPy array if ``return_np``.
        """
        device = self.encoder.embedding.weight.device
        parts = []
        for start in range(0, len(src), batch_size):
            rows = slice(start, start + batch_size)
            labels = None if batch_labels is None else batch_labels[rows].to(device)
            genes, numbers, padding = (each[rows].to(device) for each in (src, values, src_key_padding_mask))
            with torch.no_grad():
                tokens = self._encode(genes, numbers, padding, labels).float()
            tokens = tokens if time_step is None else tokens[:, time_step]
            parts.append(tokens.cpu() if output_to_cpu or return_np else tokens)
        encoded = torch.cat(parts)
        return encoded.numpy() if return_np else encoded

    def generate(
        self,
        cell_emb: Tensor,
        src: Tensor,
        values: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        gen_iters: int = 1,
        batch_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict expression (B, S) from cell embeddings (B, D) put at position 0.

        ``gen_iters`` has no effect, as in the original.  Missing batch labels are zeros, with a warning.
        """
        return self._generate(cell_emb, src, values, src_key_padding_mask, batch_labels)

    def _generate(
        self,
        cell_emb: Tensor,
        src: Tensor,
        values: Tensor | None,
        padding: Tensor | None,
        batch_labels: Tensor | None,
        mod_types: Tensor | None = None,
    ) -> Tensor:
        if padding is None:
            padding = torch.zeros_like(src, dtype=torch.bool)
        if batch_labels is None and self.takes_labels:
            warnings.warn("Expected batch labels for this model, found none; label 0 is used.", stacklevel=3)
            batch_labels = src.new_zeros(len(src))
        self._check_batch_labels(batch_labels)
        _, total = self._embed(src, values, batch_labels)
        total = torch.cat((cell_emb.unsqueeze(1).to(total.dtype), total[:, 1:]), dim=1)
        tokens = self.transformer_encoder(total, src_key_padding_mask=padding)
        shown = torch.zeros_like(src, dtype=total.dtype) if values is None else values
        beside, _ = self._context(shown, padding, batch_labels, mod_types)
        return results_of("mlm", self.decoder(_joint(tokens, beside)), sample=False)["mlm_output"]


def _joint(x: Tensor, beside: Tensor | None) -> Tensor:
    return x if beside is None else torch.cat((x, beside), dim=-1)


def _with_generated(
    src: Tensor, values: Tensor, padding: Tensor, genes: Tensor, gene_padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens to be generated behind those that are seen, and where they are."""
    there = True if gene_padding is None else ~gene_padding
    batch = TokenBatch(genes=src, values=values, mask=~padding)
    longer = batch.appended(genes.shape[1], genes=genes, values=0, mask=there, generated=True)
    return longer.genes, longer.values, ~longer.mask, longer.require("generated")
