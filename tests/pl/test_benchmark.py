"""Benchmarks on paper."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.metrics.benchmark import BenchmarkScores, benchmark_table
from scgpt_tools.pl._forest import ROLES

MODELS = {"mine": "model", "other": "model", "PCA": "baseline"}


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def row(**given):
    return {"dataset": "blood", "benchmark": "linear_probe", "replicate": 0, "reason": "", **given}


@pytest.fixture
def rows() -> list[dict]:
    return [
        row(model=model, role=role, seed=seed, metric=metric, value=0.5 + place / 10 + seed / 100, reference=0.3)
        for place, (model, role) in enumerate(MODELS.items())
        for metric in ("accuracy", "f1_macro", "f1_weighted")
        for seed in range(3)
    ]


def panel_titles(figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def test_a_panel_a_score_with_a_mark_a_model_and_the_reference(rows):
    figure = sct.pl.benchmark(BenchmarkScores(benchmark_table(rows)), return_fig=True)
    assert panel_titles(figure) == ["accuracy", "f1_macro"]
    ax = figure.axes[0]
    marks = {line.get_ydata()[0]: line for line in ax.lines if line.get_marker() not in (None, "None", "")}
    for height, (place, role) in enumerate(enumerate(MODELS.values())):
        assert marks[height].get_xdata()[0] == pytest.approx(0.51 + place / 10)
        assert to_hex(marks[height].get_color()) == ROLES[role].lower()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(MODELS)
    assert 0.3 in [pytest.approx(line.get_xdata()[0]) for line in ax.lines if line.get_linestyle() == "--"]
    assert figure.get_suptitle() == "linear_probe"


def test_several_benchmarks_are_told_apart_and_failures_named(rows):
    rows += [row(benchmark="perturbation", model="mine", role="model", seed=0, metric="mse", value=0.1)]
    rows += [row(model="lost", role="model", reason="RuntimeError: no weights")]
    figure = sct.pl.benchmark(BenchmarkScores(benchmark_table(rows)), return_fig=True)
    assert panel_titles(figure) == ["linear_probe\naccuracy", "linear_probe\nf1_macro", "perturbation\nmse"]
    assert figure.axes[2].get_xlabel() == "lower is better"
    assert figure.get_suptitle() == "failed: lost"


def test_scores_are_chosen_and_drawn_where_asked(rows):
    scores = BenchmarkScores(benchmark_table(rows))
    _, ax = plt.subplots()
    assert sct.pl.benchmark(scores, metrics=["f1_weighted"], ax=ax, show=False) is ax
    assert ax.get_title(loc="left") == "f1_weighted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "bone"}, "no dataset 'bone'"),
        ({"benchmarks": ["probe"]}, "no benchmark 'probe'"),
        ({"metrics": ["accurac"]}, "Did you mean 'accuracy'"),
        ({"level": 1.0}, "level"),
    ],
)
def test_what_is_not_there_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        sct.pl.benchmark(BenchmarkScores(benchmark_table(rows)), **options)
    assert not plt.get_fignums()


def test_data_sets_are_named_and_axes_hold_one_score(rows):
    both = BenchmarkScores(benchmark_table([*rows, *[{**one, "dataset": "bone"} for one in rows]]))
    with pytest.raises(ValueError, match="Expected `dataset`, one of"):
        sct.pl.benchmark(both)
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="one score for the given `ax`"):
        sct.pl.benchmark(both, dataset="bone", ax=ax)


def test_nothing_to_draw_is_said():
    lost = BenchmarkScores(benchmark_table([row(model="lost", role="model", reason="RuntimeError: none")]))
    with pytest.raises(ValueError, match="everything failed"):
        sct.pl.benchmark(lost)
