"""States of DeepSC's optimiser: numbered in the order in which the original's network has its parameters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from scgpt_tools.models.formats.deepsc import to_deepsc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from scgpt_tools.models.cell_model import CellModel

# Parts that stand beside each other, in the order of the original; others are in alphabetical order.
_ORDER = (
    *("gene_embedding", "expr_embedding", "pert_encoder", "layers", "gene_self_attention_layers"),
    *("cross_attention_layers", "expression_layers", "classifier", "regressor", "fused_emb_proj"),
    *("gene_attn", "expr_attn", "attn", "W_Q", "W_K", "W_V", "out_proj", "norm1", "norm2", "gene_norm"),
    *("norm_gene1", "norm_gene2", "norm_gene3", "norm_expr1", "norm_expr2", "ffn_gene", "ffn_expr"),
    *("gate", "experts", "shared_experts", "fc1", "fc2", "fc3", "weight", "bias"),
)
_RANKS = {name: number for number, name in enumerate(_ORDER)}
# An expert that is picked has its second map last, the shared one has not; that of the regressor has its norm last.
_EXPERT = re.compile(r"(\.experts\.\d+\.)(?:w2|norm1)\.")


def optimizer_to_deepsc(optimizer: Optimizer, model: CellModel) -> dict[str, Any]:
    """State of an optimiser as that of one group over the original's parameters has it, on the CPU."""
    state = {
        number: {name: value.detach().cpu() for name, value in optimizer.state[parameter].items()}
        for number, parameter in enumerate(_parameters(model))
        if parameter in optimizer.state
    }
    group = {name: value for name, value in optimizer.param_groups[0].items() if name not in ("params", "name")}
    # How it is computed is a matter of the machine.
    return {"state": state, "param_groups": [group | {"fused": None, "params": list(range(len(_parameters(model))))}]}


def load_optimizer(optimizer: Optimizer, model: CellModel, theirs: Mapping[str, Any]) -> None:
    """Take moments from a state of the original's; rates and the like stay as they are.

    Raises
    ------
    ValueError
        If it is the state of another network.
    """
    parameters = _parameters(model)
    try:
        numbers = [number for group in theirs["param_groups"] for number in group["params"]]
        moments = {number: theirs["state"][number] for number in numbers if number in theirs["state"]}
    except (KeyError, TypeError):
        raise ValueError("Expected the state of an optimiser with `state` and `param_groups`, found another.") from None
    fits = len(numbers) == len(parameters) and all(
        moments[number]["exp_avg"].shape == parameter.shape
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in moments
    )
    if not fits:
        raise ValueError(
            f"Expected the state of an optimiser of {len(parameters)} parameters of this model, found {len(numbers)} of "
            "others. Pass the checkpoint of such a model."
        )
    own = optimizer.state_dict()
    places = {
        id(each): number for number, each in enumerate(each for g in optimizer.param_groups for each in g["params"])
    }
    own["state"] = {
        places[id(parameter)]: {name: value.clone() for name, value in moments[number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in moments and id(parameter) in places
    }
    optimizer.load_state_dict(own)


def _parameters(model: CellModel) -> list[nn.Parameter]:
    """Parameters in the original's order."""
    named: dict[str, Any] = to_deepsc(dict(model.named_parameters()), model.config)
    return [named[name] for name in sorted(named, key=_place)]


def _place(name: str) -> list[tuple[int, str]]:
    last = _EXPERT.sub(r"\1~.", name)
    return [(int(part), "") if part.isdigit() else (_RANKS.get(part, len(_RANKS)), part) for part in last.split(".")]
