"""The names that scGPT users know, with the originals' arguments, results and tensor names.

Each class turns its arguments into a :class:`~scgpt_tools.models.config.ModelConfig`, its inputs into a
:class:`~scgpt_tools.tokens.TokenBatch` and a :class:`~scgpt_tools.nn.output.CellOutput` into a dictionary.  The network
is :class:`~scgpt_tools.models.CellModel`; there is no second implementation.  ``state_dict`` and ``load_state_dict``
speak the originals' names, so scripts that load or save scGPT weights work unchanged.
"""

from __future__ import annotations

from scgpt_tools.models.scgpt.generator import TransformerGenerator
from scgpt_tools.models.scgpt.loading import load_pretrained
from scgpt_tools.models.scgpt.multiomic import MultiOmicTransformerModel
from scgpt_tools.models.scgpt.transformer import TransformerModel

__all__ = ["MultiOmicTransformerModel", "TransformerGenerator", "TransformerModel", "load_pretrained"]
