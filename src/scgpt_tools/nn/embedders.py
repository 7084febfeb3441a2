"""From token ids and values to vectors: named parts, added up.

Every part works on tokens of any leading shape, (B, L) or packed (N,), and returns the same shape with D appended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools._lookup import lookup
from scgpt_tools.config import Named, settle_fields
from scgpt_tools.nn.dropout import Dropout
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.norms import DomainNorm, SharedNorm
from scgpt_tools.nn.sockets import Embedded, PartConfig, Sizes, check_least, check_row
from scgpt_tools.tokens.batch import DECLARED

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from torch import Tensor

    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch

EmbedderNorm = Literal["none", "layer", "batch", "domain", "domain_of_first"]


class NormedTable(nn.Module):
    """A table of embeddings, most often followed by a layer norm: genes, batch labels, modalities."""

    def __init__(self, rows: int, dim: int, pad: int | None = None, *, norm: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim, padding_idx=pad)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (...) ids."""
        return self.norm(self.table(ids))


def gene_table(rows: int, dim: int, pad: int | None, *, norm: bool = True) -> NormedTable:
    """Make the table of genes, drawn from U(-0.1, 0.1) as scGPT's, the row of padding included."""
    genes = NormedTable(rows, dim, pad, norm=norm)
    nn.init.uniform_(genes.table.weight, -0.1, 0.1)
    return genes


@dataclass(frozen=True, kw_only=True)
class GenesConfig(PartConfig):
    """A table of all tokens."""

    norm: bool = True
    """Layer norm after the table."""
    draw: Literal["uniform", "normal"] = "uniform"
    """What new rows are drawn from: U(-0.1, 0.1) as in scGPT, or N(0, 1), with a row of padding that is 0."""

    def __post_init__(self) -> None:
        settle_fields(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """Token ids."""
        return ("genes",)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the table."""
        make = gene_table if self.draw == "uniform" else NormedTable
        return make(sizes.n_tokens, sizes.dim, sizes.pad_id, norm=self.norm)


class ContinuousValue(nn.Module):
    """Embed a number by a small MLP; values are capped at 512 and negative markers are ordinary inputs.

    Bins are few: without gradients, on a CPU, each different value is embedded once and looked up.
    """

    CAP = 512.0
    REPEATS = 4
    """How often a value has to be there on average to be looked up."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, dim), Linear(dim, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) values."""
        if values.device.type == "cpu" and not self.training and not torch.is_grad_enabled():
            # On a GPU the number of different values would have to be waited for.
            different, places = values.unique(return_inverse=True)
            if len(different) * self.REPEATS <= values.numel():
                return F.embedding(places, self._embed(different))
        return self._embed(values)

    def _embed(self, values: Tensor) -> Tensor:
        x = values.to(self.first.weight.dtype).clamp(max=self.CAP).unsqueeze(-1)
        return self.dropout(self.norm(self.second(self.first(x).relu())))


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig(PartConfig):
    """A small network on a number."""

    field: str = "values"
    """Of the batch."""

    def __post_init__(self) -> None:
        settle_fields(self)
        lookup(DECLARED, self.field, "field of a token batch")

    @property
    def reads(self) -> tuple[str, ...]:
        """One field."""
        return (self.field,)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the network."""
        return ContinuousValue(sizes.dim, sizes.dropout)


class LinearValue(nn.Linear):
    """Embed a number by a linear map."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) values."""
        return super().forward(values.to(self.weight.dtype).unsqueeze(-1))


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ContinuousConfig):
    """A linear map of a number."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the map."""
        return LinearValue(sizes.dim)


class BinnedValue(NormedTable):
    """Embed a bin by its row of a table; fractions are cut off."""

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) bins."""
        bins, rows = values.long(), self.table.num_embeddings
        # Both at once: each number that is read from a GPU has to be waited for.
        least, most = torch.stack(bins.aminmax()).tolist() if bins.numel() else (0, 0)
        if least < 0 or most >= rows:
            raise ValueError(
                f"Expected bins within 0 .. {rows - 1}, found {least} .. {most}. Markers for masked and padded values "
                "need rows of their own in the table."
            )
        return super().forward(bins)


@dataclass(frozen=True, kw_only=True)
class TableConfig(PartConfig):
    """A table that is read by whole numbers: bins, positions."""

    rows: int
    """Markers included."""
    pad: int | None = None
    """Row that padding reads and that is never trained."""
    field: str = "values"
    """Of the batch."""
    norm: bool = True
    """Layer norm after the table."""
    spread: float = 1.0
    """Standard deviation of fresh rows."""

    def __post_init__(self) -> None:
        settle_fields(self)
        lookup(DECLARED, self.field, "field of a token batch")
        check_least("rows", self.rows, 1)
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"Expected `spread` to be a finite number above 0, found {self.spread}.")
        check_row("pad", self.pad, self.rows)

    @property
    def reads(self) -> tuple[str, ...]:
        """One field."""
        return (self.field,)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the table."""
        part = BinnedValue(self.rows, sizes.dim, self.pad, norm=self.norm)
        with torch.no_grad():
            part.table.weight.mul_(self.spread)
        return part


class ScaleValue(nn.Module):
    """Leave the value a number: it multiplies the gene embedding."""

    def forward(self, values: Tensor) -> Tensor:
        """Append an axis to (...) values."""
        return values.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(ContinuousConfig):
    """A number by which the parts before are multiplied."""

    operation: ClassVar[Literal["multiply"]] = "multiply"

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the part, which has no weights."""
        return ScaleValue()


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig(PartConfig):
    """A table of flags of perturbed genes; a batch without flags goes without."""

    optional: ClassVar[bool] = True
    by_task: ClassVar[bool] = True

    rows: int = 3
    pad: int | None = None
    """Row that is never trained."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("rows", self.rows, 1)
        check_row("pad", self.pad, self.rows)

    @property
    def reads(self) -> tuple[str, ...]:
        """Flags."""
        return ("perturbed",)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the table."""
        return nn.Embedding(self.rows, sizes.dim, padding_idx=self.pad)


class Generation(nn.Embedding):
    """One vector for tokens that are to be generated."""

    def __init__(self, dim: int) -> None:
        # Row 0 is never read, but released checkpoints hold it.
        super().__init__(2, dim)

    def forward(self, generated: Tensor) -> Tensor:
        """Return the vector (D,), which goes to the tokens (...) where ``generated`` is True."""
        return self.weight[1]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(PartConfig):
    """A vector that stands for a value to be generated (scGPT's pre-training form)."""

    operation: ClassVar[Literal["replace"]] = "replace"
    optional: ClassVar[bool] = True

    of: str = "values"
    """Name of the part that it stands for."""

    def __post_init__(self) -> None:
        settle_fields(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """Which tokens are to be generated."""
        return ("generated",)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the vector."""
        return Generation(sizes.dim)


# The whole ------------------------------------------------------------------------------------------------------------

NORMS: dict[str, Callable[[Sizes], nn.Module]] = {
    "layer": lambda sizes: nn.LayerNorm(sizes.dim),
    "batch": lambda sizes: SharedNorm(sizes.dim),
    "domain": lambda sizes: DomainNorm(sizes.dim, sizes.domains),
    "domain_of_first": lambda sizes: DomainNorm(sizes.dim, sizes.domains, of_first=True),
}


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """How a token becomes a vector: its parts one after another, added or multiplied, then norm and dropout."""

    parts: Named[PartConfig] = field(
        default_factory=lambda: Named({"genes": GenesConfig(), "values": ContinuousConfig()})
    )
    norm: EmbedderNorm = "none"
    """Layer norm of each token; batch norm over all cells; or one per batch label without affine parameters (DSBN).

    ``"domain_of_first"`` takes the label of the first cell for the whole minibatch, as scGPT does."""
    dropout: float = 0.0
    """After the norm."""
    eps: float = 1e-5
    """What ``norm="layer"`` adds to the variance."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected `dropout` to be in [0, 1), found {self.dropout}.")
        if not self.eps > 0:
            raise ValueError(f"Expected `eps` above 0, found {self.eps}.")
        operations = [part.operation for part in self.parts.values()]
        if not operations or operations[0] != "add":
            raise ValueError(f"Expected `parts` to begin with one to add to, found {list(self.parts)}.")
        for name, part in self.parts.items():
            if hasattr(Embedder, name) or name in ("config", "norm", "dropout"):
                raise ValueError(f"Expected a part of the embedder with a name of its own, found {name!r}.")
            if isinstance(part, GenerationConfig):
                other = self.parts.get(part.of)
                if other is None or other.operation != "add":
                    raise ValueError(
                        f"Expected a part {part.of!r} that is added, which {name!r} stands in for, found "
                        f"{list(self.parts)}."
                    )

    def check(self, sizes: Sizes) -> None:
        """Refuse sizes that a part does not fit."""
        if self.norm.startswith("domain") != (sizes.domains > 0):
            raise ValueError(
                f"`domains` goes with embedder.norm='domain' only, found norm={self.norm!r} and domains={sizes.domains}."
            )
        for part in self.parts.values():
            part.check(sizes)


class Embedder(nn.Module):
    """The parts as modules by their names, and what is done with their vectors."""

    def __init__(self, config: EmbedderConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        for name, part in config.parts.items():
            self.add_module(name, part.build(sizes))
        self.norm = None if config.norm == "none" else NORMS[config.norm](sizes)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.eps = config.eps
        self.dropout = Dropout(config.dropout) if config.dropout else None
        self._reads = [(name, part.reads, part) for name, part in config.parts.items()]
        read = {field for _, fields, _ in self._reads for field in fields}
        self._unread = {field: what for field, what in _SPECIAL.items() if field not in read}

    def forward(self, batch: TokenBatch | PackedTokens, *, without: Set[str] = frozenset()) -> Embedded:
        """Embed tokens, padded or packed; fields of the batch in ``without`` are not looked at."""
        for name, what in self._unread.items():
            if getattr(batch, name) is not None and name not in without:
                raise ValueError(f"Expected a model with {what}, found one without; load or train such one.")
        vectors: dict[str, Tensor] = {}
        for name, fields, part in self._reads:
            found: list[Any] = [None if read in without else getattr(batch, read) for read in fields]
            if any(tensor is None for tensor in found):
                if part.optional or not without.isdisjoint(fields):
                    continue
                raise ValueError(f"Expected a token batch with `{fields[0]}`, which this model reads; found none.")
            vector = self.get_submodule(name)(*found)
            if isinstance(part, GenerationConfig):
                vectors[part.of] = torch.where(found[0].unsqueeze(-1), vector, vectors[part.of])
            else:
                vectors[name] = vector
        return Embedded(self._together(vectors, batch), vectors)

    def _together(self, vectors: dict[str, Tensor], batch: TokenBatch | PackedTokens) -> Tensor:
        """Add or multiply the parts, then norm and dropout."""
        names = iter(vectors)
        if (first := next(names, None)) is None:
            raise ValueError(f"Expected a batch with something that {list(self.config.parts)} read, found nothing.")
        tokens = vectors[first]
        for name in names:
            multiply = self.config.parts[name].operation == "multiply"
            tokens = tokens * vectors[name].to(tokens.dtype) if multiply else tokens + vectors[name]
        if isinstance(self.norm, SharedNorm | DomainNorm):
            tokens = self.norm(tokens, batch.batch_id)
        elif self.norm is not None:
            tokens = self.norm(tokens)
        return tokens if self.dropout is None else self.dropout(tokens)

    def part(self, name: str) -> nn.Module:
        """Module of a part, which embeds the fields that its configuration reads."""
        lookup(self.config.parts, name, "part of the embedder")
        return self.get_submodule(name)

    @property
    def by_task(self) -> list[nn.Module]:
        """Parts that a task brings with it."""
        return [self.get_submodule(name) for name, part in self.config.parts.items() if part.by_task]


# Fields whose presence says that a model was trained with them.
_SPECIAL = {"perturbed": "perturbation flags", "generated": "the generation flag for generated tokens"}
