"""A table of cells as a wrapper reads it: its genes, and the classes and batches of the columns that settings name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.module import CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.units import warn_about_units
from scgpt_tools.wrappers.batches import match

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tools.data.classes import Classes
    from scgpt_tools.models.config import ClassifierConfig
    from scgpt_tools.wrappers.base import Wrapper


def open_table(wrapper: Wrapper, adata: AnnData, *, labels: bool, batches: bool) -> CellTable:
    """Open cells for a model.

    Parameters
    ----------
    wrapper
        The model.  The first table that has all its classes or batches says how they are numbered, and the model keeps
        their names.
    adata
        Cells.
    labels, batches
        Whether to read classes and batches.

    Returns
    -------
    The table.
    """
    source = RowSource(adata)
    features = match(source, wrapper.vocab, wrapper.gene_list)
    if len(source):
        warn_about_units(source.sample(), wrapper.cell_model.config.tokenizer.expects)
    batch = _batches(wrapper, adata).codes if batches else None
    label = _classes(wrapper, adata).codes if labels else None
    return CellTable(source, features, batch, label)


def has_labels(wrapper: Wrapper, adata: AnnData) -> bool:
    """Whether there are classes, and a classifier for several."""
    return wrapper.config.n_cls > 1 and wrapper.config.label_key in adata.obs


def _batches(wrapper: Wrapper, adata: AnnData) -> Classes:
    cells, key, room = wrapper.cell_model, wrapper.config.batch_label_key, wrapper.config.num_batch_labels
    found = read_classes(adata.obs, key, names=cells.config.batch_names)
    _check_number(key, found, room, "num_batch_labels")
    if cells.config.batch_names is None and room in (None, len(found.names)):
        cells.config = replace(cells.config, batch_names=found.names)
    return found


def _classes(wrapper: Wrapper, adata: AnnData) -> Classes:
    cells, key, room = wrapper.cell_model, wrapper.config.label_key, wrapper.config.n_cls
    classifier = cast("ClassifierConfig", cells.config.heads.cell_type)
    found = read_classes(adata.obs, key, names=classifier.names, allow_unknown=True)
    _check_number(key, found, room, "n_cls")
    if classifier.names is None and room == len(found.names):
        heads = replace(cells.config.heads, cell_type=replace(classifier, names=found.names))
        cells.config = replace(cells.config, heads=heads)
    return found


def _check_number(key: str, found: Classes, room: int | None, setting: str) -> None:
    if room is not None and len(found.names) > room:
        raise ValueError(f"Expected at most {setting}={room} values in obs[{key!r}], found {len(found.names)}.")
