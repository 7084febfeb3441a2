"""What the three classes share: the network, its foreign tensor names, and the reading of arguments and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from scgpt_tools._lookup import lookup
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import EmbedderConfig, EncoderConfig, FromCellConfig
from scgpt_tools.models.formats.rename import read_names
from scgpt_tools.models.formats.scgpt import ALL_NAMES, to_scgpt
from scgpt_tools.models.formats.scgpt_config import FROM_CELL_STYLES, VALUE_STYLES
from scgpt_tools.nn.heads import sample_zeros
from scgpt_tools.nn.losses import contrastive, elastic_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgpt_tools.models.config import EmbedderNorm, ModelConfig
    from scgpt_tools.nn.output import CellOutput
    from scgpt_tools.tokens.batch import TokenBatch

_INNER = "cell_model."


class ScGPTModule(nn.Module):
    """What the three classes share: the network, its foreign tensor names and the reading of outputs."""

    def __init__(self, config: ModelConfig, *, ecs_threshold: float, use_fast_transformer: bool) -> None:
        super().__init__()
        self.cell_model = CellModel(config)
        self.d_model, self.ecs_threshold = config.dim, ecs_threshold
        self.use_fast_transformer = use_fast_transformer
        self.cur_gene_token_embs: Tensor | None = None
        self.register_state_dict_post_hook(_write_foreign_names)
        self.register_load_state_dict_pre_hook(_read_foreign_names)

    @property
    def encoder(self) -> nn.Module:
        """The gene encoder: ids (...) to vectors (..., D)."""
        return self.cell_model.embedder.genes

    @property
    def value_encoder(self) -> nn.Module:
        """The value encoder: values (...) to vectors (..., D)."""
        return self.cell_model.embedder.values

    @property
    def transformer_encoder(self) -> nn.Module:
        """The stack of transformer blocks."""
        return self.cell_model.encoder

    def _run(
        self, batch: TokenBatch, *, CLS: bool, CCE: bool, MVC: bool, ECS: bool, do_sample: bool
    ) -> tuple[CellOutput, dict[str, Tensor]]:
        heads = self.cell_model.heads
        wanted = ["expression"] + ["cell_type"] * CLS + ["expression_from_cell"] * MVC + ["batch"] * ("batch" in heads)
        output = self.cell_model(batch, wanted)
        self.cur_gene_token_embs = output.genes
        results = {"mlm_output": output["expression"]}
        predictions = output.predictions
        if "expression_nonzero" in predictions:
            results["mlm_zero_probs"] = output["expression_nonzero"]
            if do_sample:
                results["mlm_output"] = sample_zeros(output["expression"], output["expression_nonzero"])
        results["cell_emb"] = output.cell
        if CLS:
            results["cls_output"] = output["cell_type"]
        if CCE:
            results["loss_cce"] = contrastive(output.cell, self.cell_model(batch, ()).cell)
        if MVC:
            results["mvc_output"] = output["expression_from_cell"]
            if "expression_from_cell_nonzero" in predictions:
                results["mvc_zero_probs"] = output["expression_from_cell_nonzero"]
                if do_sample:
                    results["mvc_output"] = sample_zeros(results["mvc_output"], results["mvc_zero_probs"])
        if ECS:
            results["loss_ecs"] = elastic_similarity(output.cell, self.ecs_threshold)
        if "batch" in predictions:
            results["dab_output"] = output["batch"]
        return output, results


def _write_foreign_names(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: object) -> None:
    inner = prefix + _INNER
    ours = {key.removeprefix(inner): state.pop(key) for key in list(state) if key.startswith(inner)}
    state.update((prefix + key, tensor) for key, tensor in to_scgpt(ours).items())


def _read_foreign_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    theirs = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    ours, _report = read_names(theirs, ALL_NAMES, leave_unknown=True)
    # Names that scGPT does not have stay as they are, so that torch reports them as unexpected.
    state.update((prefix + (key if key in theirs else _INNER + key), tensor) for key, tensor in ours.items())


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
    return EmbedderConfig(
        # A negative row counts from the end, as in torch.
        value_pad=(pad_value if pad_value >= 0 else pad_value + (bins or 0)) if binned else None,
        values=values,
        value_rows=bins if binned else None,
        generation=generation,
        norm=norm,
    )


def encoder_of(nhead: int, d_hid: int, nlayers: int, dropout: float, *, replace: bool) -> EncoderConfig:
    """Describe the stack of blocks."""
    return EncoderConfig(
        layers=nlayers, heads=nhead, hidden=d_hid, dropout=dropout, norm="replace" if replace else "post"
    )


def from_cell_of(style: str, nonzero: bool) -> FromCellConfig:
    """Describe the decoder from the cell embedding; query styles have no zero probability."""
    ours = lookup(FROM_CELL_STYLES, style, "mvc_decoder_style")
    return FromCellConfig(style=ours, nonzero=nonzero and ours.startswith("inner"))
