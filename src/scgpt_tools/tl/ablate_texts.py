"""What the texts added to predictions of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_seed, check_choice, check_texts, check_type
from scgpt_tools.inference.cells import load_model
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.scgenept.ablation import Ablation, ablate
from scgpt_tools.tl.evaluate_perturbation import evaluate_perturbation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    import numpy as np  # noqa: F401 - a part of RngLike
    import torch
    from anndata import AnnData

    from scgpt_tools._types import RngLike
    from scgpt_tools.metrics.scores import PerturbationScores

ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


@shared_docs
def ablate_texts(
    adata: AnnData,
    model: CellModel | str | PathLike[str],
    how: str | Sequence[str] = ABLATIONS,
    *,
    streams: str | Sequence[str] | None = None,
    start: CellModel | str | PathLike[str] | None = None,
    retrain: Callable[[CellModel], CellModel] | None = None,
    retrained: CellModel | str | PathLike[str] | None = None,
    condition_key: str = "condition",
    split: str = "split",
    part: str = "test",
    within: str | Sequence[str] | None = None,
    layer: str | None = None,
    genes: str | None = None,
    metrics: Sequence[str] | None = None,
    n_controls: int = 300,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    rng: RngLike = 0,
    show_progress: bool | None = None,
) -> PerturbationScores:
    """Score a model with its texts, and with others in their place, beside the baselines :cite:p:`Istrate2024`.

    If the model predicts as well with shuffled or random texts, it has learnt nothing from what they say; if a model that
    was trained without is as good, neither has the training.

    Parameters
    ----------
    adata
        Log-normalised cells with conditions and a split; not changed.
    model
        A model with embeddings of texts about genes (scGenePT) that was fine-tuned on the training part.
    how
        What stands in place of the texts: ``"zeroed"``, ``"shuffled"`` between genes, ``"random"`` numbers of the same
        norm, one or more of them.
    streams
        Which texts, such as ``"go"``; ``None`` for all.
    start, retrain
        What ``model`` was before fine-tuning, and a function that fine-tunes it, by which it is trained again with each of
        ``how`` in place of the texts: a network that never saw them cannot miss them.
    retrained
        Another model that was trained on the same part, to compare with.
    condition_key
        Column of ``obs`` with conditions from :func:`scgpt_tools.pp.parse_conditions`.
    split
        Column of ``obs`` from :func:`scgpt_tools.pp.perturbation_split` or :func:`scgpt_tools.pp.cell_split`.
    part
        Which part to score.
    within
        Columns of ``obs``, such as the replicate: predict from, and compare with, the controls of the same values.
    {layer}
    {genes}
    metrics
        Names in ``scgpt_tools.metrics.panel.METRICS``; ``None`` takes all that the data allow.
    n_controls
        Most control cells of a context to predict each condition from, drawn by seed.
    batch_size
        Cells computed at once.
    {device}
    rng
        Whole number, generator or ``None`` (fresh entropy) for texts that are drawn and the choice of controls.
    {show_progress}

    Returns
    -------
    :class:`~scgpt_tools.metrics.scores.PerturbationScores` of ``"with texts"``, ``"texts zeroed"`` and so on,
    ``"retrained, texts zeroed"`` and so on with ``retrain``, the baselines and the ceiling.  ``compare(others=scores.models[1:])`` has the paired differences to the model with its texts, with their
    intervals; without ``others``, those to the baselines.

    Raises
    ------
    ValueError
        If the model reads no texts, ``start`` and ``retrain`` do not come together, or for the reasons of :func:`scgpt_tools.tl.evaluate_perturbation`.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> scores = sct.tl.ablate_texts(adata, model)  # doctest: +SKIP
    >>> scores.compare(others=scores.models[1:])  # doctest: +SKIP

    With training, in one call:

    >>> start = sct.models.to_scgenept("scgpt-demo", "scgenept_ncbi_gpt", texts)  # doctest: +SKIP
    >>> train = lambda model: sct.train.finetune(adata, model, task="perturb")  # doctest: +SKIP
    >>> sct.tl.ablate_texts(adata, train(start), start=start, retrain=train)  # doctest: +SKIP
    """
    check_arguments(ablate_texts, locals())
    wanted = check_texts("how", [how] if isinstance(how, str) else how)
    for name in wanted:
        check_choice("how", name, ABLATIONS)
    if (start is None) != (retrain is None):
        raise ValueError(
            "Expected `start` and `retrain` together, a model before fine-tuning and a function that fine-tunes it, found one."
        )
    seed = as_seed(rng)
    loaded = load_model(model, device)
    models: dict[str, CellModel | str | PathLike[str]] = {"with texts": loaded}
    models |= {f"texts {name}": ablate(loaded, name, streams=streams, rng=seed) for name in ABLATIONS if name in wanted}
    if start is not None and retrain is not None:
        untrained = load_model(start, device)
        for name in ABLATIONS:
            if name in wanted:
                tuned = retrain(ablate(untrained, name, streams=streams, rng=seed))
                models[f"retrained, texts {name}"] = check_type("what `retrain` returns", tuned, CellModel)
    if retrained is not None:
        models["retrained"] = retrained
    return evaluate_perturbation(
        adata,
        models,
        condition_key=condition_key,
        split=split,
        part=part,
        within=within,
        layer=layer,
        genes=genes,
        metrics=metrics,
        n_controls=n_controls,
        batch_size=batch_size,
        device=device,
        rng=seed,
        show_progress=show_progress,
    )
