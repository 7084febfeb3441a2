"""Take over whatever weights fit, and say what did not."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.models.scgpt.names import in_torch_spelling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scgpt_tools.models.scgpt.base import ScGPTModule

logger = logging.getLogger(__name__)

# What a network cannot do without; everything else may start from scratch.
_CORE = ("encoder.", "value_encoder.", "transformer_encoder.")


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
) -> ScGPTModule:
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
        Load only names that start so (in torch's spelling); one or several.  None at all, or an empty list, loads
        everything.
    verbose
        Log what was loaded and what was not.

    Returns
    -------
    The model; its ``load_report`` is a :class:`~scgpt_tools.models.scgpt.loading.PartialLoad`.

    Raises
    ------
    ValueError
        With ``strict``, if a tensor does not fit.

    Warns
    -----
    UserWarning
        If tensors of the encoders find no place or, without ``prefix``, are missing: the model would go on from random
        ones.  Those of decoders are tasks' own, and are only logged.
    """
    theirs = in_torch_spelling(pretrained_params)
    prefixes = (prefix,) if isinstance(prefix, str) else tuple(prefix or ())
    if prefixes:
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
    model.load_report = report
    lost = [key for key in report.other_shape + report.unexpected if key.startswith(_CORE)]
    lost += [key for key in report.missing if key.startswith(_CORE) and not prefixes]
    if lost:
        warnings.warn(
            f"Expected the encoders' tensors of the file and of the model to be the same, found {len(lost)} that are not "
            f"or have another shape: {', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}. The model keeps its own; "
            "compare the numbers of tokens and layers.",
            stacklevel=2,
        )
    if verbose:
        logger.info("Weights taken over: %s.", report)
    return model
