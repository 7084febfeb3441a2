"""Rows of a MuData, wherever its modalities are kept, and what is learnt about them before training."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mudatas import contents, make_base, make_mudata, without_pulling
from scgpt_tools.data.learning import open_to_learn
from scgpt_tools.data.modalities import ModalityRows, joint_obs
from scgpt_tools.data.opening import Matching, open_rows
from scgpt_tools.tokens import TokenizerConfig


def _backed(mdata, folder):
    with without_pulling():
        mdata.write(folder / "cells.h5mu")
        return md.read_h5mu(folder / "cells.h5mu", backed="r")


def _zarr(mdata, folder):
    """Columns in memory, matrices on disk."""
    import zarr

    tables = {}
    for name, table in mdata.mod.items():
        group = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=2)
        ad.io.write_elem(group, "X", sp.csr_matrix(table.X))
        tables[name] = ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=table.obs, var=table.var)
    with without_pulling():
        return md.MuData(tables)


FORMS = {
    "memory": lambda mdata, folder: mdata,
    "view": lambda mdata, folder: mdata[mdata.obs_names],
    "backed": _backed,
    "zarr": _zarr,
}


@pytest.mark.filterwarnings("ignore:var_names are not unique")
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_columns_of_all_modalities(form, tmp_path):
    mdata = make_mudata(mosaic=True)
    rows = ModalityRows(FORMS[form](mdata, tmp_path))
    expected = pd.DataFrame(index=mdata.obs_names)
    for name, table in mdata.mod.items():
        X = table.X.toarray() if sp.issparse(table.X) else table.X
        expected = expected.join(pd.DataFrame(X, index=table.obs_names).add_prefix(name))
        expected[f"{name} measured"] = mdata.obs_names.isin(table.obs_names).astype(float)
    expected = expected.fillna(0).to_numpy()
    assert rows.n_columns == expected.shape[1]
    np.testing.assert_array_equal(np.vstack([block.X.toarray() for block in rows.blocks(rows=7)]), expected)
    order = [5, 0, len(rows) - 1, 5]
    np.testing.assert_array_equal(rows.take(order).toarray(), expected[order])
    np.testing.assert_array_equal(rows.measured.to_numpy(), expected[:, [24, 29]] == 1)


def test_columns_of_cells_are_those_of_all_modalities():
    mdata = make_mudata(mosaic=True)
    obs = joint_obs(mdata)
    assert {"kind", "batch", "rna:kind", "rna:batch", "prot:batch"} <= set(obs.columns)
    assert obs["batch"].notna().all()
    assert obs["rna:batch"].isna().sum() == 4
    mdata["prot"].obs["batch"] = "z"
    assert "batch" not in joint_obs(mdata)


def test_layers_by_modality():
    mdata = make_mudata()
    mdata["rna"].layers["twice"] = 2 * mdata["rna"].X
    rows = ModalityRows(mdata, layer={"rna": "twice"})
    np.testing.assert_array_equal(rows.take([3]).toarray()[0, :24], 2 * mdata["rna"].X[3].toarray().ravel())
    with pytest.raises(KeyError, match="'twice'"):
        ModalityRows(mdata, layer="twice")
    with pytest.raises(KeyError, match="Found no modality 'RNA'"):
        ModalityRows(mdata, layer={"RNA": "twice"})


def _without_features(mdata):
    mdata.mod["prot"] = mdata["prot"][:, :0].copy()


def _same_names(mdata):
    mdata["prot"].obs_names = ["cell0", *mdata["prot"].obs_names[:-1]]


def _strangers(mdata):
    mdata["prot"].obs_names = [f"other{i}" for i in range(mdata["prot"].n_obs)]


def _negative(mdata):
    mdata["prot"].X[2, 1] = -1.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_features, "features in modality 'prot', found none"),
        (_same_names, "modality 'prot' to have a name of its own, found 1 names again: cell0"),
        (_strangers, r"cells of modality 'prot' to be cells of the MuData, found 40 others"),
        (_negative, r"in `X` of modality 'prot', found -1.0 in cell 'cell2', gene 'GENE3'"),
    ],
)
def test_tables_that_do_not_fit_together(spoil, message):
    mdata = make_mudata()
    spoil(mdata)
    before = contents(mdata)
    with pytest.raises(ValueError, match=message):
        ModalityRows(mdata).check()
    assert contents(mdata) == before


def learn(mdata, **options):
    defaults = {"layer": None, "modality": None, "modalities": None, "changes": {}, "seed": 0}
    base = make_base()
    return open_to_learn(mdata, base.vocabulary, base.config.tokenizer, matching=Matching(), **defaults | options)


@pytest.mark.parametrize("choose", ["frequent", "variable", "random"])
def test_a_cap_keeps_the_best_features(choose):
    mdata = make_mudata(200, peaks=True)
    atac = {"most": 4, "choose": choose}
    kept = learn(mdata, modalities={"rna": None, "atac": atac}).tokenizer.parts[1].keep
    assert len(kept) == 4
    # The share of cells in which a peak is open rises from 0.1 to 0.9 along the columns.
    share = pd.Series(mdata["atac"].X.toarray().mean(0), index="atac_" + mdata["atac"].var_names)
    if choose == "frequent":
        assert set(kept) == set(share.nlargest(4).index)
    if choose == "variable":
        assert set(kept) == set((share * (1 - share)).nlargest(4).index)
    again = learn(mdata, modalities={"rna": None, "atac": atac}, seed=1).tokenizer.parts[1].keep
    assert (set(again) == set(kept)) == (choose != "random")


def test_what_values_mean_is_noted():
    mdata = make_mudata(100)
    opened = learn(mdata, modalities={"rna": None, "prot": {"values": "binned", "bins": 5, "standard": False}})
    levels = opened.tokenizer.parts[1].levels
    assert len(levels) == 5
    assert levels[0] == 0
    assert np.all(np.diff(levels) > 0)
    standard = learn(mdata).tokenizer.parts[1]
    assert standard.keep == ("p_CD4", "p_GENE3", "p_CD19", "p_IgG")
    assert len(standard.centers) == len(standard.spreads) == 4
    assert opened.features.vocabulary.tokens[-4:] == standard.keep


def test_a_model_of_several_modalities_wants_a_mudata():
    mdata = make_mudata()
    config = learn(mdata).tokenizer
    with pytest.raises(TypeError, match=r"Expected a MuData for a model of the modalities \['rna', 'prot'\]"):
        open_rows(mdata["rna"], config)
    with pytest.raises(ValueError, match="no modality 'atac'"):
        open_rows(mdata, config, modality="atac")
    assert list(open_rows(mdata, config, modality="prot").parts) == ["prot"]
    with pytest.raises(ValueError, match="no `modalities` for a model that reads one"):
        open_rows(mdata, TokenizerConfig(), modality="rna", modalities=["rna"])
    with pytest.raises(TypeError, match="name one layer"):
        open_rows(mdata["rna"], TokenizerConfig(), layer={"rna": "x"})
    with pytest.raises(ValueError, match="that the model reads, found"):
        _only_peaks(config)


def _only_peaks(config):
    with without_pulling():
        open_rows(md.MuData({"atac": make_mudata(peaks=True)["atac"]}), config)
