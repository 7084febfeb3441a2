"""Take over whatever weights fit, and say what did not."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from scgpt_tools.models.scgpt.names import in_torch_spelling
from scgpt_tools.models.transfer import Transfer, left_behind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from scgpt_tools.models.scgpt.base import ScGPTModule

logger = logging.getLogger(__name__)

# What a network cannot do without; everything else may start from scratch.
_CORE = ("encoder.", "value_encoder.", "transformer_encoder.")


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
    The model; its ``load_report`` is a :class:`~scgpt_tools.models.transfer.Transfer` by scGPT's names in
    torch's spelling.

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
    report = Transfer(
        used={key: (key,) for key in sorted(fitting)},
        missing=tuple(sorted(state.keys() - fitting.keys())),
        dropped=left_behind(sorted(theirs.keys() - fitting.keys()), theirs, state),
    )
    if strict and report.dropped:
        raise ValueError(f"Expected every tensor to fit, found some that do not: {', '.join(report.dropped)}. {report}")
    model.load_state_dict(state | fitting)
    model.load_report = report
    lost = [key for key in report.dropped if key.startswith(_CORE)]
    lost += [key for key in report.missing if key.startswith(_CORE) and not prefixes and key not in lost]
    if lost:
        warnings.warn(
            f"Expected the encoders' tensors of the file and of the model to be the same, found {len(lost)} that are not "
            f"or have another shape: {', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}. The model keeps its own; "
            "compare the numbers of tokens and layers.",
            stacklevel=2,
        )
    if verbose:
        logger.info("%s", report)
    return model
