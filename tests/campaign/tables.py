"""Damaged tables: what is wrong with each, which part it is in, and what a function that reads this part has to do.

A function that does not read the part has to come to the result of the undamaged table, or to refuse it clearly.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

import scgpt_tools as sct
from campaign import inputs
from campaign.subjects import SUBJECTS, Subject, expected, tables_in
from campaign.verdicts import Outcome, Verdict, difference, judge, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

Answer = Literal["refuse", "same", "finite"]
"""Refuse it or at least warn; come to the result of the undamaged table; come to finite numbers or refuse."""


@dataclass(frozen=True)
class Damage:
    """Something wrong with a table."""

    change: Callable[[AnnData], AnnData | None]
    """Changes a table in place or returns another."""
    answer: Answer
    fatal: bool = False
    """Whether it can end the process, so that it has to be tried in another one."""


def _value(value: float) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.X.data[[2, -1]] = value

    return change


def _matrix(make: Callable[[Any], Any]) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.X = make(adata.X)

    return change


def _part(name: str, place: int, value: int) -> Callable[[AnnData], None]:
    """Damage the column numbers or row ends of the sparse matrix itself."""

    def change(adata: AnnData) -> None:
        getattr(adata.X, name)[place] = value

    return change


def _read_only(adata: AnnData) -> None:
    for array in (adata.X.data, adata.X.indices, adata.X.indptr):
        array.flags.writeable = False


def _dense_read_only(adata: AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X.flags.writeable = False


def _unsorted(adata: AnnData) -> None:
    X = adata.X
    for row in range(X.shape[0]):
        here = slice(X.indptr[row], X.indptr[row + 1])
        X.data[here], X.indices[here] = X.data[here][::-1].copy(), X.indices[here][::-1].copy()
    X.has_sorted_indices = False


def _twice(adata: AnnData) -> None:
    """Each value as a sum of two."""
    coo = adata.X.tocoo()
    rows, columns = np.repeat(coo.row, 2), np.repeat(coo.col, 2)
    order = np.argsort(rows, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=coo.shape[0]))])
    adata.X = sp.csr_matrix((np.repeat(coo.data / 2, 2)[order], columns[order], ends), shape=coo.shape)


def _explicit_zeros(adata: AnnData) -> None:
    dense = adata.X.toarray()
    rows, columns = np.indices(dense.shape).reshape(2, -1)
    ends = np.arange(0, dense.size + 1, dense.shape[1])
    adata.X = sp.csr_matrix((dense[rows, columns], columns, ends), shape=dense.shape)


def _masked(adata: AnnData) -> None:
    dense = adata.X.toarray()
    adata.X = np.ma.masked_array(dense, mask=dense > np.median(dense[dense > 0]))


def _view(adata: AnnData) -> AnnData:
    return adata[adata.obs_names, adata.var_names]


def _empty_cell(adata: AnnData) -> None:
    X = adata.X.tolil()
    X[0] = 0
    adata.X = X.tocsr()


def _names(slot: str, change: Callable[[list[str]], list[Any]]) -> Callable[[AnnData], None]:
    def rename(adata: AnnData) -> None:
        setattr(adata, f"{slot}_names", pd.Index(change(list(getattr(adata, f"{slot}_names")))))

    return rename


MATRIX: dict[str, Damage] = {
    "NaN": Damage(_value(np.nan), "refuse"),
    "infinite": Damage(_value(np.inf), "refuse"),
    "minus infinite": Damage(_value(-np.inf), "refuse"),
    "negative": Damage(_value(-1.0), "refuse"),
    "huge": Damage(_value(3e38), "finite"),
    "all zero": Damage(_matrix(lambda X: X * 0), "finite"),
    "an empty cell": Damage(_empty_cell, "finite"),
    "no matrix": Damage(_matrix(lambda X: None), "refuse"),
    "text": Damage(_matrix(lambda X: X.toarray().astype(str)), "refuse"),
    "objects": Damage(_matrix(lambda X: X.toarray().astype(object)), "finite"),
    "complex": Damage(_matrix(lambda X: X.astype(complex)), "refuse"),
    "dates": Damage(_matrix(lambda X: X.toarray().astype("datetime64[s]")), "refuse"),
    "masked": Damage(_masked, "refuse"),
    "bool": Damage(_matrix(lambda X: X.astype(bool)), "finite"),
    "int8": Damage(_matrix(lambda X: X.astype(np.int8)), "finite"),
    "float16": Damage(_matrix(lambda X: X.toarray().astype(np.float16)), "finite"),
    "float64": Damage(_matrix(lambda X: X.astype(np.float64)), "same"),
    "big endian": Damage(_matrix(lambda X: X.toarray().astype(">f4")), "same"),
    "dense": Damage(_matrix(lambda X: X.toarray()), "same"),
    "by columns": Damage(_matrix(lambda X: np.asfortranarray(X.toarray())), "same"),
    "csc": Damage(_matrix(lambda X: X.tocsc()), "same"),
    "sparse array": Damage(_matrix(sp.csr_array), "same"),
    "coo": Damage(_matrix(lambda X: X.tocoo()), "finite"),
    "read-only": Damage(_read_only, "same"),
    "dense, read-only": Damage(_dense_read_only, "same"),
    "unsorted": Damage(_unsorted, "same"),
    "values in two parts": Damage(_twice, "same"),
    "explicit zeros": Damage(_explicit_zeros, "same"),
    "a view": Damage(_view, "same"),
    "a column number below 0": Damage(_part("indices", 3, -1), "refuse", fatal=True),
    "a column number beyond": Damage(_part("indices", 3, 10**6), "refuse", fatal=True),
    "a column number just beyond": Damage(_part("indices", -1, 1000), "refuse", fatal=True),
    "row ends that fall": Damage(_part("indptr", 2, 0), "refuse", fatal=True),
    "row ends beyond": Damage(_part("indptr", -1, 10**6), "refuse", fatal=True),
}
"""Damages of ``X``."""

GENES: dict[str, Damage] = {
    "twice the same gene": Damage(_names("var", lambda names: [names[0], names[0], *names[2:]]), "refuse"),
    "no known gene": Damage(_names("var", lambda names: [f"other{place}" for place in range(len(names))]), "refuse"),
    "numbers as names": Damage(_names("var", lambda names: list(range(len(names)))), "refuse"),
    "one blank gene": Damage(_names("var", lambda names: ["", *names[1:]]), "finite"),
}
"""Damages of the names of genes."""

OTHERWISE: dict[str, Answer] = {"X": "same", "genes": "finite", "cells": "finite"}
"""What a function has to do that does not read the part; names of results are those of the table."""

CELLS: dict[str, Damage] = {
    "twice the same cell": Damage(_names("obs", lambda names: [names[0], names[0], *names[2:]]), "finite"),
    "all cells the same name": Damage(_names("obs", lambda names: ["cell"] * len(names)), "finite"),
    "blank names": Damage(_names("obs", lambda names: ["", " ", *names[2:]]), "finite"),
}
"""Damages of the names of cells."""

SHAPES: dict[str, Damage] = {
    "no cells": Damage(lambda adata: adata[:0].copy(), "finite"),
    "no genes": Damage(lambda adata: adata[:, :0].copy(), "finite"),
    "one cell": Damage(lambda adata: adata[:1].copy(), "finite"),
    "one gene": Damage(lambda adata: adata[:, :1].copy(), "finite"),
}
"""Tables with too little in them."""


def _labels(change: Callable[[pd.Series[Any]], Any]) -> Callable[[AnnData, str], None]:
    def relabel(adata: AnnData, column: str) -> None:
        adata.obs[column] = change(adata.obs[column])

    return relabel


def _first(value: Any) -> Callable[[AnnData, str], None]:
    def change(labels: pd.Series[Any]) -> pd.Series[Any]:
        changed = labels.astype(object)
        changed.iloc[0] = value
        return changed

    return _labels(change)


def _drop(adata: AnnData, column: str) -> None:
    del adata.obs[column]


def _two_columns(adata: AnnData, column: str) -> None:
    adata.obs.columns = [column] * adata.obs.shape[1]


def _spare_category(labels: pd.Series[Any]) -> pd.Series[Any]:
    return labels.astype("category").cat.add_categories("ZZZ unused")


def _blank_category(labels: pd.Series[Any]) -> pd.Series[Any]:
    return labels.astype("category").cat.add_categories(["", " "])


COLUMNS: dict[str, tuple[Callable[[AnnData, str], None], Answer]] = {
    "absent": (_drop, "refuse"),
    "all NaN": (_labels(lambda labels: np.nan), "refuse"),
    "all blank": (_labels(lambda labels: " "), "refuse"),
    "one NaN": (_first(np.nan), "finite"),
    "one None": (_first(None), "finite"),
    "one pandas.NA": (_first(pd.NA), "finite"),
    "one blank": (_first(""), "finite"),
    "one of white space": (_first("  "), "finite"),
    "one number": (_first(5), "finite"),
    "one list": (_first(["a"]), "finite"),
    "numbers": (_labels(lambda labels: np.arange(len(labels)) % 3), "finite"),
    "white space around some": (
        _labels(lambda labels: [f"{label} " if place % 2 else label for place, label in enumerate(labels)]),
        "refuse",
    ),
    "objects": (_labels(lambda labels: labels.astype(object)), "same"),
    "strings": (_labels(lambda labels: labels.astype("string")), "same"),
    "a category unused": (_labels(_spare_category), "same"),
    "blank categories unused": (_labels(_blank_category), "same"),
    "columns of one name": (_two_columns, "refuse"),
}
"""Damages of a column of ``obs``."""


def _embedding(change: Callable[[np.ndarray], Any]) -> Callable[[AnnData, str], None]:
    def replace(adata: AnnData, key: str) -> None:
        adata.obsm[key] = change(np.array(adata.obsm[key]))

    return replace


def _with(value: float) -> Callable[[AnnData, str], None]:
    def change(array: np.ndarray) -> np.ndarray:
        array[1, 0] = value
        return array

    return _embedding(change)


EMBEDDINGS: dict[str, tuple[Callable[[AnnData, str], None], Answer]] = {
    "absent": (lambda adata, key: adata.obsm.pop(key), "refuse"),
    "NaN": (_with(np.nan), "refuse"),
    "infinite": (_with(np.inf), "refuse"),
    "no columns": (_embedding(lambda array: array[:, :0]), "refuse"),
    "three dimensions": (_embedding(lambda array: array[:, :, None]), "refuse"),
    "text": (_embedding(lambda array: array.astype(str)), "refuse"),
    "complex": (_embedding(lambda array: array.astype(complex)), "refuse"),
    "masked": (_embedding(lambda array: np.ma.masked_greater(array, 0.0)), "refuse"),
    "float64": (_embedding(lambda array: array.astype(np.float64)), "same"),
    "sparse": (_embedding(sp.csr_matrix), "finite"),
}
"""Damages of an entry of ``obsm``."""


@dataclass(frozen=True)
class DamagedTable:
    """A subject and what is wrong with its table."""

    subject: Subject
    where: str
    damage: str
    change: Callable[[AnnData], AnnData | None]
    answer: Answer
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.where}-{self.damage}"

    def table(self) -> AnnData:
        """The damaged table."""
        table = self.subject.table()
        return changed if (changed := self.change(table)) is not None else table


def damaged() -> Iterator[DamagedTable]:
    """Every damage of the table of every subject."""
    parts = {"X": MATRIX, "genes": GENES, "cells": CELLS}
    for subject in SUBJECTS.values():
        if subject.table not in (inputs.cells, inputs.screen, inputs.plain_screen) or subject.name in LEFT_TO_OTHERS:
            continue
        for part, damages in parts.items():
            for name, damage in damages.items():
                if _not_written(subject, name):
                    continue
                answer = damage.answer if part in subject.reads else OTHERWISE[part]
                # Every column of a gene gets the vector of the gene.
                if (subject.name, name) == ("tl.embed_genes", "twice the same gene"):
                    answer = "finite"
                yield DamagedTable(subject, part, name, damage.change, answer, damage.fatal)
        for name, damage in SHAPES.items():
            yield DamagedTable(subject, "shape", name, damage.change, damage.answer)
        for column in subject.columns:
            for name, (change, answer) in COLUMNS.items():
                if _not_written(subject, name):
                    continue
                # A label of a condition is read as a set of genes, which white space is no part of.
                stripped = column == "condition" and name == "white space around some"
                # A plot shows the labels that there are.
                drawn = subject.name.startswith("pl.") and name not in ("absent", "columns of one name")
                # Without parts all cells are trained on, as documented.
                whole = subject.name.startswith("wrappers.train_model") and (column, name) == ("split", "absent")
                loose = answer == "refuse" and (stripped or drawn or whole)
                yield DamagedTable(subject, column, name, _at(change, column), "finite" if loose else answer)
        for key in subject.embeddings:
            for name, (change, answer) in EMBEDDINGS.items():
                if _not_written(subject, name):
                    continue
                yield DamagedTable(subject, key, name, _at(change, key), answer)


def _not_written(subject: Subject, damage: str) -> bool:
    """Whether a table that is read from disk cannot have a damage: anndata drops the mask, and refuses the others."""
    refused = {"objects", "dates", "one number", "one list", "columns of one name"}
    return (damage == "masked" and subject.name in ("tl.embed_store", "tl.index_store")) or (
        damage in refused and subject.name == "tl.index_store"
    )


LEFT_TO_OTHERS = ("tl.score_embedding",)
"""It needs more cells than these and seconds for each call."""


def _at(change: Callable[[AnnData, str], Any], key: str) -> Callable[[AnnData], None]:
    def changed(adata: AnnData) -> None:
        change(adata, key)

    return changed


@cache
def cases() -> dict[str, DamagedTable]:
    """All damaged tables by name."""
    return {str(case): case for case in damaged()}


def verdict(name: str) -> Verdict:
    """Try a case, in this process."""
    case = cases()[name]
    subject = case.subject
    with warnings.catch_warnings(), sct.settings.override(show_progress=False, offline=True):
        warnings.simplefilter("ignore")
        try:
            table = case.table()
        except (TypeError, ValueError):
            return Verdict(Outcome.CLEAR, "AnnData itself refuses such a table")
        arguments, right = subject.good(), expected(subject.name)
        accept = {
            "refuse": None,
            "same": lambda found: difference(right, found, tolerance=1e-3),
            "finite": lambda found: "" if not_finite(right) else not_finite(found),
        }[case.answer]
        return judge(
            lambda: subject(table, arguments),
            tables=tables_in(table, arguments),
            accept=accept,
            warning_is_enough=case.answer != "same",
        )
