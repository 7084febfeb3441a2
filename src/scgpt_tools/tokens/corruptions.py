"""What is hidden from the network and to be predicted: token batch in, token batch with targets out.

Every corruption keeps the truth in ``target`` and marks in ``hidden`` where a prediction is scored; a value that is
hidden is nowhere among the inputs, in none of its channels.  B cells, L tokens a cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from scgpt_tools._validate import as_generator, check_choice, check_fraction, check_integer
from scgpt_tools.config import OneOf
from scgpt_tools.tokens.batch import DECLARED
from scgpt_tools.tokens.orders import draws

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer

Count: TypeAlias = Literal["exact", "bernoulli"]
"""How many values to hide: a fixed part of each cell's, or each by itself with the same probability."""

# Keeps these draws apart from those of the tokenizer.
_HIDE = 3


@dataclass(frozen=True, kw_only=True)
class Corruption(OneOf, ABC):
    """Anything that hides part of a batch; files say which by its ``name``."""

    mask_value: float = -1.0
    """What the network sees in place of a hidden value."""
    mask_bin: int | None = None
    """What it sees in place of its bin, where tokens have bins."""
    mask_position: int | None = None
    """What it sees in place of its position, where tokens have positions."""

    tag: ClassVar[str] = "name"
    name: ClassVar[str]
    """What the corruption is called in configurations."""
    generates: ClassVar[bool] = False
    """Whether it needs a model with the vector that stands for values to be generated."""

    @abstractmethod
    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Hide part of a batch; the batch given is not changed."""

    def of(self, tokenizer: Tokenizer) -> Self:
        """Copy with the markers of a tokenizer in place of those that were not set.

        Parameters
        ----------
        tokenizer
            The tokenizer of the model.

        Returns
        -------
        The copy, which hides no tokens of depth; this corruption itself where tokens have values only.
        """
        config = tokenizer.config
        marked = self.marked(config.mask_value, config.mask_bin)
        if config.depth and getattr(marked, "keep_first", config.first) < config.first:
            marked = replace(marked, keep_first=config.first)  # type: ignore[call-arg]
        return replace(marked, mask_position=0) if config.positions and self.mask_position is None else marked

    def marked(self, mask_value: float, mask_bin: int | None) -> Self:
        """Copy with markers in place of those that were not set; only for tokenizers that bin beside values."""
        if mask_bin is None:
            return self
        value = mask_value if self.mask_value == Corruption.mask_value else self.mask_value
        return replace(self, mask_value=value, mask_bin=mask_bin if self.mask_bin is None else self.mask_bin)

    def hide(self, batch: TokenBatch, places: Tensor) -> TokenBatch:
        """Put markers at some places (B, L) of every channel of the value, and keep the truth.

        Raises
        ------
        ValueError
            If the batch has a channel that this corruption has no marker for.
        """
        changed = {}
        for name, tensor in batch.present("token").items():
            declared = DECLARED[name]
            if declared.marker is None:
                continue
            marker = getattr(self, declared.marker)
            if marker is None:
                raise ValueError(
                    f"Expected `{declared.marker}` to hide the `{name}` of tokens, which tell their values; found none. "
                    "Pass it to the corruption."
                )
            # A gap among the places of visible tokens would tell that of a hidden one.
            seen = _numbered(batch.mask & ~places) if name == "positions" else tensor
            changed[name] = seen.masked_fill(places, marker)
            if declared.truth is not None:
                changed[declared.truth] = tensor
        return batch.replace(**changed, hidden=places)


@dataclass(frozen=True, kw_only=True)
class MaskValues(Corruption):
    """Replace some values by a marker; the genes stay visible (scGPT ``random_mask_value`` and ``DataCollator``)."""

    name: ClassVar[str] = "mask_values"
    ratio: float | tuple[float, ...] = 0.4
    """Part of the values to hide; of several, one is drawn for each batch."""
    count: Count = "exact"
    """``exact`` hides ``int(ratio * n)`` of the n values of a cell, ``bernoulli`` each with probability ``ratio``."""
    keep_first: int = 1
    """Leading tokens never to hide; 0 lets the cell token be hidden too, as scGPT's fine-tuning does."""
    zeros: bool = True
    """Hide values of 0 as well, where the tokenizer keeps genes that are not expressed."""

    def __post_init__(self) -> None:
        _check_ratios(self.ratio)
        check_choice("count", self.count, get_args(Count))
        check_integer("keep_first", self.keep_first, least=0)

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Hide values of real tokens.

        Parameters
        ----------
        batch
            Cells with all their values.
        rng
            Seed or generator.

        Returns
        -------
        The batch with the marker in ``values``, the truth in ``target`` and its places in ``hidden``.
        """
        return self.hide(batch, self.places(batch, as_generator(rng)))

    def places(self, batch: TokenBatch, rng: np.random.Generator) -> Tensor:
        """(B, L) where to hide."""
        ratio = _draw_ratio(self.ratio, rng)
        candidates = candidates_of(batch, self.keep_first)
        if not self.zeros:
            candidates &= batch.values != 0
        noise = noise_of(batch, rng)
        if self.count == "bernoulli":
            return candidates & (noise < ratio)
        return _smallest(noise, candidates, (candidates.sum(1).double() * ratio).long())


@dataclass(frozen=True, kw_only=True)
class GenerateValues(Corruption):
    """Split each cell into visible genes and query genes, whose values are generated (scGPT's generative pre-training).

    With W the width of the longest cell and r the ratio, the last ``int((W - keep_first) * r)`` places are for tokens
    to be generated and the others for tokens to be perceived.  A cell of n genes sends ``int(n * r)`` of them, drawn at
    random, to the generated side; both sides are padded on their right.
    """

    name: ClassVar[str] = "generate_values"
    generates: ClassVar[bool] = True
    ratio: float | tuple[float, ...] = (0.25, 0.5, 0.75)
    """Part of the genes to generate; of several, one is drawn for each batch."""
    keep_first: int = 1
    """Leading tokens that are always perceived, such as the cell token."""

    def __post_init__(self) -> None:
        _check_ratios(self.ratio)
        check_integer("keep_first", self.keep_first, least=0)

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Split the cells of a batch.

        Parameters
        ----------
        batch
            Cells with all their values.
        rng
            Seed or generator.

        Returns
        -------
        A batch of the width of the longest cell.  ``generated`` is True in the places of the generated side, padding
        included; ``hidden`` marks its real tokens and ``target`` holds all values.
        """
        rng = as_generator(rng)
        ratio = _draw_ratio(self.ratio, rng)
        batch = batch.shortened(int(batch.mask.sum(1).max()) if len(batch) else 0)  # no column that is all padding
        candidates = candidates_of(batch, self.keep_first)
        chosen = _smallest(noise_of(batch, rng), candidates, (candidates.sum(1).double() * ratio).long())
        width = batch.genes.shape[1]
        n_generated = int(max(width - self.keep_first, 0) * ratio)
        split = batch.gathered(_order(batch.mask, chosen, width - n_generated))
        generated = (torch.arange(width, device=batch.genes.device) >= width - n_generated).expand_as(split.mask)
        return self.hide(split, generated & split.mask).replace(generated=generated)


@dataclass(frozen=True, kw_only=True)
class GenerateExpression(Corruption):
    """Leave some expressed genes of each cell visible, and query others, expressed and unexpressed ones.

    What makes a kind of cell is which genes it expresses at all, so half of the queries are genes without any
    molecule.  All visible genes are expressed, as in cells that are embedded afterwards.  For tokenizers with
    ``genes="all"``.

    Where it is known how many cells express a gene (:meth:`knowing`), surprises are queried first: an expressed gene
    with a weight of the share of cells without it, an unexpressed one with the share of cells that have it.  Then each
    gene is queried as often in cells that express it as in others, and only knowing the cell can help.
    """

    name: ClassVar[str] = "generate_expression"
    generates: ClassVar[bool] = True
    visible: int = 256
    """Most visible genes."""
    expressed: int = 64
    """Most expressed genes to query; never more than a third of the cell's."""
    unexpressed: int = 64
    """Most unexpressed genes to query."""
    keep_first: int = 1
    """Leading tokens that are always visible, such as the cell token."""
    frequency: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    """(tokens,) share of cells that express a gene, by token id."""

    def knowing(self, frequency: Tensor) -> GenerateExpression:
        """Copy that knows how many cells express each gene.

        Parameters
        ----------
        frequency
            (tokens,) share of cells, by token id.

        Returns
        -------
        The copy.
        """
        copy = replace(self)
        object.__setattr__(copy, "frequency", frequency)
        return copy

    def __post_init__(self) -> None:
        for name in ("visible", "expressed"):
            check_integer(name, getattr(self, name))
        for name in ("unexpressed", "keep_first"):
            check_integer(name, getattr(self, name), least=0)

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Choose among the genes of each cell and drop the others.

        Parameters
        ----------
        batch
            Cells with all their genes.
        rng
            Seed or generator.

        Returns
        -------
        A batch of visible tokens, followed by ``generated`` ones, which are ``hidden`` too.
        """
        rng = as_generator(rng)
        candidates = candidates_of(batch, self.keep_first)
        expressed = candidates & (batch.values > 0)
        often = torch.full_like(batch.values, 0.5) if self.frequency is None else self.frequency[batch.genes]
        query, query_there = _first(_race(batch, rng, 1 - often), expressed, self.expressed)
        query_there &= torch.arange(query.shape[1], device=query.device) < expressed.sum(1, keepdim=True) // 3
        taken = torch.zeros_like(expressed).scatter_(1, query, query_there)
        visible, visible_there = _first(noise_of(batch, rng), expressed & ~taken, self.visible)
        unexpressed, unexpressed_there = _first(_race(batch, rng, often), candidates & ~expressed, self.unexpressed)
        start = torch.arange(self.keep_first, device=query.device).expand(len(batch), -1)
        columns = torch.cat((start, visible, query, unexpressed), dim=1)
        kept = torch.cat((batch.mask[:, : self.keep_first], visible_there, query_there, unexpressed_there), dim=1)
        # Visible tokens, then queries, then padding.
        place = torch.where(kept, 1, 2)
        place[:, : self.keep_first + visible.shape[1]] -= kept[:, : self.keep_first + visible.shape[1]].long()
        order = place.argsort(dim=1, stable=True)[:, : int(kept.sum(1).max()) if len(batch) else 0]
        chosen = batch.gathered(columns.gather(1, order)).replace(mask=kept.gather(1, order))
        hidden = place.gather(1, order) == 1
        return self.hide(chosen, hidden | ~chosen.mask).replace(hidden=hidden, generated=hidden)


@dataclass(frozen=True, kw_only=True)
class MaskBins(Corruption):
    """Replace values by a marker, those of each bin with a probability of their own (DeepSC)."""

    name: ClassVar[str] = "mask_bins"
    chances: tuple[float, ...] | None = None
    """Probability of each bin from 1 on; ``None`` for the rarer the higher (:meth:`knowing`), for which
    :func:`scgpt_tools.train.pretrain` counts the bins of the training cells."""
    keep_first: int = 1
    """Leading tokens never to hide."""

    def __post_init__(self) -> None:
        if self.chances is not None:
            for chance in self.chances:
                check_fraction("chances", chance)
            if not any(self.chances):
                raise ValueError(f"Expected `chances` with one above 0, found {self.chances}.")
        check_integer("keep_first", self.keep_first, least=0)

    def knowing(self, counts: Sequence[float]) -> MaskBins:
        """Copy that hides values of rare bins more often.

        Parameters
        ----------
        counts
            How often each bin occurs, from 1 on.

        Returns
        -------
        The copy, with the ``chances`` of :func:`chances_of`; chances that were given stay.
        """
        return self if self.chances is not None else replace(self, chances=chances_of(counts))

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Hide values of real tokens by their bins; other bins, such as that of the cell token, stay visible."""
        if self.chances is None:
            raise ValueError(
                "Expected `chances` of each bin, found None. `train.pretrain` counts bins; elsewhere pass them, as "
                "`tokens.chances_of(counts)` makes them."
            )
        bins = batch.require("bins")
        table = torch.tensor([0.0, *self.chances], dtype=torch.float64, device=bins.device)
        known = bins <= len(self.chances)
        chance = torch.where(known, table[bins.clamp(max=len(self.chances))], 0.0)
        return self.hide(batch, candidates_of(batch, self.keep_first) & (noise_of(batch, as_generator(rng)) < chance))


def chances_of(counts: Sequence[float]) -> tuple[float, ...]:
    """Probabilities for :class:`MaskBins` by how often each bin occurs, from bin 1 on: the rarer, the higher."""
    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise ValueError(f"Expected counts of bins of at least 0, one of them above, found {list(counts)}.")
    return tuple(next(chance for share, chance in _CHANCES if count / total < share) for count in counts)


# Below which share of the values which probability, as DeepSC has it.
_CHANCES = ((0.01, 0.7), (0.05, 0.5), (0.125, 0.3), (0.2, 0.15), (np.inf, 0.1))

# By name in files that describe pre-training, which reads one modality: `HideModalities`, which needs several, has no
# row; `tokens/gene_masking.py` adds those that hide genes, and
# `tokens/downsampling.py` what thins cells.
CORRUPTIONS: dict[str, type[Corruption]] = {
    corruption.name: corruption for corruption in (MaskValues, MaskBins, GenerateValues, GenerateExpression)
}
Corruption.kinds = CORRUPTIONS


def _check_ratios(ratio: float | tuple[float, ...]) -> None:
    ratios = ratio if isinstance(ratio, tuple) else (ratio,)
    if not ratios:
        raise ValueError("Expected `ratio` to hold at least one number, found none.")
    for entry in ratios:
        check_fraction("ratio", entry, zero=False, one=False)


def _draw_ratio(ratio: float | tuple[float, ...], rng: np.random.Generator) -> float:
    return float(rng.choice(ratio)) if isinstance(ratio, tuple) else ratio


def candidates_of(batch: TokenBatch, keep_first: int) -> Tensor:
    """Real tokens behind the first ones."""
    candidates = batch.mask.clone()
    candidates[:, :keep_first] = False
    return candidates


def noise_of(batch: TokenBatch, rng: np.random.Generator) -> Tensor:
    """A number in [0, 1) for each token, which depends on the draw, the cell and the token only.

    So a cell is treated alike whatever stands beside it in its minibatch, in this process or another.
    """
    if batch.index is None:
        return torch.from_numpy(rng.random(tuple(batch.genes.shape))).to(batch.genes.device)
    cells, tokens = batch.index.cpu().numpy()[:, None], batch.genes.cpu().numpy()
    bits = draws(int(rng.integers(2**62)), cells, tokens, _HIDE)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53).to(batch.genes.device)


def _numbered(tokens: Tensor) -> Tensor:
    """Places of some tokens of each cell among each other, 0 for the others."""
    return (tokens.cumsum(dim=1) - 1) * tokens


def _race(batch: TokenBatch, rng: np.random.Generator, weight: Tensor) -> Tensor:
    """A number for each token such that the first of several is each with a chance in proportion to its weight."""
    return -torch.log1p(-noise_of(batch, rng)) / weight.clamp(min=1e-6)


def _smallest(noise: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Mark as many candidates of each row as ``counts`` says, each set of them as likely as any other."""
    order = noise.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    return (ranks < counts[:, None]) & candidates


def _first(noise: Tensor, candidates: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Columns of the ``n`` candidates of each row that come first in a random order, and whether there are so many."""
    smallest = noise.masked_fill(~candidates, torch.inf).topk(min(n, noise.shape[1]), dim=1, largest=False)
    return smallest.indices, smallest.values.isfinite()


def _order(mask: Tensor, chosen: Tensor, n_perceived: int) -> Tensor:
    """Columns in the order: perceived tokens, padding up to ``n_perceived``, generated tokens, the other padding.

    The two sides of a cell and their padding are all of its row, so the split only moves tokens.
    """
    perceived = mask & ~chosen
    padding = ~mask
    left = n_perceived - perceived.sum(1, keepdim=True)
    place = torch.full_like(mask, 0, dtype=torch.long)
    place[chosen] = 2
    place[padding & (padding.cumsum(1) <= left)] = 1
    place[padding & (padding.cumsum(1) > left)] = 3
    return place.argsort(dim=1, stable=True)
