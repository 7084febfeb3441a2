"""Rows of expression values to token batches: which genes, which value for each, how many, and the cell token.

The order of steps is that of scGPT's ``embed_data``: genes with a token, the expressed ones among them in column order,
bins over all of those, then the draw of a subset for cells that are too long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch

from scgpt_tools._types import Expects, GeneSelection, Include, Overflow, Ties, TokenValues, Unknown, Unmeasured
from scgpt_tools._validate import as_seed, check_choice, check_finite, check_integer, check_number
from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.depth import DEPTH_TOKENS, depths
from scgpt_tools.tokens.edges import bins_of
from scgpt_tools.tokens.linear_bins import highest, with_bins
from scgpt_tools.tokens.modalities import ModalityConfig
from scgpt_tools.tokens.ranks import by_rank
from scgpt_tools.tokens.values import bin_rows, bits_of, canonical, count_known, fractions_of

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.vocabulary import Vocabulary

    Integer = TypeVar("Integer", bound=np.integer)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How a cell becomes tokens; travels with the model that was trained on it."""

    genes: GeneSelection | Include = "expressed"
    """Which genes become tokens: those with a value above zero, all that the vocabulary knows, or ``"batch-wise"``, for
    models of perturbations, those that some control of the minibatch expresses.  Elsewhere a cell does not depend on its
    neighbours, and the last means all."""
    unknown: Unknown = "drop"
    """Columns without a token: leave them out, or let them take part under the token of padding."""
    unmeasured: Unmeasured = "error"
    """Perturbed genes without a column: refuse them, add their token to the cells that they are perturbed in, or leave
    such cells out."""
    cells_per_mean: int = 1
    """For models of perturbations: cells whose mean is read in place of one, controls and targets alike."""
    values: TokenValues = "binned"
    """What stands for expression: quantile bins within the cell, ``log1p`` of the value, or the value itself."""
    bins: int | None = 51
    """Number of bins including zero; only with ``values="binned"``."""
    ties: Ties = "left"
    """Bin of values that sit on several equal edges: the last between them, or one drawn by seed."""
    length: int | None = 1200
    """Most tokens of a cell, the cell token included; ``None`` keeps all."""
    overflow: Overflow | Literal["shared", "highest"] = "sample"
    """What stays of a longer cell: genes drawn by seed, or the first in the order of the columns; perturbed genes always
    do.  Or ``"shared"``, for models of perturbations, one draw a minibatch that may lose them, as scGPT makes it;
    ``"highest"`` keeps the genes of highest bins (``linear_bins``), or without these of highest values."""
    cls: bool = True
    """Put the cell token first."""
    cls_value: float = -2.0
    """Value of the cell token; scGPT's fine-tuning tutorials use 0, its embedding and pre-training the padding's."""
    pad_value: float = -2.0
    """Value at padding."""
    mask_value: float = -1.0
    """Value that hides another from the network."""
    linear_bins: int | None = None
    """Bins of equal width between the smallest and the largest value of a cell, which networks read beside the number;
    ``None`` for none.  The cell token has the bin after the last, and a hidden value the next."""
    bin_zeros: bool = False
    """Give values of 0 a bin as well, the lowest, and not that of padding; for tokenizers that keep such genes."""
    target_sum: float | None = None
    """Scale each cell to this sum over its known genes before anything else; for counts."""
    depth: bool = False
    """Put two tokens behind the cell token that hold how many molecules of known genes the cell has, as a logarithm of base
    10: scFoundation's tokens of target and source depth.  For counts, and a vocabulary with
    :data:`~scgpt_tools.tokens.DEPTH_TOKENS`."""
    order: Literal["columns", "rank"] = "columns"
    """Order of the tokens: that of the columns, or the highest value first; then a long cell keeps its highest values."""
    medians: tuple[float, ...] | None = None
    """What ranks are taken after division by, for each token: medians over a corpus as Geneformer has them
    (:func:`~scgpt_tools.tokens.ranks.gene_medians`); only with ``order="rank"``."""
    positions: bool = False
    """Number the tokens of each cell, for networks that read their places."""
    edges: tuple[float, ...] | None = None
    """Edges of bins that are the same for all cells, which tokens carry beside the value
    (:func:`~scgpt_tools.tokens.edges.uniform_edges`, :func:`~scgpt_tools.tokens.edges.quantile_edges`)."""
    expects: Expects = "any"
    """Unit that ``values`` starts from; bins depend on ranks only and take any."""
    modalities: tuple[str, ...] = ()
    """Names of the modality ids in their order, ``<pad>`` and ``<cls>`` among them; empty for one modality."""
    parts: tuple[ModalityConfig, ...] = ()
    """How each modality of a MuData is read, instead of the fields above from ``genes`` to ``overflow``."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if (self.values == "binned") != (self.bins is not None):
            raise ValueError(f"`bins` goes with values='binned' only, found {self.values=} and {self.bins=}.")
        if self.bins is not None:
            fractions_of(self.bins)  # refuses numbers that cannot be
        check_integer("cells_per_mean", self.cells_per_mean)
        if self.linear_bins is not None:
            check_integer("linear_bins", self.linear_bins)
            if self.edges is not None:
                raise ValueError("Expected either `linear_bins` or `edges`, which both give tokens a bin, found both.")
        if self.length is not None:
            # A cell token alone would make all cells alike.
            check_integer("length", self.length, least=1 + self.first)
        for name in ("cls_value", "pad_value", "mask_value"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"Expected `{name}` to be a finite number, found {getattr(self, name)}.")
        if self.target_sum is not None:
            check_number("target_sum", self.target_sum, above=0)
        if self.order == "rank" and (self.genes != "expressed" or self.values == "binned"):
            raise ValueError(
                f"Expected genes='expressed' and values of 'raw' or 'log1p' for order='rank', found {self.genes!r} and "
                f"{self.values!r}."
            )
        if self.medians is not None:
            if self.order != "rank":
                raise ValueError(f"`medians` go with order='rank' only, found {self.order!r}.")
            for median in self.medians:
                check_number("medians", median, above=0)
        channels = (self.bins, self.edges, self.linear_bins, self.positions or None, self.modalities or None)
        if self.depth and any(each is not None for each in channels):
            raise ValueError(
                "Expected depth=True with plain values of one modality, whose tokens have neither bins nor positions, found "
                f"{self.values=}, {self.linear_bins=}, {self.positions=}, {self.modalities=} or `edges`."
            )
        if self.edges is not None:
            check_finite("`edges`", np.asarray(self.edges), "Give ascending numbers.")
            if len(self.edges) < 2 or any(np.diff(self.edges) <= 0):
                raise ValueError(f"Expected `edges` to be at least two ascending numbers, found {self.edges}.")
        if self.unknown == "pad" and self.modalities:
            raise ValueError(f"Expected unknown='drop' for several modalities, found 'pad' for {self.modalities}.")
        absent = {"<pad>", "<cls>"} - set(self.modalities)
        if self.modalities and absent:
            raise ValueError(f"Expected `modalities` to hold '<pad>' and '<cls>', found {self.modalities}.")
        unknown = {part.name for part in self.parts} - set(self.modalities)
        if unknown:
            raise ValueError(f"Expected `modalities` to hold the names of `parts`, found {self.modalities}.")

    @property
    def first(self) -> int:
        """Tokens before those of genes."""
        return int(self.cls) + (len(DEPTH_TOKENS) if self.depth else 0)

    @property
    def mask_bin(self) -> int | None:
        """Bin that hides another from the network."""
        if self.linear_bins is not None:
            return self.linear_bins + 2
        return None if self.edges is None else 0


_CHOICES: dict[str, tuple[str, ...]] = {
    "genes": tuple(dict.fromkeys((*get_args(GeneSelection), *get_args(Include)))),
    "unknown": get_args(Unknown),
    "unmeasured": get_args(Unmeasured),
    "values": get_args(TokenValues),
    "ties": get_args(Ties),
    "overflow": (*get_args(Overflow), "shared", "highest"),
    "order": ("columns", "rank"),
    "expects": get_args(Expects),
}


class Tokenizer:
    """Turns rows of a matrix of one modality into a :class:`TokenBatch`.

    :func:`~scgpt_tools.tokens.joint.tokenizer_of` makes the right one for any configuration.

    Parameters
    ----------
    config
        What to do.
    vocabulary
        Where the ids of the padding and the cell token come from.
    """

    def __init__(self, config: TokenizerConfig, vocabulary: Vocabulary) -> None:
        if config.parts and type(self) is Tokenizer:
            raise ValueError("Expected a configuration of one modality, found several. Pass it to `tokenizer_of`.")
        if config.depth and not set(DEPTH_TOKENS) <= set(vocabulary.tokens):
            raise ValueError(
                f"Expected a vocabulary with the tokens {DEPTH_TOKENS} for depth=True, found one without. Extend it: "
                "`vocabulary.extended(sct.tokens.DEPTH_TOKENS)`."
            )
        self.config = config
        self.vocabulary = vocabulary

    def __repr__(self) -> str:
        return f"Tokenizer({self.config})"

    @property
    def padding(self) -> dict[str, float]:
        """What stands at padding, of the fields of a batch where that depends on the model."""
        modalities = self.config.modalities
        return {
            "genes": self.vocabulary.pad_id,
            "values": self.config.pad_value,
            "modality": modalities.index("<pad>") if modalities else 0,
        }

    def __call__(
        self,
        X: sp.csr_matrix,
        features: FeatureTable,
        keys: ArrayLike,
        *,
        rng: RngLike = 0,
        rows: ArrayLike | None = None,
        index: ArrayLike | None = None,
        prebinned: bool = False,
    ) -> TokenBatch:
        """Tokenize some cells.

        Parameters
        ----------
        X
            Values of the cells, none of them negative or missing.
        features
            Which columns are which tokens.
        keys
            One 64-bit hash per row of ``X``.  All draws of a cell depend on the seed, its key and the tokens only.
        rng
            Whole number, generator or ``None`` (fresh entropy) for draws.  Pass a number to several calls that should
            agree.
        rows
            Rows of ``X`` to take, in this order; ``None`` takes all.  Cheaper than slicing.
        index
            Number of each row of ``X`` in the table it comes from; ``None`` counts from 0.
        prebinned
            Take the values as they are, as those that :meth:`bin_rows` returned.

        Returns
        -------
        The batch, as wide as its longest cell.  A cell without any known expressed gene has the cell token only.

        Raises
        ------
        ValueError
            If a value is negative, missing or infinite, or the shapes do not fit.
        """
        features = self.completed(features)
        token_of = self._token_of(X, features)
        counts, X = X, self._prepared(X, features)
        keys = one_per_row("keys", keys, X, np.uint64)
        index = np.arange(X.shape[0]) if index is None else one_per_row("index", index, X, np.int64)
        rows = np.arange(X.shape[0]) if rows is None else _rows_of(X, rows)
        expressed = count_known(X, rows, token_of)
        # Which values are the highest is known when all are there; what is too much goes then.
        late = self.config.overflow == "highest" or self.config.order == "rank"
        room = np.iinfo(np.int64).max - 1 if late else self._room
        parts = self._padded(self._lengths(expressed, features, room), features)
        if self.config.depth:
            own = slice(int(self.config.cls), self.config.first)
            parts.genes[:, own] = self.vocabulary.ids(DEPTH_TOKENS)
            parts.values[:, own] = depths(_molecules(counts, token_of)[rows])[:, None]
        scratch = np.empty(max(expressed, default=0), dtype=X.data.dtype)
        everything = self.config.genes != "expressed"
        kernels.fill(
            X.data, X.indices, X.indptr.astype(np.int64), rows, keys, np.uint64(as_seed(rng)), token_of,
            self._modality_of(features), np.sort(features.columns) if everything else np.empty(0, np.int64),
            kernels.RAW if prebinned else _KINDS[self.config.values],
            np.empty(0) if self.config.bins is None else fractions_of(self.config.bins),
            self.config.ties == "random", everything, room, self.config.overflow != "first",
            self.config.first, scratch, bits_of(scratch), parts.genes, parts.values, parts.modality,
        )  # fmt: skip
        batch = TokenBatch(
            genes=torch.from_numpy(parts.genes),
            values=torch.from_numpy(parts.values),
            mask=torch.from_numpy(parts.mask),
            index=torch.from_numpy(index[rows]),
            expressed=torch.from_numpy(expressed[:, None]),
            modality=torch.from_numpy(parts.modality) if self._has_modality(features) else None,
        )
        if self.config.order == "rank":
            batch = self._ranked(batch)
        batch = self.with_channels(batch)
        if self.config.overflow != "highest" or self.config.length is None:
            return batch
        return highest(batch, self.config.length, keep_first=self.config.first)

    def with_channels(self, batch: TokenBatch) -> TokenBatch:
        """Add bins and places of tokens, where the settings ask for them.

        Parameters
        ----------
        batch
            Cells in the order that the network sees.

        Returns
        -------
        The batch.
        """
        config = self.config
        if config.linear_bins is not None:
            batch = with_bins(batch, config.linear_bins, zeros=config.bin_zeros, cls=config.cls)
        if config.edges is not None:
            bins = bins_of(batch.values, config.edges).masked_fill(~batch.mask, 0)
            if config.cls:
                bins[:, :1] = 0
            batch = batch.replace(bins=bins)
        if config.positions:
            places = torch.arange(batch.mask.shape[1]).expand(batch.mask.shape)
            batch = batch.replace(positions=places * batch.mask)
        return batch

    def _ranked(self, batch: TokenBatch) -> TokenBatch:
        scores = None
        if self.config.medians is not None:
            if len(self.config.medians) < len(self.vocabulary):
                raise ValueError(
                    f"Expected `medians` for {len(self.vocabulary)} tokens, found {len(self.config.medians)}."
                )
            medians = torch.tensor(self.config.medians, dtype=torch.float64)
            values = batch.values.double()
            scores = (values.expm1() if self.config.values == "log1p" else values) / medians[batch.genes]
        return by_rank(batch, length=self.config.length, keep_first=self.config.first, scores=scores)

    def _prepared(self, X: sp.csr_matrix, features: FeatureTable) -> sp.csr_matrix:
        """Values in the usual form, each cell scaled to the depth of the settings."""
        X = canonical(X)
        if self.config.target_sum is None:
            return X
        rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
        depth = _molecules(X, self._token_of(X, features))
        factor = self.config.target_sum / np.where(depth > 0, depth, 1.0)
        return type(X)(((X.data * factor[rows]).astype(np.float32), X.indices, X.indptr), shape=X.shape)

    def lengths(self, X: sp.csr_matrix, features: FeatureTable) -> NDArray[np.int64]:
        """Count the tokens that each cell will have.

        Parameters
        ----------
        X
            Values of the cells.
        features
            Which columns are which tokens.

        Returns
        -------
        One number per row, the cell token included.
        """
        X = canonical(X)
        features = self.completed(features)
        known = count_known(X, np.arange(X.shape[0]), self._token_of(X, features))
        return self._lengths(known, features, self._room)

    def bin_rows(self, X: sp.csr_matrix, features: FeatureTable, keys: ArrayLike, *, rng: RngLike = 0) -> sp.csr_matrix:
        """Bin cells without making batches, to keep the bins.

        Parameters
        ----------
        X
            Values of the cells, none of them negative or missing.
        features
            Which columns are which tokens.
        keys
            One 64-bit hash per row.
        rng
            Whole number, generator or ``None`` (fresh entropy) for random ties.

        Returns
        -------
        The bins that a call gives the same cells and seed, in the shape of ``X``: small integers, zero for zero, and
        nothing in columns without a token.
        """
        keys = one_per_row("keys", keys, X, np.uint64)
        bins, token_of = self.bins, self._token_of(X, self.completed(features))
        return bin_rows(X, bins, ties=self.config.ties, token_of=token_of, keys=keys, seed=as_seed(rng))

    def value_rows(
        self, X: sp.csr_matrix, features: FeatureTable, keys: ArrayLike, *, rng: RngLike = 0
    ) -> sp.csr_matrix:
        """What stands for the values of some cells, in the shape of the matrix; arguments as of :meth:`bin_rows`."""
        X = self._prepared(X, self.completed(features))
        if self.config.values == "binned":
            return self.bin_rows(X, features, keys, rng=rng)
        return X.log1p() if self.config.values == "log1p" else X

    def completed(self, features: FeatureTable) -> FeatureTable:
        """Features with columns without a token under that of padding, if the settings say so."""
        return features.completed(self.vocabulary) if self.config.unknown == "pad" else features

    @property
    def bins(self) -> int:
        """Number of bins including zero; an error where values are not binned."""
        if self.config.bins is None:
            raise ValueError(f"Expected a tokenizer with values='binned', found {self.config.values!r}.")
        return self.config.bins

    @property
    def _room(self) -> int:
        """Most genes of a cell."""
        length = np.iinfo(np.int64).max if self.config.length is None else self.config.length
        return length - self.config.first

    def _lengths(self, expressed: NDArray[np.int64], features: FeatureTable, room: int) -> NDArray[np.int64]:
        genes = np.full_like(expressed, len(features.columns)) if self.config.genes != "expressed" else expressed
        return np.minimum(genes, room) + self.config.first

    def _padded(self, lengths: NDArray[np.int64], features: FeatureTable) -> _Parts:
        """Arrays that hold the padding and the cell tokens."""
        shape = (lengths.size, int(max(lengths, default=0)))
        genes = np.full(shape, self.vocabulary.pad_id, dtype=np.int64)
        values = np.full(shape, self.config.pad_value, dtype=np.float32)
        modality = np.empty((0, 0), dtype=np.int64)
        if self._has_modality(features):
            modality = np.full(shape, self.config.modalities.index("<pad>"), dtype=np.int64)
            if self.config.cls:
                modality[:, :1] = self.config.modalities.index("<cls>")
        if self.config.cls:
            genes[:, :1], values[:, :1] = self.vocabulary.cls_id, self.config.cls_value
        return _Parts(genes, values, np.arange(shape[1]) < lengths[:, None], modality)

    def _has_modality(self, features: FeatureTable) -> bool:
        if not self.config.modalities:
            return False
        if features.modality is None:
            raise ValueError(
                f"Expected features with modalities among {self.config.modalities}, found none. Match each modality "
                "with its name."
            )
        return True

    def _token_of(self, X: sp.csr_matrix, features: FeatureTable) -> NDArray[np.int64]:
        if X.shape[1] != features.n_columns:
            raise ValueError(f"Expected a matrix of {features.n_columns} columns, as matched, found {X.shape[1]}.")
        return _by_column(features, features.ids)

    def _modality_of(self, features: FeatureTable) -> NDArray[np.int64]:
        if features.modality is None or not self._has_modality(features):
            return np.empty(0, np.int64)
        return _by_column(features, features.modality)


class _Parts(NamedTuple):
    genes: NDArray[np.int64]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    modality: NDArray[np.int64]


_KINDS = {"binned": kernels.BINNED, "log1p": kernels.LOG1P, "raw": kernels.RAW}


def _molecules(X: sp.csr_matrix, token_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """(cells,) sum of the values that have a token."""
    X = canonical(X)
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    values = np.where(token_of[X.indices] >= 0, X.data, 0).astype(np.float64)
    return np.bincount(rows, values, minlength=X.shape[0]).astype(np.float64, copy=False)


def _by_column(features: FeatureTable, entries: ArrayLike) -> NDArray[np.int64]:
    """One entry for every column of the matrix, -1 where it has no token."""
    result = np.full(features.n_columns, -1, dtype=np.int64)
    result[features.columns] = np.asarray(entries)
    return result


def _rows_of(X: sp.csr_matrix, rows: ArrayLike) -> NDArray[np.int64]:
    """Row numbers that are there; compiled code would read beside the matrix without a word."""
    array = np.asarray(rows, dtype=np.int64)
    wrong = array[(array < 0) | (array >= X.shape[0])]
    if wrong.size:
        raise IndexError(f"Expected `rows` among 0 to {X.shape[0] - 1}, found {wrong[0]}.")
    return array


def one_per_row(name: str, values: ArrayLike, X: sp.csr_matrix, dtype: type[Integer]) -> NDArray[Integer]:
    """Numbers of the rows of a matrix, or an error that says how many there should be."""
    array: NDArray[Integer] = np.ascontiguousarray(values, dtype=dtype)
    if array.shape != (X.shape[0],):
        raise ValueError(f"Expected `{name}` to hold one number for each of {X.shape[0]} rows, found {array.shape}.")
    return array
