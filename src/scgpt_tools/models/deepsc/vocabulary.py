"""DeepSC's functions on vocabularies, under their names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools.tokens.gene_tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

SPECIALS = ("<pad>", "<cls>", "<mlm>")


def build_vocab_from_csv(
    csv_path: str | PathLike[str], special_tokens: Sequence[str] = SPECIALS
) -> tuple[dict[str, int], dict[int, str], str, int]:
    """Number genes by a table in which several names may share an id.

    Parameters
    ----------
    csv_path
        CSV with the columns ``feature_name`` and ``id``, counted from 0.
    special_tokens
        The first is padding, 0; the others follow the largest id.

    Returns
    -------
    Id of each name, which is that of the table and 1; name of each id, the last of several; the padding token and its id.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is absent, or an id is no whole number of at least 0.
    """
    check_arguments(build_vocab_from_csv, locals())
    if not special_tokens:
        raise ValueError("Expected at least the token of padding in `special_tokens`, found none.")
    pad, *others = special_tokens
    ids = {pad: 0} | {name: row + 1 for name, row in read_rows(csv_path).items()}
    after = max(ids.values()) + 1
    ids |= {token: after + number for number, token in enumerate(others)}
    return ids, {number: name for name, number in ids.items()}, pad, 0


def build_gene_ids_for_dataset(genes: Sequence[str], vocab2id: Mapping[str, int], pad_token: str = "<pad>") -> Tensor:
    """Look up the genes of a data set by their exact names; how many were found is logged.

    Parameters
    ----------
    genes
        Name of each column.
    vocab2id
        As :func:`build_vocab_from_csv` returns it.
    pad_token
        What columns without an id become.

    Returns
    -------
    (genes,) int64.

    Raises
    ------
    ValueError
        If no gene was found, or the vocabulary has no token of padding.
    """
    check_arguments(build_gene_ids_for_dataset, locals())
    if pad_token not in vocab2id:
        raise ValueError(f"Expected the token of padding {pad_token!r} in the vocabulary, found none of that name.")
    report = matching_report(genes, vocab2id)
    if not report["matched"]:
        raise ValueError(
            f"Expected genes of the vocabulary, found none of {report['total']}, such as {list(genes[:3])}. Names are "
            "compared as they are written; Ensembl ids have to become symbols first."
        )
    logger.info("Genes matched: %d of %d.", report["matched"], report["total"])
    return torch.tensor([vocab2id.get(gene, vocab2id[pad_token]) for gene in genes], dtype=torch.int64)


def matching_report(genes: Sequence[str], vocab2id: Mapping[str, int]) -> dict[str, float]:
    """How many genes a vocabulary knows: ``total``, ``matched``, ``unmatched``, ``share`` and ``vocab_size``."""
    matched = sum(gene in vocab2id for gene in genes)
    total = len(genes)
    share = matched / total if total else 0.0
    return {
        "total": total,
        "matched": matched,
        "unmatched": total - matched,
        "share": share,
        "vocab_size": len(vocab2id),
    }


def name2col(genes: Sequence[str]) -> dict[str, int]:
    """Column of each gene; of several columns of a name the last."""
    return {gene: number for number, gene in enumerate(genes)}


def map_raw_id_to_vocab_id(raw_ids: Tensor | NDArray[np.int64], gene_ids: Tensor | NDArray[np.int64]) -> Tensor:
    """Token ids of column numbers, on the device of these."""
    raw = torch.as_tensor(raw_ids)
    return torch.as_tensor(gene_ids).to(raw.device)[raw].to(raw.dtype)


def expressed_cells(
    X: Any,
    names: Sequence[str],
    rows: Sequence[tuple[str, int]],
    *,
    labels: Sequence[str] | None = None,
    type2id: Mapping[str, int] | None = None,
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """Expressed genes of each cell, as the collators take them.

    Parameters
    ----------
    X
        (cells, columns) expression, dense or sparse.
    names
        (columns,) gene of each.
    rows
        Names and ids of a table of genes, counted from 0; of a name that is there twice the first counts.
    labels
        (cells,) class of each.
    type2id
        Number of each class; ``None`` numbers them in alphabetical order.

    Returns
    -------
    For each cell ``genes``, ``expressions`` and, with labels, ``cell_type_id``, in the order of the columns, and the ids
    of the columns that were found, ascending.

    Raises
    ------
    ValueError
        If no column is in the table, or a class has no number.
    """
    known: dict[str, int] = {}
    for name, row in rows:
        known.setdefault(name, row)
    columns = np.array([number for number, name in enumerate(names) if name in known], dtype=np.int64)
    if not columns.size:
        raise ValueError(f"Expected genes of the table, found none of {len(names)}, such as {list(names[:3])}.")
    ids = np.array([known[names[number]] for number in columns], dtype=np.int64)
    matrix = X[:, columns]
    matrix = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
    if labels is not None:
        type2id = {name: number for number, name in enumerate(sorted(set(labels)))} if type2id is None else type2id
        absent = sorted(set(labels) - set(type2id))
        if absent:
            raise ValueError(f"Expected a number for every class, found none for {absent[:5]}.")
    cells = []
    for number, row in enumerate(matrix):
        there = row != 0
        cell: dict[str, Any] = {"genes": ids[there], "expressions": row[there].astype(np.float32)}
        if labels is not None and type2id is not None:
            cell["cell_type_id"] = type2id[labels[number]]
        cells.append(cell)
    return cells, np.sort(ids)
