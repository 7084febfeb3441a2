"""scGPT's model of one modality."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from scgpt_tools._lookup import lookup
from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ContextConfig,
    ExpressionConfig,
    HeadsConfig,
    ModelConfig,
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
from scgpt_tools.nn.heads import sample_zeros
from scgpt_tools.nn.losses import contrastive, elastic_similarity
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
            heads=HeadsConfig(
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
        super().__init__(config, ecs_threshold=ecs_threshold, use_fast_transformer=use_fast_transformer)
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
        batch = self._batch(src, values, src_key_padding_mask, batch_labels)
        return self._run(batch, CLS=CLS, CCE=CCE, MVC=MVC, ECS=ECS, do_sample=do_sample)[1]

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
        """Predict the expression of genes whose values are not shown, from those that are (pre-training form).

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
        batch = self._batch(pcpt_genes, pcpt_values, pcpt_key_padding_mask, batch_labels)
        seen = pcpt_genes.shape[1]
        if gen_genes is not None:
            batch = _append_generated(batch, gen_genes, gen_key_padding_mask)
        wanted = ["expression"] + ["cell_type"] * CLS + ["expression_from_cell"] * MVC
        output = self.cell_model(batch, wanted + ["batch"] * ("batch" in self.cell_model.heads), cell=input_cell_emb)
        self.cur_gene_token_embs = output.genes
        predicted = output["expression"]
        if do_sample and "expression_nonzero" in output.predictions:
            predicted = sample_zeros(predicted, output["expression_nonzero"])
        results = {"pcpt_preds": predicted[:, :seen], "cell_emb": output.cell}
        if gen_genes is not None:
            results["gen_preds"] = predicted[:, seen:]
        names = {"cell_type": "cls_output", "expression_from_cell": "mvc_output", "batch": "dab_output"}
        results |= {theirs: output[ours] for ours, theirs in names.items() if ours in output.predictions}
        if CCE:
            results["loss_cce"] = contrastive(output.cell, self.cell_model(batch, (), cell=input_cell_emb).cell)
        if ECS:
            results["loss_ecs"] = elastic_similarity(output.cell, self.ecs_threshold)
        return results

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
        parts = []
        for start in range(0, len(src), batch_size):
            rows = slice(start, start + batch_size)
            labels = None if batch_labels is None else batch_labels[rows]
            with torch.no_grad():
                batch = self._batch(src[rows], values[rows], src_key_padding_mask[rows], labels)
                tokens = self.cell_model(batch.to(self.cell_model.device), ()).tokens.float()
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
        if src_key_padding_mask is None:
            src_key_padding_mask = torch.zeros_like(src, dtype=torch.bool)
        if self.takes_labels and batch_labels is None:
            warnings.warn("Expected batch labels for this model, found none; label 0 is used.", stacklevel=2)
            batch_labels = src.new_zeros(len(src))
        numbers = torch.zeros_like(src, dtype=cell_emb.dtype) if values is None else values
        batch = self._batch(src, numbers, src_key_padding_mask, batch_labels)
        return self.cell_model.generate(cell_emb, batch, values=values is not None)

    def _batch(self, src: Tensor, values: Tensor, padding: Tensor, batch_labels: Tensor | None) -> TokenBatch:
        if batch_labels is not None and not self.takes_labels:
            raise ValueError("Expected no `batch_labels`: the model was built without batch labels or batch norm.")
        if batch_labels is None and self.takes_labels:
            raise ValueError("Expected `batch_labels`, which this model was built with; found none.")
        return TokenBatch(genes=src, values=values, mask=~padding, batch=batch_labels)


def _append_generated(batch: TokenBatch, genes: Tensor, padding: Tensor | None) -> TokenBatch:
    mask = torch.ones_like(genes, dtype=torch.bool) if padding is None else ~padding
    return batch.replace(
        genes=torch.cat((batch.genes, genes), dim=1),
        values=torch.cat((batch.values, torch.zeros_like(genes, dtype=batch.values.dtype)), dim=1),
        mask=torch.cat((batch.mask, mask), dim=1),
        generated=torch.cat((torch.zeros_like(batch.mask), torch.ones_like(mask)), dim=1),
    )
