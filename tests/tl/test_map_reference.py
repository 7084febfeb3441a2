from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from scgpt_tools.models import AtlasIndex, ReferenceIndex

CENTRES = {"B": (0, 0), "NK": (8, 0), "T": (0, 8)}
ABOUT = {"model": {"name": "tiny", "checksum": "abc"}, "params": {"pooling": "cls", "normalize": True}}


def cells(kinds: list[str], seed: int, name: str) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    vectors = np.array([CENTRES[kind] for kind in kinds]) + rng.normal(size=(len(kinds), 2))
    obs = pd.DataFrame({"kind": kinds}, index=[f"{name}{i}" for i in range(len(kinds))])
    return ad.AnnData(np.zeros((len(kinds), 1), dtype=np.float32), obs=obs, obsm={"X_scGPT": vectors})


@pytest.fixture
def reference() -> ad.AnnData:
    adata = cells(["B"] * 30 + ["NK"] * 10 + ["T"] * 20, seed=0, name="reference")
    adata.uns["X_scGPT"] = ABOUT
    return adata


@pytest.fixture
def query() -> ad.AnnData:
    adata = cells(["T", "B", "NK"] * 5, seed=1, name="query")
    adata.uns["X_scGPT"] = ABOUT
    return adata


@pytest.mark.parametrize("how", ["majority", "weighted"])
@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
def test_well_separated_types_are_found(query, reference, how, backend):
    sct.tl.map_reference(query, reference, label_key="kind", how=how, backend=backend)
    assert query.obs["mapped_cell_type"].tolist() == query.obs["kind"].tolist()
    assert (query.obs["mapped_cell_type_confidence"] > 0.9).all()


def test_what_is_written_is_what_the_neighbours_say(query, reference):
    sct.tl.map_reference(query, reference, label_key="kind", k=5)
    rows = query.obsm["mapped_cell_type_neighbors"]
    apart = query.obsm["X_scGPT"][:, None] - reference.obsm["X_scGPT"][rows]
    distances = query.obsm["mapped_cell_type_distances"]
    np.testing.assert_allclose(distances, (apart**2).sum(axis=2), rtol=1e-5)
    np.testing.assert_allclose(query.obs["mapped_cell_type_distance"], distances.mean(axis=1))
    assert (np.diff(distances, axis=1) >= 0).all()
    kinds = reference.obs["kind"].to_numpy()[rows]
    classes = query.uns["mapped_cell_type"]["classes"]
    shares = np.stack([(kinds == name).mean(axis=1) for name in classes], axis=1)
    np.testing.assert_allclose(query.obsm["mapped_cell_type_probabilities"], shares)
    assert query.uns["mapped_cell_type"]["params"]["k"] == 5
    assert query.uns["mapped_cell_type"]["model"] == ABOUT["model"]


@pytest.mark.parametrize(("ties", "winner"), [("nearest", "T"), ("first", "B")])
def test_types_with_as_many_votes(query, reference, ties, winner):
    few = reference[["reference0", "reference40"]].copy()
    few.obsm["X_scGPT"] = np.array([[0.0, 0.0], [0.0, 8.0]])
    cell = query[:1].copy()
    cell.obsm["X_scGPT"] = np.array([[0.0, 5.0]])
    sct.tl.map_reference(cell, few, label_key="kind", k=2, ties=ties)
    assert cell.obs["mapped_cell_type"].tolist() == [winner]
    assert cell.uns["mapped_cell_type"]["params"]["ties"] == ties


def test_an_index_and_its_folder_map_like_the_table(query, reference, tmp_path):
    expected = sct.tl.map_reference(query, reference, label_key="kind", copy=True)
    index = sct.tl.index_reference(reference, label_key="kind")
    folder = index.save(tmp_path / "blood")
    for source in (index, folder, str(folder), ReferenceIndex.load(folder)):
        found = sct.tl.map_reference(query, source, copy=True)
        assert found.obs.equals(expected.obs)
        for key in expected.obsm:
            np.testing.assert_array_equal(found.obsm[key], expected.obsm[key])


def test_cells_of_unknown_type_are_no_reference(query, reference):
    reference.obs.loc[reference.obs["kind"] == "B", "kind"] = np.nan
    sct.tl.map_reference(query, reference, label_key="kind")
    assert query.uns["mapped_cell_type"]["classes"].tolist() == ["NK", "T"]
    assert query.uns["mapped_cell_type"]["params"]["n_reference"] == 30


def test_cells_between_types_get_none(query, reference):
    query.obsm["X_scGPT"][0] = (4, 4)
    sct.tl.map_reference(query, reference, label_key="kind", k=30, threshold=0.9)
    assert query.obs["mapped_cell_type"].iloc[0] == "unassigned"
    sct.tl.map_reference(query, reference, label_key="kind", k=5)
    assert query.obs["mapped_cell_type_distance"].argmax() == 0


@pytest.mark.parametrize(
    ("part", "change"),
    [("model", {"checksum": "def"}), ("params", {"normalize": False}), ("params", {"pooling": "mean"})],
)
def test_cells_from_another_space_are_refused(query, reference, unchanged, tmp_path, part, change):
    query.uns["X_scGPT"] = ABOUT | {part: ABOUT[part] | change}
    before = unchanged(query)
    folder = sct.tl.index_reference(reference, label_key="kind").save(tmp_path / "blood")
    with pytest.raises(ValueError, match=f"same way as the reference, found {next(iter(change))}"):
        sct.tl.map_reference(query, reference, label_key="kind")
    with pytest.raises(ValueError, match="same way as the reference"):
        sct.tl.map_reference(query, folder)
    assert unchanged(query) == before


def test_an_embedding_of_unknown_origin_is_a_warning(query, reference):
    del query.uns["X_scGPT"]
    with pytest.warns(UserWarning, match="The query does not say which model embedded it"):
        sct.tl.map_reference(query, reference, label_key="kind")
    del reference.uns["X_scGPT"]
    sct.tl.map_reference(query, reference, label_key="kind")


def test_embeddings_of_a_real_model_fit_each_other(adata, model, make_model, tmp_path):
    """What ``tl.embed`` leaves in ``uns`` is what is compared, in memory and after a file."""
    sct.tl.embed(adata, model, show_progress=False)
    adata.write_h5ad(tmp_path / "reference.h5ad")
    stored = ad.read_h5ad(tmp_path / "reference.h5ad")
    sct.tl.map_reference(adata, stored, label_key="cell_type", k=1)
    assert adata.obs["mapped_cell_type"].tolist() == adata.obs["cell_type"].tolist()
    other = make_model(config={"dim": 16}).adapt(dim=16)
    other.heads["expression"].value[0].weight.data.add_(1)
    sct.tl.embed(stored, other, show_progress=False)
    with pytest.raises(ValueError, match="found checksum"):
        sct.tl.map_reference(adata, stored, label_key="cell_type", k=1)


def test_the_result_can_be_kept_in_a_file(query, reference, tmp_path):
    sct.tl.map_reference(query, reference, label_key="kind")
    query.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert again.obs["mapped_cell_type"].equals(query.obs["mapped_cell_type"])
    np.testing.assert_array_equal(again.obsm["mapped_cell_type_neighbors"], query.obsm["mapped_cell_type_neighbors"])


def test_arguments_that_do_not_go_together_are_refused(query, reference, unchanged):
    before = unchanged(query)
    index = sct.tl.index_reference(reference, label_key="kind")
    with pytest.raises(ValueError, match=r"`label_key` to name the column.*\['kind'\]"):
        sct.tl.map_reference(query, reference)
    with pytest.raises(ValueError, match="no `label_key` with an index"):
        sct.tl.map_reference(query, index, label_key="kind")
    with pytest.raises(KeyError, match="'X_pca'"):
        sct.tl.map_reference(query, reference, label_key="kind", use_rep="X_pca")
    with pytest.raises(ValueError, match="`how` to be one of"):
        sct.tl.map_reference(query, reference, label_key="kind", how="loudest")
    with pytest.raises(ValueError, match="`unassigned` to be no class"):
        sct.tl.map_reference(query, reference, label_key="kind", unassigned="NK")
    assert unchanged(query) == before


def test_columns_of_frames_are_put_in_the_order_of_the_reference(adata):
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.normal(size=(12, 4)), index=adata.obs_names, columns=list("abcd"))
    adata.obsm["frame"], query = values, adata.copy()
    query.obsm["frame"] = values[list("dbca")]
    with pytest.raises(ValueError, match="columns of the reference, a, b, c, d, found a, b, c, x"):
        query.obsm["frame"] = values.rename(columns={"d": "x"})
        sct.tl.map_reference(query, adata, label_key="cell_type", use_rep="frame", k=1)
    query.obsm["frame"] = values[list("dbca")]
    sct.tl.map_reference(query, adata, label_key="cell_type", use_rep="frame", k=1)
    assert query.obs["mapped_cell_type"].tolist() == adata.obs["cell_type"].tolist()


@pytest.mark.parametrize("change", ["heads", "bins"])
def test_equal_weights_are_another_model_with_other_attention_heads_or_bins(adata, make_model, change):
    model = make_model()
    sct.tl.embed(adata, model, show_progress=False)
    reference = adata.copy()
    config = model.config
    if change == "heads":
        changed = model.adapt(encoder=replace(config.encoder, heads=4))
    else:
        changed = model.adapt(tokenizer=replace(config.tokenizer, bins=11))
    assert changed.checksum == model.checksum
    sct.tl.embed(adata, changed, show_progress=False)
    with pytest.raises(ValueError, match="found architecture" if change == "heads" else "found bins"):
        sct.tl.map_reference(adata, reference, label_key="cell_type")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"k": 0}, ValueError),
        ({"k": True}, TypeError),
        ({"threshold": "high"}, TypeError),
        ({"unassigned": " "}, ValueError),
        ({"use_rep": ["X_scGPT"]}, TypeError),
        ({"backend": "annoy"}, ValueError),
        ({"copy": "no"}, TypeError),
        ({"reference": 5}, TypeError),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(adata, model, unchanged, options, error):
    sct.tl.embed(adata, model, show_progress=False)
    before = unchanged(adata)
    with pytest.raises(error, match=f"Expected `{next(iter(options))}`"):
        sct.tl.map_reference(adata, **{"reference": adata, "label_key": "cell_type"} | options)
    assert unchanged(adata) == before


def clouds(n: int, seed: int, *, donors: int = 3, shift: float = 0.0, apart: float = 8 / 3) -> ad.AnnData:
    """Cells of three types that overlap, from donors that each move all of them their own way."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(CENTRES), n)
    donor = rng.integers(0, donors, n)
    vectors = apart / 8 * np.array([CENTRES[kind] for kind in kinds]) + rng.normal(size=(n, 2))
    vectors += shift * np.random.default_rng(seed + 1).normal(size=(donors, 2))[donor]
    obs = pd.DataFrame({"kind": kinds, "donor": donor}, index=[f"{seed}-{i}" for i in range(n)])
    return ad.AnnData(
        np.zeros((n, 1), dtype=np.float32), obs=obs, obsm={"X_scGPT": vectors}, uns={"X_scGPT": dict(ABOUT)}
    )


def calibration_error(query: ad.AnnData, key: str) -> float:
    """Mean distance of confidence and share of right answers in ten groups of equal size."""
    confidence = query.obs[f"{key}_confidence"].to_numpy()
    right = (query.obs[key].astype(str) == query.obs["kind"]).to_numpy()
    groups = np.array_split(np.argsort(confidence), 10)
    return float(np.mean([abs(confidence[group].mean() - right[group].mean()) for group in groups]))


@pytest.mark.parametrize("how", ["majority", "weighted"])
def test_calibrated_confidence_is_how_often_answers_are_right(how):
    reference, query = clouds(2_000, 0, apart=1.5), clouds(3_000, 5, apart=1.5)
    sct.tl.map_reference(query, reference, label_key="kind", how=how, k=3, key_added="votes")
    sct.tl.map_reference(query, reference, label_key="kind", how=how, k=3, calibrate=True)
    assert calibration_error(query, "mapped_cell_type") < 0.05 < calibration_error(query, "votes")
    # The votes themselves, and who wins them, stay as they are.
    pd.testing.assert_series_equal(query.obs["mapped_cell_type"], query.obs["votes"], check_names=False)
    np.testing.assert_array_equal(query.obsm["mapped_cell_type_probabilities"], query.obsm["votes_probabilities"])


def test_unknown_cells_are_rejected_and_known_ones_at_the_rate_that_was_asked_for():
    reference, query = clouds(2_000, 0), clouds(2_000, 5)
    query.obsm["X_scGPT"][:100] = (14, 0) + np.random.default_rng(0).normal(size=(100, 2))
    sct.tl.map_reference(query, reference, label_key="kind", reject=0.05)
    rejected = (query.obs["mapped_cell_type"] == "unassigned").to_numpy()
    assert rejected[:100].all()
    assert rejected[100:].mean() == pytest.approx(0.05, abs=0.03)
    assert (query.obs["mapped_cell_type_p_value"].to_numpy()[:100] < 0.02).all()
    params = query.uns["mapped_cell_type"]["params"]
    assert (params["reject"], params["calibrate"], params["held_out_across"]) == (0.05, False, "")
    # Their share of the votes says nothing about it.
    assert query.obs["mapped_cell_type_confidence"].iloc[:100].mean() > 0.9
    # A mapping without p-values leaves none of another behind.
    sct.tl.map_reference(query, reference, label_key="kind", k=3)
    assert "mapped_cell_type_p_value" not in query.obs


def test_batches_that_are_held_out_keep_cells_of_new_donors():
    reference, query = clouds(3_000, 0, donors=12, shift=2.0), clouds(2_000, 20, donors=12, shift=2.0)
    within = sct.tl.index_reference(reference, label_key="kind")
    across = sct.tl.index_reference(reference, label_key="kind", batch_key="donor")
    assert across.calibration.across == "donor"
    lost = []
    for index in (within, across):
        found = sct.tl.map_reference(query, index, reject=0.05, copy=True)
        lost.append((found.obs["mapped_cell_type"] == "unassigned").mean())
    assert lost[1] < lost[0]
    # A table is held out like an index of it.
    directly = sct.tl.map_reference(query, reference, label_key="kind", batch_key="donor", reject=0.05, copy=True)
    pd.testing.assert_frame_equal(directly.obs, found.obs)
    assert directly.uns["mapped_cell_type"]["params"]["held_out_across"] == "donor"


def test_batches_are_of_a_table_and_for_what_is_calibrated(query, reference):
    reference.obs["donor"] = ["one", "two"] * 30
    with pytest.raises(ValueError, match="Expected `calibrate` or `reject` with batch_key='donor'"):
        sct.tl.map_reference(query, reference, label_key="kind", batch_key="donor")
    index = sct.tl.index_reference(reference, label_key="kind")
    with pytest.raises(ValueError, match="Expected no `batch_key` with an index"):
        sct.tl.map_reference(query, index, batch_key="donor", calibrate=True)
    with pytest.raises(KeyError, match="'donors'"):
        sct.tl.map_reference(query, reference, label_key="kind", batch_key="donors", calibrate=True)


def test_an_index_in_faiss_form_maps_like_the_table(query, reference, tmp_path):
    pytest.importorskip("faiss", reason="the extra `index` is not installed")
    expected = sct.tl.map_reference(query, reference, label_key="kind", copy=True)
    index = sct.tl.index_reference(reference, label_key="kind", index="Flat")
    assert isinstance(index, AtlasIndex)
    for source in (index, index.save(tmp_path / "atlas")):
        found = sct.tl.map_reference(query, source, copy=True)
        pd.testing.assert_frame_equal(found.obs, expected.obs, rtol=1e-4)
    with pytest.raises(ValueError, match="`backend` to be 'auto' or 'faiss'"):
        sct.tl.map_reference(query, index, backend="sklearn")


def test_what_cannot_be_calibrated_is_refused(query, reference, unchanged):
    before = unchanged(query)
    plain = sct.tl.index_reference(reference, label_key="kind", n_held_out=0)
    with pytest.raises(ValueError, match="index with held-out cells to calibrate"):
        sct.tl.map_reference(query, plain, calibrate=True)
    with pytest.raises(ValueError, match="at most 50 neighbours .* found k=55"):
        sct.tl.map_reference(query, sct.tl.index_reference(reference, label_key="kind"), k=55, reject=0.1)
    with pytest.raises(ValueError, match="Expected `reject`"):
        sct.tl.map_reference(query, reference, label_key="kind", reject=1.0)
    assert unchanged(query) == before


def test_cells_without_a_batch_cannot_be_held_out_by_it(reference):
    reference.obs["donor"] = ["one"] * 59 + [np.nan]
    with pytest.raises(ValueError, match=r"obs\['donor'\] of every cell"):
        sct.tl.index_reference(reference, label_key="kind", batch_key="donor")
    with pytest.raises(ValueError, match="at least two batches"):
        sct.tl.index_reference(reference[:59].copy(), label_key="kind", batch_key="donor")
