"""Tokens of several modalities: each tokenized by itself, then one after the other behind one cell token.

A cell that was not measured in a modality has no tokens of it, also where those that were have a token for every
feature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from scgpt_tools._validate import as_seed
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.tokenizer import Tokenizer, one_per_row
from scgpt_tools.tokens.values import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.modalities import ModalityConfig, Span
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary

# Where bins lie: a value at the mean of its feature, and what a standard deviation is worth.
_MIDDLE, _SPREAD = 20.0, 8.0


class JointTokenizer(Tokenizer):
    """Turns rows of a matrix of several modalities into a batch; its arguments are those of its base."""

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
        """Tokenize some cells."""
        X = canonical(X)
        self._token_of(X, features)  # refuses another number of columns
        keys = one_per_row("keys", keys, X, np.uint64)
        chosen = np.arange(X.shape[0]) if rows is None else np.asarray(rows, dtype=np.int64)
        index = np.arange(X.shape[0]) if index is None else np.asarray(index, dtype=np.int64)
        X, keys, seed = X[chosen], keys[chosen], as_seed(rng)
        parts = []
        for span, own in zip(features.spans, features.parts, strict=True):
            config = self.part(span.name)
            values = canonical(X[:, span.start : span.stop])
            shown = values if prebinned else part_values(values, config, own)
            part = self.alone(config)(shown, own, keys, rng=seed, prebinned=prebinned)
            if not prebinned and (config.scale != 1 or config.standard):
                scaled = _scaled(part.values.numpy(), part.genes.numpy(), config, self.vocabulary)
                part = part.replace(values=torch.where(part.mask, torch.from_numpy(scaled), part.values))
            there = torch.from_numpy(_measured(X, span))[:, None]
            part = part.replace(mask=part.mask & there, expressed=part.require("expressed").masked_fill(~there, -1))
            parts.append((self.config.modalities.index(span.name), part))
        return _side_by_side(self, parts, torch.from_numpy(index[chosen]))

    def lengths(self, X: sp.csr_matrix, features: FeatureTable) -> NDArray[np.int64]:
        """Count the tokens that each cell will have."""
        X = canonical(X)
        total = np.full(X.shape[0], int(self.config.cls), dtype=np.int64)
        for span, own in zip(features.spans, features.parts, strict=True):
            single = self.alone(self.part(span.name))
            total += single.lengths(X[:, span.start : span.stop], own) * _measured(X, span)
        return total

    def part(self, name: str) -> ModalityConfig:
        """How a modality is read."""
        for config in self.config.parts:
            if config.name == name:
                return config
        known = [config.name for config in self.config.parts]
        raise ValueError(f"Expected a modality that the model reads, one of {known}, found {name!r}.")

    def alone(self, part: ModalityConfig) -> Tokenizer:
        """A tokenizer for one modality, without a cell token."""
        config = replace(
            self.config,
            genes=part.genes,
            values=part.values if part.values in ("binned", "log1p") else "raw",
            bins=part.bins,
            ties=part.ties,
            length=part.length,
            overflow=part.overflow,
            cls=False,
            modalities=(),
            parts=(),
        )
        return Tokenizer(config, self.vocabulary)

    def kept_values(
        self, part: ModalityConfig, X: sp.csr_matrix, features: FeatureTable, keys: ArrayLike, *, seed: int
    ) -> sp.csr_matrix:
        """What a call makes of the values of a modality, in the shape of the matrix, to keep it.

        Parameters
        ----------
        part
            How the modality is read.
        X
            Its values.
        features
            Its columns.
        keys
            One hash per row.
        seed
            Seed of random ties.

        Returns
        -------
        Small integers where values are binned, else float32; nothing in columns without a token.
        """
        X = canonical(X)
        if part.values == "binned":
            return self.alone(part).bin_rows(X, features, keys, rng=seed)
        values = part_values(X, part, features)
        data = np.log1p(values.data) if part.values == "log1p" else values.data
        logs = sp.csr_matrix((data, values.indices, values.indptr), shape=X.shape)
        if part.standard:
            # A panel: zeros have a value too.
            dense = np.zeros(X.shape, dtype=np.float32)
            own = logs[:, features.columns].toarray().astype(np.float32)
            dense[:, features.columns] = _scaled(own, np.broadcast_to(features.ids, own.shape), part, self.vocabulary)
            return sp.csr_matrix(dense)
        known = np.isin(values.indices, features.columns)
        kept = sp.csr_matrix(((data * known * part.scale).astype(np.float32), values.indices, values.indptr), X.shape)
        kept.eliminate_zeros()
        return kept


def tokenizer_of(config: TokenizerConfig, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a configuration, for one modality or several."""
    return (JointTokenizer if config.parts else Tokenizer)(config, vocabulary)


def part_values(X: sp.csr_matrix, part: ModalityConfig, features: FeatureTable) -> sp.csr_matrix:
    """Values of a modality before bins, logarithm and scale.

    ``X`` (cells, columns) values of the modality; ``features``: which columns are read; the geometric mean of a cell is
    over those.
    """
    if part.values == "binary":
        return sp.csr_matrix(((X.data != 0).astype(X.dtype), X.indices, X.indptr), shape=X.shape)
    if part.values != "clr":
        return X
    logs = sp.csr_matrix((np.log1p(X.data), X.indices, X.indptr), shape=X.shape)
    means = np.asarray(logs[:, features.columns].sum(axis=1)).ravel() / max(len(features), 1)
    ratios = np.log1p(X.data / np.exp(np.repeat(means, np.diff(X.indptr))))
    return sp.csr_matrix((ratios.astype(X.dtype), X.indices, X.indptr), shape=X.shape)


def unscaled(values: NDArray[np.float32], part: ModalityConfig, tokens: Sequence[str]) -> NDArray[np.float32]:
    """Turn token values back into what they were scaled from.

    ``values`` (cells, tokens) values.  Returns (cells, tokens) values before scale and standard.
    """
    values = values / part.scale
    if not part.standard or part.keep is None or part.centers is None or part.spreads is None:
        return values
    place = {token: number for number, token in enumerate(part.keep)}
    chosen = [place[token] for token in tokens]
    centers, spreads = np.asarray(part.centers)[chosen], np.asarray(part.spreads)[chosen]
    return (centers + spreads * (values - _MIDDLE) / _SPREAD).astype(np.float32)


def _scaled(
    values: NDArray[np.float32], ids: NDArray[np.int64], part: ModalityConfig, vocabulary: Vocabulary
) -> NDArray[np.float32]:
    """Values with the spread of bins; ids that are not of the modality get anything."""
    if not part.standard:
        return values * np.float32(part.scale)
    if part.keep is None or part.centers is None or part.spreads is None:
        raise ValueError(
            f"Expected `centers` and `spreads` of the features of {part.name!r}, which training learns, found none. "
            "Fine-tune a model, or pass `standard=False`."
        )
    known = vocabulary.ids(part.keep, unknown=None)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], ids), len(order) - 1)]
    centers, spreads = np.asarray(part.centers)[place], np.asarray(part.spreads)[place]
    return np.maximum((_MIDDLE + _SPREAD * (values - centers) / spreads) * part.scale, 0).astype(np.float32)


def _measured(X: sp.csr_matrix, span: Span) -> NDArray[np.bool_]:
    """Whether each cell was measured in a modality."""
    if span.measured < 0:
        return np.ones(X.shape[0], dtype=bool)
    return X[:, [span.measured]].toarray().ravel() != 0


def _side_by_side(tokenizer: Tokenizer, parts: list[tuple[int, TokenBatch]], index: torch.Tensor) -> TokenBatch:
    """One batch: the cell token, then the real tokens of each part, then padding."""
    config, vocabulary = tokenizer.config, tokenizer.vocabulary
    n_cells, first = len(index), int(config.cls)
    starts = torch.full((n_cells,), first)
    width = first + int(sum(part.mask.sum(1) for _, part in parts).max()) if n_cells else first  # type: ignore[union-attr]
    genes = torch.full((n_cells, width), vocabulary.pad_id)
    values = torch.full((n_cells, width), config.pad_value)
    modality = torch.full((n_cells, width), config.modalities.index("<pad>"))
    if first:
        genes[:, 0], values[:, 0], modality[:, 0] = (
            vocabulary.cls_id,
            config.cls_value,
            config.modalities.index("<cls>"),
        )
    for number, part in parts:
        rows, places = part.mask.nonzero(as_tuple=True)
        columns = starts[rows] + places
        genes[rows, columns], values[rows, columns] = part.genes[rows, places], part.values[rows, places]
        modality[rows, columns] = number
        starts = starts + part.mask.sum(1)
    mask = torch.arange(width) < starts[:, None]
    expressed = torch.cat([part.require("expressed") for _, part in parts], dim=1)
    return TokenBatch(genes=genes, values=values, mask=mask, index=index, expressed=expressed, modality=modality)
