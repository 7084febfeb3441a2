"""What embeddings of cells are asked in :func:`scgpt_tools.tl.benchmark`.

A benchmark reads what it needs of a table once (:meth:`Benchmark.prepare`), and then scores one embedding after another,
each with several seeds.  All of them take log-normalised values where the table holds counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from scgpt_tools._optional import optional
from scgpt_tools._validate import check_fraction, check_integer, check_number
from scgpt_tools.config import OneOf, settle_fields
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.metrics.decoding import decode_changes, gene_vectors
from scgpt_tools.metrics.networks import score_edges
from scgpt_tools.metrics.probe import linear_probe, probe_split
from scgpt_tools.tl._reference_network import read_reference_network
from scgpt_tools.tl._scib import components_of, gene_values, labels_of, quiet, score_with_scib, variable_genes
from scgpt_tools.tokens.units import describe_values

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.data.classes import Classes
    from scgpt_tools.metrics.networks import EdgeScores

_HVG = 2000
_TARGET = 1e4


class Scored(NamedTuple):
    """Scores of one embedding with one seed."""

    values: dict[str, float]
    """By metric."""
    references: dict[str, float]
    """By metric, what knows nothing of the embedding has on the same cells."""
    n_cells: int


class Judge(Protocol):
    """Scores an embedding (cells, dimensions) of the table that it was prepared for."""

    def __call__(self, embedding: NDArray[Any], seed: int) -> Scored:
        """Score with one seed."""


class Prepared(NamedTuple):
    """A benchmark that has read a table."""

    judge: Judge
    baselines: dict[str, Judge] = {}  # never changed
    """Baselines of this benchmark alone, which take no embedding."""


class Expression:
    """Values of one table, read and normalised when they are first asked for."""

    def __init__(self, table: AnnData, layer: str | None) -> None:
        self.table, self.layer = table, layer

    @cached_property
    def _read(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        return gene_values(self.table, self.layer, None)

    @cached_property
    def values(self) -> sp.csr_matrix:
        """(cells, genes) log-normalised values."""
        X, sample = self._read
        values = ad.AnnData(X.astype(np.float32))
        if describe_values(sample).unit in ("counts", "normalised"):
            sc.pp.normalize_total(values, target_sum=_TARGET)
            sc.pp.log1p(values)
        return sp.csr_matrix(values.X)

    @cached_property
    def components(self) -> NDArray[Any]:
        """(cells, 50) principal components of the 2,000 genes that vary most."""
        obs = pd.DataFrame({"batch": "all"}, index=self.table.obs_names.astype(str))
        return components_of(variable_genes(*self._read, obs, _HVG))


@dataclass(frozen=True, kw_only=True)
class Benchmark(OneOf, ABC):
    """One question to embeddings; its fields are the settings."""

    tag: ClassVar[str] = "name"
    own_baselines: ClassVar[tuple[str, ...]] = ()
    """Names of baselines that stand beside the models in this benchmark alone."""
    dataset: str | None = None
    """The only data set to ask of; ``None`` asks of all."""
    title: str | None = None
    """What to call it in the table, for one that is asked twice; ``None`` takes its name."""

    def __post_init__(self) -> None:
        settle_fields(self)

    @property
    def called(self) -> str:
        """Name in the table."""
        return self.title or self.kind

    def check(self, table: AnnData) -> None:  # most have something to check, not all
        """Refuse a table that lacks what is asked of it, before anything is computed."""

    @abstractmethod
    def prepare(self, expression: Expression) -> Prepared:
        """Read what is needed of a table."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Benchmark):
    """How much of the labels a logistic regression finds; its reference is the most frequent label."""

    label_key: str = "cell_type"
    test_size: float = 0.2
    standardise: bool = True
    max_iter: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("test_size", self.test_size, zero=False, one=False)
        check_integer("max_iter", self.max_iter)

    def check(self, table: AnnData) -> None:
        """Refuse a table without labels."""
        _usable(read_classes(table.obs, self.label_key, allow_unknown=True), self.label_key)

    def prepare(self, expression: Expression) -> Prepared:
        """Read the labels; cells without one, or whose label no other cell has, do not take part."""
        labels = read_classes(expression.table.obs, self.label_key, allow_unknown=True)
        cells = _usable(labels, self.label_key)
        codes = labels.codes[cells]

        def judge(embedding: NDArray[Any], seed: int) -> Scored:
            found = linear_probe(
                embedding[cells],
                codes,
                test_size=self.test_size,
                standardise=self.standardise,
                max_iter=self.max_iter,
                rng=seed,
            )
            values = {name: getattr(found, name) for name in ("accuracy", "f1_macro", "f1_weighted")}
            return Scored(values, {"accuracy": found.majority}, found.n_test)

        return Prepared(judge)


@dataclass(frozen=True, kw_only=True)
class EmbeddingQuality(Benchmark):
    """Scores of scIB (extra ``scib``), for cell types kept and, with ``batch_key``, batches mixed."""

    label_key: str = "cell_type"
    batch_key: str | None = None
    share: float = 0.9
    """Part of the cells of each label that a seed draws; the scores themselves draw nothing."""
    kbet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("share", self.share, zero=False)

    def check(self, table: AnnData) -> None:
        """Refuse a table without labels or batches, and a machine without scib-metrics."""
        with quiet():
            optional("scib_metrics.benchmark", extra="scib")
        labels_of(table[self._cells(table)], self.label_key, self.batch_key)

    def _cells(self, table: AnnData) -> NDArray[np.int64]:
        return _usable(read_classes(table.obs, self.label_key, allow_unknown=True), self.label_key)

    def prepare(self, expression: Expression) -> Prepared:
        """Read labels and batches."""
        cells = self._cells(expression.table)
        obs = labels_of(expression.table[cells], self.label_key, self.batch_key)

        def judge(embedding: NDArray[Any], seed: int) -> Scored:
            chosen = _drawn(len(cells), self.share, seed, obs["label"].cat.codes.to_numpy())
            scores = score_with_scib(
                obs.iloc[chosen],
                {"embedding": embedding[cells][chosen]},
                expression.components[cells][chosen],
                with_batch=self.batch_key is not None,
                kbet=self.kbet,
            ).iloc[0]
            return Scored({str(name): float(value) for name, value in scores.dropna().items()}, {}, len(chosen))

        return Prepared(judge)


@dataclass(frozen=True, kw_only=True)
class PerturbationDecoding(Benchmark):
    """How much of the change by a perturbation a ridge regression reads off the mean embedding of its own cells.

    This predicts nothing: the embedding is that of cells after the perturbation.  The reference is the mean change of the
    training perturbations.
    """

    condition_key: str = "condition"
    control: str = "ctrl"
    n_top_genes: int = 50
    test_size: float = 0.2
    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_top_genes", self.n_top_genes)
        check_fraction("test_size", self.test_size, zero=False, one=False)
        check_number("penalty", self.penalty, least=0)

    def check(self, table: AnnData) -> None:
        """Refuse a table without controls or with fewer than two perturbations."""
        names = set(read_classes(table.obs, self.condition_key, allow_unknown=True).names)
        if self.control not in names or len(names) < 3:
            raise ValueError(
                f"Expected obs[{self.condition_key!r}] to hold controls {self.control!r} and two perturbations, found "
                f"{sorted(names)[:8]}."
            )

    def prepare(self, expression: Expression) -> Prepared:
        """Read conditions and expression; cells without a condition do not take part."""
        found = read_classes(expression.table.obs, self.condition_key, allow_unknown=True)
        cells = np.flatnonzero(found.codes != UNKNOWN)
        labels = np.asarray(found.names)[found.codes[cells]]

        def judge(embedding: NDArray[Any], seed: int) -> Scored:
            scores = decode_changes(
                expression.values[cells],
                embedding[cells],
                labels,
                control=self.control,
                n_top_genes=self.n_top_genes,
                test_size=self.test_size,
                penalty=self.penalty,
                rng=seed,
            )
            names = ("pearson", "mse", "direction")
            values = {name: getattr(scores, name) for name in names} | {"above_mean": scores.above_mean}
            return Scored(values, {name: getattr(scores, f"mean_{name}") for name in names}, len(cells))

        return Prepared(judge)


@dataclass(frozen=True, kw_only=True)
class GeneNetworkRecovery(Benchmark):
    """Whether genes whose cells have alike embeddings are those that a reference network connects.

    A gene is the mean embedding of the cells that express it, and a pair has the cosine of its genes.  The reference is the
    same scores with genes exchanged for others of like degree; co-expression stands beside as a baseline.
    """

    own_baselines: ClassVar[tuple[str, ...]] = ("co-expression",)
    network: Any
    """Reference: a table, or a .csv or .tsv file, with columns ``gene1`` and ``gene2`` (or ``source`` and ``target``) and
    perhaps ``weight``, negative of repression.  Pairs that it does not list are no edges; where some weights are 0, only
    listed pairs count, and those are none."""
    min_cells: int = 10
    """Cells that have to express a gene."""
    share: float = 0.9
    """Part of the cells that a seed draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("min_cells", self.min_cells)
        check_fraction("share", self.share, zero=False)
        object.__setattr__(self, "network", read_reference_network("network", self.network))

    def check(self, table: AnnData) -> None:
        """Refuse a table that lacks the genes of the network."""
        known = set(table.var_names)
        shared = self.network["gene1"].isin(known) & self.network["gene2"].isin(known)
        if not (shared & (self.network["weight"] != 0)).any():
            genes = sorted({*self.network["gene1"], *self.network["gene2"]})[:3]
            raise ValueError(
                f"Expected edges of the network between genes of the table, found none: the network has {', '.join(genes)}, "
                f"..., the table {', '.join(map(str, table.var_names[:3]))}, ...."
            )

    def prepare(self, expression: Expression) -> Prepared:
        """Find the genes of the network among the columns."""
        places = pd.Series(np.arange(expression.table.n_vars), index=expression.table.var_names)
        places = places[~places.index.duplicated()]
        listed = self.network[self.network["gene1"].isin(places.index) & self.network["gene2"].isin(places.index)]
        pairs = np.stack([places[listed[name]].to_numpy() for name in ("gene1", "gene2")])
        columns = np.unique(pairs)
        truth = _Truth(columns, np.searchsorted(columns, pairs), listed["weight"].to_numpy())

        def scored(seed: int, score: Any) -> Scored:
            cells = _drawn(expression.table.n_obs, self.share, seed)
            X = expression.values[cells][:, columns]
            genes, cosines = score(X, cells)
            found = truth.judge(genes, cosines, seed)
            return Scored(
                {name: getattr(found, name) for name in ("auroc", "auprc", "early_precision")},
                {"auroc": found.auroc_hubs, "auprc": found.auprc_hubs, "early_precision": found.density},
                len(cells),
            )

        def judge(embedding: NDArray[Any], seed: int) -> Scored:
            def score(X: sp.csr_matrix, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
                genes, vectors = gene_vectors(X, embedding[cells], min_cells=self.min_cells)
                return genes, _cosines(vectors)

            return scored(seed, score)

        def co_expression(embedding: NDArray[Any], seed: int) -> Scored:
            def score(X: sp.csr_matrix, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
                genes = np.flatnonzero(np.asarray((X > 0).sum(axis=0)).ravel() >= self.min_cells)
                values = X[:, genes].toarray().T.astype(np.float64)
                return genes, _cosines(values - values.mean(axis=1, keepdims=True))

            return scored(seed, score)

        return Prepared(judge, dict.fromkeys(self.own_baselines, co_expression))


class _Truth(NamedTuple):
    """A reference network on some columns."""

    columns: NDArray[np.int64]
    pairs: NDArray[np.int64]
    """(2, pairs) places among ``columns``."""
    weights: NDArray[np.float64]

    def judge(self, genes: NDArray[np.int64], scores: NDArray[np.float64], seed: int) -> EdgeScores:
        """Judge scores (genes, genes) of some of the columns."""
        n = len(self.columns)
        edges, judged = np.zeros((n, n), dtype=bool), np.full((n, n), np.nan)
        edges[tuple(self.pairs[:, self.weights != 0])] = True
        judged[np.ix_(genes, genes)] = scores
        if (self.weights == 0).any():
            listed = np.zeros((n, n), dtype=bool)
            listed[tuple(self.pairs)] = True
            judged[~(listed | listed.T)] = np.nan
        return score_edges(judged, edges, rng=seed)


def _cosines(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


def _usable(labels: Classes, key: str) -> NDArray[np.int64]:
    """Numbers of the cells with a label that another cell has, too."""
    counts = np.bincount(labels.codes[labels.codes != UNKNOWN], minlength=len(labels.names))
    if (counts >= 2).sum() < 2:
        raise ValueError(
            f"Expected two labels of two cells or more in obs[{key!r}], found {int((counts >= 2).sum())} among "
            f"{len(labels.names)}."
        )
    return np.flatnonzero((labels.codes != UNKNOWN) & (counts[labels.codes] >= 2))


def _drawn(n_cells: int, share: float, seed: int, strata: NDArray[np.integer[Any]] | None = None) -> NDArray[np.int64]:
    """Numbers of some cells, ascending; of each stratum the same share."""
    if share == 1:
        return np.arange(n_cells)
    if strata is not None:
        return np.sort(probe_split(strata, test_size=1 - share, rng=seed)[0])
    order = np.random.default_rng(seed).permutation(n_cells)
    return np.sort(order[: max(1, round(share * n_cells))])


BENCHMARKS: dict[str, type[Benchmark]] = {
    "linear_probe": LinearProbe,
    "embedding_quality": EmbeddingQuality,
    "perturbation": PerturbationDecoding,
    "grn_inference": GeneNetworkRecovery,
}
"""Benchmarks by name."""

Benchmark.kinds = BENCHMARKS
