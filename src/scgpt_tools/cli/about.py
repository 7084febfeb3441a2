"""Commands about the package itself: its models, a demonstration, and what a report of a bug needs."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from scgpt_tools._console import print_rows
from scgpt_tools.settings import settings


def models(*, format: Literal["table", "json"] = "table") -> None:
    """List the models that can be loaded by name.

    Parameters
    ----------
    format
        A short table, or all that is known as JSON: repository, licences, citation and source as well.
    """
    # Imports torch.
    from scgpt_tools.models.zoo import available

    table = available()
    if format == "json":
        print(table.reset_index().to_json(orient="records", indent=2))
        return
    titles = {"training_data": "TRAINED ON", "recommended_for": "RECOMMENDED FOR", "weights_licence": "LICENCE"}
    print_rows([("NAME", *titles.values()), *table[list(titles)].itertuples()])


def demo(*, output: str = "demo_output", model: str = "scgpt-demo", rng: int = 0) -> None:
    """Embed bundled blood cells with the bundled model, offline; score and draw the result beside PCA.

    Parameters
    ----------
    output
        Folder for the scores, the figure and the cells.
    model
        Another model: a released name, a repository of the Hugging Face Hub, or a folder.
    rng
        Whole number, generator or ``None`` (fresh entropy) for everything that is drawn.
    """
    # Imported by name like the function of every command, which is of the same layer here.
    print(import_module("scgpt_tools.demo").run_demo(output, model=model, rng=rng))


def info() -> None:
    """Show versions, devices, attention backends and settings, for reports of bugs."""
    import torch  # slow to import
    from session_info2 import session_info  # for this command only

    import scgpt_tools.tl  # noqa: F401 - brings in what the report is about
    from scgpt_tools._threads import usable_threads  # imports torch

    lines = repr(session_info(cpu=True, dependencies=True)).splitlines()
    versions = sorted(
        {tuple(line.split("\t")) for line in lines} - {("----", "----")}, key=lambda row: row[0].casefold()
    )
    devices = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    modules = {"sdpa": "torch", "eager": "torch", "varlen": "torch", "flash": "flash_attn"}
    backends = [name for name, module in modules.items() if find_spec(module) is not None]
    chosen = [(f"settings.{field.name}", str(getattr(settings, field.name))) for field in fields(settings)]
    rows = [("devices", ", ".join([*devices, f"cpu ({usable_threads()} threads)"]))]
    print_rows([*versions, *rows, ("attention", ", ".join(backends)), *chosen])
