"""Minibatches of control cells and the perturbed cells that they are to become."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tools._keys import PairKeys, SplitKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_fraction
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.epochs import in_batches
from scgpt_tools.data.module import CellDataModule, CellTable, checksum
from scgpt_tools.data.parts import read_parts
from scgpt_tools.screens.annotations import find_pairs, read_pairs
from scgpt_tools.screens.conditions import context_labels, control_mask, unit_names
from scgpt_tools.screens.means import Partners, mean_rows
from scgpt_tools.screens.split_options import SplitOptions
from scgpt_tools.screens.splits import split_conditions
from scgpt_tools.tokens.orders import draws
from scgpt_tools.tokens.perturbations import condition_genes, perturbed_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import PairMethod
    from scgpt_tools.data.epochs import Batches, Sampling
    from scgpt_tools.data.module import Part
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.screens.tokens import ScreenTokens
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.perturbations import Labels

logger = logging.getLogger(__name__)

_ADD_TOKENS = (
    " Genes without a token get one with extend='auto', and if they have no column either with unmeasured='token' besides. "
    "Or leave their cells out with unmeasured='drop'."
)
# Sets the draw of a cell's control apart from the draws of its genes.
_CONTROL = 101


class PerturbationBatches(CellDataModule):
    """Pairs of a control cell and a perturbed cell to train on.

    Parameters
    ----------
    source
        The table.
    tokens
        The tokenizer of the model, and the genes of the screen by name.
    conditions
        (N,) condition of each cell.
    pairs
        (N, n) rows of the controls of each cell; with several, every epoch draws one.
    train, validation
        Numbers of the cells of each part.
    sampling
        How training cells are drawn; ``"balanced"`` draws each condition as often.
    contexts
        (N,) context of each cell, which the cells of a mean share; ``None`` where all are compared together.

    Where the tokenizer reads means of cells (``cells_per_mean``), each cell stands for the mean of itself and others of its
    part, condition and context, drawn anew every epoch, and its input is the mean of their controls.
    """

    def __init__(
        self,
        source: RowSource,
        tokens: ScreenTokens,
        conditions: NDArray[Any],
        pairs: NDArray[np.int64],
        *,
        train: ArrayLike,
        validation: ArrayLike,
        sampling: Sampling = "random",
        contexts: Labels | None = None,
    ) -> None:
        # Nothing else reads classes here.
        label = np.unique(conditions, return_inverse=True)[1] if sampling == "balanced" else None
        super().__init__(
            [CellTable(source, tokens.features, label=label)],
            tokens.tokenizer,
            train=train,
            validation=validation,
            sampling=sampling,
        )
        self.tokens, self.pairs, self.conditions = tokens, pairs, conditions
        self.perturbed = [condition_genes(condition) for condition in conditions]
        used = np.union1d(self.train, self.validation)
        groups = np.full(len(conditions), -1)
        part = np.isin(used, self.validation).astype(str)
        units = unit_names(None if contexts is None else np.asarray(contexts)[used], conditions[used])
        groups[used] = np.unique(unit_names(part, units), return_inverse=True)[1]
        self.partners = Partners(groups, source.keys)
        genes = perturbed_genes(np.unique(conditions[used]))
        tokens.check(genes, hint=_ADD_TOKENS if tokens.unmapped(genes).without_token else "")

    def epoch(self, part: Part, number: int, *, batch_size: int, seed: int) -> Batches:
        """Cell numbers of each minibatch; those to validate on hold one condition each, so that their means count."""
        if part != "validation":
            return super().epoch(part, number, batch_size=batch_size, seed=seed)
        own = self.conditions[self.validation]
        return [
            chunk for condition in np.unique(own) for chunk in in_batches(self.validation[own == condition], batch_size)
        ]

    @property
    def used(self) -> NDArray[np.int64]:
        """Numbers of the cells whose values are read: those of both parts and their controls."""
        cells = super().used
        return np.union1d(cells, self.pairs[cells])

    def describe(self) -> dict[str, Any]:
        """What the cells are; see :meth:`CellDataModule.describe`."""
        trained, held_out = (np.unique(self.conditions[part]).tolist() for part in (self.train, self.validation))
        own = {"training conditions": trained, "validation conditions": held_out}
        kinds, codes = np.unique(self.conditions, return_inverse=True)
        own |= {"condition of each cell": checksum([*kinds], codes), "paired controls": checksum(self.pairs)}
        return own | super().describe()

    def needed(self, cells: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
        """The given cells, those that they are averaged with, and the control that is drawn for each, not all that there are."""
        averaged = self.partners.of(cells, self._per_mean, seed=seed)
        return np.union1d(averaged, self._controls(averaged, seed))

    def read(self, cells: NDArray[np.int64]) -> list[Any]:
        """Rows of the given cells, ascending."""
        return [(0, cells, self.tables[0].source.take(cells))]

    def tokenize(self, rows: list[Any], cells: NDArray[np.int64], *, seed: int) -> TokenBatch:
        """Controls as input, the cells themselves as targets."""
        [(_, there, X)] = rows
        averaged = self.partners.of(cells, self._per_mean, seed=seed)
        batch, _ = self.tokens.batch(
            mean_rows(X, np.searchsorted(there, self._controls(averaged, seed))),
            [self.perturbed[cell] for cell in cells],
            self.partners.keys[cells],
            seed=seed,
            targets=mean_rows(X, np.searchsorted(there, averaged)),
        )
        return batch.replace(index=torch.from_numpy(np.asarray(cells)))

    @property
    def _per_mean(self) -> int:
        return self.tokens.tokenizer.config.cells_per_mean

    def _controls(self, cells: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """A control of each of some cells, of any shape."""
        lots = draws(seed, self.partners.keys[cells][..., None], np.zeros(1, dtype=np.int64), _CONTROL)[..., 0]
        return self.pairs[cells, (lots % np.uint64(self.pairs.shape[1])).astype(np.int64)]


def paired_controls(
    adata: AnnData,
    conditions: NDArray[Any],
    *,
    pairs: str | None = None,
    within: str | Sequence[str] | None = None,
    pairing: PairMethod | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Controls (N, n) that were paired before, or are now; controls are paired with themselves.

    ``pairs`` is a key of ``obsm``; ``None`` takes ``"ctrl_indices"`` if it is there and neither ``within`` nor ``pairing`` is given,
    and else pairs each cell with one control, which shares the columns ``within`` of ``obs`` with it.
    """
    if pairs is not None and pairing is not None:
        raise ValueError(f"Expected `pairs` or `pairing`, found both ({pairs!r} and {pairing!r}). Leave one out.")
    if pairs is not None or (PairKeys().obsm in adata.obsm and within is None and pairing is None):
        found = read_pairs(adata, PairKeys().obsm if pairs is None else pairs)
        if not np.isin(found, np.flatnonzero(control_mask(conditions))).all():
            raise ValueError("Expected pairs with controls only, found other cells. Run pp.pair_controls again.")
        return found
    logger.info("Pairing every cell with one control%s.", "" if within is None else f" of the same {within}")
    method: PairMethod = "random" if pairing is None else pairing
    return find_pairs(
        adata, conditions, method=method, within=within, layer=layer if method == "transport" else None, seed=seed
    )


def context_of_pairs(
    adata: AnnData, pairs: str | None, within: str | Sequence[str] | None, pairing: PairMethod | None = None
) -> NDArray[Any] | None:
    """What a cell and its controls share (N,), as given or as recorded with the pairs; ``None`` for nothing."""
    if pairs is None and (within is not None or pairing is not None):
        return context_labels(adata, within)
    record = adata.uns.get(PairKeys().uns if pairs is None else PairKeys(pairs).uns)
    columns = record["params"].get("within", ()) if isinstance(record, Mapping) and "params" in record else ()
    return context_labels(adata, [str(column) for column in columns])


def screen_parts(
    adata: AnnData, conditions: NDArray[Any], validation: float | str, *, controls: bool, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the cells to train and to validate on.

    ``validation`` is a column of ``obs`` with the parts, or a share of the conditions, drawn by seed; 0 validates on nothing.
    With ``controls``, these are trained on too, each paired with itself.
    """
    is_control = control_mask(conditions)
    if isinstance(validation, str):
        if SplitKeys(validation).obs not in adata.obs:
            raise KeyError(
                f"{absent(validation, adata.obs.columns, 'key in `obs`:')} Run pp.perturbation_split, or pass a share of the "
                "conditions as `validation`, 0 for none."
            )
        part = read_parts(adata.obs, SplitKeys(validation).obs)
    elif check_fraction("validation", validation, one=False) == 0:
        part = np.full(len(conditions), "train", dtype=object)
    else:
        options = SplitOptions(rng=seed, test_fraction=float(validation), val_fraction=0.0)
        held = split_conditions(np.unique(conditions), "random", draw="stable", options=options).test
        part = np.where(np.isin(conditions, held), "val", "train")
    if not ((part == "train") & ~is_control).any():
        raise ValueError("Expected perturbed cells to train on, found none in the part 'train'.")
    # What a network does to a cell that stays as it is says nothing about perturbations it has not seen.
    return np.flatnonzero((part == "train") & (controls | ~is_control)), np.flatnonzero((part == "val") & ~is_control)


def without_unmapped(tokens: ScreenTokens, conditions: NDArray[Any], cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the conditions that the network can be conditioned on; the others are named in a warning."""
    unmapped = tokens.unmapped(perturbed_genes(np.unique(conditions[cells])))
    if not unmapped.genes:
        return cells
    lost = {name for name in np.unique(conditions[cells]) if set(condition_genes(name)) & set(unmapped.genes)}
    keep = ~np.isin(conditions[cells], list(lost))
    warn_user(
        f"{len(lost)} conditions ({int((~keep).sum())} cells) are left out, because genes that they perturb are unknown to the "
        f"model: {unmapped}."
    )
    return cells[keep]
