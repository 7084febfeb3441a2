"""Several models at several tasks on several tables, beside what is simple."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from anndata import AnnData

from scgpt_tools._arguments import check_arguments
from scgpt_tools._console import one_line
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_seed, check_choice, check_texts, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.data.rows import plain_vectors
from scgpt_tools.data.stores import open_table
from scgpt_tools.inference.cells import Request, load_model, open_cells
from scgpt_tools.inference.runner import pooling_of
from scgpt_tools.metrics.benchmark import BenchmarkScores, benchmark_table
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.settings import settings
from scgpt_tools.tl._benchmarks import Benchmark, Expression
from scgpt_tools.train.randomness import own_random_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tl._benchmarks import Prepared
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)

AnyEmbedder: TypeAlias = "CellModel | str | PathLike[str] | Callable[[AnnData], ArrayLike]"
"""A loaded model, what :meth:`~scgpt_tools.CellModel.from_pretrained` takes, or a function from cells to an array."""
AnyTable: TypeAlias = "AnnData | str | PathLike[str]"
AnyBenchmark: TypeAlias = "str | Mapping[str, Any]"

Baseline = Literal["pca", "untrained"]


@shared_docs
def benchmark(
    models: AnyEmbedder | Sequence[AnyEmbedder] | Mapping[str, AnyEmbedder | Sequence[AnyEmbedder]],
    datasets: AnyTable | Sequence[AnyTable] | Mapping[str, AnyTable],
    benchmarks: AnyBenchmark | Sequence[AnyBenchmark] = ("linear_probe",),
    *,
    baselines: Sequence[Baseline] = ("pca", "untrained"),
    n_seeds: int = 5,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> BenchmarkScores:
    """Ask embeddings of several models the same questions, beside simple baselines.

    Each model embeds each table once, as :func:`scgpt_tools.tl.embed` does with the model's own genes, tokenizer and
    normalisation; all benchmarks read these embeddings.  Nothing is written to the tables.

    Parameters
    ----------
    models
        One, a list, or a mapping from names: a loaded model, a released name, a folder, a file of weights, or any function
        that takes an AnnData (a copy) and returns an array (cells, dimensions), such as ``lambda cells:
        cells.obsm["X_scVI"]``.  A list in a mapping holds replicates: models of one recipe with several seeds.
    datasets
        One, a list, or a mapping from names: AnnData, or paths of .h5ad and .zarr.  Without names they are ``"data"``, or
        the names of the files.
    benchmarks
        Names, or mappings of a ``name`` and settings (flat, or under ``params``), with ``dataset`` to ask of one data set only
        and ``title`` to ask twice.

        ``"linear_probe"`` (``label_key="cell_type"``, ``test_size=0.2``, ``standardise=True``, ``max_iter=1000``): accuracy
        and F1 of a logistic regression on held-out cells; its reference is the share of the most frequent label.

        ``"embedding_quality"`` (``label_key="cell_type"``, ``batch_key=None``, ``share=0.9``, ``kbet=False``): scores of
        scIB, as :func:`scgpt_tools.tl.score_embedding` (extra ``scib``); a seed draws 90 % of each label's cells.

        ``"perturbation"`` (``condition_key="condition"``, ``control="ctrl"``, ``n_top_genes=50``, ``test_size=0.2``,
        ``penalty=1.0``): how much of the change by a held-out perturbation can be read off the embedding of its own cells,
        see :func:`~scgpt_tools.metrics.decode_changes`.  It predicts nothing.  Its reference is the mean change.

        ``"grn_inference"`` (``network``, ``min_cells=10``, ``share=0.9``): edges of a reference network, a table or file with
        ``gene1`` and ``gene2``, by cosines of genes as the mean of the cells that express them, see
        :func:`~scgpt_tools.metrics.score_edges`.  Its reference exchanges genes for others of like degree (of early
        precision: chance), and co-expression is one more baseline.
    baselines
        ``"pca"``, 50 principal components of log-normalised variable genes of the same cells; ``"untrained"``, each loaded
        model with fresh weights, other ones for each seed.
    n_seeds
        How often to divide or draw the cells.
    layer
        Key of ``layers`` to read; ``None`` takes ``X``.
    {genes}
    symbols, aliases, ignore_case
        How to match names to the vocabularies, as in :func:`scgpt_tools.pp.match_genes`.
    batch_size
        Cells computed at once.
    {device}
    {precision}
    rng
        The first seed, a whole number, a generator, or ``None`` for fresh entropy; the others follow it.
    {show_progress}

    Returns
    -------
    :class:`~scgpt_tools.metrics.BenchmarkScores`: its ``table`` has one row a score, ``summary()`` means with intervals;
    ``save`` writes JSON or CSV.  A model that cannot be loaded, or embeds no cells, has rows with the reason.

    Raises
    ------
    FileNotFoundError
        If a table is absent.
    ImportError
        If scib-metrics is not installed and ``"embedding_quality"`` is asked.
    KeyError
        If a column is absent; the message lists what is there.
    ValueError
        For an unknown benchmark, setting or data set, two models of the same name, or a table that a benchmark cannot be
        asked of, before anything is computed; if no model can be scored.

    Warns
    -----
    UserWarning
        If models failed, and as :func:`scgpt_tools.tl.embed` does.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> cells = sct.datasets.pbmc_demo()
    >>> scores = sct.tl.benchmark(
    ...     {"demo": "scgpt-demo", "scVI": lambda cells: cells.obsm["X_scVI"]},
    ...     cells,
    ...     [{"name": "linear_probe", "label_key": "cell_type"}],
    ... )  # doctest: +SKIP
    >>> print(scores)  # doctest: +SKIP
    >>> scores.save("scores.json")  # doctest: +SKIP
    >>> sct.pl.benchmark(scores)  # doctest: +SKIP
    """
    check_arguments(benchmark, locals())
    for baseline in check_texts("baselines", baselines, least=0):
        check_choice("baselines", baseline, get_args(Baseline))
    first = as_seed(rng, bits=31)
    seeds = range(first, first + n_seeds)
    request = Request(
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        batch_size=batch_size,
        device=device,
        precision=precision,
        rng=first,
    )
    tables, entries = _named_tables(datasets), _entries(models, baselines, seeds)
    asked = _benchmarks(benchmarks, list(tables))
    _check_names(entries, asked)
    for name, table in tables.items():
        with _opened(table) as cells:
            for question in asked[name]:
                question.check(cells)
    run = _Run(request, tuple(seeds), settings.show_progress if show_progress is None else show_progress)
    total = len(tables) * len(entries)
    with settings.progress((), total=total, unit="embedding", show=show_progress) as bar:
        for name, table in tables.items():
            with _opened(table) as cells:
                expression = Expression(cells, layer)
                prepared = {question.called: question.prepare(expression) for question in asked[name]}
                run.describe(name, cells)
                for entry in entries:
                    bar.set_postfix_str(entry.name)
                    run.score(name, entry, expression, prepared)
                    bar.update()
                run.score_own_baselines(name, prepared)
    about = run.about(asked)
    scores = BenchmarkScores(benchmark_table(run.rows), about)
    failed = scores.failures
    of_models = scores.table[scores.table["role"] == "model"]
    if len(of_models) and of_models["metric"].isna().all():
        raise ValueError(
            f"Expected a model that can be scored, found none. The first failed because: {of_models['reason'].iloc[0]}"
        )
    if len(failed):
        names = list(dict.fromkeys(failed["model"]))
        warn_user(
            f"{', '.join(map(repr, names))} failed in part or wholly, the first because: {failed['reason'].iloc[0]} The rows "
            "of `failures` have all reasons."
        )
    return scores


@dataclass(frozen=True)
class _Entry:
    """A row of the result: what embeds cells, and how often it is scored."""

    name: str
    role: str
    replicate: int
    given: AnyEmbedder
    seeds: tuple[int, ...]
    fresh: int | None = None
    """Seed of fresh weights in place of those of the model."""
    components: bool = False
    """Principal components in place of a model."""

    @property
    def called(self) -> str:
        """Name among all models and their replicates; fresh weights go by their seed."""
        return f"{self.name} #{self.replicate}" if self.replicate and self.role == "model" else self.name

    def embed(self, expression: Expression, run: _Run) -> NDArray[Any]:
        """Array (cells, dimensions) of finite numbers."""
        if self.components:
            return expression.components
        if not isinstance(self.given, CellModel | str | PathLike):
            run.models[self.called] = {"function": getattr(self.given, "__qualname__", type(self.given).__name__)}
            table = expression.table
            found = self.given(table if table.isbacked else table.copy())
            return plain_vectors(_rows_of(found, table.n_obs), f"the result of {self.name!r}")
        model = load_model(self.given, run.request.device)
        if self.fresh is not None:
            model = _untrained(model, self.fresh)
        own = {"name": model.name, "checksum": model.checksum, "family": model.config.family, "dim": model.dim}
        run.models.setdefault(self.called, own)
        cells = open_cells(expression.table, model, run.request)
        embedding, expressed = cells.embed(pooling=pooling_of(model.config, None), show_progress=False)
        cells.warn_about_empty(expressed, "Their embeddings say nothing about them.")
        return embedding


@dataclass
class _Run:
    """Scores as they come."""

    request: Request
    seeds: tuple[int, ...]
    show: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self, name: str, table: AnnData) -> None:
        """Keep how large a table is."""
        self.datasets[name] = {"n_cells": table.n_obs, "n_genes": table.n_vars}

    def score(self, dataset: str, entry: _Entry, expression: Expression, prepared: Mapping[str, Prepared]) -> None:
        """Embed and ask; whatever goes wrong becomes a row."""
        about = {"dataset": dataset, "model": entry.name, "role": entry.role, "replicate": entry.replicate}
        try:
            embedding = entry.embed(expression, self)
        except Exception as error:  # models of others fail in their own ways
            logger.info("%s failed.", entry.name, exc_info=True)
            for question in prepared:
                self.rows.append({**about, "benchmark": question, "reason": _reason(error)})
            return
        for question, (judge, _) in prepared.items():
            self._ask({**about, "benchmark": question}, judge, embedding, entry.seeds)
        logger.info("Scored %s on %s.", entry.name, dataset)

    def score_own_baselines(self, dataset: str, prepared: Mapping[str, Prepared]) -> None:
        """Baselines that belong to one benchmark."""
        for question, (_, baselines) in prepared.items():
            for name, judge in baselines.items():
                about = {"dataset": dataset, "model": name, "role": "baseline", "replicate": 0, "benchmark": question}
                self._ask(about, judge, np.empty((0, 0)), self.seeds)

    def _ask(self, about: Mapping[str, Any], judge: Any, embedding: NDArray[Any], seeds: Iterable[int]) -> None:
        for seed in seeds:
            try:
                found = judge(embedding, seed)
            except Exception as error:  # noqa: BLE001  # an embedding may be such that a score cannot be computed
                self.rows.append({**about, "seed": seed, "reason": _reason(error)})
                continue
            for metric, value in found.values.items():
                reference = found.references.get(metric, np.nan)
                row = {"seed": seed, "metric": metric, "value": value, "reference": reference, "reason": ""}
                self.rows.append({**about, **row, "n_cells": found.n_cells})

    def about(self, asked: Mapping[str, Sequence[Benchmark]]) -> dict[str, Any]:
        """What the scores depend on."""
        questions = {question.called: question for several in asked.values() for question in several}
        return {
            "versions": {name: found for name in ("scgpt-tools", "scib-metrics") if (found := _version(name))},
            "seeds": list(self.seeds),
            "layer": self.request.layer or "X",
            "benchmarks": {name: _settings(question) for name, question in questions.items()},
            "datasets": self.datasets,
            "models": self.models,
        }


def _entries(models: Any, baselines: Sequence[str], seeds: Sequence[int]) -> list[_Entry]:
    entries, fresh = [], []
    for name, several in _named_models(models).items():
        for replicate, given in enumerate(several):
            entries.append(_Entry(name, "model", replicate, given, tuple(seeds)))
        if "untrained" in baselines and isinstance(several[0], CellModel | str | PathLike):
            # Another network for each seed, each with a division of its own.
            fresh += [
                _Entry(f"{name}, untrained", "baseline", place, several[0], (seed,), fresh=seed)
                for place, seed in enumerate(seeds)
            ]
    if "pca" in baselines:
        fresh.append(_Entry("PCA", "baseline", 0, "PCA", tuple(seeds), components=True))
    names = [entry.name for entry in [*entries, *fresh] if entry.replicate == 0]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"Expected models of different names, found {twice[0]!r} twice. Name them: models={{'name': model, ...}}."
        )
    if not names:
        raise ValueError("Expected `models` or `baselines` to score, found none of either.")
    return entries + fresh


def _check_names(entries: Sequence[_Entry], asked: Mapping[str, Sequence[Benchmark]]) -> None:
    taken = {name for several in asked.values() for question in several for name in question.own_baselines}
    if both := sorted(taken & {entry.name for entry in entries}):
        raise ValueError(f"Expected names of their own for models, found {both[0]!r}, which a baseline has. Rename it.")


def _named_models(models: Any) -> dict[str, list[Any]]:
    if isinstance(models, Mapping):
        named = {str(name): _listed(given) for name, given in models.items()}
    else:
        several = [(_name(given), given) for given in _listed(models)]
        named = {}
        for name, given in several:
            if name in named:
                raise ValueError(
                    f"Expected models of different names, found {name!r} twice. Name them: models={{'name': model, ...}}."
                )
            named[name] = [given]
    for name, several in named.items():
        if not several:
            raise ValueError(f"Expected one model or more for {name!r}, found none.")
        for given in several:
            if not (isinstance(given, CellModel | str | PathLike) or callable(given)):
                raise TypeError(
                    f"Expected {name!r} to be a model, its name, folder or file, or a function from cells to an array, found "
                    f"{type(given).__name__}."
                )
    return named


def _listed(given: Any) -> list[Any]:
    alone = isinstance(given, str | PathLike | AnnData | CellModel) or callable(given)
    return [given] if alone or not isinstance(given, Iterable) else list(given)


def _name(given: Any) -> str:
    if isinstance(given, CellModel):
        return given.name
    if isinstance(given, PathLike) or (isinstance(given, str) and Path(given).exists()):
        return Path(given).stem
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def _named_tables(datasets: Any) -> dict[str, Any]:
    if isinstance(datasets, Mapping):
        tables = {str(name): table for name, table in datasets.items()}
    else:
        several = _listed(datasets)
        names = [
            ("data" if len(several) == 1 else f"data {number}") if isinstance(table, AnnData) else Path(table).stem
            for number, table in enumerate(several, start=1)
            if isinstance(table, AnnData | str | PathLike) or _refuse_table(table)
        ]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Expected tables of different names, found {names}. Name them: datasets={{'name': table}}."
            )
        tables = dict(zip(names, several, strict=True))
    if not tables:
        raise ValueError("Expected one table of cells or more, found none.")
    for table in tables.values():
        if not isinstance(table, AnnData | str | PathLike):
            _refuse_table(table)
    return tables


def _refuse_table(table: Any) -> bool:
    raise TypeError(f"Expected `datasets` to be AnnData or paths of tables, found {type(table).__name__}.")


def _benchmarks(given: Any, datasets: Sequence[str]) -> dict[str, list[Benchmark]]:
    several = [given] if isinstance(given, str | Mapping | Benchmark) else given
    check_type("benchmarks", several, Iterable)
    questions = [_benchmark(one) for one in several]
    if not questions:
        raise ValueError("Expected one benchmark or more, found none.")
    for question in questions:
        if question.dataset is not None:
            check_choice("dataset of a benchmark", question.dataset, datasets)
    asked = {name: [question for question in questions if question.dataset in (None, name)] for name in datasets}
    for name, own in asked.items():
        called = [question.called for question in own]
        if twice := [title for title in called if called.count(title) > 1]:
            raise ValueError(
                f"Expected benchmarks of different titles for {name!r}, found {twice[0]!r} twice. Set `title`."
            )
    return asked


def _benchmark(given: Any) -> Benchmark:
    if isinstance(given, Benchmark):
        return given
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise TypeError(f"Expected a benchmark to be a name or a mapping, found {type(given).__name__}.")
    plain = {name: value for name, value in given.items() if name != "params"}
    kind: Any = Benchmark
    return from_dict(kind, {**plain, **(given.get("params") or {})})


@contextmanager
def _opened(table: AnyTable) -> Iterator[AnnData]:
    if isinstance(table, AnnData):
        yield table
        return
    with open_table(table) as cells:
        yield cells


def _untrained(model: CellModel, seed: int) -> CellModel:
    with own_random_numbers(seed):
        return CellModel(model.config, model.vocabulary, name=f"{model.name}, untrained").to(model.device).eval()


def _rows_of(found: Any, n_cells: int) -> Any:
    shape = np.shape(found)
    if len(shape) != 2 or shape[0] != n_cells or not shape[1]:
        raise ValueError(f"Expected an array ({n_cells} cells, dimensions), found shape {shape}.")
    return found


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _settings(question: Benchmark) -> dict[str, Any]:
    found = to_dict(question)
    if "network" in found:
        found["network"] = f"{len(question.network)} pairs"  # type: ignore[attr-defined]
    return found
