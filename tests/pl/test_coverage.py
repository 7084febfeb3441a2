from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.pl.coverage import COLOURS
from scgpt_tools.tokens.coverage import OUTCOMES, Coverage
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.vocabulary import Vocabulary

NAMES = [*(f"G{number}" for number in range(16)), "OLD", "nope", "neither", None]


@pytest.fixture(autouse=True)
def no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def report() -> Coverage:
    vocabulary = Vocabulary([f"G{number}" for number in range(17)])
    return FeatureTable.from_var(pd.DataFrame(index=NAMES), vocabulary, aliases={"OLD": "G16"}).coverage


def segments(ax: plt.Axes) -> dict[str, list[float]]:
    """Length of each segment of each bar, by outcome."""
    return {bars.get_label(): [round(bar.get_width(), 9) for bar in bars] for bars in ax.containers}


def test_segments_are_shares_of_all_genes(report):
    ax = sct.pl.coverage(report, show=False)
    assert segments(ax) == {"exact": [0.8], "alias": [0.05], "missing": [0.1], "unnamed": [0.05]}
    ends = [bars[0].get_x() + bars[0].get_width() for bars in ax.containers]
    assert ends == pytest.approx([0.8, 0.85, 0.95, 1.0])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["85.0% of 20"]


def test_segments_have_the_colour_and_the_number_of_their_rule(report):
    ax = sct.pl.coverage(report, show=False)
    for bars in ax.containers:
        assert to_hex(bars[0].get_facecolor()) == COLOURS[bars.get_label()].lower()
    assert [text.get_text() for text in ax.texts] == ["16", "", "2", ""]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact", "alias", "missing", "unnamed"]


def test_every_outcome_has_its_own_colour():
    assert sorted(COLOURS) == sorted(OUTCOMES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_several_reports_are_several_bars_from_the_top(report):
    half = FeatureTable.from_var(pd.DataFrame(index=["A", "B"]), Vocabulary(["A"])).coverage
    ax = sct.pl.coverage({"blood": report, "brain": half}, show=False)
    assert segments(ax)["exact"] == [0.8, 0.5]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["blood\n85.0% of 20", "brain\n50.0% of 2"]
    assert ax.yaxis_inverted()


def test_reports_are_found_where_tasks_leave_them(adata, report):
    adata.uns["other"] = {"genes": ["not", "a", "report"]}
    adata.uns["X_scGPT"] = {"genes": report.to_dict(), "params": {}}
    assert segments(sct.pl.coverage(adata, show=False)) == segments(sct.pl.coverage(report, show=False))
    adata.uns["X_binned"] = {"genes": report.to_dict()}
    with pytest.raises(ValueError, match=r"found several: \['X_scGPT', 'X_binned'\]"):
        sct.pl.coverage(adata, show=False)
    assert segments(sct.pl.coverage(adata, key="X_binned", show=False))["exact"] == [0.8]
    with pytest.raises(KeyError, match="Did you mean 'X_scGPT'"):
        sct.pl.coverage(adata, key="X_scGPT2", show=False)


def test_no_report_says_who_makes_one(adata):
    with pytest.raises(KeyError, match="`pp.match_genes` returns one"):
        sct.pl.coverage(adata, show=False)
    with pytest.raises(TypeError, match="Expected coverage reports by name, found int as 'a'"):
        sct.pl.coverage({"a": 1})
    with pytest.raises(TypeError, match="found int"):
        sct.pl.coverage(1, show=False)


def test_given_axes_are_drawn_in(report):
    figure, (left, right) = plt.subplots(1, 2)
    assert sct.pl.coverage(report, ax=right, show=False, title="Genes") is right
    assert right.get_title(loc="left") == "Genes"
    assert left.containers == []
    assert plt.get_fignums() == [figure.number]


def test_the_figure_is_shown_or_handed_over(report, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    figure = sct.pl.coverage(report, return_fig=True, figsize=(5, 2))
    assert figure.get_size_inches().tolist() == [5, 2]
    assert sct.pl.coverage(report, show=False) in plt.gcf().axes
    assert shown == []
    assert sct.pl.coverage(report, show=True) is None
    assert len(shown) == 1


@pytest.mark.parametrize("autoshow", [True, False])
def test_scanpy_says_whether_to_show(report, monkeypatch, autoshow):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    before = sc.settings.autoshow
    sc.settings.autoshow = autoshow
    try:
        result = sct.pl.coverage(report)
    finally:
        sc.settings.autoshow = before
    assert (result is None) == bool(shown) == autoshow
