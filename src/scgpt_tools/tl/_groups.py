"""Groups of cells that results are averaged over."""

from __future__ import annotations

from typing import Any

import pandas as pd

from scgpt_tools._validate import check_key_name
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import read_classes

ALL = "all cells"
"""Name of the only group where no column names any."""


def read_groups(obs: pd.DataFrame, groupby: str | None) -> pd.Categorical[Any]:
    """Group of each cell; cells without one are in none.

    Names of groups become keys, so a slash, which files take for a folder, becomes a dash there, with a warning.
    """
    if groupby is None:
        return pd.Categorical([ALL] * len(obs))
    groups = read_classes(obs, groupby, allow_unknown=True)
    names = [name.replace("/", "-") for name in groups.names]
    changed = [(name, new) for name, new in zip(groups.names, names, strict=True) if name != new]
    for name in names:
        check_key_name(f"a group of obs[{groupby!r}]", name)
    if twice := sorted({new for _, new in changed if names.count(new) > 1}):
        raise ValueError(
            f"Expected groups of obs[{groupby!r}] that differ with '-' in place of '/', which keys cannot hold, found "
            f"{twice[0]!r} twice. Rename one."
        )
    if changed:
        listing = ", ".join(f"{name!r} as {new!r}" for name, new in changed[:5])
        warn_user(f"Expected groups of obs[{groupby!r}] without '/', which keys cannot hold; writing {listing}.")
    return pd.Categorical.from_codes(groups.codes, pd.Index(names))
