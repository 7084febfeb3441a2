"""Perturbations predicted without a network: controls that are moved by an effect learnt from the other conditions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._keys import SplitKeys
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.parts import PARTS, read_parts
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.writing import check_writable
from scgpt_tools.metrics.kernel_ridge import KernelModel
from scgpt_tools.screens.annotations import log_values
from scgpt_tools.screens.conditions import context_labels, control_mask, read_conditions
from scgpt_tools.screens.effects import training_effects
from scgpt_tools.tokens.names import column_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.inference.cells import Request
    from scgpt_tools.tokens.perturbations import GeneSet

KERNEL = "kernel"
"""What :func:`scgpt_tools.tl.predict_perturbation` takes in place of a model to predict by kernel ridge regression."""


@dataclass(frozen=True, eq=False)
class KernelPredictor:
    """A kernel ridge regression of the effects of a screen, in place of a generator."""

    source: RowSource
    model: KernelModel
    request: Request
    split: str
    effects: dict[GeneSet, NDArray[np.float32]] = field(default_factory=dict)
    """What was predicted already, for every set takes all training conditions."""

    def provenance(self, **params: Any) -> dict[str, Any]:
        """How a result was made."""
        train = self.model.train
        about = {"layer": self.request.layer or "X", "genes": self.request.genes or "var_names", "split": self.split}
        return {
            "params": {**about, **params, "rng": self.request.rng},
            "model": {
                "name": KERNEL,
                "conditions": len(train.perturbed),
                **asdict(self.model.settings),
                **{f"left_out_{name}": error for name, error in self.model.left_out.items()},
            },
        }

    def knows(self, perturbed: Sequence[GeneSet]) -> NDArray[np.bool_]:
        """(n,) all sets of genes; says what speaks against predictions of some of them."""
        sets = sorted(set(filter(None, perturbed)))
        seen = {gene for genes in self.model.train.perturbed for gene in genes}
        if lost := sorted({gene for genes in sets for gene in genes} - seen):
            more = ", ..." if len(lost) > 5 else ""
            warn_user(
                f"{len(lost)} genes are perturbed in no training condition ({', '.join(lost[:5])}{more}). Each counts with the "
                "mean of single effects, so nothing of these predictions is particular to them."
            )
        doubt = self.model.doubt()
        if doubt and any(len(genes) > 1 for genes in sets):
            warn_user(f"Predictions of combinations by {KERNEL!r} are to be distrusted: {doubt}.")
        self._predict_effects(sets)
        return np.ones(len(perturbed), dtype=bool)

    def beside(
        self, cells: NDArray[np.int64], conditions: NDArray[Any], contexts: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """(n, 1) the cells themselves."""
        return cells[:, None]

    def predict(
        self, rows: NDArray[np.int64], perturbed: Sequence[GeneSet], *, keys: NDArray[np.uint64] | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Move cells by effects, which leaves them as they are in everything else.

        ``rows`` (n, 1) cells to start from, ``perturbed`` (n,) genes to perturb in each.  Yields which of the n, and their
        expression over all columns (b, G), below zero where the effect is larger than the cell's value.
        """
        sets = sorted(set(filter(None, perturbed)))
        # The last row is that of controls.
        self._predict_effects(sets)
        nothing = np.zeros(self.source.n_columns, dtype=np.float32)
        effects = np.stack([*(self.effects[genes] for genes in sets), nothing])
        place = {genes: number for number, genes in enumerate(sets)}
        numbers = np.array([place.get(genes, -1) for genes in perturbed], dtype=np.int64)
        for start in range(0, len(rows), self.request.batch_size):
            part = slice(start, start + self.request.batch_size)
            cells = self.source.take(rows[part, 0]).toarray().astype(np.float32, copy=False)
            yield part, cells + effects[numbers[part]]

    def _predict_effects(self, sets: Sequence[GeneSet]) -> None:
        """Predict those of some sets of genes that are not there yet, at once."""
        if new := [genes for genes in sets if genes not in self.effects]:
            self.effects.update(zip(new, self.model.predict(new).effects.astype(np.float32), strict=True))


def fit_kernel(
    adata: AnnData, request: Request, *, key: str | None, within: str | Sequence[str] | None, split: str | None
) -> KernelPredictor:
    """Learn effects from the training cells of a table.

    ``split``: column of ``obs`` whose part ``"train"`` is learnt from; ``None`` takes the usual one if it is there, and
    else all cells.
    """
    if key is None:
        raise ValueError(
            f"Expected `condition_key` with model={KERNEL!r}, which learns from the conditions of the table, found None."
        )
    source = RowSource(adata, layer=request.one_layer)
    check_writable(adata, source.adata, copy=request.copy)
    cells, conditions = log_values(source), read_conditions(adata, key)
    contexts = context_labels(adata, within)
    if contexts is None:
        contexts = np.full(len(conditions), "", dtype=object)
    usual = SplitKeys().obs
    column = split or (usual if usual in adata.obs else "")
    trained = read_parts(adata.obs, column, others=True) == PARTS[0] if column else np.ones(len(conditions), dtype=bool)
    is_control = control_mask(conditions)
    if not (trained & ~is_control).any():
        where = f"the part {PARTS[0]!r} of obs[{column!r}]" if column else f"obs[{key!r}]"
        raise ValueError(f"Expected perturbed cells to learn from, found none in {where}.")
    names = [name or "" for name in column_names(source.var, request.genes)]
    effects = training_effects(
        cells, conditions, contexts, perturbed=trained & ~is_control, controls=trained & is_control, genes=names
    )
    return KernelPredictor(source, KernelModel.fit(effects), request, column or "all cells")
