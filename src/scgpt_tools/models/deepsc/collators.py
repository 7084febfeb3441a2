"""DeepSC's collators: cells as lists of expressed genes to padded tensors, with values hidden or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._validate import check_integer, check_type
from scgpt_tools.tokens.linear_bins import linear_bins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class DataCollator:
    """Cells of a minibatch as pre-training reads them.

    Parameters
    ----------
    num_bins
        Bins of expression, counted from 1.
    pad_token_id, pad_value
        What stands at padding.
    num_genes
        Genes of the model; the cell token is the id after theirs.
    do_padding, do_mlm, do_binning
        Pad short cells; hide values; bin values, without which the bins are the values themselves.
    mlm_probability
        Chance of each value to be hidden.
    max_length
        Most tokens of a cell.
    sampling
        Keep the genes of highest bins of longer cells, and not the first.
    keep_first_n_tokens
        Leading tokens that are kept and not hidden.
    gene_from_zero
        Ids are counted from 0 in the cells and from 1 in the model.
    dynamic_mask_probabilities
        Chance of each bin to be hidden, in place of ``mlm_probability``.
    use_max_cell_length
        Be no longer than the longest cell, its cell token not counted, as in the original, where that cell loses a gene.
    cell_type
        Return ``cell_type_id`` of the cells.
    """

    num_bins: int
    pad_token_id: int = 0
    pad_value: float = 0
    num_genes: int = 34683
    do_padding: bool = True
    do_mlm: bool = True
    do_binning: bool = True
    mlm_probability: float = 0.15
    max_length: int | None = None
    sampling: bool = True
    keep_first_n_tokens: int = 1
    gene_from_zero: bool = True
    dynamic_mask_probabilities: Mapping[int, float] | None = None
    use_max_cell_length: bool = True
    cell_type: bool = False

    def __post_init__(self) -> None:
        check_integer("num_bins", self.num_bins)
        if self.max_length is None:
            raise ValueError("Expected `max_length`, the most tokens of a cell, found None.")
        check_integer("max_length", self.max_length)
        if self.do_mlm and not 0 < self.mlm_probability < 1:
            raise ValueError(f"Expected `mlm_probability` between 0 and 1, found {self.mlm_probability}.")
        if not 0 <= self.keep_first_n_tokens <= self.max_length:
            raise ValueError(
                f"Expected `keep_first_n_tokens` within 0 .. max_length={self.max_length}, found "
                f"{self.keep_first_n_tokens}."
            )
        if self.dynamic_mask_probabilities is not None:
            check_type("dynamic_mask_probabilities", self.dynamic_mask_probabilities, Mapping)
            chances = {int(name): chance for name, chance in self.dynamic_mask_probabilities.items()}
            for number in range(1, self.num_bins + 1):
                if not 0 <= chances.get(number, -1) <= 1:
                    raise ValueError(
                        f"Expected a chance within 0 .. 1 for each bin 1 .. {self.num_bins}, found "
                        f"{chances.get(number)} for {number}."
                    )

    @property
    def cls_token_id(self) -> int:
        """Id of the cell token."""
        return self.num_genes + 1

    @property
    def cls_value(self) -> int:
        """Bin and value of the cell token."""
        return self.num_bins + 1

    @property
    def mask_value(self) -> int:
        """What stands for a hidden bin and value."""
        return self.num_bins + 2

    def __call__(self, examples: Sequence[Mapping[str, Any]], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Collate cells.

        Parameters
        ----------
        examples
            For each cell ``genes`` (n,), ``expressions`` (n,) and perhaps ``cell_type_id``.
        mask
            (B, L) where to hide; ``None`` draws it from torch's generator.

        Returns
        -------
        ``gene``, ``masked_discrete_expr`` and ``masked_continuous_expr``, what the network sees; ``discrete_expr_label``,
        the bins that are hidden, -100 elsewhere; ``continuous_expr_label``, all values; ``mask``.

        Raises
        ------
        TypeError
            If a cell is no mapping.
        ValueError
            If an id is beyond ``num_genes``, a value is not finite, or a cell has no class that is asked for.
        """
        for example in examples:
            check_type("examples", example, Mapping)
            if self.cell_type and "cell_type_id" not in example:
                raise ValueError("Expected `cell_type_id` in every cell with `cell_type`, found a cell without.")
        cells = [self._cell(example) for example in examples]
        length = self._length(cells)
        rows = [self._fitted(cell, length) for cell in cells]
        genes, bins, values = (torch.stack([row[part] for row in rows]) for part in range(3))
        chances = self._chances(bins)
        if mask is None:
            mask = torch.bernoulli(chances).bool() if self.do_mlm else torch.zeros_like(genes, dtype=torch.bool)
        result = {
            "gene": genes,
            "masked_discrete_expr": bins.masked_fill(mask, self.mask_value),
            "masked_continuous_expr": values.masked_fill(mask, self.mask_value),
            "discrete_expr_label": bins.masked_fill(~mask, -100),
            "continuous_expr_label": values,
            "mask": mask,
        }
        if self.cell_type:
            result["cell_type_id"] = torch.stack([torch.as_tensor(each["cell_type_id"]).long() for each in examples])
        return result

    def _length(self, cells: Sequence[tuple[Tensor, ...]]) -> int:
        most = self.max_length or 0
        return min(most, max(len(cell[0]) for cell in cells) - 1) if self.use_max_cell_length else most

    def _rank(self, bins: Tensor, values: Tensor) -> Tensor:
        """What decides which genes of a longer cell are kept."""
        return bins

    def _cell(self, example: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        genes = torch.as_tensor(example["genes"]).long() + int(self.gene_from_zero)
        values = torch.as_tensor(example["expressions"]).float()
        if not torch.isfinite(values).all():
            raise ValueError("Expected finite expression, found NaN or infinite values.")
        if len(genes) and int(genes.max()) > self.num_genes:
            raise ValueError(
                f"Expected ids of genes up to {self.num_genes}, found {int(genes.max())}. The cells are of another table of "
                "genes."
            )
        bins = values
        if self.do_binning:
            counted = torch.ones(1, len(values), dtype=torch.bool)
            bins = linear_bins(values[None], counted, self.num_bins)[0] if len(values) else values.long()
        first = (
            torch.tensor([self.cls_token_id]),
            bins.new_tensor([self.cls_value]),
            values.new_tensor([self.cls_value]),
        )
        return tuple(torch.cat(pair) for pair in zip(first, (genes, bins, values), strict=True))  # type: ignore[return-value]

    def _fitted(self, cell: tuple[Tensor, Tensor, Tensor], length: int) -> tuple[Tensor, ...]:
        genes, bins, values = cell
        if len(genes) > length:
            keep = self.keep_first_n_tokens
            places = torch.arange(length)
            if self.sampling:
                order = self._rank(bins, values)[keep:].sort(descending=True, stable=True).indices + keep
                places = torch.cat((torch.arange(keep), order))[:length]
            return tuple(part[places] for part in cell)
        if not self.do_padding:
            return cell
        more = length - len(genes)
        fill = (self.pad_token_id, self.pad_value, self.pad_value)
        return tuple(torch.cat((part, part.new_full((more,), value))) for part, value in zip(cell, fill, strict=True))

    def _chances(self, bins: Tensor) -> Tensor:
        if self.dynamic_mask_probabilities is None:
            chances = torch.full(bins.shape, self.mlm_probability)
        else:
            # Values that were not binned may lie between the bins of the table, and are not hidden then.
            chances = torch.zeros(bins.shape)
            for number, chance in self.dynamic_mask_probabilities.items():
                if 1 <= int(number) <= self.num_bins:
                    chances = chances.masked_fill(bins == int(number), chance)
        chances = chances.masked_fill(bins == self.pad_value, 0.0)
        chances[:, : self.keep_first_n_tokens] = 0.0
        return chances


@dataclass(kw_only=True)
class InferenceCollator(DataCollator):
    """Cells of a minibatch as they are embedded: nothing hidden, the genes of highest values, the cell token counted.

    Parameters are those of :class:`DataCollator`.
    """

    do_mlm: bool = False

    def _length(self, cells: Sequence[tuple[Tensor, ...]]) -> int:
        return min(self.max_length or 0, max(len(cell[0]) for cell in cells))

    def _rank(self, bins: Tensor, values: Tensor) -> Tensor:
        return values
