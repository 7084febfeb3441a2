"""A table to learn from: its rows, the features that a model is to know, and how it will read them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.data.modalities import ModalityRows, has_modalities
from scgpt_tools.data.modality_features import choose_features, with_statistics
from scgpt_tools.data.opening import match_rows, open_rows
from scgpt_tools.tokens.joint_features import match_modalities
from scgpt_tools.tokens.modalities import modality_names, resolve_modalities
from scgpt_tools.tokens.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools._types import Layers
    from scgpt_tools.data.opening import Matching
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.modalities import Modalities
    from scgpt_tools.vocabulary import Vocabulary

# What a modality has for itself; RNA takes it over from the model.
_OF_PARTS = ("values", "bins", "ties", "length", "overflow", "genes")


class Learning(NamedTuple):
    """A table, and what a model has to become to read it."""

    rows: Rows
    features: FeatureTable
    tokenizer: TokenizerConfig
    """With the changes of the task."""

    @property
    def several(self) -> bool:
        """Whether several modalities are read."""
        return bool(self.tokenizer.parts)


def open_to_learn(
    data: AnnData | MuData,
    vocabulary: Vocabulary,
    config: TokenizerConfig,
    *,
    layer: Layers,
    modality: str | None,
    modalities: Modalities,
    matching: Matching,
    changes: Mapping[str, Any],
    seed: int,
) -> Learning:
    """Open a table, and choose the features of its modalities if the model does not know them yet."""
    config = changed_tokenizer(config, changes)
    joint = has_modalities(data) and modality is None and not config.parts
    if not joint:
        if modalities is not None:
            raise ValueError(
                "Expected `modalities` with a MuData and a model that reads one modality yet, found "
                f"{type(data).__name__} and the modalities {[part.name for part in config.parts]} of the model."
            )
        rows = open_rows(data, config, layer=layer, modality=modality)
        return Learning(rows, match_rows(rows, vocabulary, config, matching), config)
    if matching.mask_var is not None:
        raise ValueError("Expected no `mask_var` for several modalities, found one. Name one with `modality`.")
    parts = resolve_modalities(data.mod, modalities, like={name: getattr(config, name) for name in _OF_PARTS})
    rows = ModalityRows(data, modalities=[part.name for part in parts], layer=layer)
    _refuse_strangers(rows)
    how = {"totals": {name: part.totals for name, part in rows.parts.items()}, **matching.arguments()}
    every = match_modalities(data, vocabulary, parts, **how)
    parts = tuple(choose_features(rows, own, part, seed=seed) for part, own in zip(parts, every.parts, strict=True))
    if any(part.keep is not None for part in parts):
        every = match_modalities(data, vocabulary, parts, **how)
    parts = tuple(with_statistics(rows, own, part, seed=seed) for part, own in zip(parts, every.parts, strict=True))
    config = replace(config, modalities=modality_names(parts), parts=parts, length=None)
    return Learning(rows, every, config)


def changed_tokenizer(config: TokenizerConfig, changes: Mapping[str, Any]) -> TokenizerConfig:
    """A tokenizer with some fields changed.

    ``changes``: fields by name.  What each modality has for itself is changed for those without a prefix, which are
    RNA.
    """
    if not config.parts:
        return from_dict(TokenizerConfig, to_dict(config) | dict(changes), where="tokenizer")
    own = {name: value for name, value in changes.items() if name in _OF_PARTS}
    parts = [to_dict(part) | ({} if part.prefix else own) for part in config.parts]
    shared = {name: value for name, value in changes.items() if name not in own}
    return from_dict(TokenizerConfig, to_dict(config) | shared | {"parts": parts}, where="tokenizer")


def _refuse_strangers(rows: ModalityRows) -> None:
    """A modality without a cell in common with another has nothing to learn from it."""
    measured = rows.measured
    if len(measured.columns) < 2:
        return
    several = measured.sum(axis=1) > 1
    for name in measured.columns:
        if not (measured[name] & several).any():
            others = [other for other in measured.columns if other != name]
            raise ValueError(
                f"Expected cells of modality {name!r} that were measured in another one of {others} too, found none: "
                "names of cells have to be the same in all modalities. Compare `mdata.mod[...].obs_names`."
            )
