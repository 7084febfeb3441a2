"""Bins that are kept in a layer, with all that is needed to use them again.

:func:`scgpt_tools.pp.tokenize` writes them and :func:`scgpt_tools.tl.embed` reads them; a reader is refused bins that
its model would have made differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._keys import TokenizeKeys
from scgpt_tools._lookup import absent
from scgpt_tools.data.modalities import ModalityRows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.coverage import OUTCOMES, Coverage
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.joint_features import joined_features
from scgpt_tools.tokens.modalities import values_of
from scgpt_tools.tokens.names import column_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import Ties
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class BinnedSettings:
    """How bins were made; scalars and strings only, which every file format keeps."""

    bins: int | None
    ties: Ties
    rng: int
    """What random ties were drawn with."""
    layer: str | None
    """Where the values came from; ``None`` for ``X``."""
    genes: str | None
    """Column of ``var`` that named the genes; ``None`` for its index."""
    model: str
    """Name of the model whose vocabulary was used, empty for a bare vocabulary."""
    vocabulary: str
    """Checksum of the vocabulary."""
    modality: str = ""
    """How the modality was read, of a table of several; see :func:`~scgpt_tools.tokens.modalities.values_of`."""


@dataclass(frozen=True, eq=False)
class Binned:
    """A layer of bins, ready for a tokenizer called with ``prebinned=True``."""

    layer: str
    """Key of ``layers``."""
    features: FeatureTable
    """Which columns are which tokens, as they were matched when the bins were made."""
    settings: BinnedSettings


def write_binned(
    adata: AnnData, key: str, bins: sp.csr_matrix, features: FeatureTable, settings: BinnedSettings
) -> None:
    """Write bins, token ids and settings to a table.

    ``bins`` (cells, genes) bins.
    """
    keys = TokenizeKeys(key)
    ids = np.full(adata.n_vars, -1, dtype=np.int32)
    ids[features.columns] = features.ids
    adata.layers[keys.layer] = bins
    adata.var[keys.var] = ids
    adata.obs[keys.obs] = np.diff(bins.indptr).astype(np.int32)
    adata.uns[keys.uns] = {
        "params": {name: getattr(settings, name) for name in ("bins", "ties", "rng", "layer", "genes")},
        "model": {"name": settings.model, "vocabulary": settings.vocabulary},
        **({"modality": settings.modality} if settings.modality else {}),
        "genes": features.coverage.to_dict(),
    }


def read_binned(adata: AnnData, vocabulary: Vocabulary, config: TokenizerConfig, *, key: str = "X_binned") -> Binned:
    """Find bins that fit a model."""
    settings = _stored(adata, key)
    wanted = {"bins": config.bins, "ties": config.ties, "vocabulary": vocabulary.checksum, "modality": ""}
    _check(settings, wanted, key)
    features = _features(adata, TokenizeKeys(key).var, vocabulary, settings.genes, prefix="")
    return Binned(TokenizeKeys(key).layer, features, settings)


def read_all_binned(
    rows: ModalityRows, vocabulary: Vocabulary, config: TokenizerConfig, *, key: str = "X_binned"
) -> FeatureTable:
    """Find values of several modalities that fit a model; see :func:`read_binned`."""
    parts = [part for part in config.parts if part.name in rows.parts]
    features = []
    for part in parts:
        table = rows.parts[part.name].adata
        wanted = {"vocabulary": vocabulary.checksum, "modality": values_of(part)}
        settings = _stored(table, key)
        _check(settings, wanted, key)
        # Features with a prefix have their own names, whatever the genes are called.
        genes = None if part.prefix else settings.genes
        features.append(_features(table, TokenizeKeys(key).var, vocabulary, genes, part.prefix))
    return joined_features(parts, features, vocabulary, config.modalities)


def expect_bins(rows: Rows, config: TokenizerConfig) -> None:
    """Have rows of kept bins refuse whatever is no bin of a model."""
    if isinstance(rows, ModalityRows):
        for part in config.parts:
            if part.name in rows.parts:
                rows.parts[part.name].bins = part.bins
    elif isinstance(rows, RowSource):
        rows.bins = config.bins


def _stored(adata: AnnData, key: str) -> BinnedSettings:
    keys = TokenizeKeys(key)
    for place, name in (("layers", keys.layer), ("var", keys.var), ("uns", keys.uns)):
        if name not in getattr(adata, place):
            message = absent(name, getattr(adata, place).keys(), f"key in `{place}`:")
            raise KeyError(f"{message} `sct.pp.tokenize(adata, key_added={key!r})` writes it.")
    return _settings(adata.uns[keys.uns], keys.uns)


def _check(settings: BinnedSettings, wanted: Mapping[str, object], key: str) -> None:
    for name, value in wanted.items():
        if getattr(settings, name) != value:
            raise ValueError(
                f"Expected bins with {name} {value!r} in {key!r}, found {getattr(settings, name)!r}. Run "
                "`sct.pp.tokenize` with this model."
            )


def _settings(stored: dict[str, Any], key: str) -> BinnedSettings:
    try:
        params, model = stored["params"], stored["model"]
        params["bins"], params["ties"], params["rng"], params["layer"], params["genes"], model["vocabulary"]
    except (KeyError, TypeError):
        raise ValueError(
            f"Expected the settings of `sct.pp.tokenize` in uns[{key!r}], found something else. Run it again."
        ) from None
    return BinnedSettings(
        bins=None if params["bins"] is None else int(params["bins"]),
        ties=params["ties"],
        rng=int(params["rng"]),
        layer=params["layer"],
        genes=params["genes"],
        model=model["name"],
        vocabulary=model["vocabulary"],
        modality=stored.get("modality", ""),
    )


def _features(adata: AnnData, column: str, vocabulary: Vocabulary, genes: str | None, prefix: str) -> FeatureTable:
    """The matching as it was; by which rule a name matched is no longer known."""
    ids = _checked_ids(adata, column, vocabulary)
    known = ids >= 0
    tokens = np.full(adata.n_vars, None, dtype=object)
    tokens[known] = np.asarray(vocabulary.tokens, dtype=object)[ids[known]]
    _refuse_moved(adata, column, vocabulary, ids, genes, prefix)
    outcomes = np.where(known, OUTCOMES.index("exact"), OUTCOMES.index("missing")).astype(np.int8)
    names = np.asarray(adata.var_names, dtype=object)
    n_genes = len(vocabulary) - len(vocabulary.specials)
    coverage = Coverage(names, tokens, outcomes, known, n_vocabulary=n_genes)
    return FeatureTable(np.flatnonzero(known), ids[known], tokens[known], adata.n_vars, coverage)


def _checked_ids(adata: AnnData, column: str, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Token of each column, each of the vocabulary and there once."""
    numbers = pd.to_numeric(adata.var[column], errors="coerce").to_numpy(dtype=np.float64)
    strange = ~((numbers >= -1) & (numbers < len(vocabulary)) & (numbers == np.rint(numbers)))
    if strange.any():
        raise ValueError(
            f"Expected token ids from -1 to {len(vocabulary) - 1} in var[{column!r}], found "
            f"{adata.var[column].iloc[int(strange.argmax())]!r} and {int(strange.sum()) - 1} more that are none. Run "
            "`sct.pp.tokenize` again."
        )
    ids = numbers.astype(np.int64)
    if len(np.unique(ids[ids >= 0])) < (ids >= 0).sum():
        raise ValueError(
            f"Expected every token once in var[{column!r}], found some twice. Run `sct.pp.tokenize` again."
        )
    return ids


def _refuse_moved(
    adata: AnnData, column: str, vocabulary: Vocabulary, ids: NDArray[np.int64], genes: str | None, prefix: str
) -> None:
    """A column that has the name of a token cannot be another one: ids or columns have been put in another order."""
    if genes is not None and genes not in adata.var:
        return
    names = np.asarray([f"{prefix}{name}" for name in column_names(adata.var, genes)], dtype=object)
    own = vocabulary.ids(names)
    moved = (own >= 0) & (ids >= 0) & (own != ids)
    if moved.any():
        place = int(moved.argmax())
        raise ValueError(
            f"Expected the token ids in var[{column!r}] to be those of its genes, found that of "
            f"{vocabulary.tokens[ids[place]]!r} for {names[place]!r}, and {int(moved.sum()) - 1} more such. Run "
            "`sct.pp.tokenize` again."
        )
