"""Files of scGenePT that are not quite as they should be, and the others' that are none."""

from __future__ import annotations

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools import tl
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.formats.scgenept import WEIGHTS, WITHOUT
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary([*"ABCD", "<pad>", "<cls>", "<eoc>"])
TINY = {"dim": 8, "layers": 1, "heads": 2, "hidden": 8, "width": 3}


def made(model_type: str = "scgenept_go_f") -> CellModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellModel(FAMILIES["scgenept"](VOCABULARY, model_type=model_type, **TINY), VOCABULARY).eval()


def masking(model_type: str, *, width: int = 24, shift: float = 0.1) -> CellModel:
    """A model that has learnt, in which B and all special tokens have no text."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = FAMILIES["scgenept"](VOCABULARY, model_type=model_type, **{**TINY, "width": width}, masked=True)
        model = CellModel(config, VOCABULARY).eval()
        with torch.no_grad():
            for name in {"text", "go"} & set(config.embedder.parts):
                part = model.embedder.part(name)
                part.table.weight.uniform_(-0.1, 0.1)
                part.table.weight[[1, 4, 5, 6]] = 0
                part.norm.weight += shift * torch.randn(8)
                part.norm.bias += shift * torch.randn(8)
    return model


def original(weights, ids, values, flags) -> torch.Tensor:
    """The original's forward, on the tensors of a file."""

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = norm("encoder.enc_norm", F.embedding(ids, weights["encoder.embedding.weight"]))
    counts = linear("value_encoder.linear1", values.clamp(max=512)[..., None]).relu()
    x = x + norm("value_encoder.norm", linear("value_encoder.linear2", counts))
    for name, projection in (("genept_encoder", "proj_layer"), ("gopt_encoder_c", "fc")):
        if f"{name}.embedding.weight" in weights:
            # It keeps the table in float64.
            rows = F.embedding(ids, weights[f"{name}.embedding.weight"].double()).float()
            x = x + norm(f"{name}.enc_norm", linear(f"{name}.{projection}", rows))
    x = norm("ln", x + F.embedding(flags, weights["pert_encoder.weight"]))
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True).eval()
    start = "transformer_encoder.layers.0."
    layer.load_state_dict({key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)})
    x = layer(x)
    for number in (0, 2, 4):
        x = linear(f"decoder.fc.{number}", x)
        x = F.leaky_relu(x) if number < 4 else x
    return x.squeeze(-1)


def tensors(model: CellModel, tmp_path) -> dict[str, torch.Tensor]:
    return torch.load(model.export(tmp_path / "written") / "best_model.pt", weights_only=True)


def released(tmp_path, weights, *, folder="scgenept_go_all/norman", name=WEIGHTS[-1], tokens=VOCABULARY.tokens):
    """A folder as the original's: float64 tables, no settings."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    doubles = {key: x.double() if key.startswith("gopt") and "embedding" in key else x for key, x in weights.items()}
    torch.save(doubles, place / name)
    (place / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    return place


def load(place, **settings) -> CellModel:
    return CellModel.from_pretrained(place, device="cpu", settings=settings or {"nheads": 2})


@pytest.mark.parametrize("name", [*WEIGHTS, "seed_23.pt"])
def test_a_folder_as_it_was_released(tmp_path, name):
    model = made()
    again = load(released(tmp_path, tensors(model, tmp_path), name=name))
    assert again.config.embedder.parts["go"].source.startswith("go_all")
    assert again.state_dict()["embedder.go.table.weight"].dtype == torch.float32
    kept = again.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("style", "query", "width"), [("sum", 8, 8), ("concat", 64, 72)])
def test_a_head_of_the_cell_that_nothing_reads_is_kept(tmp_path, style, query, width):
    """Of any style of scGPT's, under the original's `do_mvc`."""
    shapes = {
        "gene2query.weight": (query, 8),
        "gene2query.bias": (query,),
        "fc1.weight": (64, width),
        "fc1.bias": (64,),
    }
    shapes |= {"hidden_activation.weight": (1,), "fc2.weight": (1, 64), "fc2.bias": (1,)}
    weights = tensors(made(), tmp_path) | {f"mvc_decoder.{name}": torch.ones(shape) for name, shape in shapes.items()}
    again = load(released(tmp_path, weights))
    assert again.config.heads.expression_from_cell.style == style
    assert tensors(again, tmp_path).keys() == weights.keys()


def test_the_folder_tells_functions_from_all_of_go(tmp_path):
    weights = tensors(made(), tmp_path)
    for folder, source in (("scgenept_go_f/adamson", "go_f"), ("scgenept_go_all/adamson", "go_all"), ("x/y", "go_f")):
        place = released(tmp_path, weights, folder=folder, name="best_model.pt")
        assert load(place).config.embedder.parts["go"].source == source


@pytest.mark.parametrize(
    ("folder", "text", "go"),
    [
        ("norman/scgenept_ncbi+uniprot_gpt_go_all_gpt_avg/seed_42/models", "ncbi+uniprot", "go_all_avg"),
        ("go_all/scgenept_ncbi+uniprot/scgenept_ncbi_gpt_go_f_gpt_concat/norman", "ncbi", "go_f_concat"),
    ],
)
def test_the_folder_that_is_nearest_to_the_file_tells_the_texts(tmp_path, monkeypatch, folder, text, go):
    """Folders of the original's training among them, and the folder that one is in."""
    weights = tensors(made("scgenept_ncbi_gpt_go_f"), tmp_path)
    place = released(tmp_path, weights, folder=folder, name="best_model.pt")
    monkeypatch.chdir(place)
    for path in (place, ".", "best_model.pt"):
        parts = load(path).config.embedder.parts
        assert (parts["text"].source, parts["go"].source) == (text, go)


def test_what_the_files_do_not_tell_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    model = made("scgenept_ncbi_gpt_go_f")
    load(released(tmp_path, tensors(model, tmp_path), folder="x/y", name="best_model.pt"))
    assert "NCBI's summaries from those with UniProt's" in caplog.text
    assert "molecular functions from all axes" in caplog.text
    caplog.clear()
    CellModel.from_pretrained(tmp_path / "written", device="cpu")
    assert "does not tell" not in caplog.text


def test_without_settings_the_number_of_heads_is_taken_with_a_warning(tmp_path):
    weights = tensors(made(), tmp_path)
    with pytest.warns(UserWarning, match="nheads = 8"):
        assert CellModel.from_pretrained(released(tmp_path, weights), device="cpu").config.encoder.heads == 8
    with pytest.warns(UserWarning, match="Expected `nheads` in the settings"):
        assert load(released(tmp_path, weights, folder="b"), dropout=0.1).config.encoder.heads == 8


def test_special_tokens_that_a_vocabulary_lacks_are_appended(tmp_path):
    again = load(released(tmp_path, tensors(made(), tmp_path), tokens=VOCABULARY.tokens[:4]))
    assert again.vocabulary.tokens == VOCABULARY.tokens


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gopt_encoder_f.embedding.weight": torch.zeros(5, 3)}, "does not belong to these weights"),
        ({"gopt_encoder_c.embedding.weight": torch.zeros(7, 3)}, "one table of GO texts"),
        ({"gopt_encoder_f.fc.weight": torch.zeros(8, 4)}, "do not fit"),
        ({"ln.weight": torch.zeros(8, 1)}, "to be a vector"),
        ({"pert_encoder.weight": torch.zeros(3)}, "to be a matrix"),
        ({"pert_encoder.weight": torch.zeros(1, 8)}, "for genes that are perturbed and for others"),
        ({"something.else": torch.zeros(3)}, "none of its parts takes"),
        ({"decoder.fc.2.weight": torch.full((8, 8), float("nan"))}, "to be finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, said):
    weights = tensors(made(), tmp_path) | change
    with pytest.raises(ValueError, match=said):
        load(released(tmp_path, weights))


def test_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not belong to these weights"):
        load(released(tmp_path, tensors(made(), tmp_path), tokens=[*VOCABULARY.tokens, "E"]))


def test_a_shorter_vocabulary_is_refused_or_said(tmp_path):
    """Padding would be looked for in the row of a gene, or genes in those of others."""
    weights = tensors(made(), tmp_path)
    with pytest.raises(ValueError, match="does not belong to these weights"):
        load(released(tmp_path, weights, folder="a", tokens=[*"AB"]))
    with pytest.warns(UserWarning, match="for each of the 7 rows of the tables, found 5"):
        load(released(tmp_path, weights, folder="b", tokens=[*"BD", "<pad>", "<cls>", "<eoc>"]))


def test_a_model_of_scgpt_is_none_of_scgenept(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = FAMILIES["scgpt_perturbation"](VOCABULARY, dim=8, layers=1, heads=2, hidden=8)
        folder = CellModel(config, VOCABULARY).export(tmp_path / "scgpt")
    assert load(folder).config.family == "scgpt_perturbation"


def test_predicting_a_gene_that_is_not_measured_changes_nothing():
    adata = ad.AnnData(np.full((2, 3), 0.7, dtype=np.float32), var=pd.DataFrame(index=list("ABC")))
    with pytest.raises(ValueError, match="no column for D"):
        tl.predict_perturbation(adata, "D", made(), condition_key=None)
    assert not adata.layers
    assert not adata.uns


@pytest.mark.parametrize("family", ["scgenept", "scgpt"])
@pytest.mark.parametrize(
    "change",
    [{"norm": "pre"}, {"activation": "gelu"}, {"final_norm": True}, {"causal": True}, {"padding_mask": False}],
)
def test_layers_that_the_original_runs_otherwise_are_not_written(tmp_path, family, change):
    sizes = {key: size for key, size in TINY.items() if key != "width" or family == "scgenept"}
    config = FAMILIES[family](VOCABULARY, **sizes)
    changed = CellModel(replace(config, encoder=replace(config.encoder, **change)), VOCABULARY)
    key, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        changed.export(tmp_path)


def test_writing_draws_nothing_from_the_generator_of_others(tmp_path):
    model, before = made(), torch.random.get_rng_state()
    first = tensors(model, tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = tensors(model, tmp_path / "b")
    assert torch.equal(first["cls_decoder.out_layer.weight"], again["cls_decoder.out_layer.weight"])


def expression(model: CellModel, ids, values, flags) -> torch.Tensor:
    batch = TokenBatch(genes=ids, values=values, mask=torch.ones_like(ids, dtype=torch.bool), perturbed=flags)
    with torch.no_grad():
        return model(batch, ("expression",))["expression"]


@pytest.mark.parametrize("model_type", ["scgenept_ncbi", "scgenept_go_c", "scgenept_ncbi_gpt_go_c"])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_a_model_that_masks_genes_without_a_text_is_written_with_rows_that_add_nothing(tmp_path, model_type, shift):
    """To the original as to ours, pairs of genes without a text and padding included."""
    model = masking(model_type, shift=shift)
    ids, values, flags = (
        torch.tensor([[0, 1, 2, 4]]),
        torch.tensor([[0.5, 1.5, 0.0, 2.0]]),
        torch.tensor([[0, 1, 0, 0]]),
    )
    wanted = expression(model, ids, values, flags)
    with torch.no_grad():
        torch.testing.assert_close(original(tensors(model, tmp_path), ids, values, flags), wanted, rtol=0, atol=1e-5)
    again = CellModel.from_pretrained(tmp_path / "written", device="cpu")
    kept = again.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(expression(again, ids, values, flags), wanted)
    # The test would see a stream that adds something.
    settings = json.loads((tmp_path / "written" / "args.json").read_text())["scgpt_tools"]
    changed = tensors(model, tmp_path)
    for name, place in settings[WITHOUT].items():
        assert place == 1
        changed[{"text": "genept_encoder", "go": "gopt_encoder_c"}[name] + ".embedding.weight"][place] = 0
    with torch.no_grad():
        assert (original(changed, ids, values, flags) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("change", [{"width": 7}, {"shift": 5.0}])
def test_a_model_that_masks_is_refused_where_no_row_adds_nothing(tmp_path, change):
    with pytest.raises(ValueError, match="missing='draw'"):
        masking("scgenept_ncbi", **change).export(tmp_path / "written")
    assert not (tmp_path / "written").exists() or not list((tmp_path / "written").iterdir())


def test_low_rank_corrections_are_written_beside_rows_without_a_text(tmp_path):
    config = FAMILIES["scgenept"](VOCABULARY, **{**TINY, "width": 24}, masked=True, frozen=True, rank=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CellModel(config, VOCABULARY).eval()
        with torch.no_grad():
            model.embedder.part("text").table.weight[:1].uniform_(-0.1, 0.1)
            model.embedder.part("text").table.change[0] = 1
    ids, values, flags = torch.tensor([[0, 1]]), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64)
    wanted = expression(model, ids, values, flags)
    with torch.no_grad():
        torch.testing.assert_close(original(tensors(model, tmp_path), ids, values, flags), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        expression(CellModel.from_pretrained(tmp_path / "written", device="cpu"), ids, values, flags),
        wanted,
        rtol=0,
        atol=1e-6,
    )
