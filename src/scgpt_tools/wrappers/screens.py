"""A perturbation screen as a wrapper reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools.data.opening import warn_about_rows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.screens.batches import paired_controls, without_unmapped
from scgpt_tools.screens.conditions import control_mask, read_texts
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import ConditionStyle, canonical_labels, format_condition
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.wrappers.batches import PairsInParts, as_screen, match

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.screens.perturbation_data import PerturbationData
    from scgpt_tools.wrappers.base import Wrapper
    from scgpt_tools.wrappers.batches import Dataset

# Stands for cells that are to be ignored, so that they are neither controls nor trained on.
_IGNORED = format_condition(["<ignored>"])


class Screen:
    """Cells of a screen with their conditions, controls and tokens, as one model reads them.

    Parameters
    ----------
    wrapper
        The model.
    dataset
        Cells.
    length
        Most genes of a cell; ``None`` for all.
    seed
        Seed of the pairs, where there are none.
    """

    def __init__(self, wrapper: Wrapper, dataset: Dataset, *, length: int | None, seed: int) -> None:
        screen, vocabulary = as_screen(dataset), wrapper.vocab
        self.source = RowSource(screen.adata)
        warn_about_rows(self.source, "log1p")
        features = match(self.source, vocabulary, wrapper.gene_list)
        tokenizer = wrapper.cell_model.tokenizer
        tokenizer = Tokenizer(replace(tokenizer.config, length=length), vocabulary)
        names = column_names(self.source.var, None)
        self.tokens = ScreenTokens.match(features, names, tokenizer)
        self.conditions, self.used = _conditions(screen, wrapper.config.perturbation_delimiter)
        self.pairs = paired_controls(screen.adata, self.conditions, seed=seed)

    def parts(self) -> tuple[Any, ...]:
        """What minibatches are made of."""
        return self.source, self.tokens, self.conditions, self.pairs

    def batches(self, rows: NDArray[np.int64]) -> PairsInParts:
        """Minibatches of some cells."""
        return PairsInParts(*self.parts(), train=rows, validation=[])

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of conditions that the network can be conditioned on; the others are named in a warning."""
        return without_unmapped(self.tokens, self.conditions, rows[self.used[rows]])


def _conditions(screen: PerturbationData, delimiter: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Condition of each cell in GEARS' spelling, and which cells count."""
    labels = read_texts(screen.adata, screen.perturb_col)
    used = ~np.isin(labels, screen.ignore_tags)
    style = ConditionStyle(control=screen.control_tag, delimiter=delimiter)
    known = frozenset(map(str, screen.adata.var_names))
    canonical = canonical_labels(pd.unique(labels[used]), style, known=known)
    conditions = np.array([canonical.get(label, _IGNORED) for label in labels], dtype=object)
    if not control_mask(conditions).any():
        raise ValueError(
            f"Expected control cells, labelled {' or '.join(map(repr, screen.control_tag))} in "
            f"obs[{screen.perturb_col!r}], found none. Pass `control_tag` to PerturbationData."
        )
    return conditions, used
