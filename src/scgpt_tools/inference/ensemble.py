"""Several generators, such as of one recipe with several seeds, whose predictions of perturbations are averaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools.inference.committee import provenance_of_all
from scgpt_tools.tokens.coverage import some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.inference.perturbation import Predictor
    from scgpt_tools.tokens.perturbations import GeneSet


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Generators opened for one table; predicts as a :class:`~scgpt_tools.inference.perturbation.Predictor` does."""

    members: Sequence[Predictor]
    _sums: dict[GeneSet, NDArray[np.float64]] = field(default_factory=dict)
    """(members, G) sum over what each predicted so far, by what was perturbed."""
    _cells: dict[GeneSet, int] = field(default_factory=dict)
    """Of how many cells."""

    def __post_init__(self) -> None:
        first = self.members[0]
        for other in self.members[1:]:
            _check_alike(first, other)

    @property
    def source(self) -> RowSource:
        """The table."""
        return self.members[0].source

    def provenance(self, **params: Any) -> dict[str, Any]:
        """How a result was made: by the first model, with the names and checksums of all."""
        return provenance_of_all(self.members[0].provenance(**params), [predictor.model for predictor in self.members])

    def knows(self, perturbed: Sequence[GeneSet]) -> NDArray[np.bool_]:
        """(n,) which sets of genes every network can be conditioned on."""
        return np.all([predictor.knows(perturbed) for predictor in self.members], axis=0)

    def beside(
        self, cells: NDArray[np.int64], conditions: NDArray[Any], contexts: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """(n, c) cells whose mean stands for each of some cells."""
        return self.members[0].beside(cells, conditions, contexts)

    def predict(
        self, rows: NDArray[np.int64], perturbed: Sequence[GeneSet], *, keys: NDArray[np.uint64] | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The mean over the predictions of all networks from the same cells."""
        predictions = [predictor.predict(rows, perturbed, keys=keys) for predictor in self.members]
        for each in zip(*predictions, strict=True):
            part = each[0][0]
            found = np.stack([expression for _, expression in each])
            self._count(found, perturbed[part])
            yield part, found.mean(axis=0)

    def spread(self) -> dict[str, NDArray[np.float32]]:
        """(G,) standard deviation over networks of the mean prediction, by perturbation, of all that was predicted."""
        return {
            "+".join(genes) or "ctrl": (sums / self._cells[genes]).std(axis=0, ddof=1).astype(np.float32)
            for genes, sums in self._sums.items()
        }

    def _count(self, found: NDArray[np.float32], perturbed: Sequence[GeneSet]) -> None:
        """Add (members, b, G) predictions of some cells to the sums."""
        sets = list(dict.fromkeys(perturbed))
        place = {genes: number for number, genes in enumerate(sets)}
        numbers = np.array([place[genes] for genes in perturbed], dtype=np.int64)
        for number, genes in enumerate(sets):
            own = numbers == number
            total = found[:, own].sum(axis=1, dtype=np.float64)
            self._sums[genes] = self._sums.get(genes, 0) + total
            self._cells[genes] = self._cells.get(genes, 0) + int(own.sum())


def _check_alike(first: Predictor, other: Predictor) -> None:
    names = [predictor.model.name for predictor in (first, other)]
    which = " and ".join(map(repr, names))
    known = [set(predictor.cells.plan.features.columns.tolist()) for predictor in (first, other)]
    if known[0] != known[1]:
        columns = sorted(known[0] ^ known[1])
        genes = tuple(str(name) for name in first.source.adata.var_names[columns])
        raise ValueError(
            f"Expected models that know the same genes of the table, found {len(known[0])} and {len(known[1])} in {which}; "
            f"{some(genes)} are known to one of them. Average models of one recipe, which differ in their seeds."
        )
    if first.cells_per_mean != other.cells_per_mean:
        raise ValueError(
            f"Expected models that were trained on means of as many cells, found {first.cells_per_mean} and "
            f"{other.cells_per_mean} in {which}. Average models of one recipe, which differ in their seeds."
        )
    if first.tokens.flag != other.tokens.flag:
        raise ValueError(
            f"Expected models that were trained on perturbations of one direction, found others in {which}. Average models of "
            "one recipe, or pass `direction`."
        )
