"""A table of cells as a wrapper reads it: its genes, and the classes and batches of the columns that settings name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.module import CellTable
from scgpt_tools.data.opening import warn_about_rows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.wrappers.batches import match

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tools.data.classes import Classes
    from scgpt_tools.models.config import ClassifierConfig
    from scgpt_tools.wrappers.base import Wrapper


def open_table(wrapper: Wrapper, adata: AnnData, *, labels: bool, batches: bool) -> CellTable:
    """Open cells for a model.

    ``wrapper``: the model.  It keeps the names of classes and batches with their numbers: those of another table that
    are called the same get the same number, others the numbers that are left.
    """
    source = RowSource(adata)
    features = match(source, wrapper.vocab, wrapper.gene_list)
    warn_about_rows(source, wrapper.cell_model.config.tokenizer.expects)
    batch_id = _batches(wrapper, adata).codes if batches else None
    label = _classes(wrapper, adata).codes if labels else None
    return CellTable(source, features, batch_id, label)


def has_labels(wrapper: Wrapper, adata: AnnData) -> bool:
    """Whether there are classes, and a classifier for several."""
    return wrapper.config.n_cls > 1 and wrapper.config.label_key in adata.obs


def _batches(wrapper: Wrapper, adata: AnnData) -> Classes:
    cells, config = wrapper.cell_model, wrapper.config
    known = cells.config.batch_names or config.known_batches or ()
    found = _numbered(adata, config.batch_label_key, known, config.num_batch_labels, "num_batch_labels")
    wrapper.config = replace(config, known_batches=found.names)
    if config.num_batch_labels in (None, len(found.names)):
        cells.config = replace(cells.config, batch_names=found.names)
    return found


def _classes(wrapper: Wrapper, adata: AnnData) -> Classes:
    cells, config = wrapper.cell_model, wrapper.config
    classifier = cast("ClassifierConfig", cells.config.heads["cell_type"])
    known = classifier.names or config.known_classes or ()
    found = _numbered(adata, config.label_key, known, config.n_cls, "n_cls", allow_unknown=True)
    wrapper.config = replace(config, known_classes=found.names)
    if config.n_cls == len(found.names):
        heads = cells.config.heads.replace(cell_type=replace(classifier, names=found.names))
        cells.config = replace(cells.config, heads=heads)
    return found


def _numbered(
    adata: AnnData, key: str, known: tuple[str, ...], room: int | None, setting: str, *, allow_unknown: bool = False
) -> Classes:
    """Number the classes of a column: those that the model knows as it does, new ones by what follows."""
    if known and len(known) == room:
        return read_classes(adata.obs, key, names=known, allow_unknown=allow_unknown)
    found = read_classes(adata.obs, key, allow_unknown=allow_unknown)
    names = (*known, *(name for name in found.names if name not in known))
    if room is not None and len(names) > room:
        before = f", of which the model has seen {list(known)} before" if known else ""
        raise ValueError(
            f"Expected at most {setting}={room} values in obs[{key!r}], found {len(names)}: {list(names)}{before}."
        )
    return read_classes(adata.obs, key, names=names, allow_unknown=allow_unknown)
