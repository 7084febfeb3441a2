"""A modality that was not measured is predicted from another one, and what was measured of it is not looked at."""

from __future__ import annotations

from dataclasses import replace

import mudata as md
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from mudatas import PROTEINS, contents, make_base, make_mudata, without_pulling
from scgpt_tools.inference.imputing import in_unit_of_data, tokens_of, unit_of
from scgpt_tools.models import CellModel
from scgpt_tools.tokens import ModalityConfig

# A protein has the name of a gene on purpose.
pytestmark = [pytest.mark.filterwarnings("ignore:var_names are not unique"), pytest.mark.usefixtures("without_bars")]

HOW = {
    "epochs": 30, "batch_size": 8, "lr": 1e-2, "schedule": "cosine", "warmup": 0.1, "accelerator": "cpu", "rng": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> CellModel:
    with sct.settings.override(show_progress=False):
        return sct.train.finetune(make_mudata(120), make_base(), task="multiomic", batch_key="batch", **HOW)


@pytest.fixture(scope="module", params=[{"values": "log1p"}, {"most": 2}], ids=["unit", "panel"])
def unlike(request) -> CellModel:
    """Predicts proteins in another unit, or knows fewer of them."""
    with sct.settings.override(show_progress=False):
        return sct.train.finetune(
            make_mudata(60),
            make_base(),
            task="multiomic",
            batch_key="batch",
            modalities={"rna": {}, "prot": request.param},
            **HOW | {"epochs": 1},
        )


def rna_alone(mdata) -> md.MuData:
    with without_pulling():
        return md.MuData({"rna": mdata["rna"].copy()})


def test_proteins_follow_from_genes(trained):
    mdata = make_mudata(60, seed=9)
    sct.tl.impute(mdata, trained, modality="prot", batch_key="batch")
    found = mdata.obsm["prot_imputed"]
    counts = mdata["prot"].X.astype(float)
    truth = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    assert list(found.columns) == PROTEINS
    assert list(found.index) == list(mdata.obs_names)
    assert (found.to_numpy() >= 0).all()
    # The last one is alike in both kinds of cells.
    for place in range(3):
        assert np.corrcoef(found.iloc[:, place], truth[:, place])[0, 1] > 0.85
    assert np.abs(found.mean() - truth.mean(axis=0)).max() < 0.2
    assert mdata.uns["prot_imputed"]["unit"] == "clr"
    assert mdata.uns["prot_imputed"]["params"]["predicted_from"] == "rna"


def test_the_measurement_is_not_looked_at(trained):
    mdata = make_mudata(20, mosaic=True)
    alone = rna_alone(mdata)
    sct.tl.impute(mdata, trained, modality="prot", batch_key="batch")
    sct.tl.impute(alone, trained, modality="prot", batch_key="batch", batch_size=3)
    same = mdata.obsm["prot_imputed"].loc[alone.obs_names]
    np.testing.assert_allclose(alone.obsm["prot_imputed"], same, atol=1e-5)


def test_several_models_answer_by_their_mean(trained, tmp_path):
    other = sct.train.finetune(
        make_mudata(60), make_base(), task="multiomic", batch_key="batch", **HOW | {"epochs": 2, "rng": 1}
    )
    mdata = rna_alone(make_mudata(20, seed=9))
    alone = []
    for number, model in enumerate((trained, other)):
        sct.tl.impute(mdata, model, modality="prot", batch_key="batch", key_added=str(number))
        alone.append(mdata.obsm[str(number)].to_numpy())
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    sct.tl.impute(mdata, [trained, other.save(tmp_path / "other")], modality="prot", batch_key="batch")
    found = mdata.obsm["prot_imputed"]
    assert found.to_numpy().dtype == np.float32
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-5)
    assert mdata.uns["prot_imputed"]["model"]["checksum"] == f"{trained.checksum}, {other.checksum}"


def test_models_that_answer_together_speak_of_the_same(trained, unlike):
    mdata = rna_alone(make_mudata(20))
    before = contents(mdata)
    with pytest.raises(
        ValueError, match=r"in one unit, found 'clr' of .* and 'log1p' of|same panel of 'prot'.* and 2, not"
    ):
        sct.tl.impute(mdata, [trained, unlike], modality="prot", batch_key="batch")
    with pytest.raises(ValueError, match="which reads one"):
        sct.tl.impute(mdata, [trained, make_base()], modality="prot", batch_key="batch")
    with pytest.raises(ValueError, match="one `model` or more, found an empty list"):
        sct.tl.impute(mdata, [], modality="prot", batch_key="batch")
    with pytest.raises(TypeError, match="or a list of them, found None"):
        sct.tl.impute(mdata, None, modality="prot", batch_key="batch")
    assert contents(mdata) == before


def test_what_else_is_asked_changes_nothing(trained):
    mdata = make_mudata(20)
    sct.tl.impute(mdata, trained, modality="prot", batch_key="batch")
    with without_pulling():
        copied = sct.tl.impute(
            mdata, trained, modality="prot", batch_key="batch", features=["IgG", "CD4"], key_added="two", copy=True
        )
    assert "two" not in mdata.obsm
    assert list(copied.obsm["two"].columns) == ["IgG", "CD4"]
    np.testing.assert_allclose(copied.obsm["two"], mdata.obsm["prot_imputed"][["IgG", "CD4"]], atol=1e-5)


def test_units():
    binned = ModalityConfig(name="x", bins=3, levels=(0.0, 1.0, 3.0), keep=("a",), prefix="x_")
    values = np.array([[0.5], [1.5]], dtype=np.float32)
    assert (unit_of(binned), unit_of(replace(binned, levels=None))) == ("log1p", "bin")
    np.testing.assert_allclose(in_unit_of_data(values, binned, ["a"]), [[0.5], [2.0]])
    np.testing.assert_allclose(in_unit_of_data(values, replace(binned, levels=None), ["a"]), values)
    peaks = ModalityConfig(name="x", values="binary", bins=None, scale=2.0)
    assert unit_of(peaks) == "probability"
    np.testing.assert_allclose(in_unit_of_data(np.array([[1.0, -1.0, 5.0]]), peaks, list("abc")), [[0.5, 0.0, 1.0]])
    vocabulary = make_base().vocabulary.extended(["x_b", "a"])
    assert tokens_of(vocabulary, binned) == ("a",)
    assert tokens_of(vocabulary, replace(binned, keep=None)) == ("x_b",)
    assert tokens_of(vocabulary, ModalityConfig(name="rna")) == ()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modality": "atac"}, ValueError, "no modality 'atac'"),
        ({"modality": "rna"}, ValueError, "has learnt to predict all of 'rna'"),
        ({"modality": "prot", "features": ["CD8"]}, KeyError, "no feature of 'prot' named 'CD8'"),
        ({"modality": "prot", "layer": "counts"}, KeyError, "'counts'"),
        ({"modality": "prot", "batch_key": None}, ValueError, "is conditioned on its 2 batches: a, b"),
        ({"modality": "prot", "batch_key": "kind"}, ValueError, "no class of obs"),
    ],
)
def test_refusals_change_nothing(trained, arguments, error, message):
    mdata = make_mudata(20)
    before = contents(mdata)
    with pytest.raises(error, match=message):
        sct.tl.impute(mdata, trained, **{"batch_key": "batch"} | arguments)
    assert contents(mdata) == before


def test_a_table_and_a_model_that_do_not_fit(trained):
    mdata = make_mudata(20)
    with pytest.raises(TypeError, match="Expected `mdata` to be a MuData"):
        sct.tl.impute(mdata["rna"], trained, modality="prot")
    with pytest.raises(ValueError, match="which reads one"):
        sct.tl.impute(mdata, make_base(), modality="prot")
    with without_pulling():
        proteins = md.MuData({"prot": mdata["prot"].copy()})
    with pytest.raises(ValueError, match="another modality than 'prot'"):
        sct.tl.impute(proteins, trained, modality="prot", batch_key="batch")


def test_weights_of_modalities(trained):
    mdata = make_mudata(40, mosaic=True)
    sct.tl.modality_weights(mdata, trained)
    weights = mdata.obs[["rna:mod_weight", "prot:mod_weight"]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(weights.iloc[:3, 0], 1)
    only_proteins = ~mdata.obs_names.isin(mdata["rna"].obs_names)
    np.testing.assert_array_equal(weights.loc[only_proteins, "prot:mod_weight"], 1)
    assert weights.to_numpy().min() >= 0
    assert pd.Series(mdata.uns["mod_weight"]["model"])["name"] == "tiny (multiomic)"
    with pytest.raises(ValueError, match="at least two modalities"):
        sct.tl.modality_weights(rna_alone(mdata), trained)
    with pytest.raises(TypeError, match="Expected `mdata` to be a MuData"):
        sct.tl.modality_weights(mdata["rna"], trained)


def test_mapping_and_scores_read_the_mudata_itself(trained):
    reference, query = make_mudata(60), make_mudata(30, seed=4)
    for mdata in (reference, query):
        sct.tl.embed(mdata, trained)
    sct.tl.map_reference(query, reference, label_key="kind", k=5)
    found = query.obs["mapped_cell_type"].astype(str).to_numpy()
    assert (found == query["rna"].obs["kind"].to_numpy()).mean() > 0.9


def test_a_model_without_heads_is_refused(trained):
    empty = type(trained.config.heads)()
    headless = CellModel(replace(trained.config, heads=empty), trained.vocabulary).eval()
    with pytest.raises(ValueError, match="one of the heads"):
        sct.tl.impute(make_mudata(4), headless, modality="prot")
