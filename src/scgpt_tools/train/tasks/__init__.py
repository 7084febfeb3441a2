"""What a model can be fine-tuned for, one file a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgpt_tools.train.tasks.annotate import Annotate
from scgpt_tools.train.tasks.integrate import Integrate
from scgpt_tools.train.tasks.multiomic import Multiomic
from scgpt_tools.train.tasks.perturb import Perturb
from scgpt_tools.train.tasks.regress import Regress

if TYPE_CHECKING:
    from scgpt_tools.train.tasks.base import Task

TASKS: dict[str, type[Task[Any]]] = {
    "annotate": Annotate,
    "regress": Regress,
    "integrate": Integrate,
    "multiomic": Multiomic,
    "perturb": Perturb,
}
