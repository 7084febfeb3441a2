"""What is written is read again as the same model, in our format and in the original's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scgpt_tools import testing
from scgpt_tools._files import replace_file
from scgpt_tools.config import to_dict
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig, formats
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ContextConfig,
    ExpressionConfig,
    FromCellConfig,
    Named,
    scgpt_embedder,
)
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = testing.tiny_vocabulary()
TINY = {"dim": 16, "layers": 2, "heads": 2, "hidden": 24}
SCGPT = FAMILIES["scgpt"](VOCABULARY, **TINY)
PERTURBATION = FAMILIES["scgpt_perturbation"](VOCABULARY, **TINY)
MULTIOMIC = FAMILIES["scgpt_multiomic"](VOCABULARY, **TINY, modalities=4, modality_pad=0, batches=2)


def with_heads(config=SCGPT, **heads) -> ModelConfig:
    return replace(config, heads=config.heads.replace(**heads))


def with_tokenizer(config=SCGPT, **changes) -> ModelConfig:
    return replace(config, tokenizer=replace(config.tokenizer, **changes))


CONFIGS = {
    "scgpt": SCGPT,
    "perturbation": PERTURBATION,
    "multiomic": MULTIOMIC,
    "multiomic told the batch": replace(MULTIOMIC, context=ContextConfig(batches=2)),
    "batch labels": replace(SCGPT, context=ContextConfig(batches=2), batch_names=("one", "two")),
    "binned": replace(SCGPT, embedder=scgpt_embedder(values="binned", value_rows=54, value_pad=53)),
    "binned without padding": replace(SCGPT, embedder=scgpt_embedder(values="binned", value_rows=54)),
    "scale": replace(SCGPT, embedder=scgpt_embedder(values="scale")),
    "batch norm": replace(SCGPT, embedder=scgpt_embedder(norm="batch")),
    "domain norm": replace(SCGPT, embedder=scgpt_embedder(norm="domain"), domains=3),
    "norm of the first domain": replace(SCGPT, embedder=scgpt_embedder(norm="domain_of_first"), domains=3),
    "no heads": replace(SCGPT, heads=Named()),
    "classes": with_heads(cell_type=ClassifierConfig(classes=2, names=("B", "T")), batch=AdversaryConfig(classes=3)),
    "one layer": with_heads(cell_type=ClassifierConfig(classes=5, layers=1), batch=AdversaryConfig(classes=2, layers=2)),
    "probabilities": with_heads(
        expression=ExpressionConfig(nonzero=True), expression_from_cell=FromCellConfig(nonzero=True)
    ),
    **{f"from cell: {style}": with_heads(expression_from_cell=FromCellConfig(style=style))
       for style in ("inner_detached", "concat", "sum")},
    # At this width the query of the "concat" style is square, as that of "sum" is.
    **{f"from cell, 64 wide: {style}": replace(with_heads(expression_from_cell=FromCellConfig(style=style)), dim=64)
       for style in ("concat", "sum")},
    "affine": with_heads(
        PERTURBATION,
        expression=AffineConfig(nonzero=True, activation="ReLU", adaptive_offset=True),
        cell_type=ClassifierConfig(),
    ),
    "flags that are all trained": replace(PERTURBATION, embedder=scgpt_embedder(perturbation_rows=3)),
    "flags and a plain head": replace(SCGPT, embedder=scgpt_embedder(perturbation_rows=4, perturbation_pad=1)),
    **{f"pooling: {pooling}": replace(SCGPT, pooling=pooling) for pooling in ("mean", "mean_with_padding", "weighted")},
    "dropout": replace(SCGPT, encoder=replace(SCGPT.encoder, dropout=0.0)),
    "cell value of fine-tuning": with_tokenizer(cls_value=0.0),
    "log1p": with_tokenizer(values="log1p", bins=None, expects="counts"),
    "all genes, any number": with_tokenizer(genes="all", length=None, cls=False, overflow="first"),
    "random ties": with_tokenizer(ties="random", bins=7, mask_value=-0.5, pad_value=-1.5),
    "modalities": with_tokenizer(MULTIOMIC, modalities=("<pad>", "<cls>", "rna", "protein")),
    "family of a third party": replace(SCGPT, family="mine"),
    "more rows than tokens": replace(SCGPT, n_tokens=40),
}  # fmt: skip


def build(config: ModelConfig, vocabulary: Vocabulary = VOCABULARY) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config, vocabulary, name="written").eval()


def load(folder) -> CellModel:
    return CellModel.from_pretrained(folder, device="cpu")


def same(found: CellModel, expected: CellModel) -> None:
    assert found.config == expected.config
    assert found.vocabulary == expected.vocabulary
    assert found.checksum == expected.checksum
    for key, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", CONFIGS)
def test_native_there_and_back(tmp_path, name):
    model = build(CONFIGS[name])
    assert model.save(tmp_path / "ours") == tmp_path / "ours"
    again = load(tmp_path / "ours")
    same(again, model)
    again.save(tmp_path / "again")
    for file in ("config.json", "vocab.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_export_there_and_back(tmp_path, name):
    model = build(CONFIGS[name])
    again = load(model.export(tmp_path / "theirs"))
    same(again, model)
    again.export(tmp_path / "again")
    for file in ("args.json", "vocab.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    first, second = (read_contents(tmp_path / folder / "best_model.pt").weights for folder in ("theirs", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("spelling", ["torch", "fused", "wrapped"])
def test_export_in_every_spelling(tmp_path, spelling):
    model = build(SCGPT)
    folder = model.export(tmp_path, attention_names=spelling)
    marker = {"torch": "self_attn.in_proj_weight", "fused": "self_attn.Wqkv.weight", "wrapped": "_impl.Wqkv.weight"}
    assert any(key.endswith(marker[spelling]) for key in read_contents(folder / "best_model.pt").weights)
    assert json.loads((folder / "args.json").read_text())["fast_transformer"] == (spelling != "torch")
    same(load(folder), model)


def test_the_replaced_stream_is_exported_only_where_the_original_computes_it(tmp_path):
    """The original's torch layers ignore the setting, so a file in that spelling would be another model."""
    model = build(replace(SCGPT, encoder=replace(SCGPT.encoder, norm="replace")))
    with pytest.raises(ValueError, match=r"'fused' or 'wrapped' for a model with encoder\.norm='replace'"):
        model.export(tmp_path / "torch")
    assert not (tmp_path / "torch").exists()
    same(load(model.export(tmp_path / "fused", attention_names="fused")), model)


def test_exported_settings_are_those_that_the_original_reads(tmp_path):
    args = json.loads((build(SCGPT).export(tmp_path) / "args.json").read_text())
    wanted = {"embsize": 16, "nheads": 2, "d_hid": 24, "nlayers": 2, "n_layers_cls": 3, "dropout": 0.2,
              "pad_token": "<pad>", "pad_value": -2}  # fmt: skip
    assert {key: args[key] for key in wanted} == wanted
    assert all(isinstance(args[key], type(value)) for key, value in wanted.items())


def test_exported_tensors_are_plain(tmp_path):
    """Whole tensors that lie in order and share no memory, as torch.load of any version reads them."""
    model = load(build(SCGPT).export(tmp_path / "first"))
    tensors = torch.load(model.export(tmp_path / "second") / "best_model.pt", weights_only=True)
    assert all(tensor.is_contiguous() and type(tensor) is torch.Tensor for tensor in tensors.values())
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert (tmp_path / "second" / "best_model.pt").stat().st_size < 1.5 * sizes + 40_000


@pytest.mark.parametrize("write", ["save", "export"])
def test_special_tokens_by_other_names(tmp_path, write):
    tokens = [{"<pad>": "[PAD]", "<cls>": "[CLS]"}.get(token, token) for token in VOCABULARY]
    model = build(SCGPT, Vocabulary(tokens, pad="[PAD]", cls="[CLS]"))
    same(load(getattr(model, write)(tmp_path)), model)


@pytest.mark.parametrize("write", ["save", "export"])
def test_a_vocabulary_without_the_token_that_nobody_uses(tmp_path, write):
    vocabulary = Vocabulary(VOCABULARY.tokens[:-1])
    model = build(FAMILIES["scgpt"](vocabulary, **TINY), vocabulary)
    same(load(getattr(model, write)(tmp_path)), model)


@pytest.mark.parametrize("write", ["save", "export"])
def test_saving_over_the_folder_that_the_model_came_from(tmp_path, write):
    """The weights are mapped from the very files that are replaced."""
    folder = getattr(build(SCGPT), write)(tmp_path)
    model = load(folder)
    with torch.no_grad():
        model.heads["expression"].value[4].bias.fill_(3.0)
    untouched = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for _ in range(2):
        getattr(model, write)(folder)
        assert all(torch.equal(tensor, untouched[key]) for key, tensor in model.state_dict().items())
        same(load(folder), model)


@pytest.mark.parametrize("write", ["save", "export"])
def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch, write):
    model = build(SCGPT)
    folder = getattr(model, write)(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def run_out_of_space(tensors, path):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats.native, "save_file", run_out_of_space)
    monkeypatch.setattr(formats.scgpt.torch, "save", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        getattr(build(with_heads(cell_type=ClassifierConfig())), write)(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_written_is_what_will_be_read(tmp_path):
    """Our format is read first, so an export beside an older one of ours would never be seen."""
    folder = build(SCGPT).save(tmp_path / "ours")
    before = sorted(folder.iterdir())
    other = build(with_heads(cell_type=ClassifierConfig()))
    with pytest.raises(ValueError, match=r"found config\.json, .* which would be read first"):
        other.export(folder)
    assert sorted(folder.iterdir()) == before


def test_a_folder_holds_one_format(tmp_path):
    """Both have one vocabulary, so saving beside an export would give the exported weights the names of others."""
    folder = build(SCGPT).export(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"found args\.json, .* whose vocabulary would be replaced"):
        build(SCGPT, Vocabulary([*VOCABULARY.tokens[:-1], "LAST"])).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("write", "there"),
    [
        ("save", {"config.json": '{"model_type": "bert"}', "vocab.json": "{}"}),
        ("save", {"model.safetensors": "of others"}),
        ("save", {"vocab.json": "{}"}),
        ("save", {"config.json": "damaged"}),
        ("export", {"args.json": '{"embsize": 8}', "best_model.pt": "of the original"}),
        ("export", {"model.pt": "of others"}),
        ("export", {"vocab.json": "{}"}),
    ],
)
def test_files_of_others_are_not_replaced(tmp_path, write, there):
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match=f"found .*{next(iter(there))}.* of something else"):
        getattr(build(SCGPT), write)(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == there


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="`folder` to be a folder, found the file"):
        build(SCGPT).save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_replaced_files_are_moved_into_place(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        replace_file(path, lambda beside: beside.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", ["save", "export"])
def test_weights_that_are_not_finite_are_written_with_a_warning(tmp_path, write):
    model = build(SCGPT)
    with torch.no_grad():
        model.encoder.blocks[0].feed_forward.expand.weight[0, 0] = torch.inf
    with pytest.warns(UserWarning, match=r"in 1 of .*feed_forward\.expand\.weight.* Nothing will load") as caught:
        folder = getattr(model, write)(tmp_path / "model")
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="to be finite"):
        load(folder)


# Our own format -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path):
    return build(SCGPT).save(tmp_path / "ours")


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_config_is_for_people_too(ours):
    content = json.loads((ours / "config.json").read_text())
    assert (content["format"], content["version"]) == ("scgpt-tools", 2)
    assert content["model"] == json.loads(json.dumps(to_dict(SCGPT)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 2 or older .* found 3; update scgpt-tools"),
        ({"format": "transformers"}, "written by scgpt-tools, found another file of that name"),
        ({"model": to_dict(SCGPT) | {"depth": 3}}, "depth"),
        ({"model": to_dict(SCGPT) | {"dim": 32}}, r"tensors of the checkpoint do not fit"),
        ({"model": to_dict(SCGPT) | {"pad_id": 3}}, "padding to have id 3, found 12"),
    ],
)
def test_foreign_configurations_are_refused(ours, changes, message):
    change_config(ours, **changes)
    with pytest.raises(ValueError, match=message):
        load(ours)


@pytest.mark.parametrize("content", ["{}", '{"format": "scgpt-tools"}', "[]", "{"])
def test_configurations_of_others_are_refused(ours, content):
    (ours / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(ours)


def test_a_stray_config_beside_the_original_is_not_ours(original, tmp_path):
    """Hugging Face repositories often hold a config.json for the download counter."""
    folder = original.write(tmp_path)
    (folder / "config.json").write_text('{"model_type": "scgpt"}')
    assert load(folder).dim == 16


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.999])
def test_truncated_weights_are_refused(ours, keep):
    path = ours / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    for read in (load, formats.read):
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            read(ours)


def without_checksums(folder):
    """As folders were written by the version before."""
    content = json.loads((folder / "config.json").read_text())
    del content["checksums"]
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_folders_without_checksums_are_read(ours):
    same(load(without_checksums(ours)), build(SCGPT))


@pytest.mark.parametrize("name", ["vocab.json", "model.safetensors"])
def test_files_of_different_models_are_refused(ours, tmp_path, name):
    """Both have the same shapes, so that nothing else could tell."""
    torch.manual_seed(5)
    other = CellModel(SCGPT, Vocabulary([*VOCABULARY.tokens[:-2], "<eoc>", "LAST"])).save(tmp_path / "other")
    (ours / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name}' to be the file that was saved together with config\.json, found"):
        load(ours)


@pytest.mark.parametrize("name", ["vocab.json", "best_model.pt"])
def test_exports_of_different_models_are_refused(tmp_path, name):
    folder = build(SCGPT).export(tmp_path / "one")
    torch.manual_seed(5)
    other = CellModel(SCGPT, Vocabulary([*VOCABULARY.tokens[:-2], "<eoc>", "LAST"])).export(tmp_path / "other")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name}' to be the file that was saved together with args\.json, found"):
        load(folder)


@pytest.mark.parametrize("more", [True, False])
def test_other_tensors_are_refused(ours, more):
    without_checksums(ours)
    path = ours / "model.safetensors"
    tensors = load_file(path)
    if more:
        tensors["heads.more"] = torch.zeros(2)
    else:
        del tensors["embedder.genes.norm.bias"]
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"heads\.more: expected none, found \(2,\)|norm\.bias: expected \(16,\), found none"
    ):
        load(ours)


def test_half_precision_weights_are_widened(ours):
    without_checksums(ours)
    path = ours / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path)
    assert {tensor.dtype for tensor in load(ours).state_dict().values()} == {torch.float32}


def test_folders_are_made(tmp_path):
    assert load(build(SCGPT).save(tmp_path / "a" / "b")).dim == 16
    assert load(build(SCGPT).export(str(tmp_path / "c" / "d"))).dim == 16


@pytest.mark.parametrize("write", ["save", "export"])
@pytest.mark.parametrize("kind", [str, Path])
def test_home_is_expanded(tmp_path, monkeypatch, write, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = build(SCGPT)
    assert getattr(model, write)(kind("~/model")) == tmp_path / "model"
    same(load("~/model"), model)
