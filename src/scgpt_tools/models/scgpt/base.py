"""What the three classes share: scGPT's tree of parts, its tensor names, and how it is one with our network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from scgpt_tools._lookup import lookup
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    EmbedderConfig,
    ExpressionConfig,
    FromCellConfig,
    TransformerConfig,
    scgpt_embedder,
)
from scgpt_tools.models.formats.scgpt import to_scgpt
from scgpt_tools.models.formats.scgpt_config import FROM_CELL_STYLES, VALUE_STYLES, transformer_of, value_style
from scgpt_tools.models.modes import without_memory
from scgpt_tools.models.scgpt.joining import check_joined, join
from scgpt_tools.models.scgpt.layers import TransformerEncoder
from scgpt_tools.models.scgpt.names import StateDict, in_torch_spelling
from scgpt_tools.models.scgpt.parts import (
    AdversarialDiscriminator,
    AffineExprDecoder,
    BatchNorm,
    CategoryValueEncoder,
    ClsDecoder,
    ContinuousValueEncoder,
    DomainSpecificBatchNorm1d,
    ExprDecoder,
    MVCDecoder,
    TableEncoder,
    results_of,
)
from scgpt_tools.nn.losses import contrastive, elastic_similarity
from scgpt_tools.nn.pooling import pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from scgpt_tools.models.config import EmbedderNorm, ModelConfig
    from scgpt_tools.models.transfer import Transfer


class ScGPTModule(nn.Module):
    """scGPT's tree of parts, by its names; what the parts compute is what our network computes.

    Parts are listed, hooked, frozen, adapted and replaced as in any module of torch.  ``state_dict`` and
    ``load_state_dict`` know the tensors of attention by every spelling that is in use.
    """

    load_report: Transfer | None = None
    """What the last call of :func:`~scgpt_tools.models.load_pretrained` loaded and did not."""
    _config: ModelConfig
    _cells: CellModel | None
    _shared: dict[str, nn.Module]

    def __init__(
        self, config: ModelConfig, *, ecs_threshold: float, use_fast_transformer: bool, pre_norm: bool
    ) -> None:
        super().__init__()
        self.model_type = "Transformer"
        self.d_model, self.ecs_threshold = config.dim, ecs_threshold
        # As the original says where it has no flash-attn: its loaders then look for torch's names, as they are here.
        self.use_fast_transformer = False
        self.norm_scheme = "pre" if pre_norm else "post"
        self.cur_gene_token_embs: Tensor | None = None
        self._fused = use_fast_transformer
        self._build(config)
        self.register_load_state_dict_pre_hook(_read_every_spelling)

    # ------------------------------------------------------------------ parts

    def _build(self, config: ModelConfig) -> None:
        """Make the parts, in the original's order."""
        self._modules.clear()
        self._config, self._cells, self._shared = config, None, {}
        dim, embedder, encoder = config.dim, config.embedder, transformer_of(config)
        self.encoder = TableEncoder(config.n_tokens, dim, config.pad_id)
        if "generation" in embedder.parts:
            self.flag_encoder = nn.Embedding(2, dim)
        self.value_encoder = _value_encoder(config)
        if (flags := config.perturbation) is not None:
            self.pert_encoder = nn.Embedding(flags.rows, dim, padding_idx=flags.pad)
        if config.context.batches:
            self.batch_encoder = TableEncoder(config.context.batches, dim)
        if config.context.modalities:
            self.mod_encoder = TableEncoder(config.context.modalities, dim, config.context.modality_pad)
        if embedder.norm.startswith("domain"):
            self.dsbn = DomainSpecificBatchNorm1d(dim, config.domains)
        elif embedder.norm == "batch":
            self.bn = BatchNorm(dim)
        self.transformer_encoder = TransformerEncoder(
            encoder.layers,
            dim=dim,
            heads=encoder.heads,
            hidden=encoder.hidden,
            dropout=encoder.dropout,
            replace=encoder.norm == "replace",
            fused=self._fused,
        )
        self._build_heads(config)
        self.init_weights()

    def _build_heads(self, config: ModelConfig) -> None:
        dim, width, heads = config.dim, config.sizes.width, config.heads
        if (affine := heads.find("expression", AffineConfig)) is not None:
            self.decoder: nn.Module = AffineExprDecoder(
                dim, nonzero=affine.nonzero, activation=affine.activation, adaptive_offset=affine.adaptive_offset
            )
        elif (expression := heads.find("expression", ExpressionConfig)) is not None:
            self.decoder = ExprDecoder(dim, width, nonzero=expression.nonzero)
        if (classifier := heads.find("cell_type", ClassifierConfig)) is not None:
            self.cls_decoder = ClsDecoder(dim, classifier.classes, classifier.layers)
        if (from_cell := heads.find("expression_from_cell", FromCellConfig)) is not None:
            query = width if from_cell.context_in_query else dim
            self.mvc_decoder = MVCDecoder(width=width, query=query, style=from_cell.style, nonzero=from_cell.nonzero)
        if (adversary := heads.find("batch", AdversaryConfig)) is not None:
            self.grad_reverse_discriminator = AdversarialDiscriminator(dim, adversary.classes, adversary.layers)

    def init_weights(self) -> None:
        """Draw the gene table anew, from U(-0.1, 0.1), the row of padding included."""
        nn.init.uniform_(self.encoder.embedding.weight, -0.1, 0.1)

    def _part(self, name: str, option: str) -> nn.Module:
        part = getattr(self, name, None)
        if part is None:
            raise ValueError(f"Expected a network with `{name}`, which {option} builds; found one without.")
        return part

    # ------------------------------------------------------------------ one with our network

    @property
    def cell_model(self) -> CellModel:
        """The same weights as the other functions of this package take them; training either trains both.

        It can be set: the parts are then made for its configuration, and its weights, genes and name taken over.

        Raises
        ------
        ValueError
            If parts were replaced since the network was built.
        """
        cells = self._cells
        if cells is None:
            with without_memory():
                cells = CellModel(self._config)
            self._join(cells)
        check_joined(self._shared, self)
        if cells.training != self.training:
            cells.train(self.training)
        return cells

    @cell_model.setter
    def cell_model(self, value: CellModel) -> None:
        with without_memory():
            self._build(value.config)
        self.load_state_dict(to_scgpt(value.state_dict()), assign=True)
        self._join(value)
        self.train(value.training)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch would list our network among the parts, and its weights twice.
        if name == "cell_model":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _join(self, cells: CellModel) -> None:
        vars(self).update(_cells=cells, _shared=join(cells, self))

    # ------------------------------------------------------------------ files and copies

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors by scGPT's names, in torch's spelling; asked by another spelling, it knows them too."""
        state = super().state_dict(*args, **kwargs)
        inner = bool(args) or kwargs.get("destination") is not None
        return state if inner else StateDict.of(state)

    def __getstate__(self) -> dict[str, Any]:
        # It hangs in the graph of the last call, which cannot be copied.
        return {**super().__getstate__(), "cur_gene_token_embs": None}

    # ------------------------------------------------------------------ computing

    def _embed(
        self, src: Tensor, values: Tensor | None, batch_labels: Tensor | None, more: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, S) tokens to (B, S, D) of their genes and of all that conditions the encoder; ``more`` is added."""
        genes = total = self.encoder(src)
        if values is not None:
            embedded = self.value_encoder(values)
            scales = value_style(self._config) == "scale"
            total = genes * embedded.unsqueeze(2).to(genes.dtype) if scales else genes + embedded
        if more is not None:
            total = total + more
        return genes, self._normed(total, batch_labels)

    def _normed(self, total: Tensor, batch_labels: Tensor | None) -> Tensor:
        if hasattr(self, "dsbn"):
            if batch_labels is None:
                raise ValueError("Expected `batch_labels` for the domain-specific batch norm, found none.")
            if self._config.embedder.norm == "domain":
                return self.dsbn.by_cell(total, batch_labels)
            return self.dsbn(total.permute(0, 2, 1), int(batch_labels[0])).permute(0, 2, 1)
        return self.bn(total.permute(0, 2, 1)).permute(0, 2, 1) if hasattr(self, "bn") else total

    def _get_cell_emb_from_layer(
        self, layer_output: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Pool (B, S, D) tokens to (B, D); weights (B, S) for ``w-pool``, ``mask`` (B, S) True on real tokens."""
        style = self._config.pooling
        if style == "weighted" and (weights is None or weights.dim() != 2):
            found = "none" if weights is None else tuple(weights.shape)
            raise ValueError(f"Expected `weights` (B, S) for cell_emb_style='w-pool', found {found}.")
        if mask is None:
            mask = torch.ones(layer_output.shape[:2], dtype=torch.bool, device=layer_output.device)
        return pool(style, layer_output, mask, mask if weights is None else weights)

    def _cells_of(self, tokens: Tensor, values: Tensor, padding: Tensor) -> Tensor:
        """Pool (B, S, D) tokens as the original calls it, or where that would count padding, by the mask."""
        if self._config.pooling == "mean":
            return self._get_cell_emb_from_layer(tokens, values, mask=~padding)
        return self._get_cell_emb_from_layer(tokens, values)

    def _cell_results(
        self,
        cell: Tensor,
        beside: Tensor | None,
        query: Tensor,
        again: Callable[[], Tensor] | None,
        *,
        CLS: bool,
        MVC: bool,
        ECS: bool,
        do_sample: bool,
    ) -> dict[str, Tensor]:
        """What is read from (B, D) cells, with what stands ``beside`` them, gene queries and a second pass."""
        results: dict[str, Tensor] = {}
        if CLS:
            results["cls_output"] = self._part("cls_decoder", "`n_cls`")(cell)
        if again is not None:
            results["loss_cce"] = contrastive(self._of_all_processes(cell), self._of_all_processes(again()))
        if MVC:
            context = cell if beside is None else torch.cat((cell, beside), dim=-1)
            predicted = self._part("mvc_decoder", "`do_mvc=True`")(context, query)
            results |= results_of("mvc", predicted, sample=do_sample)
        if ECS:
            results["loss_ecs"] = elastic_similarity(cell, self.ecs_threshold)
        if hasattr(self, "grad_reverse_discriminator"):
            results["dab_output"] = self.grad_reverse_discriminator(cell)
        return results

    def _of_all_processes(self, cell: Tensor) -> Tensor:
        """Cells (B, D) of all processes that train together; gradients flow through this one's."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return cell
        parts = [torch.empty_like(cell) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, cell.detach().contiguous())
        parts[dist.get_rank()] = cell
        return torch.cat(parts)


def _value_encoder(config: ModelConfig) -> nn.Module:
    if config.bins is not None:
        return CategoryValueEncoder(config.bins.rows, config.dim, config.bins.pad)
    if value_style(config) == "scale":
        return nn.Identity()
    return ContinuousValueEncoder(config.dim, config.encoder.dropout)


def _read_every_spelling(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    theirs = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update((prefix + key, tensor) for key, tensor in in_torch_spelling(theirs).items())


def pad_id_of(vocab: Mapping[str, int] | None, pad_token: str) -> int:
    """Id of the padding token."""
    if vocab is None:
        raise ValueError(f"Expected `vocab`, a mapping that knows the id of {pad_token!r}; found None.")
    return int(vocab[pad_token])


def check_backend(backend: str) -> None:
    """Refuse attention packages that nobody uses with scGPT."""
    if backend != "flash":
        raise ValueError(f"Expected `fast_transformer_backend` to be 'flash', found {backend!r}.")


def norm_of(domain_spec_batchnorm: bool | str) -> EmbedderNorm:
    """Name of our norm; any other true value builds none in the original."""
    if domain_spec_batchnorm is True or domain_spec_batchnorm == "dsbn":
        return "domain_of_first"
    return "batch" if domain_spec_batchnorm == "batchnorm" else "none"


def labels_of(num_batch_labels: int | None, *, needed: bool) -> int:
    """Number of batch labels, checked where a part needs them."""
    if needed and not num_batch_labels:
        raise ValueError(f"Expected `num_batch_labels` to be at least 1, found {num_batch_labels}.")
    return num_batch_labels or 0


def embedder_of(
    style: str, bins: int | None, pad_value: int, norm: EmbedderNorm, *, generation: bool
) -> EmbedderConfig:
    """Describe how tokens become vectors."""
    values = lookup(VALUE_STYLES, style, "input_emb_style")
    binned = values == "binned"
    if binned and not bins:
        raise ValueError(f"Expected `n_input_bins` to be at least 1 with input_emb_style='category', found {bins}.")
    return scgpt_embedder(
        # A negative row counts from the end, as in torch.
        value_pad=(pad_value if pad_value >= 0 else pad_value + (bins or 0)) if binned else None,
        values=values,
        value_rows=bins if binned else None,
        generation=generation,
        norm=norm,
    )


def encoder_of(nhead: int, d_hid: int, nlayers: int, dropout: float, *, replace: bool) -> TransformerConfig:
    """Describe the stack of blocks."""
    return TransformerConfig(
        layers=nlayers, heads=nhead, hidden=d_hid, dropout=dropout, norm="replace" if replace else "post"
    )


def from_cell_of(style: str, nonzero: bool) -> FromCellConfig:
    """Describe the decoder from the cell embedding; query styles have no zero probability."""
    ours = lookup(FROM_CELL_STYLES, style, "mvc_decoder_style")
    return FromCellConfig(style=ours, nonzero=nonzero and ours.startswith("inner"))
