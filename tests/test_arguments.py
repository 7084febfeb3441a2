"""Former names of arguments, and what is given in a wrong place."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
import pytest
from anndata import AnnData

from scgpt_tools import metrics
from scgpt_tools._arguments import check_arguments, renamed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from mudata import MuData

    from scgpt_tools.models import CellModel


@renamed(label="label_key", seed="rng")
def named(table: object, label_key: str | None = None, *, rng: int = 0) -> tuple[str | None, int]:
    check_arguments(named, locals())
    return label_key, rng


def test_a_former_name_is_taken_with_a_warning_at_the_call():
    with pytest.warns(FutureWarning, match="Expected `label_key`, found its former name `label`") as seen:
        assert named(None, label="cell_type") == ("cell_type", 0)  # type: ignore[call-arg]
    assert seen[0].filename == __file__


def test_the_names_of_today_pass_in_silence():
    assert named(None, "cell_type", rng=3) == ("cell_type", 3)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((None,), {"label_key": "a", "label": "b"}), ((None, "a"), {"label": "b"})]
)
def test_both_names_are_refused(args, kwargs):
    with pytest.raises(TypeError, match="Expected `label_key` alone, found its former name `label`"):
        named(*args, **kwargs)


def test_the_signature_is_that_of_the_function_and_its_arguments_are_checked():
    assert list(inspect.signature(named).parameters) == ["table", "label_key", "rng"]
    with (
        pytest.warns(FutureWarning, match="`rng`"),
        pytest.raises(ValueError, match="Expected `rng` to be at least 0"),
    ):
        named(None, seed=-1)  # type: ignore[call-arg]


class _Model:
    """What a model is known by."""

    embed_cells = adapt = None


def placed(adata: AnnData | MuData, perts: str | Sequence[str], model: CellModel | str | PathLike[str]) -> None:
    check_arguments(placed, locals())


def test_a_table_or_a_model_in_a_wrong_place_names_its_place():
    adata = AnnData(np.ones((2, 2)))
    with pytest.raises(
        TypeError, match=r"`perts` to be .*found .*_Model.*\. `model` takes a model: placed\(adata, perts, model"
    ):
        placed(adata, _Model(), None)
    with pytest.raises(TypeError, match=r"`model` to be .*found AnnData\. `adata` takes a table of cells"):
        placed(adata, "G0", adata)
    with pytest.raises(TypeError, match=r"found str 'cells.h5ad'\. Read it first: anndata.read_h5ad\('cells.h5ad'\)"):
        placed("cells.h5ad", "G0", _Model())
    placed(adata, "G0", _Model())


ARRAYS = [
    name
    for name in metrics.__all__
    if inspect.isfunction(getattr(metrics, name))
    # Anything that gives rows.
    and name != "differential_expression"
]


@pytest.mark.parametrize("name", ARRAYS)
def test_cells_are_refused_by_metrics_which_take_arrays(name):
    function = getattr(metrics, name)
    first, *others = inspect.signature(function).parameters.values()
    rest = [None for other in others if other.default is other.empty and other.kind is not other.KEYWORD_ONLY]
    words = {other.name: "a" for other in others if other.default is other.empty and other.kind is other.KEYWORD_ONLY}
    with pytest.raises(TypeError, match=f"Expected `?{first.name}`? .*AnnData"):
        function(AnnData(np.ones((2, 2))), *rest, **words)
