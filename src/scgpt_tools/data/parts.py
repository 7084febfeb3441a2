"""Columns of ``obs`` that say which part of a data set a cell belongs to: training, validation or test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_hashable

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

PARTS = ("train", "val", "test")
# Words that people write for a part; nothing is taken for a part because of it, but the message can say what to do.
_MEANT = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_SHOWN = 10


def read_parts(obs: pd.DataFrame, key: str, *, also: Collection[str] = (), others: bool = False) -> NDArray[Any]:
    """Read the part of every cell.

    ``obs``: ``adata.obs``; not changed; ``key``: column as :func:`scgpt_tools.pp.cell_split` and
    :func:`scgpt_tools.pp.perturbation_split` write it.  Returns (cells,) ``"train"``, ``"val"`` or ``"test"``, or one
    of the further words; ``None`` for a cell of no part, where the column has a missing value or a blank.
    """
    if key not in obs.columns:
        raise KeyError(absent(key, obs.columns, "key in `obs`:"))
    column = pd.Series(np.asarray(obs[key]), dtype=object)
    check_hashable(f"obs[{key!r}]", column)
    codes, kinds = pd.factorize(column)
    known = (*PARTS, *also)
    wrong = [kind for kind in kinds if not _is_fine(kind, known, others=others)]
    if wrong:
        raise ValueError(_message(key, wrong, kinds, np.bincount(codes[codes >= 0], minlength=len(kinds)), known))
    words = [None if not kind.strip() else kind for kind in kinds]
    if not any(words):
        raise ValueError(f"Expected {_listing(known)} in obs[{key!r}], found no part of any cell.")
    # The last entry is that of missing values, whose code is -1.
    return np.array([*words, None], dtype=object)[codes]


def _is_fine(kind: Any, known: Collection[str], *, others: bool) -> bool:
    if not isinstance(kind, str):
        return False
    return kind in known or not kind.strip() or (others and kind.strip().casefold() not in _MEANT)


def _message(key: str, wrong: list[Any], kinds: Any, counts: NDArray[np.int64], known: Collection[str]) -> str:
    size = dict(zip(kinds, counts.tolist(), strict=True))
    found = ", ".join(f"{kind!r} ({size[kind]:,} cells)" for kind in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    meant = {kind: _MEANT[kind.strip().casefold()] for kind in wrong if _is_meant(kind)}
    advice = f"Rename them: adata.obs[{key!r}].replace({meant})." if meant else "Rename them, or name another column."
    return (
        f"Expected {_listing(known)} in obs[{key!r}], or nothing for a cell of no part, found {found}{more}. {advice}"
    )


def _is_meant(kind: Any) -> bool:
    return isinstance(kind, str) and kind.strip().casefold() in _MEANT


def _listing(known: Collection[str]) -> str:
    *first, last = map(repr, known)
    return f"{', '.join(first)} or {last}"
