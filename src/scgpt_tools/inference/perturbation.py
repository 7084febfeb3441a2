"""What every task that predicts perturbations does: read names, check that the model knows them, walk over cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tools._validate import check_texts, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import RowSource
from scgpt_tools.inference.cells import Cells, Request, load_model, open_cells
from scgpt_tools.inference.runner import check_results, expression_of
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import autocast
from scgpt_tools.screens.annotations import check_log_values
from scgpt_tools.screens.conditions import read_direction, unit_names
from scgpt_tools.screens.means import Partners, in_groups, mean_rows
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.settings import settings
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import PERTURBED, condition_genes, flag_of, perturbed_genes
from scgpt_tools.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import Include, Unknown, Unmeasured
    from scgpt_tools.screens.held_out import HeldOutScreen
    from scgpt_tools.tokens.perturbations import Direction, GeneSet

_TOKENS_BEFORE = (
    " Leave out genes that the model has no token for, or give them one before it is fine-tuned: "
    "model.adapt(vocabulary=model.vocabulary.extended(genes))."
)


@dataclass(frozen=True, eq=False)
class Predictor:
    """A generator opened for the cells of a table."""

    cells: Cells
    tokens: ScreenTokens

    @property
    def source(self) -> RowSource:
        """The table."""
        return self.cells.table

    @property
    def model(self) -> CellModel:
        """The generator."""
        return self.cells.model

    def provenance(self, **params: Any) -> dict[str, Any]:
        """How a result was made; see :meth:`~scgpt_tools.inference.cells.Cells.provenance`."""
        config, flag = self.tokens.tokenizer.config, self.tokens.flag
        read = {"include": config.genes, "unknown": config.unknown, "unmeasured": config.unmeasured}
        return self.cells.provenance(**read, **params, **({} if flag == PERTURBED else {"flag": flag}))

    def check(self, perturbed: Iterable[GeneSet]) -> None:
        """Refuse perturbations of genes that have no column or no token; all are named."""
        genes = perturbed_genes("+".join(genes) for genes in set(perturbed) if genes)
        self.tokens.check(genes, hint=_TOKENS_BEFORE if self.tokens.unmapped(genes).without_token else "")

    def knows(self, perturbed: Sequence[GeneSet]) -> NDArray[np.bool_]:
        """(n,) which sets of genes the network can be conditioned on.

        Unless the tokenizer drops perturbed genes without a column, all have to be; those that are left out are named.
        """
        if self.tokens.tokenizer.config.unmeasured != "drop":
            self.check(perturbed)
            return np.ones(len(perturbed), dtype=bool)
        unmapped = self.tokens.unmapped(perturbed_genes("+".join(genes) for genes in set(perturbed) if genes))
        lost = set(unmapped.genes)
        known = np.array([not lost & set(genes) for genes in perturbed], dtype=bool)
        if lost and not any(genes for genes, kept in zip(perturbed, known, strict=True) if kept):
            self.check(perturbed)
        if lost:
            names = {"+".join(genes) for genes, kept in zip(perturbed, known, strict=True) if not kept}
            warn_user(
                f"{len(names)} perturbations are left out, as in the training of {self.model.name!r}, because genes that they "
                f"perturb are unknown to the model: {unmapped}. Pass unmeasured='token' to predict those with a token."
            )
        return known

    @property
    def cells_per_mean(self) -> int:
        """Controls whose mean each prediction starts from, as in training."""
        return self.tokens.tokenizer.config.cells_per_mean

    def beside(
        self, cells: NDArray[np.int64], conditions: NDArray[Any], contexts: NDArray[Any] | None
    ) -> NDArray[np.int64]:
        """(n, c) cells whose mean stands for each of some cells (n,), itself the first: of its condition and context."""
        groups = np.unique(unit_names(contexts, conditions), return_inverse=True)[1]
        return Partners(groups, self.source.keys).of(cells, self.cells_per_mean, seed=self.cells.plan.seed)

    def averaged(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, c) rows to start predictions from whose mean alone is wanted: each in one of n means."""
        return in_groups(rows, self.cells_per_mean)

    def predict(
        self, rows: NDArray[np.int64], perturbed: Sequence[GeneSet], *, keys: NDArray[np.uint64] | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Predict what becomes of some cells.

        ``rows`` (n, c) rows of the cells to start from, the mean of c for each; repeated ones are allowed; ``perturbed`` (n,)
        genes to perturb in each; ``keys`` (n,) hash of the cell that each stands for; ``None`` takes the first.  Yields
        which of the n, and their expression over all columns (b, G); genes that take no part keep their value.
        """
        plan, predict = self.cells.plan, expression_of(self.model, attention=self.cells.attention)
        keys = self.source.keys[rows[:, 0]] if keys is None else keys
        for start in range(0, len(rows), plan.batch_size):
            part = slice(start, start + plan.batch_size)
            different, places = np.unique(rows[part], return_inverse=True)
            inputs = mean_rows(self.source.take(different), places.reshape(rows[part].shape))
            batch, columns = self.tokens.batch(inputs, perturbed[part], keys[part], seed=plan.seed)
            # Context managers are left before each yield, or they would hold for the caller too.
            with torch.inference_mode(), evaluating(self.model), autocast(plan.precision, self.model.device):
                found = predict(batch).numpy()[:, : columns.shape[1]]
            check_results(found, self.source.names[rows[part, 0]], precision=plan.precision)
            expression = inputs.toarray().astype(np.float32, copy=False)
            np.put_along_axis(expression, columns, found, axis=1)
            yield part, expression


def open_predictor(
    adata: AnnData,
    model: CellModel | str | PathLike[str] | None,
    request: Request,
    *,
    include: Include | None = None,
    unknown: Unknown | None = None,
    unmeasured: Unmeasured | None = None,
    direction: Direction | None = None,
    key: str | None = None,
    opened: RowSource | None = None,
) -> Predictor:
    """Load a generator and match genes, before anything is computed or changed.

    ``include``, ``unknown`` and ``unmeasured`` say how cells are read where it is not as in training, ``direction`` what
    perturbations do where it is not as the table or else training says, and ``opened`` are rows of the table.
    """
    if model is None:
        raise TypeError(
            "Expected `model`, a model that was fine-tuned to predict perturbations or the folder that it was saved to, "
            "found None. Make one with model = sct.train.finetune(adata, 'scgpt-human', task='perturb'), and pass "
            "model=model."
        )
    check_type("model", model, (CellModel, str, PathLike))
    source = RowSource(adata, layer=request.one_layer) if opened is None else opened
    check_log_values(source)
    loaded = load_model(model, request.device)
    config = loaded.config
    flags = config.perturbation
    if flags is None or "expression" not in config.heads:
        raise ValueError(
            f"Expected a model that was fine-tuned to predict perturbations, found {loaded.name!r}, which was not. Make "
            "one with `sct.train.finetune(adata, model, task='perturb')`."
        )
    new = () if loaded.transfer is None else loaded.transfer.missing
    if loaded.history is None and any(name.startswith("heads.expression.") for name in new):
        warn_user(
            f"Expected a model that was fine-tuned to predict perturbations, found {loaded.name!r}, whose head 'expression' "
            "started from scratch. Unless you trained it yourself, its predictions mean nothing: run "
            "`sct.train.finetune(adata, model, task='perturb')` first."
        )
    flag = flag_of(
        read_direction(source.adata, key) if direction is None else direction,
        trained=config.perturbation_flags,
        rows=flags.rows,
        pad=flags.pad,
    )
    changes: dict[str, Any] = {"genes": include, "unknown": unknown, "unmeasured": unmeasured}
    # Every gene is predicted, whether or not all of them fitted into a cell in training, and no perturbed one is lost.
    reading = replace(
        config.tokenizer,
        length=None,
        overflow="sample",
        **{name: value for name, value in changes.items() if value is not None},
    )
    cells = open_cells(adata, loaded, request, tokenizer=Tokenizer(reading, loaded.vocabulary), opened=source)
    names = column_names(source.var, request.genes)
    return Predictor(cells, ScreenTokens.match(cells.plan.features, names, cells.plan.tokenizer, flag=flag))


def read_perturbations(perts: str | Iterable[str]) -> dict[str, GeneSet]:
    """Genes of each perturbation by its short name (``"KLF1"``, ``"SAMD1+ZBTB1"``), each once, in the order given."""
    names = check_texts("perts", [perts] if isinstance(perts, str) else perts)
    found: dict[str, GeneSet] = {}
    for name in names:
        genes = condition_genes(name)
        if not genes:
            raise ValueError(f"Expected perturbations to name genes such as 'KLF1' or 'SAMD1+ZBTB1', found {name!r}.")
        found["+".join(genes)] = genes
    return found


def held_out_means(
    screen: HeldOutScreen,
    predictor: Predictor,
    *,
    n_controls: int,
    keep: bool,
    show_progress: bool | None,
    bootstrap: bool = False,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """Profiles of the rows of a screen, and the cells that are predicted from controls of the same context.

    A profile is the mean of all controls of the context, changed as the cells are that were predicted from.
    """
    targets = screen.targets
    predictor.check(targets)
    contexts = screen.row_contexts
    controls = {
        context: predictor.averaged(
            screen.controls(context, n_controls, seed=predictor.cells.plan.seed, bootstrap=bootstrap)
        )
        for context in dict.fromkeys(contexts)
    }
    starts = {
        context: np.asarray(screen.source.take(np.ravel(rows)).mean(axis=0), dtype=np.float64).ravel()
        for context, rows in controls.items()
    }
    means = np.zeros((len(targets), predictor.source.n_columns))
    cells: dict[str, NDArray[np.float32]] = {}
    total = sum(len(controls[context]) for context in contexts)
    with settings.progress((), total=total, unit="cell", show=show_progress) as bar:
        for row, (context, perturbed) in enumerate(zip(contexts, targets, strict=True)):
            rows = controls[context]
            kept = []
            for _, expression in predictor.predict(rows, [perturbed] * len(rows)):
                means[row] += expression.sum(axis=0, dtype=np.float64)
                bar.update(len(expression))
                if keep:
                    kept.append(expression)
            means[row] = means[row] / len(rows) - starts[context] + screen.truth.control[row]
            if keep:
                cells[screen.rows[row]] = np.concatenate(kept)
    return means, cells
