"""What double perturbations do beyond the sum of their singles, for measured and for predicted effects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._keys import ScreenKeys
from scgpt_tools._validate import as_seed, check_key, check_type
from scgpt_tools.metrics.interactions import genetic_interactions as interaction_scores
from scgpt_tools.metrics.perturbation import cosine, pearson
from scgpt_tools.settings import settings
from scgpt_tools.tokens.perturbations import condition_genes

if TYPE_CHECKING:
    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.perturbations import GeneSet

logger = logging.getLogger(__name__)

_EFFECT = ScreenKeys().effect
_SHOWN = 10


@renamed(key="condition_key")
def genetic_interactions(
    effects: AnnData,
    *,
    condition_key: str | None = None,
    layer: str | None = _EFFECT,
    exclude_perturbed: bool = False,
    max_pairs: int = 100_000,
    rng: RngLike = 1000,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Score how the effect of two perturbations together differs from the sum of their effects, as GEARS does.

    The change of a double is fitted by those of its singles, robustly and without intercept, after Norman et al.
    (2019).  Doubles that are the sum of their singles have ``c1`` and ``c2`` of 1; where ``additive_cosine`` is high,
    a model can hardly add to the additive baseline.

    Parameters
    ----------
    effects
        One row per condition, singles and doubles, with changes against the control: the result of
        :func:`scgpt_tools.tl.screen`, or measured effects.  Not changed.
    condition_key
        Column of ``obs`` with the conditions, such as ``"KLF1"`` or ``"KLF1+ctrl"`` and ``"SAMD1+ZBTB1"``; ``None``
        takes ``obs_names``.
    layer
        Key of ``layers`` with the changes; ``None`` takes ``X``.
    exclude_perturbed
        Leave out the two genes that a double perturbs, whose own change is known beforehand.
    max_pairs
        Pairs of genes to fit each double by; drawn where there are more.
    rng
        Whole number, generator or ``None`` (fresh entropy) for that draw.
    show_progress
        Show a progress bar; ``None`` follows ``sct.settings.show_progress``.

    Returns
    -------
    One row per double whose singles are there: ``first`` and ``second``, its genes; the scores of
    :func:`scgpt_tools.metrics.genetic_interactions`; ``additive_cosine`` and ``additive_pearson`` between the sum of
    the singles and the double.

    Raises
    ------
    KeyError
        If the column or layer is absent; the message lists what is there.
    ValueError
        If a condition occurs twice, changes are not finite, or no double has both singles.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> effects = sct.tl.screen(adata, ["KLF1", "SAMD1", "KLF1+SAMD1"], model)  # doctest: +SKIP
    >>> sct.tl.genetic_interactions(effects)[["mag", "dominance", "additive_cosine"]]  # doctest: +SKIP
    """
    check_arguments(genetic_interactions, locals())
    check_type("effects", effects, AnnData)
    seed = as_seed(rng)
    names = (
        effects.obs_names
        if condition_key is None
        else effects.obs[check_key(effects.obs, condition_key, "obs")].astype(str)
    )
    conditions = [condition_genes(name) for name in names]
    row_of = _rows(conditions)
    matrix = effects.X if layer is None else effects.layers[check_key(effects.layers, layer, "layers")]
    changes = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float64)
    if not (good := np.isfinite(changes).all(axis=1)).all():
        raise ValueError(
            f"Expected finite changes against the control, found NaN or infinite values of {int((~good).sum())} "
            f"conditions (first: {str(list(names)[int(good.argmin())])!r}). Leave them out first."
        )
    doubles = _doubles(conditions, row_of)
    columns = pd.Index(effects.var_names)
    found = []
    for genes in settings.progress(doubles, total=len(doubles), unit="double", show=show_progress):
        kept = ~columns.isin(genes) if exclude_perturbed else np.ones(columns.size, dtype=bool)
        first, second, double = (
            changes[row_of[own]][None, kept] for own in ((genes[0],), (genes[1],), tuple(sorted(genes)))
        )
        scores = interaction_scores(first, second, double, max_pairs=max_pairs, rng=seed)
        scores["additive_cosine"] = cosine(first + second, double)
        scores["additive_pearson"] = pearson(first + second, double)
        found.append({"first": genes[0], "second": genes[1], **{name: own[0] for name, own in scores.items()}})
    return pd.DataFrame(found, index=pd.Index(["+".join(genes) for genes in doubles], dtype=object))


def _rows(conditions: list[GeneSet]) -> dict[GeneSet, int]:
    """Row of each single and double by its sorted genes; the order in which they are written does not matter."""
    row_of: dict[GeneSet, int] = {}
    for row, genes in enumerate(conditions):
        key: GeneSet = tuple(sorted(genes))
        if key in row_of:
            raise ValueError(f"Expected one row for each condition, found {'+'.join(key) or 'ctrl'!r} in two.")
        row_of[key] = row
    return row_of


def _doubles(conditions: list[GeneSet], row_of: dict[GeneSet, int]) -> list[GeneSet]:
    """Doubles with both singles, in the order of the table."""
    doubles = [genes for genes in conditions if len(genes) == 2]
    whole: list[GeneSet] = [genes for genes in doubles if all((gene,) in row_of for gene in genes)]
    if not whole:
        raise ValueError(
            f"Expected a double and both of its singles among the conditions, found {len(doubles)} doubles and none "
            "with both."
        )
    if without := ["+".join(genes) for genes in doubles if genes not in set(whole)]:
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        logger.info("Left out for lack of a single: %s%s.", ", ".join(without[:_SHOWN]), more)
    return whole
