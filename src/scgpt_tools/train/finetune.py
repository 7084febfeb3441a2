"""One door to fine-tuning for every task."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.train.cells import finetune_cells
from scgpt_tools.train.perturb import finetune_perturbation

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.models.cell_model import CellModel

FINETUNING: dict[str, Callable[..., CellModel]] = {
    "annotate": partial(finetune_cells, task="annotate"),
    "integrate": partial(finetune_cells, task="integrate"),
    "multiomic": partial(finetune_cells, task="multiomic"),
    "perturb": finetune_perturbation,
}


def finetune(
    model: CellModel | str | PathLike[str], adata: AnnData | MuData, *, task: str, **arguments: Any
) -> CellModel:
    """Fine-tune a model for a task with the recipe of its authors :cite:p:`Cui2024`.

    The returned model holds all that the task needs: weights, vocabulary, tokenizer and the names of classes and
    batches; its ``save`` keeps them together.

    Parameters
    ----------
    model
        A loaded model, which stays as it is, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    adata
        Cells to learn from; may be backed, lazy or a view.  Never changed.
    task
        ``"annotate"`` learns the cell types of the column ``label``, for :func:`scgpt_tools.tl.annotate`;
        ``"integrate"`` learns an embedding without the technical batches of the column ``batch``, for
        :func:`scgpt_tools.tl.embed`; ``"multiomic"`` learns the modalities of a MuData together, for
        :func:`scgpt_tools.tl.embed` and :func:`scgpt_tools.tl.impute`; all three take the arguments of
        :func:`scgpt_tools.train.finetune_cells`.
        ``"perturb"`` learns expression after a perturbation, for :func:`scgpt_tools.tl.predict_perturbation`, and takes
        those of :func:`scgpt_tools.train.finetune_perturbation`.
    **arguments
        Arguments of the task, and fields of :class:`~scgpt_tools.train.FitConfig` to change, such as ``epochs=5``,
        ``head_lr=1e-3``, ``patience=3``, ``monitor="validation_accuracy", mode="max"`` or ``accelerator="cpu"``.

    Returns
    -------
    A new model with the best weights on the validation cells.  Its ``history`` is a table with one row per epoch.

    Raises
    ------
    ImportError
        If Lightning is not installed.
    KeyError
        If a column or layer is absent; the message lists what is there.
    TypeError
        For an argument that the task does not know.
    ValueError
        For an unknown task, or if an argument that the task needs is missing.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(
    ...     "scgpt-demo", reference, task="annotate", label="cell_type", epochs=5
    ... )  # doctest: +SKIP
    >>> model.history[["train_loss", "validation_accuracy"]]  # doctest: +SKIP
    >>> model.save("annotator")  # doctest: +SKIP
    """
    return lookup(FINETUNING, task, "task")(model, adata, **arguments)
