"""How good are predictions of perturbations, beside baselines that know nothing of them?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._validate import as_seed, check_choice, check_text
from scgpt_tools._warnings import warn_user
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.kernel import KERNEL
from scgpt_tools.inference.perturbation import held_out_means, open_predictor
from scgpt_tools.metrics.baselines import BASELINES
from scgpt_tools.metrics.evaluation import common_conditions
from scgpt_tools.metrics.panel import METRICS
from scgpt_tools.metrics.scores import PerturbationScores, collapse_message, collapsed, overall_spread
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.screens.held_out import CEILING, CONSTANT, HeldOutScreen
from scgpt_tools.screens.predicted_cells import CellScores, Samples, score_cells
from scgpt_tools.screens.predictions import (
    cell_means,
    layer_means,
    listing,
    original_scores,
    predicted_rows,
    scgenept_files,
    table_means,
)
from scgpt_tools.screens.recipes import as_recipes, ensembles, expanded, mean_cells, means_by_seed
from scgpt_tools.screens.splits import condition_hash
from scgpt_tools.tokens.names import check_names, column_names
from scgpt_tools.tokens.perturbations import FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    import torch
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend, Include, RngLike, Unknown, Unmeasured
    from scgpt_tools.inference.perturbation import Predictor
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.perturbations import Direction

    Prediction: TypeAlias = CellModel | AnnData | pd.DataFrame | str | PathLike[str]

logger = logging.getLogger(__name__)

_SPLIT, _PART = "split", "test"
_ROLES = {CEILING: "ceiling"}


@renamed(key="condition_key")
@shared_docs
def evaluate_perturbation(
    adata: AnnData | None = None,
    predictions: Prediction | Mapping[str, Prediction | Sequence[Prediction]] | None = None,
    *,
    reference: AnnData | None = None,
    prediction: Prediction | Mapping[str, Prediction | Sequence[Prediction]] | None = None,
    condition_key: str = "condition",
    split: str | None = _SPLIT,
    part: str = _PART,
    within: str | Sequence[str] | None = None,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    metrics: Sequence[str] | None = None,
    ensemble: bool = False,
    analyses: bool = False,
    cells: bool = False,
    distances: str | Sequence[str] | None = None,
    cell_eval: bool = False,
    scgenept: bool = False,
    n_controls: int = 300,
    bootstrap: bool = False,
    include: Include | None = None,
    unknown: Unknown | None = None,
    unmeasured: Unmeasured | None = None,
    direction: Direction | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    show_progress: bool | None = None,
) -> PerturbationScores:
    """Score predictions of held-out conditions beside every baseline and the ceiling.

    Baselines see the training cells only: no change, the mean of the training conditions and of their cells, the mean, the
    sum and a share of the sum of single effects, a linear model :cite:p:`Ahlmann-Eltze2025`, kernel ridge regression
    (:func:`scgpt_tools.metrics.kernel`), and effects shrunken by their noise (:func:`scgpt_tools.metrics.shrunken_mean`).  The
    ceiling is a perfect prediction, whose
    scores are limited by the noise of the measured means.  Predictions are made from one half of the controls, and true
    changes refer to the other.

    Without training conditions, as in tables of true and predicted cells alone, no change is the one baseline beside the
    ceiling, there is no ``"interaction"``, and ``"pearson_perturbed_mean"`` and ``"r2_weighted"`` refer to the mean change
    of the scored conditions themselves: a prediction that is the same for all has nothing beyond it, as with the mean of
    training.

    Parameters
    ----------
    adata
        Log-normalised cells with conditions and a split; not changed.
    predictions
        What to score: a generator or its folder, which predicts from controls; a layer that
        :func:`scgpt_tools.tl.predict_perturbation` wrote; a table of :func:`scgpt_tools.tl.screen`; a data frame of
        mean profiles, conditions by genes; a table of predicted cells of any model, with their conditions in ``obs``.  Or
        several of them by name; a list stands for models of one recipe with several seeds, of whose scores the mean is
        taken: of those that there are, where a metric has none for some of the models, as a correlation has none for a
        constant prediction.
    reference, prediction
        Other names of ``adata`` and ``predictions``, for tables of true and predicted cells, both log-normalised.  The
        true ones hold the controls; without a column ``"split"`` they are taken as with ``split=None``.
    condition_key
        Column of ``obs`` with conditions from :func:`scgpt_tools.pp.parse_conditions`, of predicted cells as well.
    split
        Column of ``obs`` from :func:`scgpt_tools.pp.perturbation_split` or :func:`scgpt_tools.pp.cell_split`.  ``None``
        scores all conditions that every prediction has, and trains no baseline.
    part
        Which part to score.
    within
        Columns of ``obs``, such as the replicate: predict from, and compare with, the controls of the same values.
        Predicted cells have them too.
    {layer}
    {genes}
    symbols, aliases, ignore_case, duplicates
        How a generator's vocabulary knows the genes, as in :func:`scgpt_tools.tl.predict_perturbation`.
    metrics
        Names in ``scgpt_tools.metrics.panel.METRICS``; ``None`` takes all that the data allow.
    ensemble
        Also score the mean prediction of the models of each list, as :func:`scgpt_tools.tl.predict_perturbation` makes it of
        several, as a method of its own, such as ``"mine ensemble"``.
    analyses
        Also compute GEARS' deeper and non-dropout analyses of predictions, as it does, into ``originals``: shares of right
        directions, of predictions within the range of the true cells, gaps of fold changes, and correlations and errors of
        many subsets of genes, such as ``"gears_frac_correct_direction_20"`` or
        ``"gears_pearson_delta_top20_de_non_dropout"``.  ``summary(originals=True)`` of the scores has them beside all others, and
        with ``by_group=True`` its subgroup analysis.
    cells
        Also compare predicted with true cells, which generators and layers have: the metrics ``"energy"`` and ``"mmd"``
        in the space of 50 principal components of controls and true cells, and ``"energy_to_control"``, the former as
        a share of the distance of the controls, NaN where that is no larger than between two halves of the true cells.  The
        ceiling of these, and of the next two, is one half of the true cells beside the other.
        Baselines are the controls, moved by the change that they predict.
    distances
        The same with distances of pertpy: ``"edistance"``, ``"mmd"`` (a Gaussian kernel as wide as the median
        distance) and ``"wasserstein"``, as the metrics ``"pertpy_edistance"`` and so on.  Those of pertpy 1.0 count the
        distance of a cell to itself, so small samples look farther apart.
    cell_eval
        Also find differentially expressed genes in predicted and in true cells with cell-eval, by a Mann-Whitney test
        against the same controls, and compare them: ``"celleval_overlap_at_N"`` and others.  Negative predictions
        count as 0.  Cells that vary less than real ones make more genes significant.
    scgenept
        Also score as scGenePT's evaluation does, by how much of a condition training saw, under its names:
        ``scores.scgenept[model].save(folder)`` writes its three files.
    n_controls
        Most control cells of a context that a generator predicts each condition from and that cells are compared
        with, drawn by seed.
    bootstrap
        Predict from exactly ``n_controls`` of them, drawn with replacement as scGenePT draws its pool.
    include, unknown, unmeasured, direction
        Which genes a generator reads and how they are flagged, as in :func:`scgpt_tools.tl.predict_perturbation`.
    batch_size
        Cells computed at once.
    {device}
    {precision}
    {attention}
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw of controls, of
        their halves and of the noise of the ceiling.
    {show_progress}

    Returns
    -------
    Scores: ``table`` with one row per condition, split group, method and metric; ``summary()``, ``compare()`` with
    paired differences to the baselines, ``ranges()``; printed, they say which baselines win.

    Raises
    ------
    ImportError
        If pertpy or cell-eval is asked for and not installed.
    KeyError
        If a column or layer is absent; the message lists what is there, and that of ``split`` how to do without.
    ValueError
        If values look like counts, ``ensemble`` is asked for without a list of two models or more, a part has no perturbed cells, a held-out condition has a single cell or no
        prediction, a context has no controls, or cells are to be compared and no prediction has any.

    Warns
    -----
    UserWarning
        If the predictions of a model are nearly the same for every perturbation, some models of a recipe have no score
        where others have one, a column of parts has no training conditions, or predictions lack conditions that are to be
        scored with ``split=None``.

    Examples
    --------
    Predicted cells of any model beside measured ones, without a split:

    >>> import scgpt_tools as sct
    >>> scores = sct.tl.evaluate_perturbation(reference=adata_true, prediction=adata_pred)  # doctest: +SKIP
    >>> print(scores)  # doctest: +SKIP
    """
    check_arguments(evaluate_perturbation, locals() | {"distances": distances or None})
    if direction is not None:
        check_choice("direction", direction, tuple(FLAGS))
    seed = as_seed(rng)
    request = Request(
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=seed,
    )
    for name in metrics or ():
        lookup(METRICS, name, "metric")
    if reference is not None or prediction is not None:
        if adata is not None or predictions is not None:
            raise TypeError("Expected `reference` and `prediction` instead of `adata` and `predictions`, found both.")
        adata, predictions = reference, prediction
    if adata is None or predictions is None:
        raise TypeError("Expected measured cells and predictions of them, found one of both alone.")
    named, recipes = expanded(_named(predictions))
    split = _split(adata, split, part, pair=reference is not None)
    averaged = ensembles(named, recipes) if ensemble else {}
    wanted = CellScores(cells, (distances,) if isinstance(distances, str) else tuple(distances or ()), cell_eval)
    names = [name or "" for name in column_names(adata.var, genes)]
    check_names(adata.var, symbols, aliases)
    read = partial(
        HeldOutScreen.read,
        adata,
        key=condition_key,
        split=split,
        part=part,
        within=within,
        layer=layer,
        genes=names,
        seed=seed,
    )
    screen = read()
    predictors = {
        name: open_predictor(
            adata,
            prediction,
            request,
            include=include,
            unknown=unknown,
            unmeasured=unmeasured,
            direction=direction,
            key=condition_key,
            opened=screen.source,
        )
        for name, prediction in named.items()
        if not isinstance(prediction, AnnData | pd.DataFrame)
        and not (isinstance(prediction, str) and prediction in adata.layers)
    }
    lost = _without(screen, predictors.values())
    if split is None:
        lost |= _not_predicted(screen, named, condition_key, within)
    if lost:
        screen = read(without=lost)
    if split is not None and screen.train is None:
        warn_user(
            f"Expected perturbed cells of the part 'train' in obs[{split!r}], found none: baselines that learn from them "
            "are left out. Pass split=None to score all conditions in this way."
        )
    profiles: dict[str, NDArray[np.float64]] = {}
    samples: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, prediction in named.items():
        if isinstance(prediction, str) and prediction in adata.layers:
            profiles[name], samples[name] = layer_means(screen, prediction, keep=bool(wanted))
        elif isinstance(prediction, AnnData) and condition_key in prediction.obs:
            profiles[name], samples[name] = cell_means(
                screen, name, prediction, key=condition_key, within=within, keep=bool(wanted)
            )
        elif isinstance(prediction, AnnData | pd.DataFrame):
            profiles[name] = table_means(screen, name, prediction)
        else:
            profiles[name], samples[name] = held_out_means(
                screen,
                predictors[name],
                n_controls=n_controls,
                bootstrap=bootstrap,
                keep=bool(wanted),
                show_progress=show_progress,
            )
    for name, members in averaged.items():
        profiles[name] = np.mean([profiles[member] for member in members], axis=0)
        samples[name] = mean_cells([samples.get(member, {}) for member in members])
    wanted.check(samples)
    spread = {name: _spread(values, screen) for name, values in profiles.items()}
    for name, share in collapsed(spread).items():
        warn_user(collapse_message(name, share))
    table = screen.table(profiles, metrics=metrics)
    if wanted:
        compared = Samples.read(screen, samples, n_controls=n_controls, seed=seed)
        table = pd.concat([table, _with_groups(score_cells(compared, wanted), screen)], ignore_index=True)
    table = _with_roles(table, profiles)
    by_seed = common_conditions(table)
    by_seed = by_seed[by_seed["method"].isin(list(recipes))]
    scores = PerturbationScores(
        table=as_recipes(table, recipes),
        originals=as_recipes(original_scores(screen, profiles, analyses=analyses), recipes),
        spread=pd.Series(spread, name="spread", dtype=float)
        .groupby(lambda name: recipes.get(name, name), sort=False)
        .mean(),
        test_hash=condition_hash(screen.conditions),
        rng=seed,
        scgenept=scgenept_files(screen, profiles, part) if scgenept else {},
        by_seed=means_by_seed(by_seed, recipes),
    )
    logger.info("%s", scores.headline())
    return scores


def _split(adata: AnnData, split: str | None, part: str, *, pair: bool) -> str | None:
    """Column of parts, or ``None`` where all conditions are scored, as of a pair of tables without the usual column."""
    if split is None:
        if part != _PART:
            raise ValueError(f"Expected a column of parts with part={part!r}, found split=None.")
    elif isinstance(split, str) and split not in adata.obs:
        if pair and (split, part) == (_SPLIT, _PART):
            logger.info("Found no obs['split'] in the reference: all conditions of the prediction are scored.")
            return None
        raise KeyError(
            f"{absent(split, adata.obs.columns, 'key in `obs`:')} Run pp.perturbation_split, or pass split=None to score "
            "all conditions without baselines that learn from others."
        )
    return split


def _without(screen: HeldOutScreen, predictors: Iterable[Predictor]) -> set[str]:
    """Held-out rows that a model leaves out, which no other method is scored on either."""
    known = [predictor.knows(list(screen.targets)) for predictor in predictors]
    return {name for own in known for name, kept in zip(screen.rows, own, strict=True) if not kept}


def _not_predicted(
    screen: HeldOutScreen, named: Mapping[str, Prediction], key: str, within: str | Sequence[str] | None
) -> set[str]:
    """Rows that a table of predictions lacks, with a warning that lists them."""
    found: set[str] = set()
    for name, prediction in named.items():
        if isinstance(prediction, AnnData | pd.DataFrame):
            lacking = sorted(set(screen.rows) - predicted_rows(screen, prediction, key=key, within=within))
            # A table that has none is refused where it is read.
            if 0 < len(lacking) < len(screen.rows):
                found |= set(lacking)
                warn_user(
                    f"Expected predictions of all {len(screen.rows)} conditions from {name!r}, found none of "
                    f"{len(lacking)}: {listing(lacking)}. They are left out for all methods."
                )
    if found >= set(screen.rows):
        raise ValueError(f"Expected a condition that all of {listing(list(named))} predict, found none.")
    return found


def _named(predictions: Prediction | Mapping[str, Prediction]) -> dict[str, Prediction]:
    each = predictions.values() if isinstance(predictions, Mapping) else [predictions]
    single = [one for own in each for one in (own if isinstance(own, list | tuple) else [own])]
    if any(isinstance(one, str) and one == KERNEL for one in single):
        raise ValueError(
            f"Expected predictions to score beside the baselines, found {KERNEL!r}, which is one of them. Every table has it."
        )
    if not isinstance(predictions, Mapping):
        return {_name_of(predictions): predictions}
    if not predictions:
        raise ValueError("Expected at least one prediction to score, found none.")
    for name in predictions:
        if check_text("a name in predictions", name) in (*BASELINES, CONSTANT, CEILING):
            raise ValueError(
                f"Expected names of their own for predictions, found {name!r}, which a baseline or the ceiling has."
            )
    return dict(predictions)


def _name_of(prediction: Prediction) -> str:
    if isinstance(prediction, CellModel):
        return prediction.name
    return str(prediction) if not isinstance(prediction, AnnData | pd.DataFrame) else "prediction"


def _with_groups(table: pd.DataFrame, screen: HeldOutScreen) -> pd.DataFrame:
    table.insert(1, "group", table["condition"].map(screen.groups))
    return table


def _with_roles(table: pd.DataFrame, models: Mapping[str, Any]) -> pd.DataFrame:
    roles = table["method"].map(lambda name: "model" if name in models else _ROLES.get(name, "baseline"))
    table.insert(3, "role", roles)
    return table


def _spread(profiles: NDArray[np.float64], screen: HeldOutScreen) -> float:
    # What the perturbed genes themselves do is known beforehand and would hide that nothing else differs.
    truth = screen.truth
    return overall_spread(profiles - truth.control, truth.true - truth.control, truth.scored)
