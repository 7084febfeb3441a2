"""Models of scGenePT from scGPT and texts, and what they learn."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from scgpt_tools import models, pp, tl
from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.models import FAMILIES, CellModel, ModelType, to_scgenept
from scgpt_tools.models.families.scmodelforge import SPECIALS
from scgpt_tools.models.scgenept.names import MODEL_TYPES
from scgpt_tools.train import finetune
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

QUICK = {"task": "perturb", "epochs": 1, "accelerator": "cpu", "dropout": 0.0}
GENES = [f"G{i}" for i in range(40)]
TEXTS = {gene: np.random.default_rng(i).normal(size=6) for i, gene in enumerate(GENES[:30])}


@pytest.fixture(scope="module")
def base() -> CellModel:
    vocabulary = Vocabulary.from_genes(GENES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellModel(
            FAMILIES["scgpt"](vocabulary, dim=16, layers=2, heads=2, hidden=16), vocabulary, name="tiny"
        ).eval()


@pytest.fixture(scope="module")
def cells():
    adata = screen(6)
    pp.perturbation_split(adata, draw="stable")
    return adata


def test_a_start_takes_what_the_original_takes(base):
    model = to_scgenept(base, "scgenept_ncbi_gpt", TEXTS)
    before, after = base.state_dict(), model.state_dict()
    for name in after:
        taken = name.startswith(("embedder.genes.", "embedder.values.", "encoder."))
        assert (name in model.transfer.used) == taken
        assert not taken or torch.equal(after[name], before[name])
    assert set(model.transfer.dropped) == {name for name in before if name not in model.transfer.used}
    ids = torch.from_numpy(base.vocabulary.ids(["G3", "G35"]))
    assert torch.equal(after["embedder.text.table.weight"][ids[0]], torch.tensor(TEXTS["G3"]).float())
    assert not after["embedder.text.table.weight"][ids[1]].any()


def test_no_attention_starts_the_transformer_anew(base):
    model = to_scgenept(base, "genept_ncbi_gpt_no_attention", TEXTS)
    assert not model.transfer.used
    assert torch.equal(
        model.state_dict()["encoder.blocks.0.attention.query.weight"],
        to_scgenept(base, "genept_ncbi_gpt_no_attention", TEXTS).state_dict()[
            "encoder.blocks.0.attention.query.weight"
        ],
    )


def test_a_gene_without_a_text_is_not_touched_by_the_stream(base):
    model = to_scgenept(base, "scgenept_ncbi_gpt", TEXTS)
    ids = torch.from_numpy(base.vocabulary.ids(["G3", "G35"]))
    with torch.no_grad():
        known, unknown = model.embedder.part("text")(ids)
    assert known.abs().sum() > 1
    assert not unknown.any()
    drawn = to_scgenept(base, "scgenept_ncbi_gpt", TEXTS, missing="draw")
    with torch.no_grad():
        assert drawn.embedder.part("text")(ids)[1].abs().sum() > 1


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"frozen": True, "rank": 2}])
def test_tokens_that_are_added_have_no_text(base, options):
    """Random ones before, which a frozen table would have kept; rows that the first table has to spare too."""
    spare = base.adapt(n_tokens=base.config.n_tokens + 2)
    vocabulary = base.vocabulary.extended(["NEW", "NEWER", "NEWEST"])
    ids = torch.from_numpy(vocabulary.ids(["NEW", "NEWEST", "G3"]))
    for start in (base, spare):
        model = to_scgenept(start, "scgenept_ncbi_gpt", TEXTS, **options).adapt(vocabulary=vocabulary)
        with torch.no_grad():
            vectors = model.embedder.part("text")(ids)
        assert not vectors[:2].any()
        assert vectors[2].any()


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"frozen": True, "rank": 2}])
def test_training_moves_the_table_as_it_was_told(base, cells, options):
    model = to_scgenept(base, ModelType(text="ncbi", go="c"), {"text": TEXTS, "go": TEXTS}, **options)
    tuned = finetune(cells, model, **QUICK)
    assert tuned.config.family == "scgenept"
    assert tuned.config.perturbation_flags == (1,)
    moved = not torch.equal(
        tuned.state_dict()["embedder.text.table.weight"], model.state_dict()["embedder.text.table.weight"]
    )
    assert moved == (not options)
    if options.get("rank"):
        assert tuned.state_dict()["embedder.text.table.change"].any()
    without = base.vocabulary.ids(["G35"])[0]
    assert not tuned.state_dict()["embedder.text.table.weight"][without].any()
    assert not tuned.state_dict()["embedder.perturbation.weight"][2].any()


def test_a_tuned_model_predicts_and_travels(base, cells, tmp_path):
    started = to_scgenept(base, "scgenept_go_all", TEXTS, missing="draw")
    with pytest.warns(UserWarning, match="whose head 'expression' started from scratch"):
        tl.predict_perturbation(cells.copy(), "G1", started, show_progress=False)
    tuned = finetune(cells, started, **QUICK)
    predicted = {}
    for name, place in (("saved", tuned.save(tmp_path / "saved")), ("exported", tuned.export(tmp_path / "exported"))):
        again = CellModel.from_pretrained(place, device="cpu")
        assert again.config.embedder.parts["go"].source == "go_all_concat"
        adata = cells.copy()
        tl.predict_perturbation(adata, ["G1", "G0+G6"], again, show_progress=False)
        predicted[name] = adata.layers["predicted_G0+G6"]
    np.testing.assert_array_equal(predicted["saved"], predicted["exported"])
    tensors = torch.load(tmp_path / "exported" / "best_model.pt", weights_only=True)
    assert "gopt_encoder_f.embedding.weight" in tensors
    assert "cls_decoder.out_layer.weight" in tensors


def test_the_recipe_is_the_originals(base, cells):
    model = to_scgenept(base, "scgpt")
    tuned = finetune(cells, model, task="perturb", max_steps=1, accelerator="cpu", patience=None, folder=None)
    assert tuned.config.encoder.dropout == 0.2
    usual = FAMILIES["scgenept"].finetuning["perturb"]
    assert usual["epochs"] == 20
    assert (usual["schedule"], usual["step_factor"]) == ("step", 0.9)


def test_masked_models_are_not_written_for_the_original(base, tmp_path):
    with pytest.raises(ValueError, match="missing='draw'"):
        to_scgenept(base, "scgenept_ncbi", TEXTS).export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists() or not list((tmp_path / "exported").iterdir())


def test_a_folder_is_searched_by_the_model_type(base, tmp_path):
    (tmp_path / "NCBI_gene_embeddings-gpt3.5-ada.pickle").write_bytes(pickle.dumps(TEXTS))
    (tmp_path / "GO_C_gene_embeddings-gpt3.5-ada-avg.pickle").write_bytes(pickle.dumps(TEXTS))
    model = to_scgenept(base, "scgenept_ncbi_gpt_go_c_gpt_avg", tmp_path)
    assert {name: model.config.embedder.parts[name].source for name in ("text", "go")} == {
        "text": "ncbi",
        "go": "go_c_avg",
    }
    with pytest.raises(FileNotFoundError, match="GO_P_gene"):
        to_scgenept(base, "scgenept_go_p", tmp_path)


def test_texts_of_genes_that_the_vocabulary_lacks_are_said_to_be_of_no_use(base, caplog):
    with caplog.at_level("INFO", logger="scgpt_tools"):
        to_scgenept(base, "scgenept_ncbi_gpt", TEXTS)
        assert "are not read" not in caplog.text
        to_scgenept(base, "scgenept_ncbi_gpt", TEXTS | {"NEW": np.ones(6), "OTHER": np.ones(6)})
    assert "Texts of 2 of 32 genes are not read, for the vocabulary lacks them: NEW, OTHER." in caplog.text


def test_own_texts_keep_their_name(base):
    texts = GeneEmbeddings.from_mapping(TEXTS, {"source": "my notes"})
    assert to_scgenept(base, "scgenept_ncbi", texts).config.embedder.parts["text"].source == "my notes"


def test_texts_of_another_source_than_the_name_says_are_refused(base, tmp_path):
    """They were recorded, and written for the original, as those of the name."""
    file = tmp_path / "GO_F_gene_embeddings-gpt3.5-ada-concat.pickle"
    file.write_bytes(pickle.dumps(TEXTS))
    for texts in (file, GeneEmbeddings.read(file), {"go": GeneEmbeddings.read(tmp_path, source="go_f_concat")}):
        with pytest.raises(ValueError, match=r"of 'go_c_concat' for .*, found those of 'go_f_concat'"):
            to_scgenept(base, "scgenept_go_c", texts)
    assert to_scgenept(base, "scgenept_go_f", file).config.embedder.parts["go"].source == "go_f_concat"
    with pytest.raises(TypeError, match=r"\['text'\] alone for .*, found 'go'"):
        to_scgenept(base, "scgenept_ncbi", {"text": TEXTS, "go": TEXTS})


def test_what_does_not_go_together_is_refused(base):
    with pytest.raises(TypeError, match="for the texts of the model type"):
        to_scgenept(base, "scgenept_ncbi_gpt")
    with pytest.raises(TypeError, match="which has no texts"):
        to_scgenept(base, "scgpt", TEXTS)
    with pytest.raises(TypeError, match="to map 'text' and 'go'"):
        to_scgenept(base, ModelType(text="ncbi", go="c"), TEXTS)
    with pytest.raises(ValueError, match="Did you mean 'scgenept_ncbi"):
        to_scgenept(base, "scgenept_ncbii", TEXTS)
    with pytest.raises(ValueError, match="found none among"):
        to_scgenept(base, "scgenept_ncbi", {"NOT": [1.0, 2.0]})
    with pytest.warns(UserWarning, match="Expected texts for most genes"):
        to_scgenept(base, "scgenept_ncbi", {"G0": [1.0, 2.0]})


def test_upstream_builds_what_it_builds(base):
    model = to_scgenept(base, "scgpt_tokens", compat="upstream")
    assert list(model.config.embedder.parts) == ["perturbation"]
    model = to_scgenept(base, "scgenept_ncbi_gpt", TEXTS, compat="upstream", genes=[*GENES[:5], "NOT"], rng=7)
    rows = np.random.RandomState(7).uniform(-0.1, 0.1, (len(base.vocabulary), 6)).astype(np.float32)
    np.testing.assert_array_equal(
        model.state_dict()["embedder.text.table.weight"][base.vocabulary.pad_id], rows[base.vocabulary.pad_id]
    )


@pytest.mark.filterwarnings("ignore:The texts of")
@pytest.mark.parametrize("compat", [None, "upstream"])
@pytest.mark.parametrize("name", [name for name in MODEL_TYPES if "_no_attention" not in name])
def test_every_model_type_starts_with_texts_or_says_that_it_needs_them(base, name, compat):
    """Under its own name, whatever the original builds under it."""
    kind = models.parse_model_type(name)
    texts = dict.fromkeys(kind.sources, TEXTS) or None
    model = to_scgenept(base, name, texts, compat=compat, genes=GENES)
    built = models.parse_model_type(name, compat=compat)
    assert {*model.config.embedder.parts} & {"text", "go"} == set(built.sources)
    if built.sources:
        with pytest.raises(TypeError, match="Expected `gene_embeddings` for the texts of the model type"):
            to_scgenept(base, name, compat=compat, genes=GENES)
    else:
        assert to_scgenept(base, name, compat=compat).config.embedder == model.config.embedder


def test_texts_that_upstream_does_not_read_are_said_to_be_of_no_use(base):
    with pytest.warns(
        UserWarning, match="'go_c_concat_scgpt_counts|'go_c_gpt_concat_scgpt_counts' are not read with compat="
    ):
        model = to_scgenept(base, "go_c_scgpt_counts", TEXTS, compat="upstream")
    assert list(model.config.embedder.parts) == ["values", "perturbation"]
    with pytest.raises(ValueError, match="Expected `compat`"):
        to_scgenept(base, "scgpt", compat="original")


def test_the_settings_of_an_export_say_what_tensors_do_not(base, tmp_path):
    exported = to_scgenept(base, "scgenept_go_all_gpt_avg", TEXTS, missing="draw").export(tmp_path)
    assert json.loads((exported / "args.json").read_text())["scgpt_tools"]["languages"]["go"]["source"] == "go_all_avg"
    assert models.parse_model_type("scgenept_go_all_gpt_avg").sources["go"] == "go_all_avg"


@pytest.mark.parametrize("family", ["deepsc", "scmodelforge"])
def test_only_scgpt_can_be_started_from(family):
    vocabulary = Vocabulary([*SPECIALS, *GENES])
    other = CellModel(FAMILIES[family](vocabulary, dim=16, layers=1, heads=2), vocabulary)
    with pytest.raises(ValueError, match=f"Expected a model of scGPT, found '{family}'"):
        to_scgenept(other, "scgenept_ncbi", TEXTS)
