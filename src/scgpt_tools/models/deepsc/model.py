"""DeepSC's models and its classifier by the originals' arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from scgpt_tools._lookup import absent, lookup
from scgpt_tools._validate import check_choice
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import ClassifierConfig
from scgpt_tools.models.families.deepsc import FLAGS, with_flags
from scgpt_tools.models.formats.deepsc import from_deepsc, to_deepsc, unwrap, without_encoder
from scgpt_tools.models.formats.deepsc_config import GENERATIONS, Arguments, config_of, generation_of, streams_of
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.transfer import copy_weights
from scgpt_tools.nn.mixture import COLLAPSED, routers
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.linear_bins import linear_bins
from scgpt_tools.tokens.perturbations import condition_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.formats.deepsc_config import Generation
    from scgpt_tools.nn.mixture import Router
    from scgpt_tools.nn.output import CellOutput

_INPUTS: dict[str, tuple[str, ...]] = {
    "base": ("expression_bin", "normalized_expr"),
    "v1": ("expression_bin", "normalized_expr", "input_pert_flags"),
    "v2": ("normalized_expr", "input_pert_flags"),
    "l0": ("expression_bin", "normalized_expr"),
    "l1": ("expression_bin", "normalized_expr"),
}
_FIELDS = {"expression_bin": "bins", "normalized_expr": "values", "input_pert_flags": "perturbed"}
_SWITCHES = ("return_encodings", "return_mask_prob", "return_gate_weights")
_BINS = 5
"""Bins of values before perturbations, whatever the model has, as the original."""


class LoadedKeys(NamedTuple):
    """What a state dict lacked and what it had too much, by DeepSC's names."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Door(nn.Module):
    """A network of ours that reads and writes DeepSC's names."""

    cell_model: CellModel
    """The same weights as the other functions of this package take them."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors by DeepSC's names."""
        inner = bool(args) or kwargs.get("destination") is not None
        return super().state_dict(*args, **kwargs) if inner else self.named(self.cell_model.state_dict())

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the network, such as gradients, by DeepSC's names."""
        return to_deepsc(tensors, self.cell_model.config)

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradient of each parameter by DeepSC's name."""
        named = self.named(dict(self.cell_model.named_parameters()))
        return {name: parameter.grad for name, parameter in named.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Load tensors by DeepSC's names, also out of the checkpoint of a training.

        Parameters
        ----------
        state_dict
            A state dict, or what holds one as ``model`` or ``state_dict``.
        strict
            Refuse names that are missing or too many.
        assign
            Not looked at; values are always copied.

        Returns
        -------
        Names that were missing, and those that were too many.

        Raises
        ------
        RuntimeError
            If names differ and ``strict``, or a shape differs.
        """
        given: dict[str, Any] = unwrap(state_dict)
        own = self.state_dict()
        if not any(name.startswith("encoder.") for name in own):
            given = without_encoder(given)
        missing, unexpected = [name for name in own if name not in given], [name for name in given if name not in own]
        wrong = [name for name in own if name in given and own[name].shape != given[name].shape]
        if wrong or (strict and (missing or unexpected)):
            parts = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
            said = "; ".join(f"{what}: {', '.join(names[:6])}" for what, names in parts.items() if names)
            raise RuntimeError(f"Expected the tensors of {self._described}, found others. {said}{_other(given, own)}")
        common = {name: given[name] for name in own if name in given}
        ours, _ = from_deepsc(common, self.cell_model.config)
        rows = (self.cell_model.config.n_tokens,) * 2
        copy_weights(ours, self.cell_model.state_dict(), rows=rows)
        return LoadedKeys(missing, unexpected)

    @property
    def _described(self) -> str:
        return f"a {type(self).__name__}"


class DeepSCModel(_Door):
    """DeepSC by the arguments of its authors; the network is :class:`~scgpt_tools.models.CellModel`.

    Padding (gene id 0) takes part in attention, as in the original; ``padding_mask`` hides it.

    Parameters
    ----------
    embedding_dim, num_genes
        Width; number of genes, whose table has two rows more, for padding and the cell token.
    num_layers, num_heads, gene_embedding_participate_til_layer
        Layers of all kinds; attention heads; layers in which genes take part.
    attn_dropout, ffn_dropout
        Probabilities on attention weights and elsewhere.
    num_bins
        Bins of expression, counted from 1.
    alpha, enable_l0
        Not looked at but by the first generation, where ``alpha`` scales values.
    enable_mse, enable_ce
        Return the regression, the logits of bins.
    num_layers_ffn
        Maps of a feed-forward part; 1 counts as 2.
    use_moe_regressor, number_of_experts
        Have a regressor of several experts.
    moe
        Experts in feed-forward parts, a mapping or anything with attributes; ``None`` for none.
    attention_stream, cross_attention_architecture
        1 for single, 2 for dual; ``"A"``, ``"B"`` or ``"C"``.
    fused, mask_layer_start, use_M_matrix, dual_layers
        Of the first generations; the last is the number of layers of both streams, ``None`` for ``num_layers``.
    generation
        ``"base"``; ``"v1"`` or ``"v2"`` for perturbations, from bins, values and flags or from values and flags; ``"l0"``
        or ``"l1"`` for checkpoints of November 2025.
    padding_mask
        Hide padding from attention, which the original does not.

    Raises
    ------
    ValueError
        For an argument that does not exist or cannot be, such as ``attention_stream=3``.

    Examples
    --------
    >>> import torch
    >>> from scgpt_tools.models import DeepSCModel
    >>> model = DeepSCModel(16, 40, num_layers=2, num_heads=2, gene_embedding_participate_til_layer=1).eval()
    >>> genes, bins, values = torch.tensor([[41, 3, 9]]), torch.tensor([[9, 1, 4]]), torch.tensor([[9.0, 0.5, 2.0]])
    >>> logits, regression, gene, expression = model(genes, bins, values)
    >>> tuple(regression.shape)
    (1, 3)
    """

    def __init__(
        self,
        embedding_dim: int,
        num_genes: int,
        num_layers: int = 4,
        num_heads: int = 8,
        attn_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        num_bins: int = 8,
        alpha: float = 0.1,
        enable_l0: bool = True,  # noqa: FBT001, FBT002
        enable_mse: bool = True,  # noqa: FBT001, FBT002
        enable_ce: bool = True,  # noqa: FBT001, FBT002
        num_layers_ffn: int = 2,
        use_moe_regressor: bool = True,  # noqa: FBT001, FBT002
        number_of_experts: int = 3,
        gene_embedding_participate_til_layer: int = 3,
        moe: Any = None,
        attention_stream: int = 1,
        cross_attention_architecture: str = "A",
        *,
        fused: bool = True,
        mask_layer_start: int | None = None,
        use_M_matrix: bool = True,
        dual_layers: int | None = None,
        generation: Generation = "base",
        padding_mask: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in Arguments.__dataclass_fields__}
        super().__init__()
        arguments = Arguments.of(given)
        check_choice("generation", generation, tuple(GENERATIONS))
        self._take(config_of(arguments, generation), generation, padding_mask=padding_mask)
        self.enable_mse, self.enable_ce = arguments.enable_mse, arguments.enable_ce

    def _take(self, config: ModelConfig, generation: Generation, *, padding_mask: bool) -> None:
        self.generation = generation
        self.padding_mask = padding_mask
        self.cell_model = CellModel(replace(config, encoder=replace(streams_of(config), padding_mask=padding_mask)))

    def forward(self, gene_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Compute the original's tuple.

        Parameters
        ----------
        gene_ids
            (B, L) token ids; 0 is padding.
        *args, **kwargs
            By place or name: ``expression_bin`` (B, L), not for ``"v2"``; ``normalized_expr`` (B, L);
            ``input_pert_flags`` (B, L) for ``"v1"`` and ``"v2"``; ``return_encodings`` and ``return_mask_prob``, which the
            original ignores; ``return_gate_weights``.

        Returns
        -------
        Logits (B, L, bins + 1) and regression (B, L), as far as they are enabled, the streams of genes and of expression
        (B, L, D), and with ``return_gate_weights`` the weights of the regressor's experts (B, L, E), if it has any.  The
        first generation has its gates (B, L, L, 3), or None, before the streams.
        """
        names = (*_INPUTS[self.generation], *_SWITCHES)
        if len(args) > len(names):
            raise TypeError(
                f"Expected at most {len(names)} inputs after `gene_ids` ({', '.join(names)}), found {len(args)}."
            )
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in given:
            if name not in names:
                raise TypeError(absent(name, names, f"input of DeepSC's generation {self.generation!r} named"))
        drawn: list[Tensor] = []
        gates = getattr(self.cell_model.encoder, "gates", None)
        hook = None if gates is None else gates.register_forward_hook(lambda *call: drawn.append(call[2]))
        try:
            output = self.output(gene_ids, **{name: given[name] for name in _INPUTS[self.generation] if name in given})
        finally:
            if hook is not None:
                hook.remove()
        found: list[Tensor | None] = []
        if self.enable_ce:
            found.append(output["bins"])
        if self.enable_mse:
            found.append(output["expression"])
        if self.generation == "l0":
            found.append(drawn[0] if drawn else None)
        found += [output.streams["genes"], output.streams["values"]]
        if given.get("return_gate_weights") and self.enable_mse and "expression_gates" in output.predictions:
            found.append(output["expression_gates"])
        return tuple(found)

    def output(self, gene_ids: Tensor, **inputs: Tensor) -> CellOutput:
        """Compute everything by name, where the tuple's places depend on what is enabled."""
        wanted = _INPUTS[self.generation]
        for name in wanted:
            if inputs.get(name) is None:
                raise TypeError(
                    f"Expected {', '.join(wanted)} for DeepSC's generation {self.generation!r}, found no {name}."
                )
        return self.cell_model(self.batch(gene_ids, **inputs), [name for name, on in self._heads.items() if on])

    def batch(self, gene_ids: Tensor, **inputs: Tensor) -> TokenBatch:
        """The original's inputs as a batch; unless padding is masked, its tokens are tokens as others."""
        rows, largest = self.cell_model.config.n_tokens, int(gene_ids.max()) if gene_ids.numel() else 0
        if largest >= rows or (gene_ids.numel() and int(gene_ids.min()) < 0):
            raise ValueError(
                f"Expected `gene_ids` within 0 .. {rows - 1}, found {int(gene_ids.min())} .. {largest}. The ids are those "
                "of another table of genes, or a collator has another number of genes than the model."
            )
        if not torch.isfinite(inputs["normalized_expr"]).all():
            raise ValueError("Expected finite numbers in `normalized_expr`, found NaN or infinite ones.")
        for name, tensor in inputs.items():
            if tensor.shape != gene_ids.shape:
                raise ValueError(
                    f"Expected `{name}` of the shape {tuple(gene_ids.shape)} of `gene_ids`, found {tuple(tensor.shape)}."
                )
        flags = inputs.get("input_pert_flags")
        if flags is not None and flags.numel() and not 0 <= int(flags.min()) <= int(flags.max()) < FLAGS:
            raise ValueError(
                f"Expected `input_pert_flags` within 0 .. {FLAGS - 1}, found {int(flags.min())} .. {int(flags.max())}."
            )
        fields = {_FIELDS[name]: tensor for name, tensor in inputs.items()}
        mask = gene_ids != 0 if self.padding_mask else torch.ones_like(gene_ids, dtype=torch.bool)
        return TokenBatch(genes=gene_ids, mask=mask, **fields)

    @property
    def _heads(self) -> dict[str, bool]:
        return {"expression": self.enable_mse, "bins": self.enable_ce}

    @property
    def _described(self) -> str:
        return f"DeepSC's generation {self.generation!r}"

    def to_perturbation(self, generation: Generation = "v1") -> DeepSCModel:
        """Make the model of perturbations of this one, with all weights that it has room for.

        Parameters
        ----------
        generation
            ``"v1"``, or ``"v2"``, which throws away what is known of values.

        Returns
        -------
        The new model.
        """
        check_choice("generation", generation, ("v1", "v2"))
        tuned = DeepSCModel.__new__(DeepSCModel)
        nn.Module.__init__(tuned)
        tuned.enable_mse, tuned.enable_ce, tuned.generation = self.enable_mse, self.enable_ce, generation
        tuned.padding_mask = self.padding_mask
        config = self.cell_model.config
        flags = with_flags(config, values="bins" if generation == "v1" else "number")
        tuned.cell_model = self.cell_model.adapt(**_changes(replace(flags, heads=config.heads), config))
        return tuned

    def pred_perturb(
        self,
        batch_data: Any,
        include_zero_gene: str = "batch-wise",
        gene_ids: NDArray[np.int64] | Tensor | None = None,
        amp: bool = True,  # noqa: FBT001, FBT002
        genes: Sequence[str] | None = None,
    ) -> Tensor:
        """Predict expression after perturbations for a minibatch of GEARS.

        Parameters
        ----------
        batch_data
            Has ``x`` (B * genes, 1 or 2), expression before, and ``pert``, B conditions such as ``"A+B"`` or ``"A+ctrl"``.
        include_zero_gene
            ``"all"`` genes, or ``"batch-wise"`` those that some cell expresses.
        gene_ids
            (genes,) token id of each column, 0 for those without one.
        amp
            Not looked at, as in the original.
        genes
            (genes,) name of each column.

        Returns
        -------
        (B, genes) expression, 0 for genes that took no part.
        """
        check_choice("include_zero_gene", include_zero_gene, ("all", "batch-wise"))
        if gene_ids is None or genes is None:
            raise ValueError("Expected `gene_ids` and `genes`, one entry for each column, found none.")
        ids = torch.as_tensor(np.asarray(gene_ids), dtype=torch.int64)
        device = self.cell_model.device
        wanted = len(batch_data.pert) * len(genes)
        if len(ids) != len(genes) or len(batch_data.x) != wanted:
            raise ValueError(
                f"Expected `gene_ids` for each of {len(genes)} `genes` and `x` of {len(batch_data.pert)} cells of so many, "
                f"found {len(ids)} ids and {len(batch_data.x)} rows in place of {wanted}."
            )
        values = torch.as_tensor(batch_data.x)[:, 0].reshape(len(batch_data.pert), -1).float()
        flags = perturbation_flags(batch_data.pert, genes)
        columns = selected_columns(values, include_zero_gene)
        if not len(columns):
            return torch.zeros_like(values)
        known = (ids[columns] != 0).to(values.dtype)
        inputs: dict[str, Tensor] = {
            "normalized_expr": values[:, columns] * known,
            "input_pert_flags": flags[:, columns],
        }
        if self.generation == "v1":
            # The original takes -1 for a value that is not there.
            inputs["expression_bin"] = linear_bins(inputs["normalized_expr"], inputs["normalized_expr"] != -1, _BINS)
        repeated = ids[columns].expand(len(values), -1)
        with torch.no_grad(), evaluating(self.cell_model):
            moved = {name: tensor.to(device) for name, tensor in inputs.items()}
            predicted = self.output(repeated.to(device), **moved)["expression"]
        result = torch.zeros_like(values)
        result[:, columns] = predicted.to("cpu", result.dtype)
        return result

    # ------------------------------------------------------------------ usage of experts

    def get_all_moe_stats(self) -> dict[str, dict[str, Any]]:
        """How often each expert of each feed-forward part was picked in training, by the original's name of the part."""
        found = {}
        for name, router in self._routers.items():
            usage = router.usage()
            found[name] = {
                "expert_usage_ratio": list(usage.ratio),
                "max_usage_ratio": usage.largest,
                "min_usage_ratio": usage.smallest,
                "usage_variance": usage.variance,
                "collapse_ratio": usage.largest,
                "entropy": usage.entropy,
                "total_tokens": usage.total,
            }
        return found

    def check_moe_collapse(self, threshold: float = COLLAPSED) -> dict[str, dict[str, Any]]:
        """Whether one expert has more than a share of the picks.

        Returns
        -------
        By the name of the part ``is_collapsed``, and ``collapse_ratio``, ``entropy`` and ``expert_usage_ratio`` of
        :meth:`get_all_moe_stats`.
        """
        kept = ("collapse_ratio", "entropy", "expert_usage_ratio")
        return {
            name: {"is_collapsed": stats["collapse_ratio"] > threshold} | {key: stats[key] for key in kept}
            for name, stats in self.get_all_moe_stats().items()
        }

    def print_moe_collapse_report(self, threshold: float = COLLAPSED) -> bool:
        """Print what :meth:`check_moe_collapse` finds, collapsed parts first; returns whether there are any."""
        found = self.check_moe_collapse(threshold)
        if not found:
            print("No part of this model has experts to choose from.")
            return False
        collapsed = sum(result["is_collapsed"] for result in found.values())
        print(f"{collapsed} of {len(found)} parts collapsed: one expert has more than {threshold:g} of the picks.")
        for name, result in sorted(found.items(), key=lambda item: not item[1]["is_collapsed"]):
            shares = ", ".join(f"{share:.3f}" for share in result["expert_usage_ratio"])
            state = "collapsed" if result["is_collapsed"] else "healthy"
            print(f"  {name}: {state}; shares of the experts {shares}; entropy {result['entropy']:.4f}")
        return collapsed > 0

    def reset_all_moe_stats(self) -> None:
        """Count from 0 again."""
        for router in self._routers.values():
            router.reset()

    @property
    def _routers(self) -> dict[str, Router]:
        """Routers by the original's names, such as ``expression_layer_3_expr_ffn``."""
        found = {}
        for name, router in routers(self.cell_model).items():
            (theirs,) = self.named({f"{name}.picks": router.picks})
            stack, number = theirs.split(".")[:2]
            found[f"{stack.removesuffix('s')}_{number}_expr_ffn"] = router
        return found


def perturbation_flags(conditions: Sequence[str], genes: Sequence[str]) -> Tensor:
    """Mark perturbed genes by 1 (B, genes); names that are no column are left out, of columns of a name the last counts."""
    column = {name: number for number, name in enumerate(genes)}
    flags = torch.zeros(len(conditions), len(genes), dtype=torch.int64)
    for row, condition in enumerate(conditions):
        for gene in condition_genes(condition):
            if gene in column:
                flags[row, column[gene]] = 1
    return flags


def selected_columns(values: Tensor, include: str) -> Tensor:
    """Numbers of the columns that take part, ascending: all, or those that some cell (B, genes) expresses."""
    return torch.arange(values.shape[1]) if include == "all" else values.any(dim=0).nonzero().squeeze(1)


def _changes(config: ModelConfig, before: ModelConfig) -> dict[str, Any]:
    names = ("family", "embedder", "encoder", "pooling", "heads", "tokenizer")
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(before, name)}


def _other(given: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Whether tensors are of another generation, for the message."""
    try:
        theirs, ours = (generation_of(without_encoder(dict(names))) for names in (given, own))
    except ValueError:
        return "."
    return "." if theirs == ours else f". They are of the generation {theirs!r}, {GENERATIONS[theirs]}, not {ours!r}."


class DeepSCClassifier(_Door):
    """DeepSC's classifier of cells: both streams together, pooled, and a head.

    Parameters
    ----------
    deepsc_encoder
        The model to build upon; its weights are taken over.
    n_cls
        Number of classes.
    num_layers_cls
        Layers of the head.
    cell_emb_style
        ``"cls"`` for the first token, ``"avg-pool"`` for the mean of all, padding included.

    Raises
    ------
    ValueError
        For ``"w-pool"``, for which the original never has weights, or another style.
    """

    _STYLES = {"cls": "cls", "avg-pool": "mean_with_padding"}

    def __init__(
        self, deepsc_encoder: DeepSCModel, n_cls: int = 1, num_layers_cls: int = 3, cell_emb_style: str = "avg-pool"
    ) -> None:
        super().__init__()
        pooling = lookup(self._STYLES, cell_emb_style, "cell_emb_style")
        if deepsc_encoder.generation != "base":
            raise ValueError(f"Expected a base model to classify with, found generation {deepsc_encoder.generation!r}.")
        model = deepsc_encoder.cell_model
        self.cell_emb_style = cell_emb_style
        self._batch = deepsc_encoder.batch
        self.cell_model = model.adapt(
            pooling=pooling,
            encoder=replace(streams_of(model.config), pooled="fused"),
            heads=model.config.heads.replace(cell_type=ClassifierConfig(classes=n_cls, layers=num_layers_cls)),
        )

    def forward(self, gene_ids: Tensor, value_log1p: Tensor, value_binned: Tensor, **kwargs: Any) -> Tensor:
        """Compute logits (B, n_cls) of cells (B, L); further arguments are not looked at, as in the original."""
        return self._output(gene_ids, value_log1p, value_binned)["cell_type"]

    def embed(self, gene_ids: Tensor, value_log1p: Tensor, value_binned: Tensor) -> Tensor:
        """Compute the pooled cells (B, D) that the head reads."""
        return self._output(gene_ids, value_log1p, value_binned).cell

    def head_only(self) -> list[str]:
        """Freeze all but the head; returns the names of what is left to train."""
        head = self.cell_model.heads["cell_type"]
        for part, trained in ((self.cell_model, False), (head, True)):
            part.requires_grad_(trained)
        named = self.named(dict(self.cell_model.named_parameters()))
        return [name for name, parameter in named.items() if parameter.requires_grad]

    def _output(self, gene_ids: Tensor, value_log1p: Tensor, value_binned: Tensor) -> CellOutput:
        batch = self._batch(gene_ids, normalized_expr=value_log1p, expression_bin=value_binned)
        return self.cell_model(batch, ["cell_type"])
