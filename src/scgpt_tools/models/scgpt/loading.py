"""Take over whatever weights fit, and say what did not."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.models.formats.rename import strip_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scgpt_tools.models.scgpt.base import ScGPTModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialLoad:
    """What became of each tensor, by scGPT's names in torch's spelling."""

    loaded: tuple[str, ...]
    other_shape: tuple[str, ...]
    """In both, but of another shape; the model keeps its own."""
    unexpected: tuple[str, ...]
    """In the file only."""
    missing: tuple[str, ...]
    """In the model only."""

    def __str__(self) -> str:
        counts = (len(self.loaded), len(self.other_shape), len(self.unexpected), len(self.missing))
        return "{} loaded, {} of another shape, {} unexpected, {} missing".format(*counts)


def load_pretrained(
    model: ScGPTModule,
    pretrained_params: Mapping[str, Tensor],
    strict: bool = False,
    prefix: str | Sequence[str] | None = None,
    verbose: bool = True,
) -> PartialLoad:
    """Load the tensors of a checkpoint that a model has a place for.

    Parameters
    ----------
    model
        One of the classes with scGPT's names; changed in place.
    pretrained_params
        State dict in any of scGPT's spellings, with or without ``module.``.
    strict
        Refuse unexpected names and other shapes.  Missing names never raise, as in the original.
    prefix
        Load only names that start so (in torch's spelling); one or several.
    verbose
        Log what was loaded and what was not.

    Returns
    -------
    What was loaded and what was not; the original says nothing.

    Raises
    ------
    ValueError
        With ``strict``, if a tensor does not fit.
    """
    theirs = {_torch_spelling(key): tensor for key, tensor in strip_module(pretrained_params).items()}
    if prefix is not None:
        prefixes = (prefix,) if isinstance(prefix, str) else tuple(prefix)
        theirs = {key: tensor for key, tensor in theirs.items() if key.startswith(prefixes)}
    state = model.state_dict()
    fitting = {key: tensor for key, tensor in theirs.items() if key in state and state[key].shape == tensor.shape}
    report = PartialLoad(
        loaded=tuple(sorted(fitting)),
        other_shape=tuple(sorted(key for key in theirs if key in state and key not in fitting)),
        unexpected=tuple(sorted(theirs.keys() - state.keys())),
        missing=tuple(sorted(state.keys() - theirs.keys())),
    )
    if strict and (report.other_shape or report.unexpected):
        raise ValueError(f"Expected every tensor to fit, found {report}: {report.other_shape + report.unexpected}.")
    model.load_state_dict(state | fitting)
    if verbose:
        logger.info("Weights taken over: %s.", report)
    return report


def _torch_spelling(key: str) -> str:
    for spelling in ("._impl.Wqkv.", ".Wqkv."):
        key = key.replace(spelling, ".in_proj_")
    return key.replace("._impl.", ".")
