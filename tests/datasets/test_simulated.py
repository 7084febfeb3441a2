"""The simulated screen is what its documentation says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools import pp, tl
from scgpt_tools.datasets import pbmc_demo, simulated_screen
from scgpt_tools.datasets._simulated import DOUBLES, KNOCKOUTS, WITHOUT_EFFECT
from scgpt_tools.screens.profiles import mean_profiles
from scgpt_tools.tokens.units import describe_values, warn_about_units


@pytest.fixture(scope="module")
def cells():
    return simulated_screen()


@pytest.fixture(scope="module")
def changes(cells) -> dict[str, np.ndarray]:
    found = mean_profiles(cells.X, cells.obs["condition"])
    control = found.of(["ctrl"])[0]
    return dict(zip(found.names, found.means - control, strict=True))


def test_it_is_a_screen_of_log_values_that_says_it_is_simulated(cells):
    assert sp.isspmatrix_csr(cells.X)
    assert cells.X.dtype == np.float32
    warn_about_units(describe_values(cells.X), "log1p")
    assert "nobody perturbed" in cells.uns["simulated"]
    assert cells.var_names.equals(pbmc_demo().var_names)
    assert cells.obs["condition"].nunique() == 1 + len(KNOCKOUTS) + len(WITHOUT_EFFECT) + len(DOUBLES)
    sizes = cells.obs.value_counts(["batch", "condition"])
    assert set(sizes.xs("ctrl", level="condition")) == {80}
    assert set(sizes.drop("ctrl", level="condition")) == {40}
    before = cells.obs["condition"].tolist()
    pp.parse_conditions(cells, missing="error")
    assert cells.obs["condition"].tolist() == before


def test_knockouts_change_what_goes_with_them_and_others_only_themselves(cells, changes):
    size = {}
    for gene in (*KNOCKOUTS, *WITHOUT_EFFECT):
        column = cells.var_names.get_loc(gene)
        assert changes[f"{gene}+ctrl"][column] < -0.1
        size[gene] = np.linalg.norm(np.delete(changes[f"{gene}+ctrl"], column))
    without = max(size[gene] for gene in WITHOUT_EFFECT)
    assert sum(size[gene] > 1.3 * without for gene in KNOCKOUTS) >= 3


def test_pairs_add_up(changes):
    for first, second in DOUBLES:
        added = changes[f"{first}+ctrl"] + changes[f"{second}+ctrl"]
        assert np.corrcoef(added, changes[f"{first}+{second}"])[0, 1] > 0.6


def test_the_seed_and_the_strength_decide():
    first, again, other = (simulated_screen(n_cells=5, rng=seed) for seed in (0, 0, 1))
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    flat = simulated_screen(n_cells=40, strength=0)
    profiles = mean_profiles(flat.X, flat.obs["condition"])
    change = profiles.of(["TYROBP+ctrl"])[0] - profiles.of(["ctrl"])[0]
    assert np.argmin(change) == flat.var_names.get_loc("TYROBP")


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="`n_cells`"):
        simulated_screen(n_cells=0)


def test_interactions_of_measured_effects(cells):
    """Pairs multiply rates, so they are additive up to noise and the logarithm of zeros."""
    found = mean_profiles(cells.X, cells.obs["condition"])
    effects = cells[: len(found.names)].copy()
    effects.obs["condition"] = list(found.names)
    effects.X = found.means - found.of(["ctrl"])
    scores = tl.genetic_interactions(
        effects, condition_key="condition", layer=None, max_pairs=2000, show_progress=False
    )
    assert list(scores.index) == ["+".join(pair) for pair in sorted(DOUBLES)]
    assert (scores["additive_cosine"] > 0.6).all()
