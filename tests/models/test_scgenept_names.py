"""Names of scGenePT's model types, against what the original does with each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scgpt_tools.models import ModelType, parse_model_type
from scgpt_tools.models.scgenept.names import MODEL_TYPES

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "scgenept" / "model_types.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_every_name_of_the_original(name):
    recorded, found = RECORDED[name], parse_model_type(name)
    assert found.streams[-1] == "pert_flag"
    if recorded["accepted"]:
        assert list(parse_model_type(name, compat="upstream").streams) == recorded["effective_streams"]
        assert found.pretrained_attention == ("transformer_encoder" in recorded["pretrained_prefixes"])


def test_names_are_built_as_they_say():
    assert parse_model_type("scgpt_tokens").streams == ("gene_token", "pert_flag")
    assert parse_model_type("scgenept_ncbi_gpt_scgpt_counts").streams == ("count", "text_ncbi", "pert_flag")
    assert parse_model_type("go_f_scgpt_counts").streams == ("count", "go_f", "pert_flag")
    assert parse_model_type("scgenept_ncbi_gpt_go_p_gpt_avg").sources == {"text": "ncbi", "go": "go_p_avg"}


def test_short_names_mean_the_long_ones():
    for short in ("scgenept_go_c", "scgenept_go_c_gpt", "scgenept_go_c_gpt_concat"):
        assert parse_model_type(short) == ModelType(go="c")
    assert parse_model_type("scgenept_ncbi+uniprot") == parse_model_type("scgenept_ncbi+uniprot_gpt")


def test_every_name_there_and_back():
    for name in MODEL_TYPES:
        found = parse_model_type(name)
        assert parse_model_type(found.name) == found


@pytest.mark.parametrize(
    "name",
    [
        "scgenept_ncbi_llama",
        "scgptt",
        "go",
        "genept_",
        "ncbi_gpt",
        "scgenept",
        "_scgpt_counts",
        "scgenept_go_x",
        "go_c_no",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="model_type of scGenePT"):
        parse_model_type(name)


def test_the_nearest_name_is_named():
    with pytest.raises(ValueError, match="Did you mean 'scgenept_go_c_gpt_concat'"):
        parse_model_type("scgenept_go_c_gpt_concatt")


def test_a_name_in_other_letters_is_named_as_it_is():
    with pytest.raises(ValueError, match="Did you mean 'scgenept_go_c_gpt'"):
        parse_model_type("scGenePT_go_C_gpt")


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize("text", [None, "ncbi"])
@pytest.mark.parametrize("go", [None, "c"])
def test_a_name_never_says_other_streams(token, count, text, go):
    kind = ModelType(token=token, count=count, text=text, go=go)
    try:
        assert parse_model_type(kind.name) == kind
    except ValueError:
        assert kind.name == "+".join(kind.streams)


@pytest.mark.parametrize("wrong", [{"text": "llama"}, {"go": "x"}, {"go_pooling": "max"}, {"token": 1}])
def test_options_are_checked(wrong):
    with pytest.raises((ValueError, TypeError), match="Expected"):
        ModelType(**wrong)
