"""Learning expression after a perturbation from expression before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._validate import check_choice
from scgpt_tools.data.opening import match_rows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.config import AffineConfig
from scgpt_tools.objectives.recipes import PERTURB
from scgpt_tools.screens.annotations import check_log_values
from scgpt_tools.screens.batches import (
    PerturbationBatches,
    context_of_pairs,
    paired_controls,
    screen_parts,
    without_unmapped,
)
from scgpt_tools.screens.conditions import control_mask, read_conditions, read_direction
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import flag_of, perturbed_genes
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.train.extending import with_all_genes, with_tokens
from scgpt_tools.train.starting import of_family, perturbation_config, perturbation_model
from scgpt_tools.train.tasks.base import Opened, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import Extend, GeneSampling, Include, PairMethod, Unknown, Unmeasured
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.perturbations import Direction
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary


CELLS_PER_MEAN = 16
"""Of which means a model learns where neither the user nor the family says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedScreen(Opened):
    """A screen with a control for each cell, and how genes take part."""

    source: RowSource
    tokens: ScreenTokens
    conditions: NDArray[Any]
    pairs: NDArray[np.int64]
    contexts: NDArray[Any] | None
    vocabulary: Vocabulary
    """The model's, with tokens of perturbed genes that it lacked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Perturb(Task[OpenedScreen]):
    """Squared error at every gene of a perturbed cell, from the control that it is paired with."""

    name = "perturb"
    recipe = PERTURB
    # Of scGPT's tutorial, whose choice of the best epoch looks at mean profiles too.
    fit = {"epochs": 15, "batch_size": 64, "lr": 1e-4, "patience": 10, "monitor": "validation_profile_error"}
    defaults = {"validation": "split", "sampling": "random"}
    authors = {"monitor": "validation_profile_correlation", "mode": "max"}
    authors_defaults = {"cells_per_mean": 1}
    validates_on = "perturbed cells"
    until_converged = True

    condition_key: str
    within: str | Sequence[str] | None
    pairs: str | None
    pairing: PairMethod | None
    controls: bool
    include: Include
    unknown: Unknown
    unmeasured: Unmeasured
    extend: Extend
    length: int | None
    gene_sampling: GeneSampling
    cells_per_mean: int | None
    direction: Direction | None
    adaptive_offset: bool
    activation: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pairs know no batch.
        check_choice("sampling", self.sampling, ("random", "balanced", "blocks"))
        self._head()

    def _head(self) -> AffineConfig | None:
        """Head to train; None for the family's own."""
        if not self.adaptive_offset and self.activation is None:
            return None
        return AffineConfig(adaptive_offset=self.adaptive_offset, activation=self.activation)

    def _dropout(self, model: CellModel) -> float:
        """Probability that was asked for, else the family's, else none, as in scGPT's own fine-tuning."""
        return of_family(model, self.name).get("dropout", 0.0) if self.dropout is None else self.dropout

    def _reading(self, model: CellModel) -> TokenizerConfig:
        """How cells are read."""
        usual = of_family(model, self.name).get("cells_per_mean", CELLS_PER_MEAN)
        return replace(
            perturbation_config(model).tokenizer,
            genes=self.include,
            unknown=self.unknown,
            unmeasured=self.unmeasured,
            length=self.length,
            overflow="shared" if self.gene_sampling == "original" else "sample",
            cells_per_mean=usual if self.cells_per_mean is None else self.cells_per_mean,
        )

    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> OpenedScreen:
        """Read conditions and pairs, and divide the conditions."""
        if isinstance(self.layer, Mapping):
            raise TypeError(f"Expected `layer` to name one layer of a screen, found {dict(self.layer)!r}.")
        source = RowSource(adata, layer=self.layer)
        check_log_values(source)
        conditions = read_conditions(source.adata, self.condition_key)
        plain = perturbation_config(model)
        flags = plain.perturbation
        if flags is None:
            raise ValueError(
                f"Expected a family whose models of perturbations have flags of perturbed genes, found {plain.family!r}."
            )
        flag = flag_of(
            read_direction(source.adata, self.condition_key) if self.direction is None else self.direction,
            rows=flags.rows,
            pad=flags.pad,
            training=True,
        )
        pairs = paired_controls(
            source.adata,
            conditions,
            pairs=self.pairs,
            within=self.within,
            pairing=self.pairing,
            layer=self.layer,
            seed=seed,
        )
        assert self.validation is not None  # noqa: S101 - by default it is the column "split"
        train, validation = screen_parts(source.adata, conditions, self.validation, controls=self.controls, seed=seed)
        vocabulary = model.vocabulary
        if self.extend == "all":
            vocabulary = with_all_genes(source, vocabulary, plain.tokenizer, self.matching)
        reading = self._reading(model)
        tokens = self._tokens(source, vocabulary, reading, flag)
        used = perturbed_genes(np.unique(conditions[np.union1d(train, validation)]))
        grown = self._with_perturbed(tokens, column_names(source.var, self.genes), used)
        if grown is not vocabulary:
            tokens = self._tokens(source, grown, reading, flag)
        if self.unmeasured == "drop":
            train, validation = self._known(tokens, conditions, train, validation)
        return OpenedScreen(
            terms=self.terms(model),
            train=train,
            validation=validation,
            source=source,
            tokens=tokens,
            conditions=conditions,
            pairs=pairs,
            contexts=context_of_pairs(source.adata, self.pairs, self.within, self.pairing),
            vocabulary=tokens.tokenizer.vocabulary,
        )

    def _tokens(self, source: RowSource, vocabulary: Vocabulary, config: TokenizerConfig, flag: int) -> ScreenTokens:
        features = match_rows(source, vocabulary, config, self.matching)
        names = column_names(source.var, self.genes)
        return ScreenTokens.match(features, names, Tokenizer(config, vocabulary), flag=flag)

    def _with_perturbed(
        self, tokens: ScreenTokens, names: Sequence[str | None], perturbed: Sequence[str]
    ) -> Vocabulary:
        """The vocabulary with tokens of perturbed genes, without which the model could not be told of them."""
        vocabulary, measured = tokens.tokenizer.vocabulary, set(names)
        # Cells of such genes are left out where that is asked for.
        if self.extend == "nothing" or self.unmeasured == "drop":
            return vocabulary
        unknown = tokens.unmapped(perturbed).without_token
        return with_tokens([gene for gene in unknown if self.unmeasured == "token" or gene in measured], vocabulary)

    def _known(
        self, tokens: ScreenTokens, conditions: NDArray[Any], train: NDArray[np.int64], validation: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cells of conditions that the model can be told, of which there have to be some in each part."""
        found = {"train": without_unmapped(tokens, conditions, train)}
        found["validation"] = without_unmapped(tokens, conditions, validation) if validation.size else validation
        if validation.size and not found["validation"].size:
            raise ValueError(
                "Expected some conditions to validate on whose perturbed genes have a column and a token, found none: all of "
                "the part 'val' are dropped. Pass unmeasured='token', another `validation`, or validation=0 for none."
            )
        if control_mask(conditions[found["train"]]).all():
            raise ValueError(
                "Expected some conditions to train on whose perturbed genes have a column and a token, found none: all of "
                "them are dropped. Pass unmeasured='token'."
            )
        return found["train"], found["validation"]

    def adapt(self, model: CellModel, opened: OpenedScreen) -> CellModel:
        """Make a model of perturbations of it."""
        grown = model if opened.vocabulary is model.vocabulary else model.adapt(opened.vocabulary)
        return perturbation_model(
            grown,
            head=self._head(),
            dropout=self._dropout(model),
            flag=opened.tokens.flag,
            tokenizer=opened.tokens.tokenizer.config,
        )

    def batches(self, model: CellModel, opened: OpenedScreen) -> PerturbationBatches:
        """Controls as input and the cells that they are paired with as targets."""
        return PerturbationBatches(
            opened.source,
            opened.tokens,
            opened.conditions,
            opened.pairs,
            train=opened.train,
            validation=opened.validation,
            sampling=self.sampling,
            contexts=opened.contexts,
        )

    def describe(self, opened: OpenedScreen) -> dict[str, Any]:
        """The flag of perturbed genes."""
        return {"flag": opened.tokens.flag}
