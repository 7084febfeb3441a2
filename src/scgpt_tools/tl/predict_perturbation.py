"""Expression after perturbations, cell by cell."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import OWN_CONDITION, ConditionKeys, PredictionKeys
from scgpt_tools._validate import as_seed, check_integer, check_key_name
from scgpt_tools.data.writing import check_new_key, is_record
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.ensemble import Ensemble
from scgpt_tools.inference.kernel import KERNEL, KernelPredictor, fit_kernel
from scgpt_tools.inference.perturbation import Predictor, open_predictor, read_perturbations
from scgpt_tools.inference.shifting import move_controls
from scgpt_tools.models.zoo import DEFAULT_PERTURBATION, DEMO_PERTURBATION, RELEASED
from scgpt_tools.screens.batches import context_of_pairs, paired_controls
from scgpt_tools.screens.conditions import control_mask, read_conditions, unit_names
from scgpt_tools.screens.pairing import pool_of_controls
from scgpt_tools.settings import settings
from scgpt_tools.tokens.perturbations import condition_genes, format_condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray
    from tqdm.auto import tqdm

    from scgpt_tools._types import AttentionBackend, Include, RngLike, Unknown, Unmeasured
    from scgpt_tools.inference.committee import AnyModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.perturbations import Direction, GeneSet

logger = logging.getLogger(__name__)


@renamed(key="condition_key")
@shared_docs
def predict_perturbation(
    adata: AnnData,
    perts: str | Sequence[str] | None = None,
    model: AnyModel | Sequence[AnyModel] | None = None,
    *,
    condition_key: str | None = "condition",
    pairs: str | None = None,
    within: str | Sequence[str] | None = None,
    split: str | None = None,
    n_controls: int | None = None,
    bootstrap: bool = False,
    shift_controls: bool = False,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    include: Include | None = None,
    unknown: Unknown | None = None,
    unmeasured: Unmeasured | None = None,
    direction: Direction | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    key_added: str = "predicted",
    show_progress: bool | None = None,
    as_anndata: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Predict expression after perturbations, seen or unseen, single or combined :cite:p:`Cui2024`.

    A prediction is as good as its evaluation: compare with :func:`scgpt_tools.tl.evaluate_perturbation` before you rely
    on one, for simple baselines are often better.

    Parameters
    ----------
    adata
        Log-normalised cells, controls among them.  Nothing but the keys below is changed, and only at the end.
    perts
        ``None`` predicts every cell under its own condition from its paired control, for evaluation.  One perturbation
        such as ``"KLF1"`` or ``"SAMD1+ZBTB1"``, or several, predict every control cell as if it had been perturbed.
    model
        Result of :func:`scgpt_tools.train.finetune` with ``task="perturb"``, the folder that it was saved to, or a released
        model.  Of several, such as of one recipe with several seeds, the mean of their predictions is taken, and their spread
        is written :cite:p:`Lakshminarayanan2017`.  With ``perts``, ``None`` takes scGenePT as fine-tuned on Norman's activation screen in K562, and says so.
        ``"scgenept-demo"`` comes with the package, for trying things out.  ``"kernel"`` is no network: it learns the effects
        of the table's own conditions by kernel ridge regression (:func:`scgpt_tools.metrics.kernel`) and moves controls by
        what it expects of others, above all of combinations of genes that were perturbed.
    condition_key
        Column of ``obs`` with conditions from :func:`scgpt_tools.pp.parse_conditions`; ``None`` takes all cells for
        controls.
    pairs
        Key of ``obsm`` with the paired controls, of which the first counts; ``None`` takes ``"ctrl_indices"`` if it is
        there and ``within`` is not given, and else draws one control a cell.  Only without ``perts``.
    within
        Columns of ``obs`` that a cell and its control share, for that draw; and controls that are averaged, for models that
        were trained on means of cells; with ``model="kernel"`` effects are taken against the controls of the same values.
    split
        With ``model="kernel"``: column of ``obs`` whose part ``"train"`` is learnt from; ``None`` takes ``"split"`` if it is
        there, and else all cells.
    n_controls
        With ``perts``: most controls to predict, drawn by seed; ``None`` takes all, each once.
    bootstrap
        With ``as_anndata``: draw exactly ``n_controls`` with replacement, or as many as there are, as scGenePT does.
    shift_controls
        Take of the model the mean change of each perturbation only (in each context of ``within``), and move every control
        by it, to 0 at least.  A network predicts for each control what is expected, so that its cells vary less than real
        ones, often next to nothing; these vary as controls do.  The mean of genes that are moved to 0 is somewhat higher
        than predicted.
    {layer}
    {genes}
    {matching}
    include
        ``"all"`` genes, or ``"batch-wise"`` those that some control of the minibatch expresses; then the result
        depends on ``batch_size``.  ``None`` reads cells as in training.
    unknown
        Columns without a token: ``"drop"``, they keep the value of the control, or ``"pad"``, they take part under the
        token of padding as in the original, and change all other predictions.  ``None`` for what training did.
    unmeasured
        Perturbed genes without a column: refuse them (``"error"``), add their ``"token"`` to the cells, for models
        that were trained so, or ``"drop"`` what perturbs them, with a warning.  ``None`` for what training did.
    direction
        What the perturbations do, ``"up"`` or ``"down"``, for a model that was trained on both; ``None`` takes what
        :func:`scgpt_tools.pp.parse_conditions` recorded, and else what the model was trained on.
    batch_size
        Cells computed at once.
    {device}
    {precision}
    {attention}
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw of controls.
    key_added
        Layer of the result, and beginning of the names of several.
    {show_progress}
    as_anndata
        Return the predictions as a table of their own and leave the input alone: where a dense layer a perturbation, with
        a row for each cell of the input, is too much.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``layers[key_added]`` : float32, (cells, genes)
        Predictions in the unit of the input, for ``perts=None`` or one perturbation; NaN for cells that are no
        controls in the second case, and for those that are dropped.
    ``layers[f"{key_added}_{perturbation}"]`` : float32, (cells, genes)
        The same for each of several perturbations, such as ``layers["predicted_SAMD1+ZBTB1"]``.
    ``uns[key_added]`` : :class:`dict`
        ``perturbations`` and ``layers``, their layers; of several models the provenance of the first, with the names and
        checksums of all; ``params``, ``model``, ``tokenizer`` and ``genes`` as
        :func:`scgpt_tools.tl.embed` leaves them.

    ``varm[f"{key_added}_spread"]`` : :class:`~pandas.DataFrame`, (genes, perturbations)
        Of several models: standard deviation, over models, of the mean prediction of each perturbation (a column such as
        ``"KLF1"`` or ``"SAMD1+ZBTB1"``).  Where it is as large as the change, seeds disagree about it; where it is small, all
        may be wrong alike.

    or, with ``as_anndata``, a new table with a row for each predicted cell, perturbation by perturbation:

    ``X`` : float32, (predicted cells, genes)
        Predictions in the unit of the input.
    ``obs``
        That of the cells, with the predicted condition in ``obs[condition_key]`` (``"condition"`` if that is ``None``) and
        the control that the prediction started from in ``obs["control_cell"]``.
    ``var``
        That of the input, and ``varm`` as above.
    ``uns[key_added]`` : :class:`dict`
        As above, without ``layers``.

    Raises
    ------
    KeyError
        If a column, layer or key is absent; the message lists what is there.
    ValueError
        If values look like counts, a cell has no label, there are no controls, the model knows no perturbations, a
        perturbed gene has no column or no token, several models know other genes or start from means of other numbers of cells,
        the name of a layer would hold a ``/``, predictions are not
        finite, or an argument is given that ``model`` does not take.

    Warns
    -----
    UserWarning
        If ``model="kernel"`` predicts genes that no training condition perturbs, or combinations although too few were seen
        to learn how effects add up, or although it is no better than the scaled sum of effects for those that are left out.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(adata, "scgpt-demo", task="perturb")  # doctest: +SKIP
    >>> sct.tl.predict_perturbation(adata, ["KLF1", "SAMD1+ZBTB1"], model)  # doctest: +SKIP
    >>> adata.layers["predicted_SAMD1+ZBTB1"]  # doctest: +SKIP
    >>> sct.tl.predict_perturbation(adata, "SAMD1+ZBTB1", "kernel", key_added="kernel")  # doctest: +SKIP
    """
    check_arguments(predict_perturbation, locals())
    seed = as_seed(rng)
    if n_controls is not None:
        check_integer("n_controls", n_controls)
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
        copy=copy,
    )
    if model is None and isinstance(perts, str) and (perts in RELEASED or Path(perts).is_dir()):
        raise ValueError(
            f"Expected `perts` to name genes such as 'KLF1', found {perts!r}, which is a model. Pass model={perts!r}: "
            "predict_perturbation(adata, perts, model)."
        )
    wanted = None if perts is None else read_perturbations(perts)
    keys = PredictionKeys(check_key_name("key_added", key_added))
    if as_anndata and copy:
        raise ValueError("Expected `copy` or `as_anndata`, found both. The new table is all that `as_anndata` returns.")
    if perts is None and (n_controls is not None or bootstrap):
        raise ValueError(
            "Expected `n_controls` and `bootstrap` with `perts` only: without, every cell is predicted from its own control."
        )
    if bootstrap and not as_anndata:
        raise ValueError(
            "Expected `as_anndata=True` with `bootstrap`, for a control that is drawn twice has one row in a layer only."
        )
    several = [keys.layer_of(name) for name in wanted or ()] if len(wanted or ()) > 1 else []
    for layer_added in () if as_anndata else several or [keys.layer]:
        check_key_name("the layer of a perturbation", layer_added)
        check_new_key(adata, "layers", keys.uns, default=PredictionKeys().uns, entry=layer_added)
    reading: dict[str, Any] = {"include": include, "unknown": unknown, "unmeasured": unmeasured, "direction": direction}
    predictor: Predictor | Ensemble | KernelPredictor
    if isinstance(model, str) and model == KERNEL:
        of_networks = {
            "symbols": symbols,
            "aliases": aliases,
            "ignore_case": ignore_case or None,
            "duplicates": None if duplicates == "most_counts" else duplicates,
            "device": device,
            "precision": None if precision == "auto" else precision,
            "attention": attention,
        }
        _refuse(reading | of_networks, f"model={KERNEL!r}")
        predictor = fit_kernel(adata, request, key=condition_key, within=within, split=split)
    else:
        _refuse({"split": split}, "a network, whose training is over")
        with _default(model is None and wanted is not None) as released:
            predictor = _open(adata, released or model, request, key=condition_key, **reading)
    conditions = _conditions(adata, condition_key)
    contexts = context_of_pairs(adata, pairs, within)
    if wanted is None:
        paired = paired_controls(adata, conditions, pairs=pairs, within=within, seed=seed)[:, 0]
        cells = np.arange(adata.n_obs)
        rows = paired[predictor.beside(cells, conditions, contexts)]
        parts = {OWN_CONDITION: _Part(cells, rows, [condition_genes(condition) for condition in conditions])}
    else:
        controls = np.flatnonzero(control_mask(conditions))
        keys_of = predictor.source.keys[controls]
        controls = pool_of_controls(controls, keys_of, n_controls, bootstrap=bootstrap, seed=seed)
        rows = predictor.beside(controls, conditions, contexts)
        parts = {name: _Part(controls, rows, [genes] * len(controls)) for name, genes in wanted.items()}
    parts = _known(predictor, parts)
    if isinstance(predictor, Ensemble):
        check_new_key(adata, "varm", keys.uns, default=PredictionKeys().uns, entry=keys.spread)
        for own in {own for part in parts.values() for own in part.perturbed if own}:
            check_key_name("a perturbation", "+".join(own))
    if len(several) > 1:
        several = [keys.layer_of(name) for name in parts]
    about = {"perturbations": np.array(list(parts), dtype=object)} | predictor.provenance(
        condition_key=condition_key or "", shift_controls=shift_controls
    )
    fill = partial(_fill, predictor=predictor, contexts=contexts, shift=shift_controls)
    total = sum(len(part.cells) for part in parts.values())
    bar: tqdm[Any]
    with settings.progress((), total=total, unit="cell", show=show_progress) as bar:
        if as_anndata:
            values = np.empty((total, predictor.source.n_columns), dtype=np.float32)
            starts = np.cumsum([0, *(len(part.cells) for part in parts.values())])
            for start, part in zip(starts, parts.values(), strict=False):
                fill(values[start:], np.arange(len(part.cells)), part=part, bar=bar)
            made = _table(adata, parts, conditions, values, condition_key or ConditionKeys.key, {keys.uns: about})
            made.varm.update(_spread(predictor, keys, adata))
            return made
        layers = dict(zip(several or [keys.layer], parts.values(), strict=True))
        found = {}
        for name, part in layers.items():
            found[name] = np.full((len(predictor.source), predictor.source.n_columns), np.nan, dtype=np.float32)
            fill(found[name], part.cells, part=part, bar=bar)
    result = adata.copy() if copy else adata
    for name, values in found.items():
        result.layers[name] = values
    if is_record(result.uns.get(keys.uns)):
        # Of several models that predicted before.
        result.varm.pop(keys.spread, None)
    result.varm.update(_spread(predictor, keys, adata))
    result.uns[keys.uns] = about | {"layers": np.array(list(found), dtype=object)}
    logger.info("Added %s and `uns[%r]`.", ", ".join(f"`layers[{name!r}]`" for name in found), keys.uns)
    return result if copy else None


def _open(
    adata: AnnData, model: AnyModel | Sequence[AnyModel] | None, request: Request, **options: Any
) -> Predictor | Ensemble:
    """A network, or several."""
    if isinstance(model, Mapping):
        raise TypeError(
            f"Expected `model` to be one or a list of them, whose mean is taken, found {type(model).__name__}."
        )
    if not isinstance(model, Iterable) or isinstance(model, str | PathLike):
        return open_predictor(adata, model, request, **options)
    opened: list[Predictor] = []
    for one in model:
        if isinstance(one, str) and one == KERNEL:
            raise ValueError(f"Expected networks to average, found {KERNEL!r} among them. Predict with it alone.")
        source = opened[0].source if opened else None
        opened.append(open_predictor(adata, one, request, opened=source, **options))
    if not opened:
        raise ValueError("Expected one `model` or more, found an empty list.")
    return Ensemble(opened) if len(opened) > 1 else opened[0]


def _spread(
    predictor: Predictor | Ensemble | KernelPredictor, keys: PredictionKeys, adata: AnnData
) -> dict[str, pd.DataFrame]:
    """What to add to ``varm``: how far several models are apart."""
    if not isinstance(predictor, Ensemble):
        return {}
    return {keys.spread: pd.DataFrame(predictor.spread(), index=adata.var_names)}


def _refuse(arguments: dict[str, Any], what: str) -> None:
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(f"Expected no `{given[0]}` with {what}, found {arguments[given[0]]!r}. Leave it out.")


@contextmanager
def _default(wanted: bool) -> Iterator[str | None]:  # noqa: FBT001 - private
    """Name of the model where none is given, if that is wanted; what to do if it cannot be had."""
    if not wanted:
        yield None
        return
    released = RELEASED[DEFAULT_PERTURBATION]
    logger.info(
        "Predicting with %r (%s). Pass `model` for one that was fine-tuned on your own cells.",
        released.name, released.training_data,
    )  # fmt: skip
    try:
        yield released.name
    except (ConnectionError, FileNotFoundError) as error:
        raise type(error)(
            f"{error} No `model` was passed, so {released.name!r} was looked for. Pass one that was fine-tuned on your own "
            f"cells, the folder of a copy, or {DEMO_PERTURBATION!r}, which is in the package, to try things out."
        ) from error


class _Part(NamedTuple):
    """What one perturbation, or each cell's own condition, predicts."""

    cells: NDArray[np.int64]
    """Cells that get a prediction."""
    rows: NDArray[np.int64]
    """(n, c) the controls that each prediction starts from."""
    perturbed: list[GeneSet]


def _known(predictor: Predictor | Ensemble | KernelPredictor, parts: dict[str, _Part]) -> dict[str, _Part]:
    """What the model can be conditioned on of what is to be predicted."""
    known = predictor.knows([genes for part in parts.values() for genes in part.perturbed])
    found, start = {}, 0
    for name, part in parts.items():
        mine = known[start : start + len(part.perturbed)]
        start += len(part.perturbed)
        if mine.any():
            kept = [genes for genes, one in zip(part.perturbed, mine, strict=True) if one]
            found[name] = _Part(part.cells[mine], part.rows[mine], kept)
    return found


def _conditions(adata: AnnData, key: str | None) -> NDArray[Any]:
    if key is None:
        return np.full(adata.n_obs, "ctrl", dtype=object)
    conditions = read_conditions(adata, key)
    if not control_mask(conditions).any():
        raise ValueError(
            f"Expected control cells (label 'ctrl' in obs[{key!r}]) to predict from, found none. Pass condition_key=None if all "
            "cells are controls."
        )
    return conditions


def _fill(
    values: NDArray[np.float32],
    places: NDArray[np.int64],
    *,
    predictor: Predictor | Ensemble | KernelPredictor,
    part: _Part,
    contexts: NDArray[Any] | None,
    shift: bool,
    bar: tqdm[Any],
) -> None:
    """Write predictions of a part into some rows of ``values``; with ``shift``, controls moved by the mean of these."""
    keys = predictor.source.keys[part.cells]
    for own, expression in predictor.predict(part.rows, part.perturbed, keys=keys):
        values[places[own]] = expression
        bar.update(len(expression))
    if shift:
        labels = np.array(["+".join(genes) for genes in part.perturbed], dtype=object)
        groups = np.unique(unit_names(None if contexts is None else contexts[part.cells], labels), return_inverse=True)[
            1
        ]
        move_controls(predictor.source, part.rows, groups, values, places)


def _table(
    adata: AnnData,
    parts: dict[str, _Part],
    conditions: NDArray[Any],
    values: NDArray[np.float32],
    key: str,
    uns: dict[str, Any],
) -> AnnData:
    cells, rows = (np.concatenate([getattr(part, name) for part in parts.values()]) for name in ("cells", "rows"))
    obs = adata.obs.iloc[cells].copy()
    names = adata.obs_names.to_numpy(dtype=object)
    obs["control_cell"] = names[rows[:, 0]]
    if OWN_CONDITION in parts:
        obs[key] = pd.Categorical(conditions[cells])
    else:
        obs[key] = pd.Categorical([format_condition(genes) for part in parts.values() for genes in part.perturbed])
        labels = [name for name, part in parts.items() for _ in part.cells]
        index = pd.Series([f"{cell}_{name}" for cell, name in zip(names[cells], labels, strict=True)], dtype=object)
        # A control may have been drawn twice.
        again = index.groupby(index).cumcount().astype(str)
        obs.index = pd.Index(index.where(again == "0", index + "-" + again), dtype=object)
    return AnnData(values, obs=obs, var=adata.var.copy(), uns=uns)
