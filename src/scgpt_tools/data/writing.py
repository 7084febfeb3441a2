"""What is checked of a table before work begins whose result is to be written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData
    from mudata import MuData


def check_writable(adata: AnnData | MuData, table: AnnData | MuData, *, copy: bool) -> None:
    """What anndata could not write or copy is refused before any work is done."""
    backed = bool(getattr(adata, "isbacked", False)) or table.isbacked
    if backed and (copy or table.is_view):
        what = "a backed one" if copy else "a view of a backed one"
        raise ValueError(f"Expected a table that can be changed or copied, found {what}. Pass `adata.to_memory()`.")


def check_new_key(
    table: AnnData | MuData, slot: str, key: str, *, default: str, entry: str | None = None, beside: Sequence[str] = ()
) -> None:
    """Refuse to replace what another function has written under a name, or what the user keeps there.

    ``slot``: where the result goes: ``"obs"``, ``"obsm"``, ``"varm"`` or ``"layers"``; its record goes to ``uns``.
    ``beside``: what else is written to the slot.
    """
    if key == default:
        return
    entry = key if entry is None else entry
    there, record = entry in getattr(table, slot), table.uns.get(key)
    if there and is_record(record):
        return
    taken = [name for name in (entry, *beside) if name in getattr(table, slot)]
    if taken or record is not None:
        place = f"{slot}[{taken[0]!r}]" if taken else f"uns[{key!r}]"
        raise ValueError(
            f"Expected `key_added` to be a name that is free or an earlier result of this function, found {place}, "
            "which something else has written. Choose another name, or delete it first."
        )


def is_record(value: Any) -> bool:
    """Whether something in ``uns`` is the record of a result of ours."""
    return hasattr(value, "keys") and ("model" in value or "params" in value)
