"""The stack of layers as scGPT's scripts know it, torch's ``TransformerEncoder``, with our attention inside.

Shape letters: B cells, S tokens, D width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scgpt_tools.models.scgpt.parts import Renamed, touched
from scgpt_tools.nn.attention import (
    Attended,
    Attention,
    Layout,
    PackedLayout,
    PaddedLayout,
    packing_pays,
    unpack,
)
from scgpt_tools.nn.linear import Linear, linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class StackedMaps(Linear):
    """Query, key and value maps as one, ``Wqkv``: (..., D) to (..., 3 D).  The weights are kept by attention."""

    def _save_to_state_dict(self, *_: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class SelfAttention(Renamed, Attention):
    """Attention with the names and the call of torch's ``MultiheadAttention``, and the ``Wqkv`` of fused layers.

    Parameters
    ----------
    dim, heads, dropout
        Sizes and probability.
    fused
        List ``Wqkv`` among the modules, for adapters to find it.
    """

    names = {"out": "out_proj"}

    def __init__(self, dim: int, heads: int, dropout: float, *, fused: bool) -> None:
        nn.Module.__init__(self)
        self.heads = self.num_heads = heads
        self.embed_dim, self.dropout, self.batch_first = dim, dropout, True
        maps = StackedMaps(dim, 3 * dim)
        self.in_proj_weight, self.in_proj_bias = maps.weight, maps.bias
        self.out_proj = Linear(dim, dim)
        # As torch draws them.
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)
        if fused:
            self._modules["Wqkv"] = maps
        else:
            vars(self)["_maps"] = maps

    @property
    def Wqkv(self) -> nn.Module:
        """The three maps as one module."""
        maps = self._modules.get("Wqkv")
        found: nn.Module = vars(self)["_maps"] if maps is None else maps
        return found

    def project(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens to queries, keys and values; keys and values are of the same tokens."""
        maps = self.Wqkv
        if touched(maps, StackedMaps):
            q, k, v = maps(keys).chunk(3, dim=-1)
            return (q if queries is keys else maps(queries).chunk(3, dim=-1)[0]), k, v
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (linear(*each) for each in zip((queries, keys, values), weights, biases, strict=True))
        return q, k, v

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        layout: Layout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within cells.

        Parameters
        ----------
        query, key, value
            (B, S, D), all the same tokens.
        key_padding_mask
            (B, S) True at padding.
        need_weights, average_attn_weights
            Also return weights, of all heads or their mean.
        attn_mask, is_causal
            Not for these networks.
        layout
            Where tokens are, if it is known.

        Returns
        -------
        (B, S, D), and weights (B, S, S) or (B, H, S, S) or ``None``.
        """
        if any(other is not None and other is not query for other in (key, value)):
            raise ValueError("Expected self-attention, one tensor as `query`, `key` and `value`; found several.")
        _refuse_masks("attn_mask", attn_mask, is_causal=is_causal)
        if layout is None:
            layout = _layout_of(query, key_padding_mask)
        backend = "eager" if need_weights else "varlen" if isinstance(layout, PackedLayout) else "sdpa"
        context, weights = self.attend(query, layout, backend)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return context, weights

    def attend(self, x: Tensor, layout: Layout, backend: str | None = None, *, last: bool = False) -> Attended:
        """Attend as our network does, see :class:`~scgpt_tools.nn.attention.Attention`."""
        return super().forward(x, layout, backend, last=last)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._tie()  # where moving weights makes new ones
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Parameter) and ("_maps" in vars(self) or "Wqkv" in self._modules):
            self._tie()

    def _tie(self) -> None:
        """Let ``Wqkv`` have the weights of attention."""
        if isinstance(maps := self.Wqkv, StackedMaps):
            maps.weight, maps.bias = self.in_proj_weight, self.in_proj_bias


class TransformerEncoderLayer(nn.Module):
    """One layer, called as torch's; with ``replace`` in the order of norms of scGPT's fused layers with ``pre_norm``."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, *, replace: bool, fused: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, dropout, fused=fused)
        self.linear1, self.dropout, self.linear2 = Linear(dim, hidden), nn.Dropout(dropout), Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.norm_scheme = "pre" if replace else "post"

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        layout: Layout | None = None,
    ) -> Tensor:
        """Encode (B, S, D) tokens to (B, S, D); what stands at padding, True in the mask (B, S), has no meaning."""
        _refuse_masks("src_mask", src_mask, is_causal=is_causal)
        if layout is None:
            layout = _layout_of(src, src_key_padding_mask)
        if self.norm_scheme == "pre":
            x = self.norm1(src)
            x = self.norm2(x + self.dropout1(self._attended(x, src_key_padding_mask, layout)))
            return x + self.dropout2(self._fed_forward(x))
        x = self.norm1(src + self.dropout1(self._attended(src, src_key_padding_mask, layout)))
        return self.norm2(x + self.dropout2(self._fed_forward(x)))

    def _attended(self, x: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
        known = {} if touched(self.self_attn, SelfAttention) else {"layout": layout}
        attended: Tensor = self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False, **known)[0]
        return attended

    def _fed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerEncoder(nn.Module):
    """Layers one after another, called as torch's.

    Cells go through them without padding where that is faster and nobody looks: each layer is called with (B, S, D) as
    soon as any part of the stack has a hook or is of another kind than it was.
    """

    def __init__(self, layers: int, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerEncoderLayer(**options) for _ in range(layers))
        self.num_layers, self.norm = layers, None

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
        *,
        generated: Tensor | None = None,
    ) -> Tensor:
        """Encode (B, S, D) tokens to (B, S, D), 0 at padding.

        Parameters
        ----------
        src
            (B, S, D) vectors of tokens.
        mask, is_causal
            Not for these networks.
        src_key_padding_mask
            (B, S) True at padding.
        generated
            (B, S) True at tokens to be generated, in the pre-training form.
        """
        _refuse_masks("mask", mask, is_causal=bool(is_causal))
        padding = _as_bool(src_key_padding_mask)
        if padding is not None and generated is None and self._may_pack(~padding):
            return self._packed(src, ~padding)
        layout = _layout_of(src, padding, generated)
        x = src
        for layer in self.layers:
            known = {} if touched(layer, TransformerEncoderLayer) else {"layout": layout}
            x = layer(x, src_key_padding_mask=padding, **known)
        return x if layout.visible is None else x * layout.mask.unsqueeze(-1)

    def _packed(self, src: Tensor, mask: Tensor) -> Tensor:
        layout = PackedLayout.from_lengths(tuple(mask.sum(dim=1).tolist()), src.device)
        x = src[mask]
        for layer in self.layers:
            x = layer(x, layout=layout)
        return unpack(x, mask)

    def _may_pack(self, mask: Tensor) -> bool:
        if not len(self.layers) or touched(self.layers[0], TransformerEncoderLayer):
            return False
        attention = cast("TransformerEncoderLayer", self.layers[0]).self_attn
        dropout = attention.training and bool(getattr(attention, "dropout", 0))
        return packing_pays(mask, dropout=dropout) and not any(map(self._looked_at, self.layers.modules()))

    @staticmethod
    def _looked_at(part: nn.Module) -> bool:
        if isinstance(part, SelfAttention) and touched(part.Wqkv, StackedMaps):
            return True
        return touched(part, Linear, StackedMaps, SelfAttention, TransformerEncoderLayer)


class SharedAttention(Attention):
    """Attention of our network, with the weights and the mode of one with scGPT's names.

    In a state dict it has the names of any attention of ours.
    """

    def __init__(self, theirs: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.theirs, self.heads = theirs, theirs.heads
        self.register_state_dict_post_hook(_split_names)
        self.register_load_state_dict_pre_hook(_stack_names)

    def forward(  # type: ignore[override]
        self, x: Tensor, layout: Layout, backend: str | None = None, *, last: bool = False
    ) -> Attended:
        """Attend."""
        return self.theirs.attend(x, layout, backend, last=last)

    def project(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens to queries, keys and values."""
        return self.theirs.project(queries, keys, values)


_OURS = ("query", "key", "value")


def _split_names(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: object) -> None:
    for kind in ("weight", "bias"):
        stacked = state.pop(f"{prefix}theirs.in_proj_{kind}")
        state.update(zip((f"{prefix}{part}.{kind}" for part in _OURS), stacked.chunk(3), strict=True))
        state[f"{prefix}out.{kind}"] = state.pop(f"{prefix}theirs.out_proj.{kind}")


def _stack_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in _OURS]
        if all(name in state for name in names):
            state[f"{prefix}theirs.in_proj_{kind}"] = torch.cat([state.pop(name) for name in names])
        if f"{prefix}out.{kind}" in state:
            state[f"{prefix}theirs.out_proj.{kind}"] = state.pop(f"{prefix}out.{kind}")


def _layout_of(x: Tensor, padding: Tensor | None, generated: Tensor | None = None) -> PaddedLayout:
    padding = _as_bool(padding)
    if padding is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return PaddedLayout.from_mask(mask, generated, full=True)
    return PaddedLayout.from_mask(~padding, generated)


def _as_bool(padding: Tensor | None) -> Tensor | None:
    """Read masks of numbers, 0 and minus infinity, as torch does."""
    if padding is None or padding.dtype == torch.bool:
        return padding
    if padding.is_floating_point() and not bool(((padding == 0) | (padding == float("-inf"))).all()):
        raise ValueError("Expected a mask of padding, True or minus infinity at padding; found other numbers.")
    return padding != 0


def _refuse_masks(name: str, mask: Tensor | None, *, is_causal: bool) -> None:
    if mask is not None or is_causal:
        raise ValueError(f"Expected neither `{name}` nor `is_causal`: every token sees every other of its cell.")
