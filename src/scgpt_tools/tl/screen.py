"""In-silico screens: thousands of perturbations of the same control cells, in little memory, resumable."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ScreenKeys
from scgpt_tools._validate import as_seed, check_integer
from scgpt_tools.data.finished_rows import FinishedRows
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.perturbation import Predictor, open_predictor, read_perturbations
from scgpt_tools.screens.conditions import control_mask, read_conditions
from scgpt_tools.screens.pairing import pool_of_controls
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    import torch
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend, Include, RngLike, Unknown, Unmeasured
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.perturbations import Direction, GeneSet


# Controls that are read at once.
_RUN = 64


@renamed(key="condition_key")
@shared_docs
def screen(
    adata: AnnData,
    perts: str | Iterable[str],
    model: CellModel | str | PathLike[str],
    *,
    condition_key: str | None = "condition",
    n_controls: int | None = 300,
    bootstrap: bool = False,
    layer: str | None = None,
    genes: str | None = None,
    include: Include | None = None,
    unknown: Unknown | None = None,
    unmeasured: Unmeasured | None = None,
    direction: Direction | None = None,
    store: str | PathLike[str] | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    show_progress: bool | None = None,
) -> AnnData:
    """Predict the mean effect of many perturbations on the same control cells :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        Log-normalised cells, controls among them; not changed.
    perts
        Perturbations such as ``"KLF1"`` or ``"SAMD1+ZBTB1"``.
    model
        Result of :func:`scgpt_tools.train.finetune` with ``task="perturb"``, or the folder that it was saved to.
    condition_key
        Column of ``obs`` with conditions from :func:`scgpt_tools.pp.parse_conditions`; ``None`` takes all cells for
        controls.
    n_controls
        Most control cells to perturb, drawn by seed; ``None`` takes all.
    bootstrap
        Draw exactly ``n_controls``, with replacement, as scGenePT does.
    {layer}
    {genes}
    include, unknown, unmeasured, direction
        Which genes take part and how they are flagged, as in :func:`scgpt_tools.tl.predict_perturbation`.
    store
        Folder for finished perturbations.  A call that was interrupted goes on from there when it is repeated, and one
        with more perturbations computes those only, with any ``batch_size``.  Files that are damaged are computed again.
    batch_size
        Cells computed at once; the memory needed grows with it.  With the number of perturbations only the
        result grows, which is held whole.
    {device}
    {precision}
    {attention}
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw of controls.
    {show_progress}

    Returns
    -------
    A new table with one row per perturbation, by its name, and the genes of ``adata`` with

    ``X`` : float32
        Mean predicted profile.
    ``layers["effect"]`` : float32
        Its change against the mean of the same controls.
    ``layers["dispersion"]`` : float32
        Standard deviation of the predictions over the controls; of models that were trained on means of cells, over means
        of as many controls.
    ``obs["effect_size"]``, ``obs["n_genes"]``
        Length of the change, perturbed genes left out, and number of perturbed genes.
    ``var["control_mean"]``
        Mean of the controls.
    ``uns["screen"]`` : :class:`dict`
        ``n_controls``, and provenance as :func:`scgpt_tools.tl.embed` leaves it.

    Raises
    ------
    KeyError
        If a column or layer is absent; the message lists what is there.
    ValueError
        If values look like counts, there are no controls, a perturbed gene has no column or no token, or the store
        belongs to another model, other cells or other settings, or predictions are not finite.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> effects = sct.tl.screen(adata, adata.var_names, model, store="screen")  # doctest: +SKIP
    >>> effects.obs.nlargest(5, "effect_size")  # doctest: +SKIP
    """
    check_arguments(screen, locals())
    if n_controls is not None:
        check_integer("n_controls", n_controls, least=2)
    request = Request(
        layer=layer,
        genes=genes,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=as_seed(rng),
    )
    wanted = read_perturbations(perts)
    predictor = open_predictor(
        adata,
        model,
        request,
        include=include,
        unknown=unknown,
        unmeasured=unmeasured,
        direction=direction,
        key=condition_key,
    )
    known = predictor.knows(list(wanted.values()))
    wanted = {name: genes for (name, genes), kept in zip(wanted.items(), known, strict=True) if kept}
    rows = _controls(adata, predictor, condition_key, n_controls, bootstrap=bootstrap)
    about = predictor.provenance(condition_key=condition_key or "")
    # Groups of controls are filled up with some of them again, which then count as often here.
    control, values = _mean_of(predictor, np.ravel(predictor.averaged(rows)))
    finished = FinishedRows.open(
        store, _request(about, adata, rows, values), width=2 * adata.n_vars, what="this screen"
    )
    finished.check_room(map(_key_of, wanted))
    results = np.empty((2, len(wanted), predictor.source.n_columns), dtype=np.float32)
    with settings.progress((), total=len(wanted), unit="perturbation", show=show_progress) as bar:
        for number, (name, perturbed) in enumerate(wanted.items()):
            found = finished.read(_key_of(name))
            if found is None:
                found = _moments(predictor, rows, perturbed).ravel()
                finished.write(_key_of(name), found)
            results[:, number] = found.reshape(2, -1)
            bar.update()
    return _table(adata, wanted, results, control, predictor, about | {"n_controls": len(rows)})


def _controls(
    adata: AnnData, predictor: Predictor, key: str | None, n: int | None, *, bootstrap: bool
) -> NDArray[np.int64]:
    rows = np.arange(adata.n_obs) if key is None else np.flatnonzero(control_mask(read_conditions(adata, key)))
    if rows.size < 2:
        raise ValueError(
            f"Expected at least two control cells (label 'ctrl' in obs[{key!r}]) to perturb, found {rows.size}. Pass "
            "condition_key=None if all cells are controls."
        )
    return pool_of_controls(rows, predictor.source.keys[rows], n, bootstrap=bootstrap, seed=predictor.cells.plan.seed)


def _mean_of(predictor: Predictor, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], str]:
    """Mean of the controls and a checksum of their values, which are read in runs of a fixed length."""
    total, found = np.zeros(predictor.source.n_columns), sha256()
    for start in range(0, len(rows), _RUN):
        part = predictor.source.take(rows[start : start + _RUN])
        total += np.asarray(part.sum(axis=0, dtype=np.float64)).ravel()
        for values in (part.data.astype("<f8"), part.indices.astype("<i8"), part.indptr.astype("<i8")):
            found.update(values.tobytes())
    return total / len(rows), found.hexdigest()


def _moments(predictor: Predictor, rows: NDArray[np.int64], perturbed: GeneSet) -> NDArray[np.float32]:
    """(2, G) mean and standard deviation of the predictions over cells, one minibatch at a time."""
    mean, squares, seen = np.zeros(predictor.source.n_columns), np.zeros(predictor.source.n_columns), 0
    starts = predictor.averaged(rows)
    for _, expression in predictor.predict(starts, [perturbed] * len(starts)):
        # Chan's way to add up variances: sums of squares would lose the digits that small dispersions live in.
        own = expression.mean(axis=0, dtype=np.float64)
        gap, n = own - mean, len(expression)
        squares += ((expression - own) ** 2).sum(axis=0, dtype=np.float64) + gap**2 * seen * n / (seen + n)
        mean += gap * n / (seen + n)
        seen += n
    return np.stack([mean, np.sqrt(squares / max(1, seen - 1))]).astype(np.float32)


def _table(
    adata: AnnData,
    wanted: Mapping[str, GeneSet],
    results: NDArray[np.float32],
    control: NDArray[np.float64],
    predictor: Predictor,
    about: dict[str, Any],
) -> AnnData:
    keys = ScreenKeys()
    effect = np.empty_like(results[0])
    sizes = np.empty(len(wanted), dtype=np.float32)
    column = predictor.tokens.column
    # Row by row: whatever is made of all rows at once is as large as the result again.
    for number, genes in enumerate(wanted.values()):
        effect[number] = results[0, number] - control
        others = effect[number].copy()
        others[[column[gene] for gene in genes if gene in column]] = 0
        sizes[number] = np.linalg.norm(others)
    obs = pd.DataFrame(
        {
            keys.size: sizes,
            keys.genes: [len(genes) for genes in wanted.values()],
        },
        index=pd.Index(list(wanted), dtype=object),
    )
    var = adata.var.copy()
    var[keys.control] = control.astype(np.float32)
    layers = {keys.effect: effect, keys.dispersion: results[1]}
    return AnnData(results[0], obs=obs, var=var, layers=layers, uns={keys.uns: about})


def _key_of(name: str) -> str:
    """The order in which genes are written does not matter to the model."""
    return "+".join(sorted(name.split("+")))


def _request(about: Mapping[str, Any], adata: AnnData, rows: NDArray[np.int64], values: str) -> dict[str, str]:
    """What has to agree for finished perturbations to be of use."""

    def digest(names: Iterable[str]) -> str:
        return sha256("\n".join(map(str, names)).encode()).hexdigest()

    return {
        "model": str(about["model"]["checksum"]),
        "controls": digest(adata.obs_names[rows]),
        "values": values,
        "genes": digest(adata.var_names),
        "settings": json.dumps({name: str(value) for name, value in about["params"].items()}, sort_keys=True),
    }
