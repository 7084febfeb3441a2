"""From a screen with a split to what predictions are scored with: training effects, the truth, and its ceiling.

One row is one condition, or one condition in one context where conditions are compared within cell types or batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scgpt_tools._keys import SplitKeys
from scgpt_tools.data.parts import PARTS, read_parts
from scgpt_tools.data.rows import RowSource
from scgpt_tools.metrics.baselines import predict_baselines
from scgpt_tools.metrics.combining import additive
from scgpt_tools.metrics.evaluation import evaluation_table
from scgpt_tools.metrics.panel import Truth
from scgpt_tools.metrics.perturbation import de_weights
from scgpt_tools.screens.annotations import log_values
from scgpt_tools.screens.ceiling import Ceiling, repeat
from scgpt_tools.screens.conditions import context_labels, control_mask, read_conditions, unit_name, unit_names
from scgpt_tools.screens.effects import check_contexts, training_effects
from scgpt_tools.screens.pairing import pool_of_controls
from scgpt_tools.screens.profiles import Profiles, mean_profiles, split_halves
from scgpt_tools.screens.ranking import rank_genes
from scgpt_tools.screens.splits import seen_groups
from scgpt_tools.tokens.perturbations import column_flags, condition_genes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.metrics.effects import TrainingEffects
    from scgpt_tools.tokens.perturbations import GeneSet

CEILING = "ceiling"
"""A perfect prediction: as good as the noise of the measured cells lets any be."""
CONSTANT = "perturbed_cells"
"""The mean of all perturbed training cells, whatever the context: what a model that has learnt nothing else says."""
NO_CHANGE = "no_change"
"""The controls, the one baseline that needs no training conditions."""


@dataclass(frozen=True, eq=False)
class HeldOutScreen:
    """Held-out cells of a screen, read once: what to predict from, to compare with and to score beside."""

    source: RowSource
    """The table."""
    units: NDArray[Any]
    """(N,) row of the truth that each cell belongs to, by name; empty for others."""
    all_units: NDArray[Any]
    """(N,) condition of each cell, within its context, whatever part it is in."""
    contexts: NDArray[Any]
    """(N,) context of each cell; empty where all are compared together."""
    is_control: NDArray[np.bool_]
    """(N,) which cells are controls."""
    train: TrainingEffects | None
    """What baselines learn from; ``None`` where the table has no training conditions."""
    truth: Truth
    conditions: tuple[str, ...]
    """(C,) condition of each row of the truth; its name there may carry the context."""
    groups: dict[str, str]
    """Name of a row to how much of its genes training saw; ``"all"`` where nothing is known of training."""
    first_half: NDArray[np.bool_]
    """(N,) cells of the first half of their row; for scores of cells."""
    is_input: NDArray[np.bool_]
    """(N,) controls that predictions are made from; true changes refer to the other ones."""
    input_control: NDArray[np.float64]
    """(C, G) mean of those of each row's context."""
    constant: NDArray[np.float64] | None
    """(G,) mean of the perturbed training cells; ``None`` where there are none."""
    ceiling: Ceiling

    @classmethod
    def read(
        cls,
        adata: AnnData,
        *,
        key: str = "condition",
        split: str | None = "split",
        part: str = "test",
        within: str | Sequence[str] | None = None,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
        without: Collection[str] = (),
        seed: int = 0,
    ) -> HeldOutScreen:
        """Average training and held-out cells, rank genes, and divide controls and held-out cells into halves.

        ``split``: column of ``obs`` with parts; ``None`` takes all cells for the part, and none to train on;
        ``within``: columns of ``obs``: take effects against the controls of the same cell type, batch and so on;
        ``layer``: key of ``layers``; ``None`` takes ``X``; ``genes``: names of the genes as conditions spell them;
        ``None`` takes ``var_names``; ``without``: names of rows to leave out of the part.
        """
        names = list(adata.var_names if genes is None else genes)
        conditions = read_conditions(adata, key)
        contexts = context_labels(adata, within)
        if split is None:
            parts = np.full(adata.n_obs, part, dtype=object)
        else:
            # The part that is asked for need not have a usual name.
            parts = read_parts(adata.obs, SplitKeys(split).obs, also=() if part in PARTS else (part,), others=True)
        if without:
            parts = np.where(np.isin(unit_names(contexts, conditions), list(without)) & (parts == part), "", parts)
        rows = _Rows(conditions, contexts, parts, adata.obs_names.to_numpy(), seed)
        source = RowSource(adata, layer=layer)
        cells = log_values(source)
        trained = np.flatnonzero((parts == PARTS[0]) & ~rows.is_control)
        train = rows.training_effects(cells, names) if trained.size else None
        held = rows.held_out(part)
        shown = [unit_name(*pair) for pair in held]
        # Where cells are held out, a condition has cells in other parts too.
        own = np.isin(rows.units, shown) & (parts == part)
        first_half = np.zeros(adata.n_obs, dtype=bool)
        first_half[own] = split_halves(rows.units[own], adata.obs_names.to_numpy()[own], seed=seed)
        seen = seen_groups(sorted({condition for _, condition in held}), pd.unique(conditions[trained]))
        group_of = (
            {condition: group for group, members in seen.items() for condition in members} if trained.size else {}
        )
        units = np.where(own, rows.units, "")
        truth, rest = rows.truth(cells, own, held, train, names)
        contexts_of = [context for context, _ in held]
        return cls(
            source=source,
            units=units,
            all_units=rows.units,
            contexts=rows.contexts,
            is_control=rows.is_control,
            train=train,
            truth=truth,
            conditions=tuple(condition for _, condition in held),
            groups={name: group_of.get(condition, "all") for name, (_, condition) in zip(shown, held, strict=True)},
            first_half=first_half,
            is_input=rows.is_input,
            input_control=rows.controls(cells, rows.is_input).of(contexts_of),
            constant=mean_profiles(cells[trained], ["all"] * trained.size).means[0] if trained.size else None,
            ceiling=repeat(cells, units, truth, rows.contexts, rows.is_reference, rest=rest, seed=seed),
        )

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the truth."""
        return self.truth.conditions

    @property
    def row_contexts(self) -> tuple[str, ...]:
        """Context of each row."""
        return self.truth.contexts or ("",) * len(self.rows)

    def controls(self, context: str, n: int, *, seed: int, bootstrap: bool = False) -> NDArray[np.int64]:
        """Rows of the table with controls of a context to predict from, see :func:`pool_of_controls`."""
        found = np.flatnonzero(self.is_input & (self.contexts == context))
        return pool_of_controls(found, self.source.keys[found], n, bootstrap=bootstrap, seed=seed)

    @property
    def targets(self) -> tuple[GeneSet, ...]:
        """Genes that each row perturbs."""
        return tuple(condition_genes(condition) for condition in self.conditions)

    def baselines(self) -> dict[str, NDArray[np.float64]]:
        """(C, G) mean profiles by the name of the baseline: no change alone where there is nothing to learn from."""
        if self.train is None or self.constant is None:
            return {NO_CHANGE: np.array(self.truth.control)}
        profiles, _ = predict_baselines(self.train, self.targets, self.truth.control)
        # Against the controls that predictions start from, as all others are.
        return {**profiles, CONSTANT: self.truth.control + self.constant - self.input_control}

    def table(
        self, predictions: Mapping[str, NDArray[np.float64]], *, metrics: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Score mean profiles (C, G) by the name of the model beside every baseline and the ceiling.

        See :func:`scgpt_tools.metrics.evaluation.evaluation_table`.
        """
        several = len(set(self.row_contexts)) > 1
        options: dict[str, Any] = {
            "groups": self.groups,
            "metrics": metrics,
            "perturbations": dict(zip(self.rows, self.conditions, strict=True)) if several else None,
        }
        scored = evaluation_table({**predictions, **self.baselines()}, self.truth, **options)
        return pd.concat([scored, self.ceiling.scores(CEILING, **options)], ignore_index=True)


class _Rows:
    """Cells by condition, context and part."""

    def __init__(
        self,
        conditions: NDArray[Any],
        contexts: NDArray[Any] | None,
        parts: NDArray[Any],
        cells: NDArray[Any],
        seed: int,
    ) -> None:
        self.conditions, self.parts = conditions, parts
        self.contexts = np.full(conditions.size, "", dtype=object) if contexts is None else contexts
        self.is_control = control_mask(conditions)
        self.units = unit_names(self.contexts, self.conditions)
        self.is_input, self.is_reference = self._divided_controls(cells, seed)

    def _divided_controls(self, cells: NDArray[Any], seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Controls that predictions and training effects start from, and those that true changes refer to.

        Noise of controls that are subtracted from both sides makes a prediction correlate with the truth that knows
        nothing of it.  Within a context every second control is of either side, training ones first, by a hash of seed
        and name.
        """
        own = np.flatnonzero(self.is_control)
        digests = [sha256(f"{seed}\ncontrol\n{name}".encode()).hexdigest() for name in cells[own]]
        frame = pd.DataFrame({"context": self.contexts[own], "later": self.parts[own] != PARTS[0], "digest": digests})
        order = frame.sort_values(["context", "later", "digest"], kind="stable").index.to_numpy()
        place = frame.loc[order].groupby("context", sort=False).cumcount().to_numpy()
        is_input = np.zeros(self.conditions.size, dtype=bool)
        is_input[own[order[place % 2 == 0]]] = True
        is_reference = self.is_control & ~is_input
        return is_input, is_reference

    def pairs(self, mask: NDArray[np.bool_]) -> list[tuple[str, str]]:
        """Context and condition of some cells, each pair once, sorted."""
        return sorted(set(zip(self.contexts[mask], self.conditions[mask], strict=True)))

    def held_out(self, part: str) -> list[tuple[str, str]]:
        mask = (self.parts == part) & ~self.is_control
        if not mask.any():
            raise ValueError(f"Expected perturbed cells in the part {part!r}, found none.")
        return self.pairs(mask)

    def controls(self, cells: Any, mask: NDArray[np.bool_]) -> Profiles:
        """Mean control of every context."""
        chosen = np.flatnonzero(mask & self.is_control)
        if not chosen.size:
            raise ValueError("Expected control cells to compare perturbed ones with, found none.")
        return mean_profiles(cells[chosen], self.contexts[chosen])

    def training_effects(self, cells: Any, names: Sequence[str]) -> TrainingEffects:
        trained = self.parts == PARTS[0]
        mask = trained & ~self.is_control
        return training_effects(
            cells, self.conditions, self.contexts, perturbed=mask, controls=trained & self.is_input, genes=names
        )

    def truth(
        self,
        cells: Any,
        mask: NDArray[np.bool_],
        held: list[tuple[str, str]],
        train: TrainingEffects | None,
        names: Sequence[str],
    ) -> tuple[Truth, NDArray[np.float64]]:
        """What to compare predictions of the held-out cells in ``mask`` with, and scores against all other perturbed cells."""
        shown = [unit_name(*pair) for pair in held]
        targets = [condition_genes(condition) for _, condition in held]
        own = np.isin(self.units, shown)
        # Controls are given to every method, so all of a context count, whatever part they are in.
        controls = self.controls(cells, np.ones(mask.size, dtype=bool))
        check_contexts(held, controls)
        contexts = [context for context, _ in held]
        if alone := sorted(set(contexts) - set(self.contexts[self.is_reference])):
            where = f"the context {alone[0]!r}" if alone[0] else "the table"
            raise ValueError(
                "Expected two control cells or more, one for predictions to start from and one for true changes to refer to, "
                f"found one in {where}."
            )
        control = controls.of(contexts)
        scores, rest = self._scores(cells, shown, mask | ~own)
        rows = np.flatnonzero(mask)
        true = mean_profiles(cells[rows], self.units[rows], names=shown).means
        reference = self.controls(cells, self.is_reference).of(contexts)
        several = train is not None or len(set(targets)) > 1
        if train is None:
            # The same for all, so a prediction that is the same for all has no correlation beyond it.
            mean, combined = control + (true - reference).mean(axis=0), None
        else:
            mean, added = control + train.mean(), additive(train, targets)
            combined = _combinations_only(control + added.effects, targets, added.informed)
        flags = column_flags([condition for _, condition in held], names, missing="ignore")
        truth = Truth(
            conditions=tuple(shown),
            true=true,
            control=control,
            # One condition is its own mean, and has no others to tell its genes from.
            perturbed_mean=mean if several else None,
            scores=scores,
            weights=de_weights(rest) if several else None,
            targets=flags.astype(bool),
            additive=combined,
            contexts=tuple(contexts),
            reference_control=reference,
        )
        return truth, rest

    def _scores(
        self, cells: Any, shown: Sequence[str], take: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Test scores against the controls, and against all other perturbed cells."""
        whole = self.contexts if self.contexts[0] else None
        found = []
        chosen = np.flatnonzero(take)
        where = None if whole is None else whole[chosen]
        # What is not held out is no group of its own, so a single cell of it does.
        ranked = np.isin(self.units[chosen], shown)
        sides: tuple[Literal["control", "rest"], ...] = ("control", "rest")
        for against in sides:
            ranking = rank_genes(cells[chosen], self.conditions[chosen], contexts=where, against=against, ranked=ranked)
            row = {name: i for i, name in enumerate(ranking.names)}
            found.append(ranking.scores()[[row[name] for name in shown]])
        return found[0], found[1]


def _combinations_only(
    profiles: NDArray[np.float64], targets: Sequence[GeneSet], informed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Additive profiles of conditions of several genes, all seen alone; NaN elsewhere."""
    several = np.array([len(genes) > 1 for genes in targets], dtype=bool) & informed
    return np.where(several[:, None], profiles, np.nan)
