"""Folders of the original: every dialect is read, and what is not understood is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from scgpt_tools import testing
from scgpt_tools.models import CellModel, formats
from scgpt_tools.models.config import ScaleConfig
from scgpt_tools.models.formats.scgpt import ATTENTION_NAMES
from scgpt_tools.vocabulary import Vocabulary


def load(folder) -> CellModel:
    return CellModel.from_pretrained(folder, device="cpu")


def embedding(model: CellModel) -> torch.Tensor:
    with torch.no_grad():
        return model.embed_cells(testing.tiny_batch(model))


def refused(folder, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        load(folder)


@pytest.fixture
def expected(original, tmp_path) -> CellModel:
    return load(original.write(tmp_path / "expected"))


def test_sizes_and_parts_are_read_off_the_tensors(expected):
    config = expected.config
    assert (config.family, config.n_tokens, config.dim, config.pooling) == ("scgpt", 27, 16, "cls")
    assert (config.encoder.layers, config.encoder.heads, config.encoder.hidden) == (2, 2, 24)
    assert config.encoder.norm == "post"
    assert "generation" in config.embedder.parts
    assert "expression_from_cell" in config.heads
    assert "cell_type" not in config.heads
    assert config.tokenizer.cls_value == -2.0


def test_ids_are_those_of_the_file(expected, original):
    """Never the order of the file, and never a vocabulary from elsewhere."""
    assert expected.vocabulary == original.vocabulary
    table = original.weights["encoder.embedding.weight"]
    row = expected.vocabulary["GENE20"]
    assert torch.equal(expected.embedder.genes.table.weight[row], table[original.vocabulary["GENE20"]])


@pytest.mark.parametrize("name", ["best_model.pt", "model.pt"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("spelling", ATTENTION_NAMES)
def test_dialects(original, expected, tmp_path, spelling, prefix, name):
    weights = original.spelled(spelling).weights
    original.weights = {prefix + key: tensor for key, tensor in weights.items()}
    model = load(original.write(tmp_path / "dialect", weights=name))
    assert model.config == expected.config
    assert model.checksum == expected.checksum
    torch.testing.assert_close(embedding(model), embedding(expected), rtol=0, atol=0)


def test_best_model_is_preferred(original, expected, tmp_path):
    folder = original.write(tmp_path / "both")
    original.weights = {key: torch.zeros_like(tensor) for key, tensor in original.weights.items()}
    original.write(folder, weights="model.pt")
    assert load(folder).checksum == expected.checksum


@pytest.mark.parametrize("wrapping", ["model_state_dict", "state_dict"])
def test_a_training_checkpoint_is_unwrapped(original, expected, tmp_path, wrapping):
    original.weights = {"epoch": 3, wrapping: original.weights}
    assert load(original.write(tmp_path / "wrapped")).checksum == expected.checksum


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_widened(original, expected, tmp_path, dtype):
    original.weights = {key: tensor.to(dtype) for key, tensor in original.weights.items()}
    model = load(original.write(tmp_path / "half"))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.cosine_similarity(embedding(model), embedding(expected)).min() > 0.999


def test_files_of_old_torch_are_read(original, expected, tmp_path):
    """Before torch 1.6 a file was a bare pickle, which cannot be mapped."""
    folder = original.write(tmp_path / "old")
    torch.save(original.weights, folder / "best_model.pt", _use_new_zipfile_serialization=False)
    assert load(folder).checksum == expected.checksum


def test_tensors_that_do_not_lie_in_order_are_read(original, expected, tmp_path):
    original.weights = {
        key: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for key, tensor in original.weights.items()
    }
    model = load(original.write(tmp_path / "strided"))
    assert model.checksum == expected.checksum
    assert load(model.save(tmp_path / "ours")).checksum == expected.checksum


def test_nothing_is_left_without_weights(expected):
    """The network is built without memory; a tensor that the file did not fill would be on the meta device still."""
    tensors = [*expected.parameters(), *expected.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert not expected.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in expected.parameters())


def test_a_loaded_model_can_be_trained_and_leaves_the_file_alone(original, tmp_path):
    folder = original.write(tmp_path / "scgpt")
    before = (folder / "best_model.pt").read_bytes()
    model = load(folder)
    loss = model.train()(testing.tiny_batch(model)).predictions["expression"].square().mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert model.checksum != load(folder).checksum
    assert (folder / "best_model.pt").read_bytes() == before


# Vocabularies ---------------------------------------------------------------------------------------------------------


def test_special_tokens_are_appended_where_the_table_has_rows_for_them(original, expected, tmp_path):
    genes = [token for token in original.vocabulary if not original.vocabulary.is_special(token)]
    original.vocabulary = Vocabulary(genes)
    model = load(original.write(tmp_path / "bare"))
    assert model.vocabulary.tokens == (*genes, "<pad>", "<cls>", "<eoc>")
    assert model.config.n_tokens == 27


def test_special_tokens_without_a_row_get_one_and_a_warning(original, tmp_path, caplog):
    genes = [token for token in original.vocabulary if not original.vocabulary.is_special(token)]
    original.vocabulary = Vocabulary(genes)
    original.weights["encoder.embedding.weight"] = original.weights["encoder.embedding.weight"][:24]
    with caplog.at_level(logging.WARNING):
        model = load(original.write(tmp_path / "bare"))
    assert "no trained row for <pad>, <cls>" in caplog.text
    assert model.config.n_tokens == len(model.vocabulary) == 26
    assert not model.embedder.genes.table.weight[24:].any()


def test_a_token_that_nobody_uses_is_not_missed(original, tmp_path, caplog):
    """<eoc> is reserved; a table without a row for it is complete."""
    original.vocabulary = Vocabulary([token for token in original.vocabulary if token != "<eoc>"])
    original.weights["encoder.embedding.weight"] = original.weights["encoder.embedding.weight"][:26]
    model = load(original.write(tmp_path / "without"))
    assert "<eoc>" not in model.vocabulary
    assert model.config.n_tokens == 26
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_padding_goes_by_the_name_that_the_settings_give(original, expected, tmp_path):
    tokens = ["[PAD]" if token == "<pad>" else token for token in original.vocabulary]
    original.vocabulary, original.args["pad_token"] = Vocabulary(tokens, pad="[PAD]"), "[PAD]"
    model = load(original.write(tmp_path / "renamed"))
    assert model.config.pad_id == expected.config.pad_id
    assert model.vocabulary.pad == "[PAD]"


def test_a_vocabulary_longer_than_the_table_is_refused(original, tmp_path):
    original.vocabulary = original.vocabulary.extended(["ONE MORE"])
    refused(original.write(tmp_path), "at most 27 tokens .* found 28: the two files do not belong together")


def test_a_vocabulary_of_fewer_genes_without_special_tokens_is_refused(original, tmp_path):
    """Padding would be looked for in the row of a gene."""
    genes = [token for token in original.vocabulary if not original.vocabulary.is_special(token)]
    original.vocabulary = Vocabulary(genes[:-2])
    refused(original.write(tmp_path), "the special tokens in the vocabulary, .* found 22 tokens")


def test_a_missing_vocabulary_is_refused(original, tmp_path):
    folder = original.write(tmp_path, vocabulary=False)
    refused(folder, "vocab.json", FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="plausible but meaningless"):
        formats.read(folder)


def test_a_vocabulary_with_a_hole_is_refused(original, tmp_path):
    folder = original.write(tmp_path)
    (folder / "vocab.json").write_text(json.dumps({"A": 0, "B": 2}))
    refused(folder, "ids of 2 tokens to be 0 to 1")


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embsize": 32}, "embsize = 32, but the tensors have 16"),
        ({"nlayers": 3}, "nlayers = 3, but the tensors have 2"),
        ({"d_hid": 16}, "d_hid = 16, but the tensors have 24"),
        ({"nheads": None}, "number of attention heads as `nheads`"),
        ({"nheads": 3}, "multiple of the number of heads, found 16 and 3"),
        ({"input_emb_style": "category"}, "input_emb_style = 'category', but the tensors are those of 'continuous'"),
        ({"input_emb_style": "scaling"}, "input_emb_style = 'scaling'"),
        ({"mvc_decoder_style": "sum query"}, "mvc_decoder_style = 'sum query'"),
        ({"mvc_decoder_style": "outer product"}, "inner product"),
        ({"cell_emb_style": "max-pool"}, "avg-pool"),
        ({"input_style": "ranked"}, "binned"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(original, tmp_path, change, message):
    original.args |= change
    with pytest.raises((ValueError, KeyError), match=message):
        load(original.write(tmp_path))


def test_the_number_of_heads_is_never_guessed(original, tmp_path):
    del original.args["nheads"]
    refused(original.write(tmp_path), "`nheads` in args.json, found none")


def test_other_spellings_of_settings(original, expected, tmp_path):
    for theirs, others in {"embsize": "d_model", "nheads": "nhead"}.items():
        original.args[others] = original.args.pop(theirs)
    assert load(original.write(tmp_path / "other")).config == expected.config


@pytest.mark.parametrize(
    ("style", "values", "bins"), [("log1p", "log1p", None), ("normed_raw", "raw", None), ("binned", "binned", 51)]
)
def test_the_style_of_input(original, tmp_path, style, values, bins):
    original.args["input_style"] = style
    tokenizer = load(original.write(tmp_path)).config.tokenizer
    assert (tokenizer.values, tokenizer.bins) == (values, bins)


def test_the_style_of_values_is_seen_in_the_tensors(original, expected, tmp_path):
    del original.args["input_emb_style"]
    assert load(original.write(tmp_path / "silent")).config == expected.config


def test_scaling_has_to_be_said(original, tmp_path):
    """A file that lost its value encoder looks the same."""
    lost = ("value_encoder", "flag_encoder")
    original.weights = {key: tensor for key, tensor in original.weights.items() if not key.startswith(lost)}
    original.args["input_emb_style"] = "scaling"
    assert load(original.write(tmp_path / "said")).config.embedder.parts["values"] == ScaleConfig()
    del original.args["input_emb_style"]
    refused(original.write(tmp_path / "silent"), "the tensors are those of 'scale' values")


@pytest.mark.parametrize(("spelling", "norm"), [("torch", "post"), ("fused", "replace"), ("wrapped", "replace")])
def test_only_fused_layers_look_at_pre_norm(original, tmp_path, spelling, norm):
    original.spelled(spelling).args["pre_norm"] = True
    assert load(original.write(tmp_path)).config.encoder.norm == norm


@pytest.mark.parametrize("content", ["{", "[1, 2]", "3"])
def test_settings_that_are_no_json_object_are_refused(original, tmp_path, content):
    folder = original.write(tmp_path)
    (folder / "args.json").write_text(content)
    refused(folder, "args.json to hold")


# Tensors --------------------------------------------------------------------------------------------------------------


def test_an_unknown_tensor_is_refused(original, tmp_path):
    original.weights["pathway_encoder.weight"] = torch.zeros(2)
    refused(original.write(tmp_path), r"1 that none of its parts takes: pathway_encoder\.weight")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("encoder.embedding.weight", "gene table .encoder.embedding.weight."),
        ("encoder.enc_norm.bias", r"embedder\.genes\.norm\.bias: expected \(16,\), found none"),
        ("transformer_encoder.layers.1.linear1.bias", r"encoder\.blocks\.1\.feed_forward\.expand\.bias"),
        ("value_encoder.", "input_emb_style = 'continuous', but the tensors are those of 'scale'"),
        ("transformer_encoder.layers.0.", "layers of a transformer"),
        ("transformer_encoder.", "layers of a transformer"),
        ("mvc_decoder.W.weight", r"expression_from_cell\.product\.weight: expected \(16, 16\), found none"),
    ],
)
def test_a_missing_tensor_is_refused(original, tmp_path, lost, message):
    """No part may keep the random weights that it was made with."""
    original.weights = {key: tensor for key, tensor in original.weights.items() if not key.startswith(lost)}
    refused(original.write(tmp_path), message)


def test_a_tensor_of_another_shape_is_refused(original, tmp_path):
    original.weights["decoder.fc.0.weight"] = torch.zeros(16, 32)
    refused(original.write(tmp_path), r"heads\.expression\.value\.0\.weight: expected \(16, 16\), found \(16, 32\)")
