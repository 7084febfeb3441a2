"""The object-style door to a perturbation screen, under the names of PerturbLab's ``PerturbationData``.

A few lines each over :mod:`scgpt_tools.screens.annotations`; :mod:`scgpt_tools.pp` is the same as functions.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._files import as_path, replace_file
from scgpt_tools._keys import ConditionKeys, PairKeys, SplitKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_fraction
from scgpt_tools.data.parts import PARTS
from scgpt_tools.screens.annotations import (
    annotate_conditions,
    annotate_pairs,
    annotate_ranking,
    annotate_split,
    read_pairs,
)
from scgpt_tools.screens.conditions import read_conditions, read_texts
from scgpt_tools.screens.split_options import SplitOptions
from scgpt_tools.screens.splits import custom_split, named_parts, split_conditions
from scgpt_tools.tokens.perturbations import ConditionStyle, format_condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray

_CONDITION = ConditionKeys().obs
_COLUMNS = (_CONDITION, "perturbation")
_CONTROLS = ("ctrl", "control")
_UNS = "perturbation_data"


class PerturbationData:
    """Cells of a screen with their conditions, pairs and parts.

    Columns are read when a method needs them, so that data without perturbations can be wrapped too.

    Parameters
    ----------
    adata
        Cells.  Methods write into it; :meth:`set_gears_format` exchanges it for a copy first.
    perturb_col
        Column of ``obs`` with the labels; ``None`` takes ``"condition"``, else ``"perturbation"``.
    control_tag
        Label or labels of no perturbation.
    ignore_tags
        Labels of cells to leave out.

    Examples
    --------
    >>> import anndata, pandas
    >>> obs = pandas.DataFrame({"condition": ["ctrl", "A+ctrl", "A+B", "ctrl"]}, index=list("abcd"))
    >>> data = PerturbationData(anndata.AnnData(obs=obs, var=pandas.DataFrame(index=["A", "B"])))
    >>> data.pair_cells()
    >>> data.adata.obs["condition"].iloc[data.ctrl_indices[:, 0]].tolist()
    ['ctrl', 'ctrl', 'ctrl', 'ctrl']
    """

    def __init__(
        self,
        adata: AnnData,
        perturb_col: str | None = None,
        control_tag: str | Sequence[str] = _CONTROLS,
        ignore_tags: Sequence[str] = (),
    ) -> None:
        self.adata = adata
        self._column = perturb_col
        self.control_tag = (control_tag,) if isinstance(control_tag, str) else tuple(control_tag)
        self.ignore_tags = (ignore_tags,) if isinstance(ignore_tags, str) else tuple(ignore_tags)

    def __len__(self) -> int:
        return self.adata.n_obs

    def __repr__(self) -> str:
        return f"PerturbationData of {self.adata.n_obs} cells x {self.adata.n_vars} genes"

    @property
    def perturb_col(self) -> str:
        """Column of ``obs`` with the labels."""
        if self._column is not None:
            return self._column
        found = [name for name in _COLUMNS if name in self.adata.obs]
        if not found:
            raise KeyError(f"{absent(_CONDITION, self.adata.obs, 'key in `obs`:')} Pass `perturb_col`.")
        return found[0]

    @property
    def split(self) -> pd.Series | None:
        """Part of each cell, or ``None`` before :meth:`split_data`."""
        key = SplitKeys().obs
        return self.adata.obs[key] if key in self.adata.obs else None

    @property
    def ctrl_indices(self) -> NDArray[np.int64]:
        """(cells, samples) rows of the paired controls, drawn with the defaults if they are not there."""
        if PairKeys().obsm not in self.adata.obsm:
            self.pair_cells()
        return read_pairs(self.adata)

    def set_gears_format(
        self,
        fallback_cell_type: str = "unknown",
        parse_fn: Callable[[str], Iterable[str]] | None = None,
        *,
        delimiter: str = "+",
        remove_ignore: bool = True,
    ) -> None:
        """Spell conditions as GEARS does, in a copy of the cells.

        Parameters
        ----------
        fallback_cell_type
            ``obs["cell_type"]``, where that column is absent.
        parse_fn
            Genes of a label; ``None`` splits at ``delimiter``.
        delimiter
            Text between the genes of a label.
        remove_ignore
            Drop cells whose label is among the ignored ones.
        """
        labels = read_texts(self.adata, self.perturb_col)
        adata = self.adata[~np.isin(labels, self.ignore_tags)].copy() if remove_ignore else self.adata.copy()
        column, style = self.perturb_col, ConditionStyle(control=self.control_tag, delimiter=delimiter)
        if parse_fn is not None:
            found = read_texts(adata, column)
            genes = {label: () if label in self.control_tag else parse_fn(label) for label in pd.unique(found)}
            adata.obs[_CONDITION] = [format_condition(genes[label]) for label in found]
            column, style = _CONDITION, ConditionStyle()
        annotate_conditions(adata, column, style)
        if "cell_type" not in adata.obs:
            adata.obs["cell_type"] = pd.Categorical([fallback_cell_type] * adata.n_obs)
        if "gene_name" not in adata.var:
            adata.var["gene_name"] = adata.var_names.to_numpy(dtype=object)
        self.adata, self._column = adata, _CONDITION
        self.control_tag = ("ctrl",)

    def compute_de_genes(self, method: str = "t-test") -> None:
        """Rank the genes of every condition and write the lists that GEARS and scGPT's scripts read.

        Parameters
        ----------
        method
            Test of :func:`scanpy.tl.rank_genes_groups`.
        """
        check_arguments(PerturbationData.compute_de_genes, locals())
        within = "cell_type" if "cell_type" in self.adata.obs else None
        with self._in_gears_spelling():
            annotate_ranking(self.adata, self.perturb_col, within=within, method=method, gears=within is not None)

    def split_data(
        self,
        split_type: str = "simulation",
        split_ratio: tuple[float, float, float] | None = None,
        seed: int = 1,
        test_perts: Sequence[str] | None = None,
        *,
        only_use_test_perts: bool = False,
        test_pert_genes: Sequence[str] | None = None,
        split_dict: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Hold out conditions, as GEARS does.

        Parameters
        ----------
        split_type
            A method of :func:`scgpt_tools.pp.perturbation_split`.
        split_ratio
            Shares of training, validation and test, of genes in simulations; ``None`` takes GEARS' shares.
        seed
            Seed of the draws.
        test_perts
            Genes to hold out in simulations; combinations in ``"combo_seen2"``.
        only_use_test_perts
            Hold out no other genes.
        test_pert_genes
            Genes to hold out.
        split_dict
            Conditions of each part, for ``"custom"``.
        """
        check_arguments(PerturbationData.split_data, locals())
        genes = test_pert_genes if split_type == "combo_seen2" or test_perts is None else test_perts
        doubles = test_perts if split_type == "combo_seen2" else None
        options = SplitOptions(
            rng=seed,
            test_genes=None if genes is None else tuple(genes),
            test_conditions=None if doubles is None else tuple(doubles),
            only_test_genes=only_use_test_perts,
            **_shares(split_ratio),
        )
        with self._in_gears_spelling():
            conditions = read_conditions(self.adata, self.perturb_col)
            if split_dict is None:
                split = split_conditions(pd.unique(conditions), split_type, options=options)
            else:
                split = custom_split(pd.unique(conditions), **named_parts("split_dict", split_dict))
            annotate_split(self.adata, self.perturb_col, conditions, split, {"rng": seed}, key_added=SplitKeys().key)

    def pair_cells(self, num_samples: int = 1, seed: int = 1, *, within: str | Sequence[str] | None = None) -> None:
        """Pair every perturbed cell with controls.

        Parameters
        ----------
        num_samples
            Controls a cell.
        seed
            Seed of the draws.
        within
            Columns of ``obs`` that a cell and its controls share.
        """
        check_arguments(PerturbationData.pair_cells, locals())
        with self._in_gears_spelling():
            annotate_pairs(self.adata, self.perturb_col, within=within, n=num_samples, seed=seed)

    def part(self, name: str) -> AnnData:
        """Cells of ``"train"``, ``"val"`` or ``"test"``, as a view."""
        if self.split is None:
            raise ValueError("Expected a split, found none. Run split_data first.")
        if name not in PARTS:
            raise ValueError(absent(name, PARTS, "part"))
        return self.adata[(self.split == name).to_numpy()]

    def save(self, path: str | PathLike[str]) -> None:
        """Write cells and settings to one h5ad file."""
        adata = self.adata.copy()
        adata.uns[_UNS] = {
            "perturb_col": self._column,
            "control_tag": np.array(self.control_tag, dtype=object),
            "ignore_tags": np.array(self.ignore_tags, dtype=object),
        }
        replace_file(as_path("path", path), adata.write_h5ad)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PerturbationData:
        """Read what :meth:`save` wrote."""
        adata = ad.read_h5ad(as_path("path", path))
        if _UNS not in adata.uns:
            raise ValueError(f"Expected a file written by PerturbationData.save, found no uns[{_UNS!r}] in {path}.")
        settings = adata.uns.pop(_UNS)
        tags = [tuple(map(str, settings[name])) for name in ("control_tag", "ignore_tags")]
        return cls(adata, settings["perturb_col"], *tags)

    @contextmanager
    def _in_gears_spelling(self) -> Iterator[None]:
        """Bring labels in another spelling into GEARS' one, unless the block fails."""
        if self.perturb_col == _CONDITION and self.control_tag == ("ctrl",):
            yield
            return
        before = self._column, self.control_tag
        slots = (self.adata.obs, _CONDITION), (self.adata.uns, ConditionKeys().uns)
        kept = [(slot, key, slot[key] if key in slot else None) for slot, key in slots]
        style = ConditionStyle(control=self.control_tag)
        annotate_conditions(self.adata, self.perturb_col, style, key_added=_CONDITION)
        self._column, self.control_tag = _CONDITION, ("ctrl",)
        try:
            yield
        except BaseException:
            self._column, self.control_tag = before
            for slot, key, value in kept:
                if value is None:
                    del slot[key]
                else:
                    slot[key] = value
            raise


def _shares(ratio: tuple[float, float, float] | None) -> dict[str, float]:
    if ratio is None:
        return {}
    if isinstance(ratio, str) or not hasattr(ratio, "__len__"):
        raise TypeError(f"Expected `split_ratio` to be three shares, found {ratio!r}.")
    if len(ratio) != 3 or not np.isclose(sum(check_fraction("split_ratio", share) for share in ratio), 1):
        raise ValueError(f"Expected `split_ratio` to be three shares that add up to 1, found {ratio}.")
    _, val, test = ratio
    check_fraction("split_ratio[2]", test, one=False)
    return {"train_genes": 1 - test, "test_fraction": test, "val_fraction": val / (1 - test)}
