"""Token values of every modality of a MuData, kept in its layers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgpt_tools._keys import TokenizeKeys
from scgpt_tools.data.binned import BinnedSettings, write_binned
from scgpt_tools.data.modalities import ModalityRows
from scgpt_tools.data.opening import warn_about_empty, warn_about_rows
from scgpt_tools.tokens.joint import JointTokenizer
from scgpt_tools.tokens.modalities import values_of

if TYPE_CHECKING:
    from mudata import MuData

    from scgpt_tools._types import Layers
    from scgpt_tools.data.learning import Learning
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.modalities import ModalityConfig

logger = logging.getLogger(__name__)


def tokenize_modalities(
    mdata: MuData, opened: Learning, key: str, *, name: str, layer: Layers, genes: str | None, seed: int
) -> None:
    """Write the values that stand for each modality.

    ``mdata``: table to change; only after everything is computed.
    """
    rows, features, config = opened
    assert isinstance(rows, ModalityRows)  # noqa: S101 - a MuData was opened
    warn_about_rows(rows, config.expects)
    vocabulary = features.vocabulary
    assert vocabulary is not None  # noqa: S101 - a table of several modalities has one
    tokenizer = JointTokenizer(config, vocabulary)
    parts = {part.name: part for part in config.parts}
    done = [
        (parts[span.name], own, _values_of(rows.parts[span.name], tokenizer, parts[span.name], own, seed))
        for span, own in zip(features.spans, features.parts, strict=True)
    ]
    for part, _, values in done:
        # What stands for a standard value is above zero for every measured cell.
        if not part.standard:
            names = rows.parts[part.name].names
            warn_about_empty(np.diff(values.indptr), names, f" of {part.name!r}", "Their values are all zero.")
    for part, own, values in done:
        how = BinnedSettings(
            bins=part.bins,
            ties=part.ties,
            rng=seed,
            layer=layer if isinstance(layer, str) or layer is None else layer.get(part.name),
            genes=genes,
            model=name,
            vocabulary=vocabulary.checksum,
            modality=values_of(part),
        )
        write_binned(mdata.mod[part.name], key, values, own, how)
    mdata.uns[TokenizeKeys(key).uns] = {"modalities": ", ".join(parts), "vocabulary": vocabulary.checksum}
    logger.info("Made tokens of %s in layers %r: %s.", ", ".join(parts), key, features.coverage.headline())


def _values_of(
    source: RowSource, tokenizer: JointTokenizer, part: ModalityConfig, features: FeatureTable, seed: int
) -> sp.csr_matrix:
    blocks = [
        tokenizer.kept_values(part, block.X, features, source.keys[block.index], seed=seed) for block in source.blocks()
    ]
    return sp.vstack(blocks, format="csr")
