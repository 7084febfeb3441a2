"""DeepSC's constructor arguments as a configuration, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from scgpt_tools._lookup import absent
from scgpt_tools.config import from_dict, settle_fields, to_dict
from scgpt_tools.models.config import (
    BinAndNumberConfig,
    BinsConfig,
    ClassifierConfig,
    DeepRegressorConfig,
    DualStreamConfig,
    EarlierStreamConfig,
    MixtureConfig,
    MixtureRegressorConfig,
    ModelConfig,
    Named,
)
from scgpt_tools.models.families.deepsc import cell_tokenizer, embedder_of, regressor_of, streams_of, with_flags
from scgpt_tools.tokens.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from scgpt_tools.models.config import Pooling

Generation = Literal["base", "v1", "v2", "l0", "l1"]
GENERATIONS: dict[Generation, str] = {
    "base": "the current base model",
    "v1": "the first model of perturbations, of bins, values and flags",
    "v2": "the second model of perturbations, of values and flags",
    "l0": "the first generation, of November 2025",
    "l1": "the second generation, of November 2025",
}
POOLINGS: dict[str, Pooling] = {"cls": "cls", "avg-pool": "mean_with_padding"}


@dataclass(frozen=True, kw_only=True)
class MixtureArguments:
    """Fields of the original's ``moe``."""

    n_moe_layers: int = 4
    use_moe_ffn: bool = False
    dim: int | None = None
    moe_inter_dim: int = 512
    n_routed_experts: int = 2
    n_activated_experts: int = 2
    n_shared_experts: int = 1
    score_func: str = "softmax"
    route_scale: float = 1.0

    def config(self, value_layers: int) -> MixtureConfig | None:
        """Ours; ``None`` where nothing is mixed."""
        layers = min(self.n_moe_layers, value_layers)
        if not self.use_moe_ffn or layers < 1:
            return None
        return MixtureConfig(
            layers=layers,
            hidden=self.moe_inter_dim,
            experts=self.n_routed_experts,
            active=self.n_activated_experts,
            shared=self.n_shared_experts,
            # The original divides by the sum under this very name alone, and takes any other for a sigmoid.
            score=self.score_func if self.score_func in ("softmax", "sigmoid") else "sigmoid_unscaled",  # type: ignore[arg-type]
            scale=self.route_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of DeepSC's constructors; those that the original ignores are left out."""

    embedding_dim: int
    num_genes: int
    num_layers: int = 4
    num_heads: int = 8
    attn_dropout: float = 0.1
    ffn_dropout: float = 0.1
    num_bins: int = 8
    alpha: float = 0.1
    enable_mse: bool = True
    enable_ce: bool = True
    num_layers_ffn: int = 2
    use_moe_regressor: bool = True
    number_of_experts: int = 3
    gene_embedding_participate_til_layer: int = 3
    moe: MixtureArguments | None = None
    attention_stream: int = 1
    cross_attention_architecture: Literal["A", "B", "C"] = "A"
    fused: bool = True
    mask_layer_start: int | None = None
    use_M_matrix: bool = True
    dual_layers: int | None = None
    """Layers of both streams in the first generation; ``None`` for ``num_layers``, as its newer file has it."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.attention_stream not in (1, 2):
            raise ValueError(
                f"Expected `attention_stream` to be 1 (single) or 2 (dual), found {self.attention_stream}. The original "
                "builds a model without layers of genes then."
            )
        if self.num_bins < 1 or self.num_genes < 1:
            raise ValueError(f"Expected at least one gene and one bin, found {self.num_genes} and {self.num_bins}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Read arguments by name; ``moe`` is a mapping or anything with attributes."""
        given = {name: value for name, value in given.items() if name not in _IGNORED}
        moe = given.get("moe")
        if moe is not None and not isinstance(moe, Mapping | MixtureArguments):
            given["moe"] = {name: getattr(moe, name) for name in _MOE if hasattr(moe, name)}
        return from_dict(cls, given)


_IGNORED = ("enable_l0",)
_MOE = tuple(MixtureArguments.__dataclass_fields__)


def config_of(arguments: Arguments, generation: Generation) -> ModelConfig:
    """Describe the model that the original's constructor builds; class token last, padding first."""
    if generation not in GENERATIONS:
        raise ValueError(absent(generation, GENERATIONS, "generation of DeepSC named"))
    earlier = generation in ("l0", "l1")
    a = arguments
    genes = a.gene_embedding_participate_til_layer
    if not 0 <= genes <= a.num_layers:
        raise ValueError(
            f"Expected `gene_embedding_participate_til_layer` within 0 .. num_layers={a.num_layers}, found {genes}."
        )
    dual = genes
    if generation == "l0":
        dual = a.num_layers if a.dual_layers is None else a.dual_layers
    values = a.num_layers - genes
    common: dict[str, Any] = {
        "layers": dual + values,
        "heads": a.num_heads,
        "dropout": a.ffn_dropout,
        "attention_dropout": a.attn_dropout,
        "gene_layers": dual,
        "depth": max(a.num_layers_ffn, 2),
        "mixture": None if a.moe is None else a.moe.config(values),
    }
    encoder: DualStreamConfig
    if earlier:
        start = max(dual - 1, 0) if a.mask_layer_start is None else a.mask_layer_start
        gated = generation == "l0" and a.use_M_matrix
        encoder = EarlierStreamConfig(**common, cross="C", gates_from=start if gated else None, unused_map=a.fused)
    else:
        streams: Literal["dual", "single"] = "dual" if a.attention_stream == 2 else "single"
        encoder = DualStreamConfig(**common, streams=streams, cross=a.cross_attention_architecture)
    part = BinAndNumberConfig(rows=a.num_bins + 3, factor=a.alpha if generation == "l0" else None)
    regressor = regressor_of(a.number_of_experts if a.use_moe_regressor else 0)
    if generation == "l0" and isinstance(regressor, MixtureRegressorConfig):
        regressor = replace(regressor, earlier=True)
    base = ModelConfig(
        family="deepsc",
        n_tokens=a.num_genes + 2,
        pad_id=0,
        dim=a.embedding_dim,
        embedder=embedder_of(part),
        encoder=encoder,
        heads=Named(expression=regressor, bins=BinsConfig(bins=a.num_bins)),
        tokenizer=cell_tokenizer(a.num_bins),
    )
    if generation not in ("v1", "v2"):
        return base
    return replace(with_flags(base, values="bins" if generation == "v1" else "number"), heads=base.heads)


def generation_of(names: Iterable[str]) -> Generation:
    """Tell the generation by names of tensors, those of a classifier without their ``encoder.``.

    Raises
    ------
    ValueError
        If they are of none.
    """
    names = set(names)
    if "pert_encoder.weight" in names:
        return "v2" if "expr_embedding.linear1.weight" in names else "v1"
    if "expr_embedding.continuous_projection" in names:
        return "l0"
    if "expr_embedding.continuous_projection.weight" not in names:
        raise ValueError(
            "Expected tensors of a generation of DeepSC ("
            + ", ".join(GENERATIONS)
            + "), found none of an embedding of "
            "expression that any of them has."
        )
    dual = any(name.startswith("layers.") for name in names)
    if _fused(names) or (dual and not any(".norm_gene3." in name for name in names)):
        return "l1"
    return "base"


def _fused(names: Iterable[str]) -> bool:
    """Whether layers of expression have the map that the first generations never use."""
    return any(name.startswith("expression_layers.") and name.endswith("fused_emb_proj.weight") for name in names)


def arguments_from(weights: Mapping[str, Tensor], said: Mapping[str, Any], generation: Generation) -> Arguments:
    """Arguments that tensors tell, with those that only the settings know.

    Raises
    ------
    ValueError
        If the settings contradict the tensors.
    """
    said = {name: value for name, value in said.items() if name not in _IGNORED}
    told = _told(weights, said, generation)
    for name, value in told.items():
        if name in said and said[name] != value and not (name == "num_layers_ffn" and max(said[name], 2) == value):
            raise ValueError(f"Expected {name}={value}, as the tensors say, found {said[name]!r} in the settings.")
    moe = dict(said.get("moe") or {})
    mixture = _mixture_told(weights)
    _check_mixture(moe, mixture, _count(weights, "expression_layers"))
    moe |= mixture
    return Arguments.of({**said, **told, "moe": moe})


def _told(weights: Mapping[str, Tensor], said: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    for name in ("gene_embedding.gene_embedding.weight", "classifier.6.weight"):
        if name not in weights:
            raise ValueError(f"Expected all tensors of DeepSC's generation {generation!r}, found no {name}.")
    genes, dim = weights["gene_embedding.gene_embedding.weight"].shape
    dual, single, values = (_count(weights, name) for name in ("layers", "cross_attention_layers", "expression_layers"))
    told: dict[str, Any] = {
        "embedding_dim": dim,
        "num_genes": genes - 2,
        "num_bins": len(weights["classifier.6.weight"]) - 1,
        "use_moe_regressor": "regressor.gate.0.weight" in weights,
    }
    depths = [int(found[1]) for key in weights if (found := re.search(r"ffn_\w+\.layers\.(\d+)\.0\.weight$", key))]
    if depths:
        told["num_layers_ffn"] = max(depths) + 1
    if told["use_moe_regressor"]:
        told["number_of_experts"] = _count(weights, "regressor.experts")
    if generation in ("l0", "l1") and values:
        told["fused"] = _fused(weights)
    if generation == "l0":
        told["use_M_matrix"] = _gated(weights)
        return told | _first_layers(dual, values, newer=said.get("num_layers") != dual + values)
    told |= {"num_layers": dual + single + values, "gene_embedding_participate_til_layer": dual + single}
    if generation != "l1" and (dual or single):
        told["attention_stream"] = 2 if dual else 1
    return told


def _gated(weights: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("gumbel_softmax.") for key in weights)


def _first_layers(dual: int, values: int, *, newer: bool = True) -> dict[str, Any]:
    """Arguments for layers of both streams and of expression, by the first generation's newer file or its other one."""
    if newer and dual >= values:
        return {"num_layers": dual, "gene_embedding_participate_til_layer": dual - values}
    return {"num_layers": dual + values, "gene_embedding_participate_til_layer": dual, "dual_layers": dual}


def _mixture_told(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    gates = [key for key in weights if key.endswith("ffn_expr.gate.proj.weight")]
    if not gates:
        return {"use_moe_ffn": False}
    place = gates[0].removesuffix("gate.proj.weight")
    hidden = len(weights[f"{place}experts.0.w1.weight"])
    return {
        "use_moe_ffn": True,
        "n_moe_layers": len(gates),
        "n_routed_experts": len(weights[gates[0]]),
        "moe_inter_dim": hidden,
        "n_shared_experts": len(weights[f"{place}shared_experts.w1.weight"]) // hidden,
    }


def _check_mixture(said: Mapping[str, Any], told: Mapping[str, Any], value_layers: int) -> None:
    """Refuse settings of experts that the tensors contradict."""
    said = dict(said)
    layers = min(said.get("n_moe_layers", MixtureArguments.n_moe_layers), value_layers)
    if "n_moe_layers" in said:
        said["n_moe_layers"] = layers
    if layers < 1 and said.get("use_moe_ffn"):
        said["use_moe_ffn"] = False
    for name, value in told.items():
        if name in said and said[name] != value:
            raise ValueError(f"Expected moe.{name}={value}, as the tensors say, found {said[name]!r} in the settings.")


def unsaid(weights: Mapping[str, Tensor], said: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    """What neither tensors nor settings tell though numbers depend on it, with what is taken."""
    names = ["num_heads"]
    if generation == "l0":
        names += ["alpha", "mask_layer_start"] if _gated(weights) else ["alpha"]
    elif generation != "l1" and _count(weights, "layers") + _count(weights, "cross_attention_layers"):
        names.append("cross_attention_architecture")
    found = {name: Arguments.__dataclass_fields__[name].default for name in names if name not in said}
    if _mixture_told(weights)["use_moe_ffn"]:
        experts, moe = MixtureArguments(), said.get("moe") or {}
        unknown = [name for name in ("n_activated_experts", "score_func", "route_scale") if name not in moe]
        found |= {f"moe.{name}": getattr(experts, name) for name in unknown}
    return found


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {key.removeprefix(f"{prefix}.").split(".")[0] for key in weights if key.startswith(f"{prefix}.")}
    return len(numbers)


def check_writable(config: ModelConfig) -> None:
    """Refuse what the original cannot compute.

    Raises
    ------
    ValueError
        If the model hides padding, has other widths or another softmax of experts than the original, or classifies cells
        that are pooled otherwise.
    """
    encoder, regressor = streams_of(config), config.heads.get("expression")
    advice = "It would predict other numbers there; keep this model with `save`."
    if encoder.padding_mask:
        raise ValueError(f"Expected padding_mask=False, as the original attends, found True. {advice}")
    if encoder.hidden not in (None, 4 * config.dim):
        raise ValueError(f"Expected hidden={4 * config.dim}, four times the width, found {encoder.hidden}. {advice}")
    if isinstance(regressor, MixtureRegressorConfig) and regressor.temperature != 1:
        raise ValueError(f"Expected temperature=1 of the regressor, found {regressor.temperature}. {advice}")
    if "cell_type" in config.heads and encoder.pooled != "fused":
        raise ValueError(
            f"Expected a classifier of both streams together, pooled='fused', as the original has it, found "
            f"{encoder.pooled!r}. {advice}"
        )
    if "cell_type" in config.heads and config.pooling not in POOLINGS.values():
        raise ValueError(
            f"Expected a classifier that pools by {' or '.join(map(repr, POOLINGS.values()))}, as the original does, found "
            f"{config.pooling!r}. {advice}"
        )


def own_facts(config: ModelConfig) -> dict[str, Any]:
    """What the original has no words for, to be kept beside its arguments."""
    return {
        "pooling": config.pooling,
        "pooled": streams_of(config).pooled,
        "perturbation_flags": list(config.perturbation_flags),
        "tokenizer": to_dict(config.tokenizer),
    }


def with_own_facts(config: ModelConfig, own: Mapping[str, Any], where: str) -> ModelConfig:
    """The configuration with the facts of :func:`own_facts`, as far as there are any."""
    kept = {name: own[name] for name in ("pooling", "perturbation_flags") if name in own}
    if "perturbation_flags" in kept:
        kept["perturbation_flags"] = tuple(kept["perturbation_flags"])
    if "pooled" in own:
        kept["encoder"] = replace(streams_of(config), pooled=own["pooled"])
    if "tokenizer" in own:
        kept["tokenizer"] = from_dict(TokenizerConfig, own["tokenizer"], where=f"{where}.tokenizer")
    return replace(config, **kept)


def said_of(config: ModelConfig) -> dict[str, Any]:
    """Arguments of the original for one of our configurations, to write beside its weights.

    Raises
    ------
    ValueError
        If the original has no such model.
    """
    check_writable(config)
    encoder = streams_of(config)
    values = config.embedder.parts["values"]
    bins = config.heads.find("bins", BinsConfig)
    regressor = config.heads.get("expression")
    if not isinstance(regressor, MixtureRegressorConfig | DeepRegressorConfig) or bins is None:
        raise ValueError(f"Expected DeepSC's regressor and its classifier of bins, found {list(config.heads)}.")
    said: dict[str, Any] = {
        "embedding_dim": config.dim,
        "num_genes": config.n_tokens - 2,
        "num_layers": encoder.layers,
        "num_heads": encoder.heads,
        "attn_dropout": encoder.dropout if encoder.attention_dropout is None else encoder.attention_dropout,
        "ffn_dropout": encoder.dropout,
        "num_bins": bins.bins,
        "num_layers_ffn": encoder.depth,
        "use_moe_regressor": isinstance(regressor, MixtureRegressorConfig),
        "gene_embedding_participate_til_layer": encoder.gene_layers,
    }
    if isinstance(regressor, MixtureRegressorConfig):
        said["number_of_experts"] = regressor.experts
    if isinstance(values, BinAndNumberConfig) and values.factor is not None:
        said |= {"alpha": values.factor} | _first_layers(encoder.gene_layers, encoder.value_layers)
    if isinstance(encoder, EarlierStreamConfig):
        said |= {"fused": encoder.unused_map, "use_M_matrix": encoder.gates_from is not None}
        said["mask_layer_start"] = encoder.gates_from
    else:
        said |= {"attention_stream": 2 if encoder.streams == "dual" else 1}
        said["cross_attention_architecture"] = encoder.cross
    if (mixture := encoder.mixture) is not None:
        said["moe"] = {
            "n_moe_layers": mixture.layers,
            "use_moe_ffn": True,
            "dim": config.dim,
            "moe_inter_dim": mixture.hidden,
            "n_routed_experts": mixture.experts,
            "n_activated_experts": mixture.active,
            "n_shared_experts": mixture.shared,
            "score_func": mixture.score,
            "route_scale": mixture.scale,
        }
    classifier = config.heads.find("cell_type", ClassifierConfig)
    if classifier is not None:
        said["classifier"] = {
            "num_layers_cls": classifier.layers,
            "cell_emb_style": {ours: theirs for theirs, ours in POOLINGS.items()}[config.pooling],
            "id2type": list(classifier.names or ()),
        }
    return said
