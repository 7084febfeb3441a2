"""Bin the expression of every cell, and keep the bins."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args, runtime_checkable

import numpy as np
import scipy.sparse as sp

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import TokenizeKeys
from scgpt_tools._types import Ties
from scgpt_tools._validate import as_seed, check_choice
from scgpt_tools.data.binned import BinnedSettings, write_binned
from scgpt_tools.data.learning import open_to_learn
from scgpt_tools.data.modalities import has_modalities
from scgpt_tools.data.opening import Matching, warn_about_empty
from scgpt_tools.data.rows import RowSource, table_of
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.models import CellModel
from scgpt_tools.pp._modalities import tokenize_modalities
from scgpt_tools.settings import settings
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.joint import tokenizer_of
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.units import warn_about_units
from scgpt_tools.tokens.values import bin_dtype
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike

    from scgpt_tools._types import Layers, RngLike
    from scgpt_tools.tokens.modalities import Modalities
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)


@runtime_checkable
class HasTokenizer(Protocol):
    """What of a model is needed here."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Genes and their ids."""

    @property
    def tokenizer(self) -> Tokenizer:
        """How cells become tokens."""


@shared_docs
def tokenize(
    adata: AnnData | MuData,
    model: HasTokenizer | Vocabulary | str | PathLike[str] = "scgpt-human",
    *,
    layer: Layers = None,
    modality: str | None = None,
    modalities: Modalities = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    mask_var: ArrayLike | str | None = None,
    bins: int | None = None,
    ties: Ties | None = None,
    rng: RngLike = 0,
    key_added: str = "X_binned",
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Bin each cell's expressed genes by their quantiles, as scGPT does before its transformer :cite:p:`Cui2024`.

    Only genes that the model's vocabulary holds count.  Zero stays 0 and the other values of a cell become 1 to
    ``bins - 1``, so counts, normalised counts and their logarithms have the same bins.
    Of a MuData every modality is read in its own way: bins for RNA, centred log ratios for proteins, 0 or 1 for peaks;
    features that the vocabulary lacks get numbers behind its own, as fine-tuning gives them.

    :func:`scgpt_tools.tl.embed` makes the same bins by itself; keep them to look at them, to train on them, or to embed
    many times.

    Parameters
    ----------
    adata
        Cells; may be backed, lazily read or a view.  Never changed except for the keys below, and not at all if
        something is wrong.  The matrix is read block by block and never dense; the bins are kept in memory, a byte and
        a column number for each expressed gene.
    model
        A model, or its name, repository or folder; or a :class:`~scgpt_tools.Vocabulary`, or the path of a
        ``vocab.json``, which are enough for binning.
    {layers}
    modality
        The only modality of a MuData to bin.
    modalities
        Modalities of a MuData to make tokens of, or how to read each
        (:class:`~scgpt_tools.tokens.modalities.ModalityConfig`); ``None`` for all, by their names.  A model that was
        fine-tuned on several has its own.
    {genes}
    symbols
        Symbol of each Ensembl id, as a table or as the name of a column of ``var``.
    aliases
        Current symbol of each outdated one.
    ignore_case
        Let names match in another case.
    mask_var
        Genes to read only, as the name of a boolean column of ``var``, such as ``"highly_variable"``, or as an array;
        ``None`` for all.
    bins
        Number of bins, zero included; ``None`` takes the model's, 51 for scGPT.
    ties
        Bin of a value that sits on several equal edges: ``left`` for the last between them, ``random`` for one drawn by
        seed, as scGPT's published code does.  ``None`` takes the model's.
    {rng}
    key_added
        Name of the layer and beginning of the other names.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, to the modality or modalities if the input is MuData,

    ``layers[key_added]`` : :class:`scipy.sparse.csr_matrix`, uint8 or int16, (cells, genes)
        Bins; columns without a token are empty.  Values of modalities that are not binned are float32.
    ``var[key_added + "_token_id"]`` : int32
        Token of each gene, -1 if it has none.
    ``obs[key_added + "_n_tokens"]`` : int32
        Expressed genes with a token.  A model reads at most its ``length`` of them.
    ``uns[key_added]`` : :class:`dict`
        Settings, seed, checksum of the vocabulary, and how many genes matched.

    Raises
    ------
    KeyError
        If the layer, modality or column is absent; the message lists what is there.
    ValueError
        If no gene is in the vocabulary, a value is negative, missing or infinite, or ``key_added`` is the name of
        something else.

    Warns
    -----
    UserWarning
        If cells express no known gene, few genes match, or several columns are of one gene, of which the one with the
        most counts is read.

    Examples
    --------
    >>> import numpy as np, anndata as ad, pandas as pd, scgpt_tools as sct
    >>> genes = ["ACTB", "CD3D", "MS4A1", "NKG7"]
    >>> adata = ad.AnnData(np.array([[9.0, 0, 1, 3]], dtype=np.float32), var=pd.DataFrame(index=genes))
    >>> sct.pp.tokenize(adata, sct.Vocabulary(genes).with_specials(), bins=4, show_progress=False)
    >>> adata.layers["X_binned"].toarray()
    array([[3, 0, 1, 2]], dtype=uint8)
    """
    check_arguments(tokenize, locals())
    if ties is not None:
        check_choice("ties", ties, get_args(Ties))
    if copy and getattr(adata, "isbacked", False):
        raise ValueError("Expected a table in memory for copy=True, found a backed one. Pass `adata.to_memory()`.")
    for table in adata.mod.values() if has_modalities(adata) and modality is None else [table_of(adata, modality)]:
        check_new_key(table, "layers", key_added, default=TokenizeKeys.key)
    vocabulary, tokenizer, name = _resolve(model, bins, ties)
    seed = as_seed(rng)
    adata = adata.copy() if copy else adata
    if has_modalities(adata) and modality is None:
        if mask_var is not None:
            raise ValueError("Expected no `mask_var` for several modalities, found one. Name one with `modality`.")
        matching = Matching(genes=genes, symbols=symbols, aliases=aliases, ignore_case=ignore_case)
        changes = {key: value for key, value in (("bins", bins), ("ties", ties)) if value is not None}
        opened = open_to_learn(
            adata,
            vocabulary,
            tokenizer.config,
            layer=layer,
            modality=None,
            modalities=modalities,
            matching=matching,
            changes=changes,
            seed=seed,
        )
        tokenize_modalities(adata, opened, key_added, name=name, layer=layer, genes=genes, seed=seed)
        return adata if copy else None
    if modalities is not None or isinstance(layer, Mapping):
        raise ValueError("Expected `modalities` and a `layer` for each with a MuData and without `modality` only.")
    table = table_of(adata, modality)
    source = RowSource(table, layer=layer)
    source.check_memory()
    features = FeatureTable.from_var(
        table.var,
        vocabulary,
        column=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        mask_var=mask_var,
        totals=source.totals,
    )
    warn_about_units(source.units, tokenizer.config.expects)
    binned = _bins_of(source, tokenizer, features, seed, show_progress)
    warn_about_empty(np.diff(binned.indptr), source.names, "", "Their bins are all zero: leave them out.")
    how = BinnedSettings(
        bins=tokenizer.bins,
        ties=tokenizer.config.ties,
        rng=seed,
        layer=layer,
        genes=genes,
        model=name,
        vocabulary=vocabulary.checksum,
    )
    write_binned(table, key_added, binned, features, how)
    logger.info("Binned %d cells into layer %r: %s.", len(source), key_added, features.coverage.headline())
    return adata if copy else None


def _resolve(
    model: HasTokenizer | Vocabulary | str | PathLike[str], bins: int | None, ties: Ties | None
) -> tuple[Vocabulary, Tokenizer, str]:
    """Vocabulary, a tokenizer that bins, and the name of the model if there is one."""
    if isinstance(model, str | PathLike):
        path = Path(model)
        model = Vocabulary.from_file(path) if path.suffix == ".json" else CellModel.from_pretrained(model)
    if isinstance(model, Vocabulary):
        vocabulary, config, name = model, TokenizerConfig(), ""
    elif isinstance(model, HasTokenizer):
        vocabulary, config, name = model.vocabulary, model.tokenizer.config, getattr(model, "name", "")
    else:
        raise TypeError(
            f"Expected `model` to be a model, a vocabulary, a name or a path, found {type(model).__name__}."
        )
    config = replace(
        config, values="binned", bins=bins or config.bins or TokenizerConfig.bins, ties=ties or config.ties
    )
    return vocabulary, tokenizer_of(config, vocabulary), name


def _bins_of(
    source: RowSource,
    tokenizer: Tokenizer,
    features: FeatureTable,
    seed: int,
    show_progress: bool | None,  # noqa: FBT001
) -> sp.csr_matrix:
    parts = []
    with settings.progress((), total=len(source), unit="cell", show=show_progress) as bar:
        for block in source.blocks():
            parts.append(tokenizer.bin_rows(block.X, features, source.keys[block.index], rng=seed))
            bar.update(len(block.index))
    if not parts:
        return sp.csr_matrix((0, source.n_columns), dtype=bin_dtype(tokenizer.bins))
    return sp.vstack(parts, format="csr")
