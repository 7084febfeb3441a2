"""Files that commands write beside models and tables of cells: scores, and what is fitted in a moment."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from scgpt_tools._files import as_path, replace_file
from scgpt_tools._outputs import check_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

logger = logging.getLogger("scgpt_tools.cli")


def _csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def _tsv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, sep="\t")


def _json(table: pd.DataFrame, path: Path) -> None:
    rows = json.loads(table.to_json(orient="records"))
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def check_report(output: str, *, overwrite: bool, endings: Sequence[str], what: str = "scores") -> Path:
    """A file for a result, which is refused before any work where it could not be written."""
    path = as_path("output", output)
    if path.suffix not in endings:
        raise ValueError(f"Expected a file for {what} that ends in {' or '.join(endings)}, found {output!r}.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"Expected an output that does not exist yet, found {output!r}. Pass --overwrite to replace it."
        )
    check_place(path)
    return path


def table_writer(output: str | None, *, overwrite: bool) -> Callable[[pd.DataFrame], None]:
    """What writes a table of scores, if it is to be written."""
    if output is None:
        return lambda table: None
    path = check_report(output, overwrite=overwrite, endings=tuple(_WRITERS))

    def write(table: pd.DataFrame) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda aside: _WRITERS[path.suffix](table, aside))
        logger.info("Wrote the scores to %s.", path)

    return write


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {".csv": _csv, ".tsv": _tsv, ".json": _json}
