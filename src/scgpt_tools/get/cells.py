"""What was found about cells, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._keys import AnnotateKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def annotation(adata: AnnData, key: str = AnnotateKeys.key) -> pd.DataFrame:
    """Class and confidence of each cell, from :func:`scgpt_tools.tl.annotate` or :func:`scgpt_tools.tl.map_reference`.

    Parameters
    ----------
    adata
        Annotated cells.
    key
        Key of the result: ``key_added`` of the function that wrote it.

    Returns
    -------
    One row a cell with ``class``, ``confidence``, and the class that came second with its probability
    (``second_class``, ``second_probability``; missing where there is one class only), and ``distance`` and ``p_value``
    where the result has them.

    Raises
    ------
    KeyError
        If there is no such result; the message lists what is there.
    """
    check_arguments(annotation, locals())
    keys, shares = AnnotateKeys(key), class_probabilities(adata, key)
    second: Any = pd.Series(pd.NA, index=shares.index)
    second_share = np.full(len(shares), np.nan, dtype=np.float32)
    if shares.shape[1] > 1:
        place = np.argsort(-shares.to_numpy(), axis=1, kind="stable")[:, 1]
        second, second_share = (
            shares.columns.to_numpy()[place],
            np.take_along_axis(shares.to_numpy(), place[:, None], 1)[:, 0],
        )
    how_strange = {"distance": keys.obs_distance, "p_value": keys.obs_p_value}
    return pd.DataFrame(
        {
            "class": adata.obs[check_key(adata.obs, keys.obs, "obs")],
            "confidence": adata.obs[check_key(adata.obs, keys.obs_confidence, "obs")],
            "second_class": second,
            "second_probability": second_share,
            **{name: adata.obs[column] for name, column in how_strange.items() if column in adata.obs},
        },
        index=adata.obs_names,
    )


def class_probabilities(adata: AnnData, key: str = AnnotateKeys.key) -> pd.DataFrame:
    """Probability of every class in each cell, or its share of the votes.

    Parameters
    ----------
    adata
        Annotated cells.
    key
        Key of the result of :func:`scgpt_tools.tl.annotate` or :func:`scgpt_tools.tl.map_reference`.

    Returns
    -------
    One row a cell and one column a class.

    Raises
    ------
    KeyError
        If there is no such result; the message lists what is there.
    """
    check_arguments(class_probabilities, locals())
    keys = AnnotateKeys(key)
    record = adata.uns[check_key(adata.uns, keys.uns, "uns")]
    if not isinstance(record, Mapping) or "classes" not in record:
        raise KeyError(absent("classes", record if isinstance(record, Mapping) else (), f"key in `uns[{key!r}]`:"))
    values = np.asarray(adata.obsm[check_key(adata.obsm, keys.obsm, "obsm")])
    return pd.DataFrame(values, index=adata.obs_names, columns=pd.Index(list(record["classes"]), dtype=object))


def provenance(adata: AnnData | MuData) -> pd.DataFrame:
    """Say which model and which settings each result in ``uns`` came from.

    Parameters
    ----------
    adata
        A table with results of ``tl`` or ``pp``.

    Returns
    -------
    One row a result, by its key: ``model``, ``checksum`` and ``family``; ``n_matched`` genes of ``n_features``; ``rng``,
    the number that was drawn with; and ``params``, all settings as one text.  Missing where a result has no such thing.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> adata = sct.datasets.pbmc_demo()[:50].copy()
    >>> sct.tl.embed(adata, "scgpt-demo", show_progress=False)
    >>> sct.get.provenance(adata)[["model", "rng"]]
                  model rng
    X_scGPT  scgpt-demo   0
    """
    check_arguments(provenance, locals())
    rows = {name: _row(record) for name, record in adata.uns.items() if _is_ours(record)}
    columns = ["model", "checksum", "family", "n_matched", "n_features", "rng", "params"]
    # As objects: a row without a number would make floats of the others.
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object)


def _is_ours(record: Any) -> bool:
    return isinstance(record, Mapping) and isinstance(record.get("params"), Mapping)


def _row(record: Mapping[str, Any]) -> list[Any]:
    params = {name: value for name, value in record["params"].items() if name != "rng"}
    model, genes = (own if isinstance(own := record.get(name), Mapping) else {} for name in ("model", "genes"))
    text = ", ".join(f"{name}={value!r}" for name, value in params.items())
    found = [
        model.get("name"),
        model.get("checksum"),
        model.get("family"),
        genes.get("n_matched"),
        genes.get("n_features"),
    ]
    return [*found, record["params"].get("rng"), text]
