from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from scgpt_tools.models import ReferenceIndex

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
