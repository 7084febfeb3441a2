"""Logistic regression on genes: what a network that names cell types has to be worth its trouble beside.

It needs no vocabulary but the names of its genes, and takes a second to fit.  A gene that a table lacks counts as one of
average expression.  Genes are not scaled: a gene that hardly varies in the reference would weigh as much as a marker, and
what is noise there differs between donors, chemistries and species.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from scgpt_tools._files import as_path, replace_file
from scgpt_tools._validate import check_integer, check_number
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.units import describe_values
from scgpt_tools.vocabulary import PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scgpt_tools.tokens.matching import Duplicates, Totals
    from scgpt_tools.tokens.units import Unit

N_GENES = 2_000
"""Genes of the largest variance that are looked at."""
_FORMAT = 2
# Log-odds of a class without a cell to learn it from.
_NEVER = -1e9
_ARRAYS = ("genes", "classes", "centre", "weights", "intercept")


@dataclass(frozen=True, eq=False)
class GeneClassifier:
    """A fitted logistic regression on log-normalised genes.

    :func:`scgpt_tools.train.fit_gene_classifier` makes one, and :func:`scgpt_tools.tl.annotate` takes it as a member of
    a committee.

    Parameters
    ----------
    genes
        (G,) names.
    classes
        (C,) names.
    centre
        (G,) mean log-normalised expression of each gene in the training cells.
    weights
        (C, G) of the differences from it.
    intercept
        (C,) log-odds of a cell of average expression.
    """

    genes: NDArray[np.str_]
    classes: NDArray[np.str_]
    centre: NDArray[np.float32]
    weights: NDArray[np.float32]
    intercept: NDArray[np.float32]

    def __post_init__(self) -> None:
        n_genes, n_classes = len(self.genes), len(self.classes)
        expected = {"centre": (n_genes,), "weights": (n_classes, n_genes), "intercept": (n_classes,)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"Expected finite numbers of the shape {shape} as `{name}`, found {array.shape}.")

    def __repr__(self) -> str:
        return f"GeneClassifier({len(self.genes)} genes, {len(self.classes)} classes)"

    @property
    def name(self) -> str:
        """What to call it in messages and in ``uns``."""
        return "logistic regression on genes"

    @property
    def checksum(self) -> str:
        """SHA-256 over all arrays."""
        return sha256(b"".join(np.ascontiguousarray(getattr(self, name)).tobytes() for name in _ARRAYS)).hexdigest()

    @property
    def vocabulary(self) -> Vocabulary:
        """The genes as tokens, to match those of a table to."""
        return Vocabulary([PAD, *self.genes.tolist()])

    @classmethod
    def fit(
        cls,
        X: sp.csr_matrix,
        codes: NDArray[np.int64],
        *,
        genes: Sequence[str],
        classes: Sequence[str],
        n_genes: int = N_GENES,
        strength: float = 1.0,
    ) -> GeneClassifier:
        """Fit to cells of known classes.

        Parameters
        ----------
        X
            (cells, genes) log-normalised expression, as :func:`log_normalised` gives.
        codes
            (cells,) class of each, as a position in ``classes``; at least two differ.
        genes
            Names of the columns.
        classes
            Names of the classes; one without a cell is never predicted.
        n_genes
            Genes of the largest variance to look at.
        strength
            Inverse of the penalty, scikit-learn's ``C``.

        Returns
        -------
        The classifier.
        """
        check_integer("n_genes", n_genes)
        check_number("strength", strength, above=0)
        chosen = variable_columns(X, n_genes)
        values = (X if chosen.size == X.shape[1] else X[:, chosen]).astype(np.float64, copy=False)
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # what is left to gain after so many steps is little
            found = LogisticRegression(C=strength, max_iter=200).fit(values, codes)
        centre = np.asarray(values.mean(axis=0), dtype=np.float32).ravel()
        # Of two classes scikit-learn keeps the log-odds of the second.
        two = len(found.classes_) == 2
        weights = np.zeros((len(classes), chosen.size), dtype=np.float32)
        intercept = np.full(len(classes), _NEVER, dtype=np.float32)
        weights[found.classes_] = np.vstack([np.zeros_like(found.coef_), found.coef_]) if two else found.coef_
        intercept[found.classes_] = np.r_[0.0, found.intercept_] if two else found.intercept_
        names = np.asarray(genes, dtype=str)[chosen]
        return cls(names, np.asarray(classes, dtype=str), centre, weights, intercept + weights @ centre)

    def probabilities(self, X: sp.csr_matrix, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of each class.

        Parameters
        ----------
        X
            (cells, columns) log-normalised expression.
        ids
            (columns,) token of each column in :attr:`vocabulary`.

        Returns
        -------
        (cells, C).
        """
        places = ids - 1
        weights = self.weights[:, places]
        return softmax(X @ weights.T + (self.intercept - weights @ self.centre[places]), axis=1)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the classifier to a file of NumPy's, which is replaced if it is there.

        Parameters
        ----------
        path
            The file; its name ends with ``.npz``.

        Returns
        -------
        The path.

        Raises
        ------
        ValueError
            If the name ends otherwise.
        """
        file = as_path("path", path)
        if file.suffix != ".npz":
            raise ValueError(f"Expected a `path` that ends with '.npz', found {str(path)!r}.")
        replace_file(file, partial(_write, arrays={name: getattr(self, name) for name in _ARRAYS}))
        return file

    @classmethod
    def load(cls, path: str | PathLike[str]) -> GeneClassifier:
        """Read a classifier from a file.

        Parameters
        ----------
        path
            Where :meth:`save` wrote.

        Returns
        -------
        The classifier.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds something else, or is damaged.
        """
        file = as_path("path", path)
        try:
            with np.load(file, allow_pickle=False) as found:
                if int(found["format"]) != _FORMAT:
                    raise KeyError
                return cls(*(found[name] for name in _ARRAYS))
        except FileNotFoundError:
            raise
        except (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected {str(file)!r} to hold a gene classifier in format {_FORMAT}, found another or a damaged file. "
                "Fit it anew."
            ) from error


def log_normalised(X: sp.csr_matrix, unit: Unit | None = None) -> sp.csr_matrix:
    """Logarithms of expression in 10,000 molecules a cell; values that are logarithms or bins already stay as they are.

    ``unit``: of the values; ``None`` guesses by a look at them.
    """
    unit = describe_values(X[:256]).unit if unit is None else unit
    if unit not in ("counts", "normalised"):
        return X
    depth = np.asarray(X.sum(axis=1)).ravel()
    factors = np.divide(1e4, depth, out=np.zeros_like(depth, dtype=np.float64), where=depth > 0)
    return sp.csr_matrix(sp.diags(factors) @ X).log1p()


def variable_columns(X: sp.csr_matrix, n: int) -> NDArray[np.int64]:
    """Columns of the largest variance, ascending, at most ``n``, none of which is constant unless all are."""
    return most_variable(*sums_of_columns(X), rows=X.shape[0], n=n)


def sums_of_columns(X: sp.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and sum of squares of each column, which add up over blocks of rows."""
    sums, squares = (np.asarray(each.sum(axis=0, dtype=np.float64)).ravel() for each in (X, X.multiply(X)))
    return sums, squares


def most_variable(sums: NDArray[np.float64], squares: NDArray[np.float64], *, rows: int, n: int) -> NDArray[np.int64]:
    """What :func:`variable_columns` says, from the sums of so many rows."""
    mean = sums / rows
    variance = squares / rows - mean**2
    order = np.argsort(-variance, kind="stable")[:n]
    # As a difference of large numbers, the variance of a constant is not quite 0.
    varying = order[variance[order] > 1e-6 * mean[order] ** 2]
    return np.sort(varying if varying.size else order)


def genes_of(
    var: pd.DataFrame, vocabulary: Vocabulary, duplicates: Duplicates, totals: Totals | None, **matching: Any
) -> FeatureTable:
    """Columns of a table that are genes of a classifier, one for each gene, by the rules of all that is matched."""
    # It has one weight for a gene.
    duplicates = "first" if duplicates == "all" else duplicates
    return FeatureTable.from_var(var, vocabulary, duplicates=duplicates, totals=totals, min_coverage=0.0, **matching)


def _write(path: Path, *, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, format=np.asarray(_FORMAT), **arrays)
