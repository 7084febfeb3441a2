"""Settings of modalities: what a name stands for, and what is refused."""

from __future__ import annotations

import pytest

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.tokens import ModalityConfig, TokenizerConfig
from scgpt_tools.tokens.modalities import default_modality, modality_names, resolve_modalities, summary, values_of


def test_a_name_says_how_a_modality_is_read():
    rna, prot, atac, other = (default_modality(name) for name in ("rna", "prot", "atac", "metabolites"))
    assert (rna.values, rna.prefix, rna.extend, rna.genes) == ("binned", "", False, "expressed")
    assert (prot.values, prot.prefix, prot.extend, prot.genes) == ("clr", "p_", True, "all")
    assert (atac.values, atac.prefix, atac.most, atac.choose) == ("binary", "atac_", 2000, "frequent")
    assert (other.values, other.prefix, other.extend) == ("binned", "metabolites_", True)


def test_changes_bring_what_goes_with_them():
    assert default_modality("prot", values="binned").bins == 51
    assert default_modality("rna", values="log1p").bins is None
    assert not default_modality("prot", genes="expressed").standard


def test_rna_takes_over_what_a_model_reads():
    like = {"values": "binned", "bins": 7, "length": 30, "genes": "all"}
    rna, prot = resolve_modalities(["rna", "prot"], like=like)
    assert (rna.bins, rna.length, rna.genes) == (7, 30, "all")
    assert (prot.length, prot.prefix) == (None, "p_")
    assert resolve_modalities(["rna"], {"rna": {"values": "raw"}}, like=like)[0].bins is None


def test_numbers_are_those_of_scgpt():
    parts = resolve_modalities(["rna", "prot"])
    assert modality_names(parts) == ("prot", "rna", "<pad>", "<cls>", "<eoc>")


def test_settings_survive_files():
    parts = resolve_modalities(["rna", "prot"], {"rna": None, "prot": ModalityConfig(name="x", prefix="q_", most=3)})
    config = TokenizerConfig(modalities=modality_names(parts), parts=parts)
    assert from_dict(TokenizerConfig, to_dict(config)) == config


def test_records_are_short():
    part = ModalityConfig(name="prot", keep=("a",) * 3000, prefix="p_", length=5)
    assert summary(part) == "prefix=p_, length=5"
    assert summary(ModalityConfig(name="rna")) == "defaults"
    assert values_of(part) == values_of(ModalityConfig(name="prot", prefix="p_"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name of a modality"),
        ({"name": "<pad>"}, "name of a modality"),
        ({"values": "tfidf"}, "`values`"),
        ({"values": "clr"}, "`bins` goes with"),
        ({"bins": 1}, "`bins`"),
        ({"scale": 2.0}, "`scale`"),
        ({"values": "raw", "bins": None, "scale": 0.0}, "`scale`"),
        ({"standard": True}, "`standard` goes with"),
        ({"centers": (1.0,)}, "`centers` for each of 0"),
        ({"most": 0}, "`most`"),
        ({"length": 0}, "`length`"),
        ({"choose": "best"}, "`choose`"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        ModalityConfig(**{"name": "prot"} | fields)


def test_modalities_that_cannot_be_read():
    with pytest.raises(KeyError, match="Found no modality 'protein'"):
        resolve_modalities(["rna", "prot"], ["protein"])
    with pytest.raises(ValueError, match="at least one modality"):
        resolve_modalities(["rna"], [])
    with pytest.raises(TypeError, match="found one string"):
        resolve_modalities(["rna"], "rna")
    with pytest.raises(ValueError, match="no field of ModalityConfig named 'prefx'"):
        resolve_modalities(["rna"], {"rna": {"prefx": "x"}})
    with pytest.raises(ValueError, match="names of `parts`"):
        TokenizerConfig(modalities=("<pad>", "<cls>"), parts=(ModalityConfig(name="rna"),))
