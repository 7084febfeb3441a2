"""How every plot ends: shown, written to a file, or handed over."""

from __future__ import annotations

from inspect import signature

import matplotlib.pyplot as plt
import pytest

import scgpt_tools as sct
from scgpt_tools.pl._style import finish


@pytest.mark.parametrize("name", sct.pl.__all__)
def test_every_plot_can_be_shown_written_and_returned(name):
    plot = getattr(sct.pl, name)
    arguments = signature(plot).parameters
    for argument, default in {"show": None, "save": None, "return_fig": False}.items():
        assert arguments[argument].default is default
        assert f"\n    {argument}\n" in plot.__doc__ or f"\n{argument}\n" in plot.__doc__


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_is_written_in_the_format_of_its_ending(ending, start, as_text, tmp_path):
    figure, ax = plt.subplots()
    path = tmp_path / f"figure.{ending}"
    assert finish(ax, show=False, save=str(path) if as_text else path, return_fig=False) is ax
    assert path.read_bytes().startswith(start)
    plt.close(figure)


def test_a_written_figure_is_returned_too(tmp_path):
    figure, ax = plt.subplots()
    assert finish(ax, show=None, save=tmp_path / "figure.png", return_fig=True) is figure
    assert (tmp_path / "figure.png").is_file()
    plt.close(figure)
