"""Training, validation and test sets, by condition or by cell."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import SplitKeys
from scgpt_tools._validate import as_seed, check_texts
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.cell_splits import split_cells, split_groups
from scgpt_tools.data.parts import PARTS
from scgpt_tools.screens.annotations import annotate_split, check_part_column
from scgpt_tools.screens.conditions import context_labels, read_conditions, read_labels
from scgpt_tools.screens.split_options import SplitOptions
from scgpt_tools.screens.splits import custom_split, named_parts, split_conditions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgpt_tools._types import RngLike
    from scgpt_tools.screens.splits import Draw


@renamed(seed="rng", key="condition_key")
@shared_docs
def perturbation_split(
    adata: AnnData,
    method: str = "simulation",
    *,
    condition_key: str = "condition",
    draw: Draw = "gears",
    rng: RngLike = 1,
    train_genes: float = 0.75,
    train_seen2: float = 0.75,
    test_fraction: float = 0.1,
    val_fraction: float = 0.1,
    test_genes: Sequence[str] | None = None,
    test_conditions: Sequence[str] | None = None,
    only_test_genes: bool = False,
    parts: Mapping[str, Sequence[str]] | None = None,
    key_added: str = "split",
    copy: bool = False,
) -> AnnData | None:
    """Hold out perturbations, so that a test asks for what training never saw.

    Parameters
    ----------
    adata
        Cells with conditions from :func:`parse_conditions`; may be backed.
    method
        What to hold out:

        - ``"simulation"``: genes, and every condition that touches one; of combinations of trained genes, some
        - ``"simulation_single"``: the same where there are single perturbations only
        - ``"single"``, ``"combo_seen0"``, ``"combo_seen1"``: singles of some genes, and combinations of which no gene,
          or some, was seen
        - ``"combo_seen2"``: combinations of seen genes
        - ``"random"``: conditions (``draw="stable"`` only)
        - ``"no_test"``, ``"no_split"``: a validation set only; everything is tested
        - ``"custom"``: ``parts``
    condition_key
        Column of ``obs`` with the conditions.
    draw
        ``"gears"``: the sets that GEARS 0.1.2 gives for this number as its seed, with its quirks.  ``"stable"``: sets that depend on
        that number and names only, of the size asked for, for any number of genes a condition.
    rng
        For the draws: a whole number, a generator, or ``None`` for fresh entropy.  The number that was used is in
        ``params``.
    train_genes
        Share of genes to train on in simulations (GEARS: ``train_gene_set_size``).
    train_seen2
        Share to train on of combinations of trained genes in simulations (``combo_seen2_train_frac``).
    test_fraction
        Share to test in the other methods (``combo_single_split_test_set_fraction``).
    val_fraction
        Share of the rest to validate on.
    test_genes
        Genes to hold out instead of drawn ones (``test_pert_genes``, and ``test_perts`` in simulations).
    test_conditions
        Combinations to hold out instead of drawn ones (``test_perts`` in ``"combo_seen2"``).
    only_test_genes
        In simulations as GEARS draws them, hold out no other genes (``only_test_set_perts``).
    parts
        Conditions of ``"train"``, ``"val"`` and ``"test"``, for ``"custom"`` only.
    key_added
        Key to write.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obs[key_added]`` : :class:`pandas.Categorical`
        ``"train"`` (with the controls), ``"val"`` or ``"test"``; missing for conditions that would leak either way.
    ``obs[f"{key_added}_subgroup"]`` : :class:`pandas.Categorical`
        For held-out conditions how many of their genes training saw.
    ``uns[key_added]`` : :class:`dict`
        Arguments (``params``), ``conditions`` of every part, ``test_subgroup`` and ``val_subgroup`` as in GEARS, and a
        SHA-256 of each part's conditions (``hash``) to report with every figure.

    Raises
    ------
    KeyError
        If ``condition_key`` is absent; the message lists what is there.
    ValueError
        If the method is unknown or cannot take the conditions, labels are not parsed yet, a named gene or condition
        does not occur, or the method does not look at it.

    Warns
    -----
    UserWarning
        If no condition is left to train on, to validate on or to test, or a set of genes is spelled in several ways,
        which are held out together.
    """
    check_arguments(perturbation_split, locals())
    conditions = read_conditions(adata, condition_key)
    if (method == "custom") != (parts is not None):
        raise ValueError(f"Expected `parts` with method='custom' and only then, found method={method!r}.")
    options = SplitOptions(
        rng=as_seed(rng, bits=32),
        train_genes=train_genes,
        train_seen2=train_seen2,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        test_genes=None if test_genes is None else tuple(test_genes),
        test_conditions=None if test_conditions is None else tuple(test_conditions),
        only_test_genes=only_test_genes,
    )
    if parts is None:
        split = split_conditions(pd.unique(conditions), method, draw=draw, options=options)
        params = {name: value for name, value in asdict(options).items() if not isinstance(value, tuple | None)}
        params |= {name: np.array(own, dtype=object) for name, own in asdict(options).items() if isinstance(own, tuple)}
    else:
        split, params = custom_split(pd.unique(conditions), **named_parts("parts", parts)), {}
    adata = adata.copy() if copy else adata
    annotate_split(adata, condition_key, conditions, split, params, key_added=key_added)
    return adata if copy else None


@renamed(seed="rng")
@shared_docs
def cell_split(
    adata: AnnData,
    groups: str | None = None,
    *,
    test: Sequence[str] | float = 0.1,
    val: Sequence[str] | float = 0.0,
    stratify: str | Sequence[str] | None = None,
    rng: RngLike = 0,
    key_added: str = "split",
    copy: bool = False,
) -> AnnData | None:
    """Hold out whole groups of cells, such as replicates, or a share of the cells.

    Parameters
    ----------
    adata
        Cells; may be backed.
    groups
        Column of ``obs`` whose values are held out; ``None`` holds out cells.
    test, val
        Values of ``groups``; without ``groups``, shares of the cells.
    stratify
        Columns of ``obs``: keep the shares within each of their values.
    rng
        For the draw of cells, which depends on their names and not on their order: a whole number, a generator, or
        ``None`` for fresh entropy.
    key_added
        Key to write.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obs[key_added]`` : :class:`pandas.Categorical`
        ``"train"``, ``"val"`` or ``"test"``.
    ``uns[key_added]`` : :class:`dict`
        Arguments (``params``).

    Raises
    ------
    KeyError
        If a column is absent; the message lists what is there.
    ValueError
        If a group does not occur, or the shares leave nothing to train on.

    Warns
    -----
    UserWarning
        If a share is too small for a single cell, or nothing is to be held out.
    """
    check_arguments(cell_split, locals())
    keys, seed = SplitKeys(key_added), as_seed(rng)
    if groups is None:
        if not isinstance(test, float | int) or not isinstance(val, float | int):
            raise TypeError("Expected shares in `test` and `val` without `groups`, found names.")
        strata = context_labels(adata, stratify)
        found = split_cells(adata.obs_names, test=test, val=val, seed=seed, strata=strata)
    else:
        labels = read_labels(adata, groups)
        found = split_groups(labels, test=_names("test", test), val=() if val == 0 else _names("val", val))
    check_part_column(adata, key_added)
    shares = {"test": test, "val": val}
    for part, share in shares.items():
        if groups is None and share and not (found == part).any():
            warn_user(f"Expected cells of the part {part!r} for {part}={share}, found none. Raise the share.")
    if not (test or val):
        warn_user("Expected cells to hold out, found none: every cell is in the part 'train'.")
    adata = adata.copy() if copy else adata
    adata.obs[keys.obs] = pd.Categorical(found, categories=list(PARTS))
    adata.uns[keys.uns] = {
        "params": {
            "groups": groups or "",
            **{
                name: own if isinstance(own, float | int) else np.array(own, dtype=object)
                for name, own in shares.items()
            },
            "rng": seed,
        }
    }
    return adata if copy else None


def _names(argument: str, values: object) -> tuple[str, ...]:
    return tuple(check_texts(argument, values))
